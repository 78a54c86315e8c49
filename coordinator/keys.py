"""The names of Baton's keys in etcd: one prefix, nine families, made and parsed in one place."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from coordinator.errors import BadKey

DEFAULT_PREFIX = "/baton/v1/"

_PREFIX = re.compile(r"(/[A-Za-z0-9._-]{1,64}){1,8}/", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class Family(StrEnum):
    """The first component after the prefix: what a key is about."""

    JOBS = "jobs"
    OWNERS = "owners"
    STATE = "state"
    RUNS = "runs"
    COORDINATORS = "coordinators"
    WORKERS = "workers"
    GROUPS = "groups"
    DRAINS = "drains"
    LIVES = "lives"


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key taken apart; `instant` is there for runs only."""

    family: Family
    name: str
    instant: datetime | None = None


def check_name(name: str) -> str:
    """Return the name of a node, job, worker or group if it is a DNS label; raises BadKey.

    1 to 63 of a-z, 0-9 and `-`, the hyphen neither first nor last.
    """
    if not _LABEL.fullmatch(name):
        raise BadKey(
            f"not a name: {name[:80]!r} (1 to 63 of a-z, 0-9 and -, not beginning or ending with -)"
        )
    return name


def instant_text(instant: datetime) -> str:
    """Write a due instant as keys have it: UTC, microseconds, sorting as text; raises BadKey."""
    if instant.tzinfo is None:
        raise BadKey(f"an instant without a time zone: {instant.isoformat()}")
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


def parse_instant(text: str) -> datetime:
    """Read a due instant as `instant_text` writes it; raises BadKey."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadKey(f"not an instant: {text[:80]!r}") from error
    if instant_text(instant) != text:
        raise BadKey(f"not an instant as it is written: {text[:80]!r}")
    return instant


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys under one prefix, which begins and ends with `/`; raises BadKey for another form."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise BadKey(
                f"not a prefix: {self.prefix[:80]!r} (like {DEFAULT_PREFIX}: one to eight parts of"
                " letters, digits, '.', '_' and '-', with / before, between and after)"
            )

    def under(self, family: Family) -> str:
        """Return the prefix of a whole family, for ranges and watches."""
        return f"{self.prefix}{family}/"

    def job(self, name: str) -> str:
        """Return the key of a job's definition."""
        return self.under(Family.JOBS) + check_name(name)

    def owner(self, job: str) -> str:
        """Return the key whose create revision is the token of a job's ownership."""
        return self.under(Family.OWNERS) + check_name(job)

    def state(self, job: str) -> str:
        """Return the key of a job's state."""
        return self.under(Family.STATE) + check_name(job)

    def runs(self, job: str) -> str:
        """Return the prefix of a job's ledger."""
        return f"{self.under(Family.RUNS)}{check_name(job)}/"

    def run(self, job: str, instant: datetime) -> str:
        """Return the key of one run; keys of a job sort by instant."""
        return self.runs(job) + instant_text(instant)

    def coordinator(self, name: str) -> str:
        """Return the key of a live coordinator."""
        return self.under(Family.COORDINATORS) + check_name(name)

    def worker(self, name: str) -> str:
        """Return the key of a worker."""
        return self.under(Family.WORKERS) + check_name(name)

    def group(self, name: str) -> str:
        """Return the key of the active member of a worker group."""
        return self.under(Family.GROUPS) + check_name(name)

    def life(self, coordinator: str) -> str:
        """Return the key of what is known of a coordinator's ends."""
        return self.under(Family.LIVES) + check_name(coordinator)

    def drain(self, coordinator: str) -> str:
        """Return the key that says that a coordinator takes no jobs."""
        return self.under(Family.DRAINS) + check_name(coordinator)

    def parse(self, key: str) -> ParsedKey:
        """Take a key apart; raises BadKey for one that no method here makes."""
        if not key.startswith(self.prefix):
            raise BadKey(f"not under {self.prefix}: {key[:200]!r}")
        first, *rest = key[len(self.prefix) :].split("/")
        try:
            family = Family(first)
        except ValueError as error:
            raise BadKey(f"not a key of Baton: {key[:200]!r}") from error
        match rest:
            case [name] if family is not Family.RUNS:
                return ParsedKey(family, check_name(name))
            case [name, instant] if family is Family.RUNS:
                return ParsedKey(family, check_name(name), parse_instant(instant))
        raise BadKey(f"not a key of Baton: {key[:200]!r}")
