"""Pushes onto a disk that keeps a log, and what may be there after a power cut at any of its steps.

The oracle: at a cut, each path has a value that was visible at some moment since the last
acknowledgement before the cut. So what was acknowledged is there whole (I2), and what was not is old
or new, never torn (I1).
"""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from syncengine.marker import advance_marker, check_marker
from syncengine.receiver import Receiver
from syncengine.sender import Sender, SendResult
from syncengine.tree import Tree
from tests.engine.trees import RUN_STAMP, Pair
from tests.faults.disk import (
    CHOOSERS,
    Chooser,
    Nodes,
    Note,
    Record,
    after_cut,
    apply,
    by_chance,
    copy_nodes,
    unfold,
    walk,
)
from tests.faults.mount import FaultyMount

ACKNOWLEDGED = "acknowledged"
FINISHED = "finished"

Value = tuple[object, ...]
"""Content or kind, mode, modification time, each compared by itself; mode and time None for some."""


def fill(mount: FaultyMount, tree: Path) -> None:
    """Put a copy of a tree onto the disk, as flushed."""
    shutil.copytree(tree, mount.root, symlinks=True, dirs_exist_ok=True)
    mount.begin()


def push_noting(pair: Pair, mount: FaultyMount, frame_bytes: int = 1_500) -> SendResult:
    """Push, and put a note into the disk's log wherever the sender learns what was published."""
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target)) as target,
    ):
        known = advance_marker(target, check_marker(target, None), None)
        mount.note(f"generation {known.generation}")
        with pair.plan(source, target) as plan:
            sender = Sender(source, plan, member="s", target_member="t", frame_bytes=frame_bytes)
            receiver = Receiver(
                target, pair.options, member="t", gate=pair.gate, run_stamp=RUN_STAMP
            )
            frames = sender.frames()
            try:
                for frame in frames:
                    for reply in receiver.feed(frame):
                        mount.note(ACKNOWLEDGED)
                        sender.on_reply(reply)
                for reply in receiver.finish():
                    sender.on_reply(reply)
            finally:
                frames.close()
                receiver.abort()
            mount.note(FINISHED)
            return sender.result()


def visible(nodes: Nodes, *, folder_times: bool = False) -> dict[bytes, Value]:
    """Return what a reader finds, by path, without what is reserved."""
    shown: dict[bytes, Value] = {}
    for path, node in walk(nodes):
        if any(name.startswith(b".baton") for name in path.split(b"/")):
            continue
        mode = stat.S_IMODE(node.mode)
        if stat.S_ISDIR(node.mode):
            shown[path] = "folder", mode, node.mtime_ns if folder_times else None
        elif stat.S_ISLNK(node.mode):
            shown[path] = ("link", node.link), None, node.mtime_ns
        else:
            shown[path] = bytes(node.data), mode, node.mtime_ns
    return shown


Absent: Value = ("absent", "absent", "absent")


@dataclass
class History:
    """What was recorded of one push."""

    base: Nodes
    log: list[Record]
    allowed: list[dict[bytes, list[set[object]]]] = field(default_factory=list)
    """For a cut before each step: what each part of a path's value may be."""
    generations: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = copy_nodes(self.base)
        now: dict[bytes, list[set[object]]] = {}
        generation = 0
        _note(now, visible(nodes))
        self.allowed.append(now)
        self.generations.append(generation)
        for record in self.log:
            apply(nodes, record)
            seen = visible(nodes)
            if isinstance(record, Note) and record.text.startswith("generation"):
                generation = int(record.text.split()[1])
            if isinstance(record, Note) and record.text in {ACKNOWLEDGED, FINISHED}:
                now = {}
            else:
                now = {path: [set(part) for part in parts] for path, parts in now.items()}
            _note(now, seen)
            self.allowed.append(now)
            self.generations.append(generation)

    @property
    def steps(self) -> range:
        """Every moment at which the power can go."""
        return range(len(self.log) + 1)

    def cut(self, step: int, choose: Chooser) -> Nodes:
        """Return what a cut at a step leaves."""
        return after_cut(self.base, self.log, step, choose)

    def faults_at(self, step: int, nodes: Nodes) -> Iterator[str]:
        """Say what is there and may not be, or is not and must be."""
        allowed, found = self.allowed[step], visible(nodes)
        for path in sorted(allowed.keys() | found.keys()):
            parts = allowed.get(path, [{part} for part in Absent])
            value = found.get(path, Absent)
            for name, part, those in zip(("content", "mode", "time"), value, parts, strict=True):
                if part not in those:
                    shown = f"{name} {part!r:.60}, where one of {those!r:.200} should be"
                    yield f"{os.fsdecode(path)}: {shown}"


def _note(allowed: dict[bytes, list[set[object]]], seen: dict[bytes, Value]) -> None:
    is_first = not allowed
    for path in allowed.keys() | seen.keys():
        parts = allowed.get(path)
        if parts is None:
            # At the moments before this one there was nothing here.
            parts = allowed[path] = [set() if is_first else {part} for part in Absent]
        for part, value in zip(parts, seen.get(path, Absent), strict=True):
            part.add(value)


def cuts(history: History, chances: int = 3) -> Iterator[tuple[int, str, Nodes]]:
    """Yield every step with what is left there: in each of the plain ways, and by some chances."""
    for step in history.steps:
        for name, choose in CHOOSERS.items():
            yield step, name, history.cut(step, choose)
        for chance in range(chances):
            seed = step * 1_000 + chance
            yield step, f"by chance {seed}", history.cut(step, by_chance(seed))


def violations(history: History, limit: int = 5) -> list[str]:
    """Return the first faults that any cut would show."""
    found: list[str] = []
    for step, how, nodes in cuts(history):
        for fault in history.faults_at(step, nodes):
            before = history.log[step - 1] if step else "the beginning"
            found.append(f"step {step}, {how} kept, after {before!r:.120}: {fault}")
            if len(found) >= limit:
                return found
    return found


def marker_of(nodes: Nodes) -> bytes | None:
    """Return the marker's content, if there is one."""
    for path, node in walk(nodes):
        if path == b".baton/root.json":
            return bytes(node.data)
    return None


def contents(nodes: Nodes) -> set[bytes]:
    """Return every content that can be found anywhere, under whatever name."""
    return {bytes(node.data) for _, node in walk(nodes) if stat.S_ISREG(node.mode)}


def recover(pair: Pair, nodes: Nodes, place: Path) -> None:
    """Run again on what was left, and demand that the trees are equal then."""
    unfold(nodes, place)
    again = Pair(pair.source, place, pair.options)
    result = again.run()
    assert result.is_complete, result.problems
    assert result.problems == []
    again.check_equal()
