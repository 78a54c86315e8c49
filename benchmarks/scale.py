"""`python -m benchmarks.scale`: what ten thousand jobs cost, and how fast half of them change hands.

Writes `benchmarks/scale.json`, which the writer of docs/benchmarks.md includes.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.due import HOW, LEAD_S, SPAN_S, URGENT, Watched, Wave, measure_wave
from benchmarks.errors import BenchmarkError
from cli.local_cluster import LocalCluster, Member
from coordinator.embedded_etcd import EtcdCluster, start_etcd
from coordinator.errors import CoordinatorError
from coordinator.etcd_config import EtcdConfig
from coordinator.etcd_store import EtcdStore
from coordinator.job_file import spec_from_plain, spec_to_plain
from coordinator.keys import Family, Keys
from coordinator.records import JobRecord, WorkerRecord, encode
from coordinator.store import Changed, Changes, Deleted, Put, Snapshot
from wire.clock import BootClock
from wire.credentials import load_tls

RESULTS = Path(__file__).with_name("scale.json")
_TXN = 100
_PATIENCE_S = 300.0
_REST_S = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")

_HOW = """\
Real processes on one machine: an etcd, coordinators with their guardians, one worker. Jobs are written
to etcd directly, a hundred to a transaction. *Idle* is with jobs that wait for somebody to ask: CPU is
user and system time of coordinator and guardian over the span, memory what is resident in both,
requests what etcd counts as received on calls and streams, those of the watch that measures included.
*A coordinator more* comes when every job has an owner, so it takes none; its cost is its own until it
is ready, and the others' beyond what they spend when idle. *Takeover*: of two owners the one of more
jobs is killed with its guardian, so that its lease must expire; from the moment its first key is gone
until the last of its jobs has an owner again, as a watch sees it. It comes back before jobs become due.
"""


@dataclass(slots=True)
class Cost:
    """What one coordinator took over a span."""

    name: str
    jobs: int
    cpu_percent: float
    """Of one core."""
    memory_mib: float


@dataclass(slots=True)
class Results:
    """What was measured."""

    jobs: int
    claimed_s: float = 0.0
    """From the first definition until every job had an owner, with two coordinators."""
    idle: list[Cost] | None = None
    idle_requests_per_s: float = 0.0
    added_ready_s: float = 0.0
    added_cpu_s: float = 0.0
    others_cpu_s: float = 0.0
    """What the others spent on it beyond idling."""
    moved: int = 0
    takeover_s: float = 0.0
    waves: list[Wave] = field(default_factory=list)


class Scene:
    """The cluster that is measured."""

    def __init__(
        self, cluster: LocalCluster, etcd: EtcdCluster, store: EtcdStore, home: Path
    ) -> None:
        """Begin with two coordinators that are not started yet."""
        self.cluster = cluster
        self.etcd = etcd
        self.store = store
        self.home = home
        self.keys = Keys()
        self.generation = 0
        self.owners: dict[str, str] = {}
        """By job its owner, as a watch on etcd has it."""
        self.last_claim = self.first_loss = 0.0
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Watch who owns what, with the time at which it is seen."""
        prefix = self.keys.under(Family.OWNERS)
        async with self.store.watch(prefix) as batches:
            async for batch in batches:
                now = time.monotonic()
                for event in _events(batch):
                    if isinstance(event, Deleted):
                        self.owners.pop(event.key.removeprefix(prefix), None)
                        self.first_loss = self.first_loss or now
                    else:
                        node = json.loads(event.kv.value)["node"]
                        self.owners[event.kv.key.removeprefix(prefix)] = node
                        self.last_claim = now
                self._changed.set()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the watch shows; raises BenchmarkError."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BenchmarkError(f"{what}: not within {_PATIENCE_S:.0f} s") from None

    async def define(
        self, count: int, trigger: dict[str, Any], began: datetime, *, first: int = 0
    ) -> None:
        """Write so many jobs, made over the minute from `began` on, in place of those there are."""
        self.generation += 1
        records = []
        for number in range(count):
            made = began + timedelta(seconds=SPAN_S * number / count)
            records.append(self._definition(_name_of(first + number), trigger, made))
        for start in range(0, count, _TXN):
            await self.store.txn((), records[start : start + _TXN])

    async def define_urgent(self) -> None:
        """Write the job that is asked for by hand."""
        put = self._definition(URGENT, {"manual": True}, datetime.now(UTC), priority=100)
        await self.store.txn((), [put])

    def _definition(
        self, name: str, trigger: dict[str, Any], made: datetime, priority: int = 0
    ) -> Put:
        spec = spec_from_plain(
            {
                "name": name,
                "rule": "copy",
                "source": f"w:from/{name}",
                "targets": [f"w:to/{name}"],
                "trigger": trigger,
                "priority": priority,
                "retries": {"attempts": 1},
                "transfer": {"durability": "fast"},
            }
        )
        record = JobRecord(
            spec=spec_to_plain(spec),
            generation=self.generation,
            changed_by="benchmark",
            changed_at=made,
        )
        return Put(self.keys.job(name), encode(record))

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time so far, by kind of process."""
        alive = [one for one in self.cluster.members.values() if one.is_running]
        return {
            "coordinators": sum(_cpu_s(one) for one in alive if one.kind == "coordinator"),
            "worker": sum(_cpu_s(one) for one in alive if one.kind == "worker"),
            "etcd": sum(_ticks(one.pid) / _TICKS for one in self.etcd.members),
        }

    def requests(self) -> float:
        """Return what etcd has received, on calls and streams; blocks."""
        url = f"{self.etcd.endpoints[0]}/metrics"
        url = url if "://" in url else f"http://{url}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        found = re.findall(r"^grpc_server_msg_received_total\{.*\} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))


def _events(batch: Snapshot | Changes) -> list[Changed | Deleted]:
    if isinstance(batch, Snapshot):
        return [Changed(kv) for kv in batch.kvs]
    return list(batch.events)


def _pids(member: Member) -> list[int]:
    return [member.pid, member.proper]


def _cpu_s(member: Member) -> float:
    return sum(map(_ticks, _pids(member))) / _TICKS


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _memory_mib(member: Member) -> float:
    total = 0
    for pid in _pids(member):
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


def _name_of(number: int) -> str:
    return f"job-{number:05d}"


def _make_trees(home: Path, jobs: int) -> None:
    for name in (*map(_name_of, range(jobs)), URGENT):
        tree = home / "from" / name
        tree.mkdir(parents=True)
        (tree / "file").write_bytes(b"a small file\n")
        (home / "to" / tree.name).mkdir(parents=True)


@asynccontextmanager
async def _scene(jobs: int) -> AsyncIterator[Scene]:
    """Set up a cluster that is not started yet, with trees for so many jobs."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="baton-scale-", dir=where) as directory:
        home = Path(directory)
        _make_trees(home, jobs)
        async with (
            start_etcd(home / "etcd") as etcd,
            LocalCluster(home, etcd.endpoints, cluster="scale") as cluster,
        ):
            for name in ("c1", "c2", "c3"):
                cluster.add_coordinator(name)
            cluster.add_worker("w", [f"from={home / 'from'}", f"to={home / 'to'}"])
            store = EtcdStore(EtcdConfig(etcd.endpoints), BootClock())
            following: asyncio.Task[None] | None = None
            try:
                scene = Scene(cluster, etcd, store, home)
                following = asyncio.create_task(scene.follow())
                yield scene
            finally:
                if following is not None:
                    following.cancel()
                await store.close()


