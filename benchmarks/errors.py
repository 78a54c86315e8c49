"""What can go wrong with a benchmark.

BenchmarkError
└── WrongCopy    a side did not copy what it was given: its time says nothing
"""


class BenchmarkError(Exception):
    """The benchmark cannot go on; the text says why."""


class WrongCopy(BenchmarkError):
    """What lies at the target is not what the source holds."""
