"""Plans with renames, as the rules make them of what a listing with grafts shows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from syncengine.agreed import Graft
from syncengine.changes import Rename
from syncengine.details import Details
from syncengine.phases import Plan
from syncengine.plan import plan_mirror
from syncengine.scan import scan, scan_is_complete
from syncengine.sender import SendResult
from syncengine.tree import Tree
from tests.engine.trees import Pair

if TYPE_CHECKING:
    from syncengine.model import Problem


@contextmanager
def renaming(pair: Pair, *renames: tuple[bytes, bytes]) -> Iterator[Plan]:
    """A plan that begins with those renames (path, to) at the target that can be done."""
    problems: list[Problem] = []
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target)) as target,
        Plan(pair.options) as fresh,
    ):
        theirs = list(
            scan(
                target,
                problems=problems,
                member="t",
                keep_setuid=True,
                clean_temporaries=True,
                grafts=[Graft(path, to) for path, to in renames],
                details=Details.of(pair.options, is_target=True),
            )
        )
        grafted = {entry.came_from: entry for entry in theirs if entry.came_from}
        for path, to in renames:
            entry = grafted.get(path)
            if entry is not None:
                fresh.renames.append(Rename(path, to, entry.kind, entry.seen))
        with plan_mirror(
            scan(source, problems=problems, member="s", details=Details.of(pair.options)),
            theirs,
            pair.options,
            is_complete=lambda: scan_is_complete(problems),
        ) as plan:
            for name in ("in_way", "changes", "replacements", "extras", "directories"):
                for change in getattr(plan, name):
                    getattr(fresh, name).append(change)
        fresh.seal(is_complete=True)
        yield fresh


def push(pair: Pair, plan: Plan) -> SendResult:
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target)) as target,
    ):
        return pair.push(source, target, plan)
