"""Named steps at which a test can make the engine die or fail.

`BATON_FAILPOINTS=before_rename:kill@3,before_fsync:error` kills the process the third time it
reaches `before_rename` and gives EIO the first time it reaches `before_fsync`. Unset, a step costs
one look into an empty dictionary.
"""

import errno
import os
import signal
from enum import StrEnum

VARIABLE = "BATON_FAILPOINTS"


class Step(StrEnum):
    """Every step there is; the crash tests go through all of them."""

    BEFORE_STAGE = "before_stage"
    BEFORE_ADOPT = "before_adopt"
    AFTER_ADOPT = "after_adopt"
    BEFORE_PATCH = "before_patch"
    AFTER_PATCH = "after_patch"
    AFTER_STAGE = "after_stage"
    BEFORE_FSYNC = "before_fsync"
    AFTER_FSYNC = "after_fsync"
    BEFORE_RENAME = "before_rename"
    AFTER_RENAME = "after_rename"
    AFTER_LINK = "after_link"
    BEFORE_DISPLACED = "before_displaced"
    BEFORE_METADATA = "before_metadata"
    BEFORE_DELETE_BATCH = "before_delete_batch"
    BEFORE_TRASH = "before_trash"
    AFTER_TRASH = "after_trash"
    BEFORE_DIRSYNC = "before_dirsync"
    AFTER_DIRSYNC = "after_dirsync"
    BEFORE_DIRECTORIES = "before_directories"
    BEFORE_ACK = "before_ack"
    BEFORE_MARKER = "before_marker"
    AFTER_MARKER = "after_marker"


class JournalStep(StrEnum):
    """The steps of a change on its way through a worker's journal."""

    BEFORE_CHANGES = "before_changes"
    AFTER_CHANGES = "after_changes"
    BEFORE_DONE = "before_done"
    AFTER_DONE = "after_done"


class _Fault:
    """What is to happen at one step, and at which arrival."""

    __slots__ = ("action", "left")

    def __init__(self, action: str, nth: int) -> None:
        self.action = action
        self.left = nth


_armed: dict[str, _Fault] = {}


def _named(name: str) -> Step | JournalStep:
    return JournalStep(name) if name in set(JournalStep) else Step(name)


def arm(spec: str) -> None:
    """Replace what is armed by `spec`, in the form of the environment variable; empty disarms all.

    Raises ValueError for unknown steps and actions: a misspelt fault would be a test that passes
    without having tested anything.
    """
    faults: dict[str, _Fault] = {}
    for part in filter(None, spec.split(",")):
        name, _, action = part.partition(":")
        action, _, nth = action.partition("@")
        if action not in {"kill", "error"}:
            raise ValueError(f"{part!r}: the action is kill or error")
        faults[_named(name)] = _Fault(action, int(nth or 1))
    _armed.clear()
    _armed.update(faults)


def reach(step: Step | JournalStep) -> None:
    """Pass the step, unless it is armed: then die by SIGKILL, or raise OSError(EIO)."""
    if not _armed:
        return
    fault = _armed.get(step)
    if fault is None:
        return
    fault.left -= 1
    if fault.left != 0:
        return
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.EIO, f"injected at {step}")


arm(os.environ.get(VARIABLE, ""))
