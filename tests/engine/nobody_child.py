"""One run without privileges; prints the problems of scan, plan and push as JSON."""

import json
import os
import sys
from pathlib import Path

from syncengine.model import Problem, RunOptions
from syncengine.tree import Tree
from tests.engine.trees import Pair

NOBODY = 65_534


def shown(problems: list[Problem]) -> list[list[str]]:
    return [[os.fsdecode(p.path), p.what] for p in problems]


def main() -> None:
    if os.geteuid() == 0:
        # Here and not at the start of the process: nobody may read neither our code nor Python.
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    full = sys.argv[3] == "full"
    options = RunOptions(
        keep_owner=full,
        keep_xattrs=full,
        keep_acls=full,
        keep_hardlinks=full,
        keep_devices=full,
    )
    pair = Pair(Path(sys.argv[1]), Path(sys.argv[2]), options)
    with (
        Tree.open(os.fsencode(pair.source), read_only=True) as source,
        Tree.open(os.fsencode(pair.target)) as target,
        pair.plan(source, target) as plan,
    ):
        result = pair.push(source, target, plan)
        answer = {
            "scan": shown(pair.problems),
            "plan": shown(plan.problems),
            "push": shown(result.problems),
            "updated": [[str(result.counts.files_updated)]],
        }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
