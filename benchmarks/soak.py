"""`python -m benchmarks.soak`: a writer that never rests, while everything is killed and stopped.

In the end nothing may be missing: an audit finds nothing that no event had told, the trees are equal by
rsync's account, exposure is 0 and the ledger proves itself. Exit code 1 if not.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from baton.v1 import coordinator_pb2 as pb
from benchmarks.errors import BenchmarkError
from benchmarks.following import JOB, Following, following
from benchmarks.restless import Restless
from coordinator.embedded_etcd import EtcdMember

_SLICE_S = 0.05
_CALM_S = 300.0
"""How long it may take until everything is there once the faults have stopped."""


@dataclass
class Outcome:
    """What a soak came to."""

    seconds: float = 0.0
    changes: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    worst_exposure_s: float = 0.0
    in_step_after_s: float = 0.0
    audit_found: int = -1
    differences: int = -1
    findings: int = -1
    errors: int = -1
    attempts: int = 0

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing."""
        return self.audit_found == self.differences == self.findings == self.errors == 0


class Soak:
    """One soak."""

    def __init__(self, scene: Following, *, rate: float, seed: int) -> None:
        """Write `rate` changes a second."""
        self._scene = scene
        self._rate = rate
        self._dice = random.Random(seed)
        self._writer = Restless(scene.source, seed)
        self._faults: Counter[str] = Counter()
        self._worst_s = 0.0

    async def run(self, seconds: float) -> Outcome:
        """Write and break things for so long; then wait for calm, and judge."""
        began = time.monotonic()
        beside = [asyncio.create_task(one()) for one in (self._write, self._watch)]
        try:
            while time.monotonic() - began < seconds:
                await self._strike()
                for task in beside:
                    if task.done():
                        task.result()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        return await self._judge(time.monotonic() - began)

    async def _write(self) -> None:
        began = time.monotonic()
        while True:
            due = int((time.monotonic() - began) * self._rate) - self._writer.done

            def write(count: int = due) -> None:
                for _ in range(count):
                    self._writer.step()

            await asyncio.to_thread(write)
            await asyncio.sleep(_SLICE_S)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(BenchmarkError):
                _, exposure_s = await self._scene.exposure()
                self._worst_s = max(self._worst_s, exposure_s or 0.0)
            await asyncio.sleep(0.5)

    async def _strike(self) -> None:
        """Break one thing, and mend it."""
        await asyncio.sleep(self._dice.uniform(1, 4))
        what = self._dice.choice(("coordinator", "coordinator", "near", "far", "etcd"))
        how = self._dice.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
        self._faults[f"{what} {how.name}"] += 1
        if what == "etcd":
            await self._strike_etcd(self._dice.choice(self._scene.etcd.members), how)
            return
        names = [name for name, one in self._scene.cluster.members.items() if one.kind == what]
        member = self._scene.cluster.members[self._dice.choice(names) if names else what]
        member.signal(how)
        if how is signal.SIGSTOP:
            await asyncio.sleep(self._dice.uniform(0.5, 6))
            member.signal(signal.SIGCONT)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                await member.wait()
        if member.is_running:
            await member.kill()
        await self._scene.cluster.start(member.name)

    async def _strike_etcd(self, member: EtcdMember, how: signal.Signals) -> None:
        if how is signal.SIGSTOP:
            member.signal(how)
            await asyncio.sleep(self._dice.uniform(0.5, 4))
            member.signal(signal.SIGCONT)
            return
        await (member.kill() if how is signal.SIGKILL else member.stop())
        await asyncio.sleep(self._dice.uniform(0, 2))
        await member.start()
        await member.wait_healthy()

    async def _judge(self, seconds: float) -> Outcome:
        scene = self._scene
        found = Outcome(seconds, self._writer.done, dict(self._faults), self._worst_s)
        await asyncio.sleep(3)  # what is shown may be of before the last fault
        found.in_step_after_s = await scene.in_step(_CALM_S)
        run = await scene.audit(_CALM_S)
        found.audit_found, found.errors = run.monitor.audit_found, run.problems_total
        found.attempts = len(run.attempts)
        await scene.in_step(_CALM_S)
        differences = await asyncio.to_thread(scene.differences)
        for line in differences[:20]:
            print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
        found.differences = len(differences)
        proofs = await scene.ask("VerifyLedger", pb.VerifyLedgerRequest(job=JOB))
        found.findings = sum(len(one.findings) for one in proofs.jobs)
        return found


async def soak(directory: Path, *, seconds: float, rate: float, seed: int) -> Outcome:
    """Run one below a directory, which is left as it is when something is missing."""
    async with following(directory, coordinators=3, etcd_members=3) as scene:
        return await Soak(scene, rate=rate, seed=seed).run(seconds)


def main() -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=500, help="changes a second [500]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where to work [a temporary one]")
    told = parser.parse_args()
    directory = told.directory or Path(tempfile.mkdtemp(prefix="baton-soak-"))
    work = soak(directory, seconds=60 * told.minutes, rate=told.rate, seed=told.seed)
    found = asyncio.run(work)
    print(json.dumps(asdict(found), indent=1))
    if found.is_good and told.directory is None:
        shutil.rmtree(directory)
    elif not found.is_good:
        print(f"what is left is in {directory}", file=sys.stderr)
    return 0 if found.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
