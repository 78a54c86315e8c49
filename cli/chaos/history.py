"""What happened in a chaos run, in the words of those who saw it: the checker needs nothing else.

Times are seconds since the run began, on one monotonic clock.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that was seen at a time."""

    at: float


class Injected(Event, frozen=True, tag="injected"):
    """A fault began."""

    number: int
    fault: str
    target: str
    stops_coordination: bool = False
    """Whether jobs may have no owner while it lasts."""


class Bitten(Event, frozen=True, tag="bitten"):
    """Whether the fault was seen to have an effect while it lasted."""

    number: int
    seen: bool


class Healed(Event, frozen=True, tag="healed"):
    """A fault is over, and what it touched works again."""

    number: int


class Changed(Event, frozen=True, tag="changed"):
    """A writer changed one path at one member, in one step.

    `displaced` is the version that it took away by that, and saw: nobody has to keep it.
    """

    job: str
    member: str
    path: str
    what: Literal["write", "delete", "rename"]
    version: str = ""
    displaced: str = ""
    origin: str = ""


class Read(Event, frozen=True, tag="read"):
    """A reader found a file that is no complete version. (Whole ones are only counted.)"""

    member: str
    path: str
    size: int


class ReadMany(Event, frozen=True, tag="read-many"):
    """How many complete versions a reader found."""

    member: str
    files: int


class Owned(Event, frozen=True, tag="owned"):
    """A coordinator became a job's owner."""

    job: str
    node: str
    token: int


class Disowned(Event, frozen=True, tag="disowned"):
    """A job has no owner."""

    job: str


class Published(Event, frozen=True, tag="published"):
    """A worker began to publish for a job under a token; in the order in which it did."""

    worker: str
    job: str
    token: int


class Trashed(Event, frozen=True, tag="trashed"):
    """Versions found in a root's trash, and taken out of it, so that a long run has room."""

    job: str
    member: str
    versions: list[str]


class Doubted(Event, frozen=True, tag="doubted"):
    """What a target lost while its source's root was not mounted."""

    job: str
    source: str
    member: str
    looked_at: int
    vanished: list[str]
    """Versions."""


class Exposed(Event, frozen=True, tag="exposed"):
    """The age of the oldest change that waits for a target of a real-time job, in seconds."""

    job: str
    target: str
    exposure_s: float


class FinalTree(Event, frozen=True, tag="final-tree"):
    """What a member has in the end: by path the version, or a kind in brackets."""

    job: str
    member: str
    entries: dict[str, str]
    trash: list[str]
    """Versions in the root's trash, of this job."""


class FinalRun(Event, frozen=True, tag="final-run"):
    """What one more run moved, after the last one had succeeded and nobody wrote any more."""

    job: str
    outcome: str
    moved: int
    audits: int = 0
    """Of a real-time job: how often everything was compared."""
    audit_found: int = 0
    """What that found that no event had told of."""


class Proved(Event, frozen=True, tag="proved"):
    """What the ledger of a job proves; no findings: it holds."""

    job: str
    records: int
    findings: list[str]


class Sentinel(Event, frozen=True, tag="sentinel"):
    """What lies beside the roots and changed, which nothing may."""

    looked_at: int
    changed: list[str]


E = TypeVar("E", bound=Event)

Any = (
    Injected
    | Bitten
    | Healed
    | Changed
    | Read
    | ReadMany
    | Owned
    | Disowned
    | Published
    | Trashed
    | Doubted
    | Exposed
    | FinalTree
    | FinalRun
    | Proved
    | Sentinel
)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Any)


def line(event: Any) -> bytes:
    """Return an event as it is kept in a file."""
    return _encoder.encode(event) + b"\n"


def save(path: Path, events: Iterable[Any]) -> None:
    """Write a history, a line an event."""
    with path.open("wb") as file:
        for event in events:
            file.write(line(event))


def load(path: Path) -> list[Any]:
    """Read a history; raises msgspec.ValidationError where it is none."""
    return [_decoder.decode(line) for line in path.read_bytes().splitlines()]
