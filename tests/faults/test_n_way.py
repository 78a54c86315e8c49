"""Real workers, real trees, random edits on every member, deaths and losses, against a simple model.

Every value that is ever written is unique. So the model needs no planner: a run makes no value vanish
(I7), a value that no user removed or replaced stays where users can see it (I11), and when everybody is
there again all trees are equal, by an independent eye, and one more run moves nothing (I10).
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from syncengine import failpoints
from syncengine.failpoints import Step
from syncengine.model import Conflict, Rule, RunOptions, Safety
from tests.faults.members import LocalWorker, Members
from tests.faults.oracles import differences
from wire.orders import Outcome, RunEnded
from worker.n_way import NWayRun

NAMES = ["a", "b", "c"]
PATHS = ["f", "g.txt", "d/f", "d/g", "d/e/f", "h/f", "d", "h", "d/e"]
ANCHOR = "anchor"
"""A file that nobody touches: a root that is emptied would be held, as it should be."""

MEMBER = st.integers(0, len(NAMES) - 1)
PATH = st.sampled_from(PATHS)
HOUR_NS = 3_600 * 10**9
CRASHES = [step for step in Step if "marker" not in step]


class NWay(RuleBasedStateMachine):
    """Members of one job, and users that edit wherever they like."""

    joint_rule = Rule.SYNC
    keep_replaced = True

    def __init__(self) -> None:
        super().__init__()
        shm = Path("/dev/shm")
        self.base = Path(tempfile.mkdtemp(prefix="baton-nway-", dir=shm if shm.is_dir() else None))
        self.runner = asyncio.Runner()
        self.members = Members(self.base, NAMES, RunOptions())
        self.number = 0
        self.destroyed: set[bytes] = set()
        """Values that a user removed or replaced, somewhere."""
        self.written: set[bytes] = set()
        self.is_linked = False
        self.story: list[str] = []
        """What each run came to, and the trees after it: timing cannot be replayed."""

    @initialize(conflict=st.sampled_from([Conflict.KEEP_BOTH, Conflict.NEWEST]))
    def begin(self, conflict: Conflict) -> None:
        safety = Safety(max_delete=None, max_delete_files=None, keep_replaced=self.keep_replaced)
        self.members.options = RunOptions(
            rule=self.joint_rule,
            conflict=conflict,
            safety=safety,
            keep_owner=True,
            keep_xattrs=True,
            keep_acls=True,
            keep_hardlinks=True,
        )
        self.runner.run(self.members.open())
        for root in self.members.roots:
            (root / ANCHOR).write_bytes(ANCHOR.encode())
            os.utime(root / ANCHOR, ns=(1, 1))

    # Users

    def _new_value(self) -> bytes:
        self.number += 1
        value = b"value %d" % self.number
        self.written.add(value)
        return value

    @rule(member=MEMBER, path=PATH, skew=st.sampled_from([0, 0, -9, 9]))
    def write(self, member: int, path: str, skew: int) -> None:
        at = self.members.roots[member] / path
        if at.is_dir() or not self._make_parents(at):
            return
        self._destroy(at)
        at.write_bytes(self._new_value())
        when = at.stat().st_mtime_ns + skew * HOUR_NS
        os.utime(at, ns=(when, when))

    def _make_parents(self, at: Path) -> bool:
        try:
            at.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return False
        return True

    def _destroy(self, at: Path) -> None:
        """Note what a user is about to remove or replace."""
        files = [at] if at.is_file() else [p for p in at.rglob("*") if p.is_file()]
        self.destroyed |= {p.read_bytes() for p in files}

    @rule(member=MEMBER, path=PATH)
    def remove(self, member: int, path: str) -> None:
        at = self.members.roots[member] / path
        self._destroy(at)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(at) if at.is_dir() else at.unlink()

    @rule(member=MEMBER, path=PATH, other=PATH)
    def rename(self, member: int, path: str, other: str) -> None:
        root = self.members.roots[member]
        one, two = root / path, root / other
        if one.exists() and not two.exists() and self._make_parents(two):
            with contextlib.suppress(OSError):  # into itself
                one.rename(two)

    @rule(member=MEMBER, path=PATH)
    def make_directory(self, member: int, path: str) -> None:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (self.members.roots[member] / path).mkdir(parents=True)

    @rule(member=MEMBER, path=PATH, mode=st.sampled_from([0o600, 0o640, 0o755]))
    def change_mode(self, member: int, path: str, mode: int) -> None:
        at = self.members.roots[member] / path
        if at.is_file():
            at.chmod(mode)

    @rule(member=MEMBER, path=PATH, value=st.sampled_from([b"1", b"2"]))
    def change_attributes(self, member: int, path: str, value: bytes) -> None:
        at = self.members.roots[member] / path
        if at.is_file():
            os.setxattr(at, "user.x", value)
            if os.geteuid() == 0:
                os.chown(at, 1_000 + int(value), -1)

    @rule(member=MEMBER, path=PATH, other=PATH)
    def link(self, member: int, path: str, other: str) -> None:
        root = self.members.roots[member]
        one, two = root / path, root / other
        if one.is_file() and not two.exists() and self._make_parents(two):
            os.link(one, two)
            self.is_linked = True

    # What happens to workers

    def _worker(self, member: int) -> LocalWorker:
        return self.members.workers[member]

    @rule(member=MEMBER)
    def go_away(self, member: int) -> None:
        if sum(worker.is_up for worker in self.members.workers) > 1:
            self.runner.run(self._worker(member).stop())

    @rule(member=MEMBER)
    def come_back(self, member: int) -> None:
        if not self._worker(member).is_up:
            self.runner.run(self._worker(member).start())

    @rule(member=MEMBER, what=st.sampled_from(["agreed", "agreed", "chunks.db*"]))
    def lose_memory(self, member: int, what: str) -> None:
        """I3: what a worker remembers is lost."""
        worker = self._worker(member)
        was_up = worker.is_up
        self.runner.run(worker.stop())
        worker.forget(what)
        if was_up:
            self.runner.run(worker.start())

    @rule(member=MEMBER)
    def save_memory(self, member: int) -> None:
        """Take a backup of what a worker remembers."""
        worker, saved = self._worker(member), self.base / f"saved{member}"
        was_up = worker.is_up
        self.runner.run(worker.stop())
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(worker.state, saved)
        if was_up:
            self.runner.run(worker.start())

    @rule(member=MEMBER)
    def restore_memory(self, member: int) -> None:
        """I3: what a worker remembers is that of an earlier day, and older than its tree."""
        worker, saved = self._worker(member), self.base / f"saved{member}"
        if not saved.is_dir():
            return
        was_up = worker.is_up
        self.runner.run(worker.stop())
        # The highest tokens are not turned back: who restores these is told to wait for new ones.
        shutil.rmtree(worker.state / "agreed", ignore_errors=True)
        if (saved / "agreed").is_dir():
            shutil.copytree(saved / "agreed", worker.state / "agreed")
        if was_up:
            self.runner.run(worker.start())

    # Runs

    @rule(first=MEMBER)
    def run_once(self, first: int) -> None:
        self._run(first)

    @rule(
        first=MEMBER,
        step=st.sampled_from(CRASHES),
        nth=st.integers(1, 3),
    )
    def run_with_an_error(self, first: int, step: Step, nth: int) -> None:
        failpoints.arm(f"{step}:error@{nth}")
        try:
            self._run(first)
        finally:
            failpoints.arm("")

    @rule(
        first=MEMBER,
        member=MEMBER,
        path=PATH,
        edit=st.sampled_from(["write", "write", "remove", "make_directory", "rename", "chmod"]),
    )
    def run_under_an_editor(self, first: int, member: int, path: str, edit: str = "write") -> None:
        """I6: somebody edits after the plan was made."""
        honest = NWayRun._do
        machine = self

        async def edited(run: NWayRun, *arguments: object) -> None:
            match edit:
                case "write":
                    machine.write(member, path, 0)
                case "rename":
                    machine.rename(member, path, f"{path}-renamed")
                case "chmod":
                    machine.change_mode(member, path, 0o751)
                case _:
                    getattr(machine, edit)(member, path)
            await honest(run, *arguments)  # type: ignore[arg-type]

        NWayRun._do = edited  # type: ignore[assignment, method-assign]
        try:
            self._run(first)
        finally:
            NWayRun._do = honest  # type: ignore[method-assign]

    def _run(self, first: int) -> RunEnded:
        up = [n for n, worker in enumerate(self.members.workers) if worker.is_up]
        before, destroyed = self._values(), set(self.destroyed)
        ended = self.runner.run(self.members.run(up[first % len(up)]))
        self._tell(ended)
        must = before - (self.destroyed - destroyed)
        if self.keep_replaced:
            lost = must - self._values()
            assert not lost, f"{lost} vanished in a run that {ended.outcome} (I7)"
        return ended

    def _tell(self, ended: RunEnded) -> None:
        self.story.append(f"{ended.run} {ended.outcome} {ended.counts} {ended.problems}")
        for worker in self.members.workers:
            listed = [
                f"{path.relative_to(worker.root)}{'/' if path.is_dir() else ''}"
                f" {path.stat().st_mtime_ns / 1e9:.9f}"
                for path in sorted(worker.root.rglob("*"))
                if ".baton" not in path.relative_to(worker.root).parts
            ]
            self.story.append(f"   {worker.name} {'up' if worker.is_up else 'away'}: {listed}")

    def _values(self) -> set[bytes]:
        """Return every value that is anywhere, in sight or in the trash."""
        return {
            path.read_bytes()
            for root in self.members.roots
            for path in root.rglob("*")
            if path.is_file() and path.name != "root.json"
        }

    def _visible(self) -> set[bytes]:
        return {
            path.read_bytes()
            for root in self.members.roots
            for path in root.rglob("*")
            if path.is_file() and not path.relative_to(root).parts[0].startswith(".baton")
        }

    # The end

    def teardown(self) -> None:
        try:
            if self.members.workers:
                self._converge()
        except AssertionError as error:
            error.add_note("\n".join(self.story))
            raise
        finally:
            self.runner.run(self.members.close())
            self.runner.close()
            shutil.rmtree(self.base)

    def _converge(self) -> None:
        for worker in self.members.workers:
            if not worker.is_up:
                self.runner.run(worker.start())
        for first in range(4):
            ended = self._run(first % 3)
            if ended.outcome is Outcome.SUCCEEDED:
                break
        assert ended.outcome is Outcome.SUCCEEDED, ended
        again = self._run(1)
        if self.is_linked and again.counts.files_updated:
            again = self._run(2)  # see test_a_conflict_copy_keeps_its_links_at_once
        moved = again.counts
        assert (moved.files_copied, moved.files_deleted, moved.files_renamed) == (0, 0, 0), again
        assert (moved.bytes_copied, moved.files_updated, moved.conflicts) == (0, 0, 0), again
        for other in self.members.roots[1:]:
            told = differences(self.members.roots[0], other)
            assert not told, f"{self.members.roots[0]} and {other} differ:\n{told}"
        unseen = self.written - self.destroyed - self._visible()
        if self.members.options.conflict is Conflict.KEEP_BOTH:
            assert not unseen, f"{unseen}: gone though nobody removed it (I11)"
        assert not unseen - self._values(), "I7"


class NWayExchange(NWay):
    joint_rule = Rule.EXCHANGE


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Say nothing of every run of every example."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**before)


def explore(machine: type[RuleBasedStateMachine], examples: int) -> None:
    with quiet():
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                # Each example takes about a second: what fails is shown as it was found.
                phases=(Phase.explicit, Phase.reuse, Phase.generate),
                print_blob=True,
            ),
        )


Steps = Callable[[NWay], None]


def replay(machine: NWay, steps: Steps, conflict: Conflict = Conflict.KEEP_BOTH) -> None:
    """Take the steps that once found something, and demand the same in the end."""
    with quiet():
        try:
            machine.begin(conflict=conflict)
            steps(machine)
        finally:
            machine.teardown()


def edited_under_two_runs(state: NWay) -> None:
    """A member without a record, beside an agreed content that nobody has any more."""
    state.run_once(first=0)
    state.run_under_an_editor(first=0, member=2, path="d/g")
    state.run_under_an_editor(first=2, member=0, path="d/g")
    state.run_once(first=0)


def mode_changed_under_a_run(state: NWay) -> None:
    """What the tree had when it was listed is agreed to, not what it has by now."""
    state.write(member=0, path="d/f", skew=0)
    state.run_under_an_editor(first=1, member=0, path="d/f", edit="chmod")


def displaced_with_two_names(state: NWay) -> None:
    """A file with two names, one of which a directory takes: its conflict copy is linked still."""
    state.write(member=0, path="d/e/f", skew=0)
    state.run_once(first=0)
    state.link(member=0, path="d/e/f", other="h/f")
    state.make_directory(member=1, path="h/f")
    state.is_linked = False  # no further run is to be needed


@pytest.mark.parametrize("machine", [NWay, NWayExchange])
@pytest.mark.parametrize(
    "steps", [edited_under_two_runs, mode_changed_under_a_run, displaced_with_two_names]
)
def test_what_was_found_once(machine: type[NWay], steps: Steps) -> None:
    replay(machine(), steps)


@pytest.mark.timeout(180)
def test_i7_i10_i11_sync() -> None:
    explore(NWay, 20)


@pytest.mark.timeout(180)
def test_i7_i10_i11_exchange() -> None:
    explore(NWayExchange, 10)
