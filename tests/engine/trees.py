"""Trees for tests: made from plain values, compared entry by entry, mirrored in one call."""

# Bytes, descriptors and bare system calls are what is tested.

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from syncengine.chunk_index import ChunkIndex
from syncengine.details import Details
from syncengine.filters import Filters
from syncengine.listing import decode_items, encode_entries
from syncengine.model import Durability, Entry, Limits, Problem, RunOptions
from syncengine.plan import Plan, plan_mirror
from syncengine.receiver import OpenGate, PublishGate, Receiver
from syncengine.scan import scan, scan_is_complete, scan_stretches
from syncengine.scope import Scope
from syncengine.sender import Sender, SendResult
from syncengine.stretches import Item
from syncengine.tree import Tree

RUN_STAMP = "20260102-030405"
DAY = "2026-01-02"
T0 = 1_600_000_000_000_000_000
FAST = RunOptions(durability=Durability.FAST)

Spec = dict[str, bytes | str | None]
"""Path -> content of a file, target of a symlink (str), or None for a directory."""


def grow(root: Path, spec: Spec, when: int = T0) -> None:
    """Make what the spec says, with times that do not depend on the moment."""
    root.mkdir(exist_ok=True, parents=True)
    for name, what in sorted(spec.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.mkdir(exist_ok=True)
        elif isinstance(what, str):
            path.unlink(missing_ok=True)
            path.symlink_to(what)
            os.utime(path, ns=(when, when), follow_symlinks=False)
        else:
            path.write_bytes(what)
            os.utime(path, ns=(when, when))
    for folder, _, _ in os.walk(root, topdown=False):
        os.utime(folder, ns=(when, when))


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a mirror must carry, read by other means than the engine's."""
    shown: dict[bytes, tuple[object, ...]] = {}
    base = os.fsencode(root)
    for folder, folders, files in os.walk(base):
        if b".baton" in folders:
            folders.remove(b".baton")
        for name in [b"", *folders, *files]:
            path = os.path.join(folder, name) if name else folder
            status = os.lstat(path)
            mode, mtime = status.st_mode, status.st_mtime_ns
            key = os.path.relpath(path, base)
            if stat.S_ISLNK(mode):
                shown[key] = ("link", os.readlink(path), mtime)
            elif stat.S_ISDIR(mode):
                shown[key] = ("dir", mode, mtime)
            elif stat.S_ISREG(mode):
                shown[key] = ("file", mode, mtime, Path(os.fsdecode(path)).read_bytes())
            else:
                shown[key] = ("special", mode)
    return shown


def temporaries(root: Path) -> list[str]:
    """Names of temporary entries that were left anywhere below."""
    return [
        os.path.join(folder, name)
        for folder, folders, files in os.walk(root)
        for name in [*folders, *files]
        if name.startswith(".baton~") and not folder.endswith("/.baton")
    ]


def trashed(root: Path) -> dict[str, bytes]:
    """What the trash of the test runs' day holds."""
    base = root / ".baton" / "trash" / DAY
    return {
        str(path.relative_to(base)): path.read_bytes() if not path.is_symlink() else b"->"
        for path in sorted(base.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@dataclass
class Pair:
    """A source and a target that are mirrored in one process."""

    source: Path
    target: Path
    options: RunOptions = field(default_factory=RunOptions)
    gate: PublishGate = field(default_factory=OpenGate)
    digests: bool = False
    scope: Scope | None = None
    filters: Callable[[], Filters] = lambda: Filters((), Limits(), now_ns=0)
    problems: list[Problem] = field(default_factory=list)
    source_index: ChunkIndex | None = None
    target_index: ChunkIndex | None = None
    sub: bytes = b""
    """The path below the target's root."""

    def plan(self, source: Tree, target: Tree) -> Plan:
        problems: list[Problem] = []
        self.problems = problems
        theirs = self._listed(target, [], "t", is_target=True)
        ours = self._listed(source, problems, "s", is_target=False)
        return plan_mirror(
            ours,
            decode_items(encode_entries(theirs)),
            self.options,
            is_complete=lambda: scan_is_complete(problems),
            source_member="s",
            target_member="t",
        )

    def _listed(
        self, tree: Tree, problems: list[Problem], member: str, *, is_target: bool
    ) -> Iterable[Item]:
        keep_setuid = is_target or self.options.keep_setuid
        clean = is_target and not tree.read_only
        details = Details.of(self.options, is_target=is_target)
        if not self.digests and self.scope is None:
            return scan_stretches(
                tree,
                problems=problems,
                member=member,
                keep_setuid=keep_setuid,
                clean_temporaries=clean,
                filters=self.filters(),
                details=details,
            )
        return scan(
            tree,
            problems=problems,
            member=member,
            digests=self.digests,
            keep_setuid=keep_setuid,
            clean_temporaries=clean,
            scope=self.scope,
            filters=self.filters(),
            details=details,
        )

    def preview(self) -> Plan:
        with (
            Tree.open(os.fsencode(self.source), read_only=True) as source,
            Tree.open(os.fsencode(self.target), read_only=True) as target,
        ):
            return self.plan(source, target)

    def run(
        self,
        *,
        before_push: Callable[[], None] | None = None,
        between: Callable[[int], None] | None = None,
        frame_bytes: int = 512 * 1024,
    ) -> SendResult:
        with (
            Tree.open(os.fsencode(self.source), read_only=True) as source,
            Tree.open(os.fsencode(self.target), self.sub) as target,
            self.plan(source, target) as plan,
        ):
            if before_push is not None:
                before_push()
            return self.push(source, target, plan, between, frame_bytes)

    def push(
        self,
        source: Tree,
        target: Tree,
        plan: Plan,
        between: Callable[[int], None] | None = None,
        frame_bytes: int = 512 * 1024,
    ) -> SendResult:
        if self.source_index is not None:
            source.chunks = self.source_index.of("s")
        if self.target_index is not None:
            target.chunks = self.target_index.of("t")
        sender = Sender(
            source,
            plan,
            member="s",
            target_member="t",
            frame_bytes=frame_bytes,
        )
        receiver = Receiver(
            target,
            self.options,
            member="t",
            gate=self.gate,
            run_stamp=RUN_STAMP,
        )
        frames = sender.frames()
        try:
            for number, frame in enumerate(frames):
                for reply in receiver.feed(frame):
                    sender.on_reply(reply)
                if between is not None:
                    between(number)
            for reply in receiver.finish():
                sender.on_reply(reply)
        finally:
            frames.close()
            receiver.abort()
        return sender.result()

    def check_equal(self) -> None:
        """The target equals the source, by two independent judges, and nothing is left to do."""
        assert picture(self.target) == picture(self.source)
        assert temporaries(self.target) == []
        with self.preview() as plan:
            assert list(plan) == []
            assert plan.is_empty
        if shutil.which("rsync"):
            assert rsync_differences(self.source, self.target) == ""


def rsync_differences(source: Path, target: Path, *more: str) -> str:
    """What rsync, as an independent oracle, would still change."""
    return subprocess.run(
        [
            "rsync",
            "-ani",
            *more,
            "--delete",
            "--checksum",
            "--exclude=.baton",
            f"{source}/",
            f"{target}/",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def entries_of(root: Path) -> list[Entry]:
    """Scan a tree to its end, with nothing going wrong."""
    problems: list[Problem] = []
    with Tree.open(os.fsencode(root), read_only=True) as tree:
        found = list(scan(tree, problems=problems, member="m", keep_setuid=True))
    assert problems == []
    return found
