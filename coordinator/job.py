"""A job as its owner reads it: the domain type behind a job file, and what must hold within a job.

Times, shares and rates keep the form people write (`units`), so that what stands in etcd reads like
a job file. Reading and writing is `job_file`'s; nothing here knows etcd or YAML. Pure.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal

import msgspec

from coordinator.members import members_overlap, parse_member
from coordinator.units import Duration, Limit, Rate, Retention, Share
from syncengine.model import Compare, Durability, MirrorOptions, Safety
from wire.identity import is_label
from wire.orders import Member


class Rule(StrEnum):
    """What a run makes true of the trees."""

    MIRROR = "mirror"
    COPY = "copy"
    MOVE = "move"
    SYNC = "sync"
    EXCHANGE = "exchange"

    @property
    def is_one_way(self) -> bool:
        """Whether there is one source, and targets."""
        return self in {Rule.MIRROR, Rule.COPY, Rule.MOVE}


class CopyWhen(StrEnum):
    """When rule `copy` replaces what is there."""

    DIFFERING = "differing"
    NEWER = "newer"
    ALWAYS = "always"


class Conflict(StrEnum):
    """What rules `sync` and `exchange` do with two differing changes."""

    KEEP_BOTH = "keep-both"
    NEWEST = "newest"
    SUPPRESS = "suppress"


class Missed(StrEnum):
    """What becomes of due instants that nobody could serve."""

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """What happens when a run is due while the one before still goes on."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"


class From(StrEnum):
    """Whether an interval counts from the start or the end of the run before."""

    START = "start"
    END = "end"


class Symlinks(StrEnum):
    """What is done with symlinks; they are never followed."""

    KEEP = "keep"
    INSIDE = "inside"


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of a job has in common."""


class Realtime(_Part, frozen=True, kw_only=True):
    """A monitor: how long a path must be quiet, and how often everything is compared anyway."""

    settle: Duration = Duration.parse("50ms")
    audit: Duration = Duration.parse("24h")


class Trigger(_Part, frozen=True, kw_only=True):
    """When runs are due: exactly one of four forms."""

    manual: bool | None = None
    every: Duration | None = None
    from_: From | None = msgspec.field(default=None, name="from")
    cron: str | None = None
    timezone: str | None = None
    realtime: Realtime | None = None

    def __post_init__(self) -> None:
        """Check that it is one form, with only what belongs to it."""
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError(f"has {len(forms)} forms: use exactly one of {', '.join(_FORMS)}")
        if self.manual is False:
            raise ValueError("manual: false says nothing: use manual: true, or another form")
        if self.from_ is not None and self.every is None:
            raise ValueError("from belongs to every")
        if self.timezone is not None and self.cron is None:
            raise ValueError("timezone belongs to cron")
        if self.every is not None and self.every.seconds < 1:
            raise ValueError(f"every {self.every} is too often: use 1s or more")

    @property
    def form(self) -> str:
        """Which of the four it is."""
        return next(name for name in _FORMS if getattr(self, name) is not None)

    @property
    def counts_from(self) -> From:
        """Where an interval begins to count; the start of the run before unless said otherwise."""
        return self.from_ or From.START


_FORMS = ("manual", "every", "cron", "realtime")


class WhenStable(_Part, frozen=True, kw_only=True):
    """Go back to the preferred node when it has been there for so long."""

    when_stable: Duration


class Placement(_Part, frozen=True, kw_only=True):
    """Which coordinators may own the job; any when no nodes are named."""

    nodes: tuple[str, ...] = ()
    fallback: bool = True
    failback: Literal["never"] | WhenStable = "never"

    def __post_init__(self) -> None:
        """Check the names."""
        for node in self.nodes:
            if not is_label(node):
                raise ValueError(f"nodes: {node!r} is no name of a coordinator: use a DNS label")
        if len(set(self.nodes)) != len(self.nodes):
            raise ValueError("nodes: one coordinator is named twice")
        if not self.nodes and not self.fallback:
            raise ValueError("fallback: false without nodes leaves nobody: name nodes")


class Retries(_Part, frozen=True, kw_only=True):
    """How often, and after which delay, a failed run is tried again."""

    attempts: int = 3
    delay: Duration = Duration.parse("30s")
    backoff: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.attempts <= 100:
            raise ValueError(f"attempts {self.attempts} is out of range: use 1 to 100")
        if not 1 <= self.backoff <= 10:
            raise ValueError(f"backoff {self.backoff} is out of range: use 1 to 10")


class Window(_Part, frozen=True, kw_only=True):
    """When the job may act."""

    days: str = "mon-sun"
    from_: str = msgspec.field(name="from")
    to: str


class SafetySpec(_Part, frozen=True, kw_only=True):
    """The limits beyond which a plan waits for an approval, and what is kept of what goes."""

    max_delete: Share = Share.parse("50%")
    max_delete_files: Limit = Limit.parse(100_000)
    trash: Retention = Retention.parse("30d")
    keep_replaced: bool = False


class Metadata(_Part, frozen=True, kw_only=True):
    """Which attributes travel."""

    mode: bool = True
    times: bool = True
    owner: bool = True
    xattrs: bool = True
    acls: bool = True
    hardlinks: bool = True
    devices: bool = False
    setuid: bool = False
    symlinks: Symlinks = Symlinks.KEEP


class Transfer(_Part, frozen=True, kw_only=True):
    """How content is compared, sent and written."""

    compression: Literal["auto", "on", "off"] = "auto"
    delta: Literal["auto", "on", "off"] = "auto"
    bandwidth: Rate = Rate.parse("off")
    durability: Durability = Durability.STRICT
    compare: Compare = Compare.MTIME


class JobSpec(_Part, frozen=True, kw_only=True):
    """One job, whole and consistent in itself.

    Whether its workers exist, and whether it gets along with other jobs, is asked elsewhere.
    """

    name: str
    rule: Rule
    source: str | None = None
    targets: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    trigger: Trigger = msgspec.field(default_factory=lambda: Trigger(manual=True))
    copy_when: CopyWhen = CopyWhen.DIFFERING
    conflict: Conflict = Conflict.KEEP_BOTH
    placement: Placement = Placement()
    lease_ttl: Duration = Duration.parse("5s")
    missed: Missed = Missed.LATEST
    missed_within: Duration = Duration.parse("24h")
    overlap: Overlap = Overlap.SKIP
    retries: Retries = Retries()
    windows: tuple[Window, ...] = ()
    filters: tuple[str, ...] = ()
    safety: SafetySpec = SafetySpec()
    metadata: Metadata = Metadata()
    transfer: Transfer = Transfer()

    def __post_init__(self) -> None:
        """Check what concerns more than one field. Raises `ValueError` that begins with a field."""
        if not is_label(self.name):
            raise ValueError(
                f"name: {self.name!r} is no DNS label: use 1 to 63 of a-z, 0-9 and '-'"
            )
        if not (2 <= self.lease_ttl.seconds <= 60 and self.lease_ttl.seconds.is_integer()):
            raise ValueError(
                f"lease_ttl: {self.lease_ttl} is out of range: use whole seconds from 2s to 60s"
            )
        _check_members(self)
        _check_rule_options(self)

    @property
    def source_member(self) -> Member:
        """Where a one-way job reads."""
        assert self.source is not None, "a one-way rule has a source"
        return parse_member(self.source)

    @property
    def target_members(self) -> tuple[Member, ...]:
        """Where a one-way job writes, in the order of the file."""
        return tuple(parse_member(target) for target in self.targets)

    @property
    def all_members(self) -> tuple[Member, ...]:
        """Every member, the source first."""
        texts = (self.source, *self.targets) if self.source is not None else self.members
        return tuple(parse_member(text) for text in texts)

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of all workers that take part, each once, the source's first."""
        return tuple(dict.fromkeys(member.worker for member in self.all_members))

    def mirror_options(self) -> MirrorOptions:
        """Return what the workers must know of this job to compare and write trees."""
        return MirrorOptions(
            compare=self.transfer.compare,
            durability=self.transfer.durability,
            keep_mode=self.metadata.mode,
            keep_times=self.metadata.times,
            keep_setuid=self.metadata.setuid,
            safety=Safety(
                max_delete=self.safety.max_delete.limit,
                max_delete_files=self.safety.max_delete_files.count,
                trash_s=self.safety.trash.whole_seconds,
                keep_replaced=self.safety.keep_replaced,
            ),
        )


