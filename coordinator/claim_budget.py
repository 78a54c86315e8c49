"""How fast one coordinator claims jobs: a bucket of claims that fills steadily. Pure but for its dice.

When etcd ends all leases at once, ten thousand jobs are vacant in the same moment. Their next owners
open sessions at the same workers, so claims come as a ripple: a first burst, then so many a second, in
batches whose distances vary, so that the coordinators do not move in step.
"""

import random

DEFAULT_PER_S = 4_000.0
"""5,000 jobs in little more than 1 s, even when one coordinator is left: 3 s are promised."""
_BURST_S = 0.2
_BATCH = 100


class ClaimBudget:
    """Claims that may be made now."""

    def __init__(self, per_s: float = DEFAULT_PER_S) -> None:
        """Begin with a full bucket: a fifth of a second's claims, one batch at least."""
        self._per_s = per_s
        self._most = max(float(_BATCH), per_s * _BURST_S)
        self._left = self._most
        self._seen_at = 0.0

    def take(self, wanted: int, now: float) -> int:
        """Take up to `wanted` claims at `now`, in seconds of any clock that does not go back."""
        self._left = min(self._most, self._left + max(0.0, now - self._seen_at) * self._per_s)
        self._seen_at = now
        taken = min(wanted, int(self._left))
        self._left -= taken
        return taken

    def pause_s(self) -> float:
        """Return how long to wait for the next batch: 0.5 to 1.5 times what it takes to fill."""
        return _BATCH / self._per_s * random.uniform(0.5, 1.5)  # noqa: S311 - any will do