async def measure(
    jobs: int, idle_s: float, waves: Sequence[int], say: Callable[[str], None]
) -> Results:
    """Measure everything, one thing after another; raises BenchmarkError, CoordinatorError."""
    results = Results(jobs)
    most = max([jobs, *waves])
    async with _scene(most + sum(waves[:-1])) as scene:
        members = scene.cluster.members
        c1, c2, c3, worker = (members[name] for name in ("c1", "c2", "c3", "w"))
        await worker.start()
        await worker.wait_ready()
        record = WorkerRecord(address=worker.listen)
        await scene.store.put(scene.keys.worker("w"), encode(record))
        await scene.define_urgent()
        await _claim_all(scene, results, c1, c2)
        say(f"{jobs} jobs claimed {results.claimed_s:.1f} s after the first was defined")
        await asyncio.sleep(_REST_S)
        await _add(results, c3, (c1, c2), idle_s)
        say(f"a third was ready after {results.added_ready_s:.1f} s")
        await _idle(scene, results, (c1, c2, c3), idle_s)
        assert results.idle is not None
        say("idle: " + ", ".join(f"{one.name} {one.cpu_percent:.1f} %" for one in results.idle))
        await _take_over(scene, results, c1, c2)
        say(f"{results.moved} jobs taken over in {results.takeover_s:.2f} s")
        # Who ran within the hour is not due again: all waves but the last have jobs of their own.
        places = [*accumulate(waves[:-1], initial=most)][:-1]
        for runs, first in zip(waves, [*places, 0], strict=False):
            await asyncio.sleep(_REST_S)
            wave = await _due(scene, runs, first)
            results.waves.append(wave)
            start, end = (values[1] for values in (wave.start_s, wave.end_s))
            say(f"{wave.runs} due over a minute: p99 of starts {start:.3f} s, of ends {end:.3f} s")
    return results


async def _claim_all(scene: Scene, results: Results, *coordinators: Member) -> None:
    for one in coordinators:
        await one.start()
    for one in coordinators:
        await one.wait_ready()
    began = time.monotonic()
    await scene.define(results.jobs, {"manual": True}, datetime.now(UTC))
    await scene.until(lambda: len(scene.owners) == results.jobs + 1, "every job has an owner")
    results.claimed_s = scene.last_claim - began


