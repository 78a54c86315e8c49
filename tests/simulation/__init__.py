"""Whole clusters in virtual time: real coordinators and sessions, a seeded scheduler, seeded faults.

`python -m tests.simulation` runs seeds, and one seed again with everything that happened.
"""