def _check_members(spec: JobSpec) -> None:
    named: list[tuple[str, str]]
    if spec.rule.is_one_way:
        if spec.members:
            raise ValueError(f"members: rule {spec.rule} has source and targets instead")
        if spec.source is None:
            raise ValueError(f"source: rule {spec.rule} needs one, as WORKER:ROOT[/PATH]")
        if not spec.targets:
            raise ValueError(f"targets: rule {spec.rule} needs at least one, as WORKER:ROOT[/PATH]")
        named = [("source", spec.source)]
        named += [(f"targets[{place}]", text) for place, text in enumerate(spec.targets)]
    else:
        if spec.source is not None or spec.targets:
            raise ValueError(f"source, targets: rule {spec.rule} has members: [...] instead")
        if len(spec.members) < 2:
            raise ValueError(f"members: rule {spec.rule} needs at least two")
        named = [(f"members[{place}]", text) for place, text in enumerate(spec.members)]
    _check_apart(named)


def _check_apart(named: Iterable[tuple[str, str]]) -> None:
    """Check that each is a member, and that no two share files."""
    seen: list[tuple[str, Member]] = []
    for field, text in named:
        try:
            member = parse_member(text)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
        for earlier, other in seen:
            if members_overlap(member, other):
                raise ValueError(
                    f"{field}: {text} overlaps {earlier} {other}: use trees that share nothing"
                )
        seen.append((field, member))


def _check_rule_options(spec: JobSpec) -> None:
    """Refuse options of another rule, which would otherwise seem to have an effect."""
    foreign: list[tuple[str, Any, Any, str]] = []
    if spec.rule is not Rule.COPY:
        foreign.append(("copy_when", spec.copy_when, CopyWhen.DIFFERING, "rule copy"))
    if spec.rule.is_one_way:
        foreign.append(("conflict", spec.conflict, Conflict.KEEP_BOTH, "rules sync and exchange"))
    for field, value, default, rules in foreign:
        if value != default:
            raise ValueError(f"{field}: {value} is for {rules}; this job's rule is {spec.rule}")
