"""A job as its owner reads it: the domain type behind a job file, and what must hold within a job.

Times, shares and rates keep the form people write (`units`), so that what stands in etcd reads like
a job file. Reading and writing is `job_file`'s; nothing here knows etcd or YAML. Pure.
"""

from collections.abc import Iterable
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec

from coordinator.bandwidth import Bandwidth
from coordinator.cron import zone
from coordinator.job_when import (
    From,
    Missed,
    Overlap,
    Part,
    Realtime,
    Retries,
    Trigger,
    Window,
    open_times,
)
from coordinator.members import members_overlap, parse_member
from coordinator.units import Duration, Limit, Retention, Share, Size
from coordinator.windows import Windows
from syncengine.filters import BadFilter, read_pattern
from syncengine.model import (
    Compare,
    Conflict,
    CopyWhen,
    Durability,
    Limits,
    Often,
    Rule,
    RunOptions,
    Safety,
    Symlinks,
)
from wire.identity import is_label
from wire.orders import Member

__all__ = [
    "From",
    "JobSpec",
    "LimitsSpec",
    "Metadata",
    "Missed",
    "Overlap",
    "Placement",
    "Realtime",
    "Retries",
    "SafetySpec",
    "Transfer",
    "Trigger",
    "WhenStable",
    "Window",
]


LAST_PRIORITY = 100


class WhenStable(Part, frozen=True, kw_only=True):
    """Go back to the preferred node when it has been there for so long."""

    when_stable: Duration


class Placement(Part, frozen=True, kw_only=True):
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


class SafetySpec(Part, frozen=True, kw_only=True):
    """The limits beyond which a plan waits for an approval, and what is kept of what goes."""

    max_delete: Share = Share.parse("50%")
    max_delete_files: Limit = Limit.parse(100_000)
    trash: Retention = Retention.parse("30d")
    keep_replaced: bool = False


class LimitsSpec(Part, frozen=True, kw_only=True):
    """Which regular files are covered, by size and by the age of their modification time."""

    min_size: Size = Size.parse("off")
    max_size: Size = Size.parse("off")
    min_age: Retention = Retention.parse("off")
    max_age: Retention = Retention.parse("off")

    def __post_init__(self) -> None:
        """Check that some file can be within them."""
        limits = self.limits()
        for name, low, high in (
            ("size", limits.min_size, limits.max_size),
            ("age", limits.min_age_s, limits.max_age_s),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"no file is within min_{name} {getattr(self, f'min_{name}')} and max_{name} "
                    f"{getattr(self, f'max_{name}')}: use a larger max_{name}"
                )

    def limits(self) -> Limits:
        """Return what the workers must know."""
        return Limits(
            min_size=self.min_size.bytes,
            max_size=self.max_size.bytes,
            min_age_s=self.min_age.limit_s,
            max_age_s=self.max_age.limit_s,
        )


class Metadata(Part, frozen=True, kw_only=True):
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


class Transfer(Part, frozen=True, kw_only=True):
    """How content is compared, sent and written."""

    compression: Literal["auto", "on", "off"] = "auto"
    delta: Literal["auto", "on", "off", "inplace"] = "auto"
    bandwidth: Bandwidth = Bandwidth.parse("off")
    durability: Durability = Durability.STRICT
    compare: Compare = Compare.MTIME


