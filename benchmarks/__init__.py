"""Baton against what people use today: real processes, the same trees, the same minutes."""
