"""What a coordinator finds out for `baton doctor`: is etcd sound, has each job an owner."""

from collections.abc import Callable, Iterable, Mapping
from statistics import median

from coordinator.catalog import Job
from coordinator.errors import FULL, StoreError
from coordinator.etcd_store import EtcdFacts, EtcdStore
from coordinator.keys import Keys
from coordinator.ownership import Owner
from coordinator.placement import Decision
from coordinator.startup_checks import LeasesStay, see_lease_expire
from coordinator.store import Store
from coordinator.views import CheckView
from coordinator.write_times import ADVICE, SLOW_WRITE_S
from wire.clock import Clock

SLOW_S = 0.1
"""A median answer of etcd beyond this makes takeovers and starts late."""
ADVISED = (3, 5, 16)
FULL_BYTES = 1_600_000_000
"""Of etcd's default quota of 2 GB."""
_READS = 5
_NAMED = 5


async def check_etcd(store: Store, keys: Keys, clock: Clock) -> list[CheckView]:
    """See etcd answer, write, and let a lease of 2 s expire; takes up to 8 s."""
    checks = []
    took = []
    try:
        for _ in range(_READS):
            began = clock.now()
            await store.get(f"{keys.prefix}checks/none")
            took.append(clock.now() - began)
    except StoreError as error:
        return [CheckView("etcd", "failed", str(error), "is etcd running, and is --etcd right?")]
    typical = median(took)
    checks.append(
        CheckView("etcd", "ok", f"answers in {typical * 1000:.1f} ms", "")
        if typical <= SLOW_S
        else CheckView(
            "etcd",
            "warning",
            f"answers in {typical * 1000:.0f} ms",
            "give etcd a disk of its own, near the coordinators",
        )
    )
    checks += await _check_leases(store, keys)
    if isinstance(store, EtcdStore):
        try:
            checks += _judge(await store.facts())
        except StoreError as error:
            checks.append(CheckView("etcd version", "warning", str(error), ""))
    return checks


async def _check_leases(store: Store, keys: Keys) -> list[CheckView]:
    try:
        gone_s, write_s = await see_lease_expire(store, keys)
    except LeasesStay:
        what = "a lease of 2 s does not expire"
        return [CheckView("leases", "failed", what, "check etcd's health: no job is taken over")]
    except StoreError as error:
        advice = f"this user must be able to write under {keys.prefix}; see etcd's alarms"
        return [CheckView("leases", "failed", str(error), advice)]
    is_slow = write_s > SLOW_WRITE_S
    return [
        CheckView("leases", "ok", f"a lease of 2 s is gone after {gone_s:.1f} s", ""),
        CheckView(
            "etcd's disk",
            "warning" if is_slow else "ok",
            f"a write takes {write_s * 1000:.0f} ms",
            ADVICE if is_slow else "",
        ),
    ]


def _judge(facts: EtcdFacts) -> list[CheckView]:
    parts = facts.version.split("-", maxsplit=1)[0].split(".")
    number = tuple(int(part) for part in parts if part.isdigit())
    known = f"version {facts.version}, {facts.db_bytes / 1e6:.0f} MB"
    if facts.is_full:
        return [CheckView("etcd version", "failed", f"{known}, alarm NOSPACE", FULL)]
    if number < ADVISED:
        advice = "run 3.5.16 or later: earlier ones have faults with leases, watches and recovery"
        return [CheckView("etcd version", "warning", known, advice)]
    if facts.db_bytes > FULL_BYTES:
        advice = "compact and defragment it before it stops writing"
        return [CheckView("etcd version", "warning", known, advice)]
    return [CheckView("etcd version", "ok", known, "")]


def check_jobs(
    jobs: Mapping[str, Job], owners: Mapping[str, Owner], decide: Callable[[Job], Decision]
) -> list[CheckView]:
    """Name jobs that nobody owns, and those that nobody could take over. Pure."""
    vacant, alone = [], []
    for name, job in sorted(jobs.items()):
        owner = owners.get(name)
        if owner is None:
            vacant.append(name)
        elif not [node for node in decide(job).order if node != owner.node] and (
            not job.spec.placement.nodes or not job.spec.placement.fallback
        ):
            alone.append(name)
    checks = []
    if vacant:
        advice = f"'baton job explain {vacant[0]}' says why"
        checks.append(CheckView("owners", "failed", f"nobody owns {_named(vacant)}", advice))
    if alone:
        advice = "start another coordinator, or allow more in their placement"
        what = f"nobody could take over {_named(alone)}"
        checks.append(CheckView("takeover", "warning", what, advice))
    if not checks:
        checks.append(CheckView("owners", "ok", f"{len(jobs)} jobs have one", ""))
    return checks


def _named(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