class JobSpec(Part, frozen=True, kw_only=True):
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
    start_jitter: Retention = Retention.parse("off")
    """How much later than its instant a run of the schedule may begin: each by its own share of it."""
    time_limit: Retention = Retention.parse("off")
    """How long the workers may carry on one attempt."""
    priority: int = 0
    """Which runs get room first where there is not enough for all: the highest."""
    retries: Retries | None = None
    """Unless said otherwise: for runs of the schedule those of `Retries()`, none for runs by hand."""
    windows: tuple[Window, ...] = ()
    filters: tuple[str, ...] = ()
    limits: LimitsSpec = LimitsSpec()
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
        uses_zone = self.trigger.cron or self.windows or self.transfer.bandwidth.has_times
        if self.trigger.timezone is not None and not uses_zone:
            raise ValueError("trigger: timezone says nothing without cron or windows: leave it out")
        _check_times(self)
        _check_members(self)
        _check_rule_options(self)
        _check_filters(self.filters)

    @property
    def open_times(self) -> Windows:
        """When it may act."""
        return open_times(self.windows, self.trigger.zone)

    @property
    def local_zone(self) -> ZoneInfo:
        """Whose local time people think in who look at this job."""
        named = next((window.timezone for window in self.windows if window.timezone), None)
        return zone(named or self.trigger.zone)

    def attempts_of(self, *, by_hand: bool) -> Retries:
        """Return how often a run is tried. Whoever asks for a run by hand sees it fail, and decides."""
        return self.retries or (Retries(attempts=1) if by_hand else Retries())

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
    def named_members(self) -> tuple[tuple[str, Member], ...]:
        """Every member with the field that names it."""
        fields = (
            ["source", *(f"targets[{place}]" for place in range(len(self.targets)))]
            if self.source is not None
            else [f"members[{place}]" for place in range(len(self.members))]
        )
        return tuple(zip(fields, self.all_members, strict=True))

    @property
    def written(self) -> tuple[str, ...]:
        """The members that a run changes by its rule, as the file has them: targets, or all."""
        return self.targets if self.rule.is_one_way else self.members

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of all workers that take part, each once, the source's first."""
        return tuple(dict.fromkeys(member.worker for member in self.all_members))

    def run_options(self) -> RunOptions:
        """Return what the workers must know of this job to compare and write trees."""
        return RunOptions(
            rule=self.rule,
            copy_when=self.copy_when,
            conflict=self.conflict,
            compare=self.transfer.compare,
            durability=self.transfer.durability,
            keep_mode=self.metadata.mode,
            keep_times=self.metadata.times,
            keep_owner=self.metadata.owner,
            keep_xattrs=self.metadata.xattrs,
            keep_acls=self.metadata.acls,
            keep_hardlinks=self.metadata.hardlinks,
            keep_devices=self.metadata.devices,
            keep_setuid=self.metadata.setuid,
            symlinks=self.metadata.symlinks,
            compression=Often(self.transfer.compression),
            delta=Often(self.transfer.delta),
            bandwidth=self.transfer.bandwidth.bytes_per_s,
            bandwidth_times=self.transfer.bandwidth.times(self.trigger.zone),
            filters=self.filters,
            limits=self.limits.limits(),
            safety=Safety(
                max_delete=self.safety.max_delete.limit,
                max_delete_files=self.safety.max_delete_files.count,
                trash_s=self.safety.trash.whole_seconds,
                keep_replaced=self.safety.keep_replaced,
            ),
        )


def _check_times(spec: JobSpec) -> None:
    """Check what concerns single runs, and that there can be some."""
    if not -LAST_PRIORITY <= spec.priority <= LAST_PRIORITY:
        raise ValueError(
            f"priority: {spec.priority} is out of range: use -{LAST_PRIORITY} to {LAST_PRIORITY}"
        )
    limit_s = spec.time_limit.limit_s
    if limit_s is not None and limit_s < 1:
        raise ValueError(f"time_limit: {spec.time_limit} is too short: use 1s or more, or off")
    if limit_s is not None and spec.trigger.realtime is not None:
        raise ValueError("time_limit: a run of trigger realtime does not end: leave it out")
    _check_jitter(spec)


def _check_jitter(spec: JobSpec) -> None:
    """Check that runs begin in the order of their instants."""
    jitter_s = spec.start_jitter.limit_s
    if not jitter_s:
        return
    if spec.trigger.every is None and spec.trigger.cron is None:
        raise ValueError("start_jitter: is for the triggers every and cron: leave it out")
    shortest_s = spec.trigger.shortest_interval_s()
    if jitter_s >= shortest_s:
        raise ValueError(
            f"start_jitter: {spec.start_jitter} reaches to the next instant, {shortest_s:g} s later: "
            "use less"
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


def _check_filters(filters: Iterable[str]) -> None:
    for place, line in enumerate(filters):
        try:
            read_pattern(line)
        except BadFilter as error:
            raise ValueError(f"filters[{place}]: {error}") from error


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
