"""How well a root is watched, as users see it. Values, no behaviour."""

from dataclasses import dataclass
from enum import StrEnum


class WatchMode(StrEnum):
    """What the worker's configuration says of a root: `--watch NAME=MODE`."""

    AUTO = "auto"
    """Watched from the first consumer until the last one is forgotten."""
    ALWAYS = "always"
    """Watched from the start of the worker, so that the first consumer finds the index made."""
    NEVER = "never"
    """Not watched: consumers always have to look at everything."""


class WatchSource(StrEnum):
    """Where news of changes comes from."""

    EVENTS = "events"
    """The kernel tells all of it."""
    POLLING = "polling"
    """Stat scans at an interval, beside what events there are: other hosts' changes tell no kernel."""
    NONE = "none"
    """Nobody looks: `never`, or nothing uses the root."""


class WatchPhase(StrEnum):
    """What can be said of the journal right now."""

    IDLE = "idle"
    """The root is not watched."""
    SCANNING = "scanning"
    """Compares the tree with the index: what changed meanwhile is found and journaled bit by bit."""
    WATCHING = "watching"
    """Every change so far is in the journal, or settles."""
    DEGRADED = "degraded"
    """Some part is not seen by events, or the root is away; it is healed without help, once it can."""


@dataclass(frozen=True, slots=True)
class WatchState:
    """How a root is watched now."""

    source: WatchSource
    phase: WatchPhase
    reason: str
    """Why it scans or is degraded, and what to do about it; empty when all is well."""
    directories: int
    """Directories that the kernel watches for us."""
    in_doubt_since: float | None
    """Since when there may be changes that are in no journal yet, in seconds of the epoch; None when
    it is sure that there are none but those that settle."""

    @property
    def is_continuous(self) -> bool:
        """Whether everything that changed so far is in the journal, or settles."""
        return self.in_doubt_since is None and self.phase is not WatchPhase.IDLE


NOT_WATCHED = WatchState(WatchSource.NONE, WatchPhase.IDLE, "", 0, None)
