"""What a side of a comparison is: prepared once for an area, then asked to copy, again and again."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.delayed_link import Link, device_bytes
from benchmarks.stopwatch import Measured


@dataclass(frozen=True, slots=True)
class Area:
    """Where one case takes place: everything lies in its one directory."""

    directory: Path
    strict: bool
    """Whether an acknowledged copy must survive a power cut."""
    link: Link | None = None
    """What lies between the two ends, None for the loopback."""
    own_sources: Mapping[str, bool] = field(default_factory=dict)
    """The sides that have a source of their own, by name."""

    def root(self, side: str) -> Path:
        """Return what the source end of a side exports; its tree lies one level below."""
        return self.directory / (f"from-{side}" if self.own_sources.get(side) else "source")

    def tree(self, side: str = "") -> Path:
        """Return the tree that a side copies."""
        return self.root(side) / "tree"

    def targets(self, side: str) -> Path:
        """Return where one side makes its copies."""
        return self.directory / f"to-{side}"

    @property
    def far_prefix(self) -> tuple[str, ...]:
        """What a command line needs in front to run at the target's end."""
        return self.link.prefix if self.link is not None else ()

    @property
    def far_host(self) -> str:
        """The address of the target's end."""
        return self.link.far if self.link is not None else "127.0.0.1"

    def passed_bytes(self) -> int:
        """Return how many bytes have gone between the ends so far, in both directions."""
        # The loopback counts every byte twice, as sent and as received.
        return self.link.passed_bytes() if self.link is not None else device_bytes("lo") // 2


class Running(Protocol):
    """A side that is ready to copy."""

    async def aim(self, target: str) -> None:
        """Get ready for a copy to this directory of the side's targets; not measured."""

    async def copy(self, target: str) -> Measured:
        """Copy the area's tree there."""

    def places(self, target: str) -> list[Path]:
        """Return where the copies are then."""


class Side(Protocol):
    """One who copies. `name` is for the table and the command line."""

    @property
    def name(self) -> str:
        """A short name, without spaces."""

    @property
    def says(self) -> str:
        """What exactly is run."""

    @property
    def own_source(self) -> bool:
        """Whether it needs a source of its own: two workers cannot export one directory."""

    @property
    def targets(self) -> int:
        """How many copies it makes at once."""

    def missing(self) -> str | None:
        """Return why it cannot run on this machine, None when it can."""

    def start(self, area: Area) -> AbstractAsyncContextManager[Running]:
        """Prepare its processes for an area, and end them afterwards."""
