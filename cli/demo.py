"""`make demo`: the main job on real files, with the owner killed in the middle of it.

Everything is real and local: an embedded etcd, three coordinators and two workers as processes of their
own, mutual TLS between all of them. The directory to mirror is a copy of Python's library, or one that
you name, which is then only read.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from blake3 import blake3

from baton.v1 import coordinator_pb2 as pb
from cli.client import Client, connect
from cli.exits import CommandFailed, Exit
from cli.local_cluster import LocalCluster, Member
from cli.output import human_bytes, print_line
from cli.settings import ClientSettings
from coordinator.convert import job_from_wire, run_from_wire
from coordinator.embedded_etcd import start_etcd
from coordinator.errors import CoordinatorError
from coordinator.etcd_store import EtcdConfig, EtcdStore
from coordinator.job_file import encode_spec, read_job_file
from coordinator.keys import Keys
from coordinator.ownership import Owner
from coordinator.views import JobView, RunView
from syncengine.model import RESERVED_NAME, TEMPORARY_PREFIX
from wire.credentials import load_tls
from wire.errors import WireError

JOB = "demo"
LEASE_TTL = "2s"
_POLL_S = 0.01
_STEP_S = 60.0
_BURST_FILES = 4_000
_BURSTS = 4
_BURST_BYTES = 20_000
_SKIPPED = ("site-packages", "__pycache__", "test", "idlelib", "config-*")

_JOB_FILE = f"""
name: {JOB}
rule: mirror
source: left:files
targets: [right:files]
trigger: {{every: 1s}}
lease_ttl: {LEASE_TTL}
"""


def main() -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, help="what to mirror; only read")
    given = parser.parse_args().directory
    if given is not None and not given.is_dir():
        parser.error(f"{given} is not a directory")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with tempfile.TemporaryDirectory(prefix="baton-demo-") as directory:
        try:
            asyncio.run(_demo(Path(directory), given.absolute() if given else None))
        except (CommandFailed, CoordinatorError, WireError) as error:
            print_line(f"the demo failed: {error}")
            return Exit.FAILED
        except KeyboardInterrupt:
            return 130
    return Exit.DONE


async def _demo(home: Path, given: Path | None) -> None:
    source, target = given or home / "left", home / "right"
    target.mkdir()
    if given is None:
        library = Path(sysconfig.get_path("stdlib"))
        await asyncio.to_thread(
            shutil.copytree,
            library,
            source,
            symlinks=True,
            ignore=shutil.ignore_patterns(*_SKIPPED),
        )
    say = _Reporter()
    say("one etcd, three coordinators (c1, c2, c3), two workers (left, right), TLS between all")
    async with (
        start_etcd(home / "etcd") as etcd,
        LocalCluster(home, etcd.endpoints, cluster="demo") as cluster,
    ):
        for name in ("c1", "c2", "c3"):
            cluster.add_coordinator(name)
        left = f"files={source}" + (":ro" if given else "")
        cluster.add_worker("left", [left])
        cluster.add_worker("right", [f"files={target}"])
        await cluster.start()
        store = EtcdStore(EtcdConfig(etcd.endpoints))
        try:
            demo = _Demo(cluster, store, source, target, say)
            await demo.show(may_change=given is None)
        finally:
            await store.close()


@dataclass(slots=True)
class _Reporter:
    """Prints what happens, with the seconds since the demo began."""

    began: float = field(default_factory=time.monotonic)

    def __call__(self, text: str) -> None:
        print_line(f"[{time.monotonic() - self.began:6.2f} s] {text}")


@dataclass(slots=True)
class _Demo:
    """The steps, on a cluster that runs."""

    cluster: LocalCluster
    store: EtcdStore
    source: Path
    target: Path
    say: _Reporter

    async def show(self, *, may_change: bool) -> None:
        """Go through all of it; raises CommandFailed when something is not as promised."""
        async with self._client() as client:
            for name in ("left", "right"):
                address = self.cluster.members[name].listen
                await client.stub.AddWorker(pb.AddWorkerRequest(name=name, address=address))
            specs = [encode_spec(spec) for spec in read_job_file(_JOB_FILE)]
            await client.stub.ApplyJobs(pb.ApplyJobsRequest(specs=specs))
        self.say(f"job {JOB}: mirror {self.source} to {self.target}, every second")
        first = await self._run_that(_is_good)
        self.say(
            f"first run: {first.files_copied} files, {human_bytes(first.bytes_copied)} copied "
            f"in {_seconds(first):.2f} s"
        )
        if may_change:
            await self._show_changes()
        else:
            self.say(f"{self.source} is only read: no changes are made in it")
        takeover = await self._show_takeover(may_change=may_change)
        differences = await self._settled()
        self._report(takeover, differences)
        if differences:
            raise CommandFailed(Exit.FAILED, f"{len(differences)} paths differ: {differences[:5]}")

    async def _show_changes(self) -> None:
        """Edit, create, rename and delete, and see all of it arrive."""
        began = time.monotonic()
        (self.source / "baton-new").mkdir()
        (self.source / "baton-new" / "a file.txt").write_text("new\n")
        (self.source / "abc.py").write_text("# edited by the demo\n")
        (self.source / "ast.py").rename(self.source / "baton-new" / "renamed.py")
        (self.source / "bdb.py").unlink()
        await self._settled()
        self.say(
            "an edit, a new directory, a rename and a deletion arrived "
            f"after {time.monotonic() - began:.2f} s"
        )

    async def _show_takeover(self, *, may_change: bool) -> "_Takeover":
        """Kill the owner, in the middle of a run where there can be one; see what follows."""
        if may_change:
            run = await self._run_under_way()
        else:
            run = await self._run_that(lambda _: True)
        owner = await self._owner()
        if owner is None:
            raise CommandFailed(Exit.FAILED, f"job {JOB} has no owner")
        member = self.cluster.members[owner.node]
        killed = time.monotonic()
        await member.kill()
        self.say(f"SIGKILL to {owner.node}, which owns the job under a lease of {LEASE_TTL}")
        change = asyncio.create_task(self._next_change(killed)) if may_change else None
        heir = await self._next_owner(owner)
        claim_s = time.monotonic() - killed
        self.say(f"{heir.node} owns the job, {claim_s:.2f} s after the SIGKILL")
        change_s = await change if change is not None else None
        if change_s is not None:
            self.say(f"a file written after the SIGKILL has arrived, after {change_s:.2f} s")
        ended = await self._run_that(_is_good, run_id=run.id)
        self.say(f"the run under way has ended under {ended.attempts[-1].owner}")
        await self._restart(member)
        return _Takeover(claim_s, change_s, run, ended)

    async def _run_under_way(self) -> RunView:
        """Write files until a run is seen in the middle of them: a fast machine needs more."""
        for number in range(_BURSTS):
            files = _BURST_FILES << number
            await asyncio.to_thread(self._write_burst, f"burst{number}", files)
            self.say(
                f"{files} new files, {human_bytes(files * _BURST_BYTES)}, appear at the source"
            )
            run = await self._run_that(functools.partial(_is_at, files))
            if run.progress is not None:
                return run
            self.say(f"they were copied in {_seconds(run):.2f} s, too fast to be interrupted")
        return run

    async def _restart(self, member: Member) -> None:
        await self.cluster.start(member.name)
        job = await self._job()
        self.say(f"{member.name} is back; the job stays with {job.owner}")

    async def _next_change(self, began: float) -> float:
        """Write a file; return how long after `began` it was at the target."""
        (self.source / "after the kill").write_text("still here\n")
        async with asyncio.timeout(_STEP_S):
            while not (self.target / "after the kill").exists():
                await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    async def _owner(self) -> Owner | None:
        kv = await self.store.get(Keys().owner(JOB))
        return None if kv is None else Owner.of(kv, 0)

    async def _next_owner(self, old: Owner) -> Owner:
        async with asyncio.timeout(_STEP_S):
            while True:
                owner = await self._owner()
                if owner is not None and owner.token != old.token:
                    return owner
                await asyncio.sleep(_POLL_S)

    async def _run_that(self, fits: Callable[[RunView], bool], run_id: str = "") -> RunView:
        """Wait for a run that fits, the newest first, or for that one; raises CommandFailed."""
        try:
            async with asyncio.timeout(_STEP_S), self._client() as client:
                while True:
                    runs = [run_id]
                    if not run_id:
                        listed = await client.stub.ListRuns(pb.ListRunsRequest(job=JOB, limit=5))
                        runs = [message.id for message in listed.runs]
                    for one in runs:
                        request = pb.FollowRunRequest(job=JOB, run=one)
                        async for part in client.stub.FollowRun(request):
                            run = run_from_wire(part.run)
                            if fits(run):
                                return run
                            _check(run)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise CommandFailed(Exit.FAILED, "a run that was waited for did not come") from None

    async def _job(self) -> JobView:
        async with self._client() as client:
            return job_from_wire(await client.stub.GetJob(pb.GetJobRequest(name=JOB)))

    async def _settled(self) -> list[str]:
        """Wait until both trees are equal, a minute at most; return the paths that differ."""
        until = time.monotonic() + _STEP_S
        while True:
            differences = await asyncio.to_thread(_differences, self.source, self.target)
            if not differences or time.monotonic() > until:
                return differences
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        credentials = await asyncio.to_thread(load_tls, self.cluster.operator_tls)
        settings = ClientSettings(tuple(self.cluster.coordinators), credentials)
        async with connect(settings, 10.0) as client:
            yield client

    def _write_burst(self, name: str, files: int) -> None:
        """Make many files elsewhere and move them in at once, so that one run copies them all."""
        making = self.source.parent / name
        making.mkdir()
        for number in range(files):
            (making / f"{number:05}").write_bytes(os.urandom(_BURST_BYTES))
        making.rename(self.source / name)

    def _report(self, takeover: "_Takeover", differences: list[str]) -> None:
        run = takeover.ended
        files, size = takeover.sent_again
        owners = ", then ".join(f"{one.owner} (token {one.token})" for one in run.attempts)
        print_line("")
        print_line(f"SIGKILL to the new owner's claim     {takeover.claim_s:.2f} s")
        if takeover.change_s is not None:
            print_line(f"SIGKILL to the next change arrived   {takeover.change_s:.2f} s")
        print_line(f"owners of the run under way          {owners}")
        print_line(f"re-sent after the takeover           {files} files, {size} bytes")
        print_line(f"trees equal                          {'no' if differences else 'yes'}")


@dataclass(frozen=True, slots=True)
class _Takeover:
    """What a SIGKILL cost."""

    claim_s: float
    change_s: float | None
    seen: RunView
    """The run as it stood when its owner was killed."""
    ended: RunView

    @property
    def sent_again(self) -> tuple[int, int]:
        """Files and bytes that the run published beyond those that it had planned."""
        planned = self.seen.progress
        if planned is None:
            return 0, 0  # it had ended before its owner was killed
        files = self.ended.files_copied - planned.files_total
        return max(0, files), max(0, self.ended.bytes_copied - planned.bytes_total)


def _check(run: RunView) -> None:
    if run.outcome in {"failed", "blocked"}:
        raise CommandFailed(Exit.FAILED, f"run {run.id} {run.outcome}: {run.reason}")


def _is_good(run: RunView) -> bool:
    return run.outcome == "succeeded"


def _is_at(files: int, run: RunView) -> bool:
    """Whether a run copies so many files now, or has."""
    planned = run.progress.files_total if run.progress is not None else run.files_copied
    return planned >= files


def _seconds(run: RunView) -> float:
    """Return how long a run took."""
    if run.started is None or run.ended is None:
        return 0.0
    return (datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.started)).total_seconds()


def _differences(one: Path, other: Path) -> list[str]:
    """Return the paths at which two trees differ in kind, mode, time or content."""
    left, right = _listing(one), _listing(other)
    return sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path))


def _listing(top: Path) -> dict[str, tuple[object, ...]]:
    """Return what is below a directory, by path, as this program's own eyes see it."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not _is_reserved(name)]
        for name in (*folders, *(name for name in files if not _is_reserved(name))):
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # changed while it is looked at
                found[str(path.relative_to(top))] = _facts(path)
    return found


def _facts(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    if path.is_symlink():
        return "symlink", str(path.readlink())
    if not path.is_file():
        return "directory" if path.is_dir() else "special", status.st_mode, status.st_mtime_ns
    content = blake3(path.read_bytes()).digest()
    return "file", status.st_mode, status.st_mtime_ns, content


def _is_reserved(name: str) -> bool:
    raw = os.fsencode(name)
    return raw == RESERVED_NAME or raw.startswith(TEMPORARY_PREFIX)


if __name__ == "__main__":
    raise SystemExit(main())
