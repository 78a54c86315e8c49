"""What can go wrong with a benchmark.

BenchmarkError
├── WrongCopy    a side did not copy what it was given: its time says nothing
└── NotYet       this version does not carry out what the case asks for
"""


class BenchmarkError(Exception):
    """The benchmark cannot go on; the text says why."""


class WrongCopy(BenchmarkError):
    """What lies at the target is not what the source holds."""


class NotYet(BenchmarkError):
    """The product refuses the job of the case; the text is its own."""
