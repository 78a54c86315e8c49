"""What can go wrong with watching, for those who use it.

WorkerError
└── JournalUnusable     the disk refuses the journal, or its file turned out to be damaged
"""

from worker.errors import WorkerError


class JournalUnusable(WorkerError):
    """The journal of a root can be neither read nor written now; the message says what to do."""
