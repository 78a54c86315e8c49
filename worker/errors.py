"""What a worker refuses, and why.

WorkerError
├── StartRefused      the process cannot begin: a root, the state directory or a port is taken
├── OrderRefused      an order of an owner; nothing of it is done, and it is counted
└── PeerRefused       a call of another worker that no session of ours grants
    └── PeerNotNow    its token is not ours: one of us has yet to hear of a takeover
"""

from wire.orders import RefusalReason
from wire.token import Token


class WorkerError(Exception):
    """Base of everything raised here; `str()` of it is fit for a terminal."""


class StartRefused(WorkerError):
    """The worker cannot begin; says what is in the way."""


class OrderRefused(WorkerError):
    """An order is refused."""

    def __init__(self, reason: RefusalReason, detail: str, highest: Token | None = None) -> None:
        """Keep what the owner is told: the reason, a sentence, the highest token accepted."""
        super().__init__(detail)
        self.reason = reason
        self.highest = highest or Token(0, 0)


class PeerRefused(WorkerError):
    """Another worker's call has no ground in a session of this worker."""


class PeerNotNow(PeerRefused):
    """The caller's token is not this worker's: worth another try while a takeover goes round."""