async def _idle(
    scene: Scene, results: Results, coordinators: tuple[Member, ...], idle_s: float
) -> None:
    before = [_cpu_s(one) for one in coordinators]
    requests = await asyncio.to_thread(scene.requests)
    began = time.monotonic()
    await asyncio.sleep(idle_s)
    took_s = time.monotonic() - began
    more = await asyncio.to_thread(scene.requests) - requests
    results.idle_requests_per_s = more / took_s
    owners = list(scene.owners.values())
    results.idle = [
        Cost(
            one.name,
            owners.count(one.name),
            100 * (_cpu_s(one) - spent) / took_s,
            _memory_mib(one),
        )
        for one, spent in zip(coordinators, before, strict=True)
    ]


async def _add(results: Results, added: Member, others: tuple[Member, ...], idle_s: float) -> None:
    idle_from = sum(map(_cpu_s, others))
    await asyncio.sleep(idle_s)
    idling_s = sum(map(_cpu_s, others)) - idle_from
    before = sum(map(_cpu_s, others))
    began = time.monotonic()
    await added.start()
    await added.wait_ready()
    results.added_ready_s = time.monotonic() - began
    results.added_cpu_s = _cpu_s(added)
    await asyncio.sleep(max(0.0, idle_s - results.added_ready_s))
    span_s = time.monotonic() - began
    spent_s = sum(map(_cpu_s, others)) - before
    results.others_cpu_s = max(0.0, spent_s - idling_s * span_s / idle_s)


async def _take_over(scene: Scene, results: Results, *owners: Member) -> None:
    held = list(scene.owners.values())
    victim = max(owners, key=lambda one: held.count(one.name))
    lost = [job for job, node in scene.owners.items() if node == victim.name]
    scene.first_loss = 0.0
    await victim.kill()

    def is_over() -> bool:
        owners = scene.owners
        return all(owners.get(job, victim.name) != victim.name for job in lost)

    await scene.until(is_over, "every job of the dead coordinator has another")
    results.moved = len(lost)
    results.takeover_s = scene.last_claim - scene.first_loss
    await victim.start()
    await victim.wait_ready()


async def _due(scene: Scene, runs: int, first: int) -> Wave:
    """Have so many jobs become due once within a minute."""
    first_due = datetime.now(UTC) + timedelta(seconds=LEAD_S)
    await scene.define(runs, {"every": "1h"}, first_due - timedelta(hours=1), first=first)
    if first_due < datetime.now(UTC):
        raise BenchmarkError(f"{runs} jobs could not be defined within {LEAD_S:.0f} s")
    watched = Watched(
        scene.store,
        lambda: scene.cluster.coordinators,
        load_tls(scene.cluster.operator_tls),
        scene.cpu_s,
    )
    return await measure_wave(watched, runs, first_due, _PATIENCE_S)


def as_markdown(plain: dict[str, Any], command: str, day: str) -> str:
    """Return the section of docs/benchmarks.md for what `main` wrote."""
    one = Results(**plain)
    costs = [Cost(**cost) for cost in plain["idle"]]
    waves = [Wave(**wave) for wave in plain["waves"]]
    took = f" | {one.takeover_s:.2f} s"
    added = f"{one.added_cpu_s:.1f} s of CPU"
    most = max(cost.cpu_percent for cost in costs)
    lines = [
        f"## {one.jobs:,} jobs",
        "",
        f"Written by `{command}` on {day}.",
        "",
        "| | measured | goal |",
        "|---|---|---|",
        f"| idle: the busiest of three coordinators | {most:.1f} % of a core | under 5 % |",
        *(
            f"| idle: {cost.name}, {cost.jobs:,} jobs | {cost.cpu_percent:.1f} % of a core, "
            f"{cost.memory_mib:.0f} MiB | |"
            for cost in costs
        ),
        f"| idle: requests to etcd | {one.idle_requests_per_s:.1f} a second | |",
        f"| {one.jobs:,} jobs defined, and claimed by two coordinators | {one.claimed_s:.1f} s | |",
        f"| takeover of {one.moved:,} jobs, from detection to the last claim{took} | 3 s |",
        f"| a coordinator more: until ready | {one.added_ready_s:.1f} s, {added} | |",
        f"| a coordinator more: what the others spend on it | {one.others_cpu_s:.1f} s of CPU | |",
        *(row for wave in waves for row in wave.rows()),
    ]
    return "\n".join([*lines, "", _HOW + HOW])


def section() -> str:
    """Return the section for what was measured last; empty when nothing was."""
    if not RESULTS.exists():
        return ""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return as_markdown(found["results"], found["command"], found["day"])


def main() -> int:
    """Run what the command line asks for; 1 when it could not be carried out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="how many [10000]")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to look at idling [20]")
    parser.add_argument(
        "--due", type=int, nargs="*", default=[1_500, 10_000], help="over a minute [1500 10000]"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"JSON [{RESULTS}]")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        results = asyncio.run(measure(arguments.jobs, arguments.idle, arguments.due, say))
    except (BenchmarkError, CoordinatorError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    found = {
        "command": " ".join(["python -m benchmarks.scale", *sys.argv[1:]]),
        "day": datetime.now(UTC).strftime("%Y-%m-%d"),
        "results": asdict(results),
    }
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(asdict(results), str(found["command"]), str(found["day"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
