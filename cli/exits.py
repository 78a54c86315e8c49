"""How commands end: the exit codes, and which one each kind of failure has."""

from enum import IntEnum

import grpc
import grpc.aio

from coordinator.errors import (
    BadConfig,
    BadKey,
    CoordinatorError,
    StoreDenied,
    StoreUnavailable,
)
from coordinator.job_file import JobFileInvalid
from wire.errors import BindFailed, PeerRefused, WireError
from worker.errors import WorkerError


class Exit(IntEnum):
    """The codes that scripts rely on."""

    DONE = 0
    FAILED = 1
    """The run or the check failed."""
    USAGE = 2
    """Wrong usage, or a file that is not valid."""
    HELD = 3
    """Refused by a safety guard, waiting for an approval."""
    NOBODY = 4
    """Nobody there to answer."""
    DENIED = 5
    """Not allowed."""


class CommandFailed(Exception):
    """A command ends with this code; the text is for people, on standard error."""

    def __init__(self, code: Exit, text: str) -> None:
        """Keep both."""
        super().__init__(text)
        self.code = code


class NobodyAnswered(CommandFailed):
    """No coordinator, or not the one that was asked, gave an answer in time."""

    def __init__(self, text: str) -> None:
        """Keep the text."""
        super().__init__(Exit.NOBODY, text)


_BY_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.USAGE,
    grpc.StatusCode.NOT_FOUND: Exit.USAGE,
    grpc.StatusCode.ALREADY_EXISTS: Exit.USAGE,
    grpc.StatusCode.OUT_OF_RANGE: Exit.USAGE,
    grpc.StatusCode.UNIMPLEMENTED: Exit.USAGE,
    grpc.StatusCode.UNAVAILABLE: Exit.NOBODY,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.NOBODY,
    grpc.StatusCode.UNAUTHENTICATED: Exit.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: Exit.DENIED,
}

_BY_OUTCOME = {"succeeded": Exit.DONE, "blocked": Exit.HELD}

_BY_ERROR: tuple[tuple[type[Exception], Exit], ...] = (
    (JobFileInvalid, Exit.USAGE),
    (BadConfig, Exit.USAGE),
    (BadKey, Exit.USAGE),
    (StoreUnavailable, Exit.NOBODY),
    (StoreDenied, Exit.DENIED),
    (CoordinatorError, Exit.FAILED),
    (BindFailed, Exit.FAILED),
    (PeerRefused, Exit.DENIED),
    (WireError, Exit.USAGE),
    (WorkerError, Exit.FAILED),
)

EXPECTED = (CommandFailed, CoordinatorError, WireError, WorkerError)
"""The errors whose text says all there is to say; others are bugs, and show where they happened."""


def exit_of_outcome(outcome: str) -> Exit:
    """Return how a command ends that waited for a run with this outcome."""
    return _BY_OUTCOME.get(outcome, Exit.FAILED)


def exit_of_run(outcome: str, errors: int) -> Exit:
    """Return how a command ends that waited for a run; one that does not end goes on."""
    if outcome == "running":
        return Exit.FAILED if errors else Exit.DONE
    return exit_of_outcome(outcome)


def exit_of_error(error: Exception) -> Exit:
    """Return how a command ends that one of `EXPECTED` stopped."""
    if isinstance(error, CommandFailed):
        return error.code
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)


def failure_of_call(error: grpc.aio.AioRpcError, address: str) -> CommandFailed:
    """Turn a coordinator's refusal, or its silence, into how the command ends."""
    details = error.details() or error.code().name
    code = _BY_STATUS.get(error.code(), Exit.FAILED)
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return NobodyAnswered(f"coordinator at {address} did not answer in time: see --timeout")
        case grpc.StatusCode.UNAVAILABLE:
            return NobodyAnswered(f"coordinator at {address}: {details}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return CommandFailed(code, f"coordinator at {address} is older and does not know that")
    return CommandFailed(code, details)
