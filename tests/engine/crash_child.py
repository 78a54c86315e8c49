"""One run in a process of its own, to be killed at a step that the environment names."""

import os
import sys
from pathlib import Path

from syncengine.marker import advance_marker, check_marker
from syncengine.model import RunOptions, Safety
from syncengine.tree import Tree
from tests.engine.trees import Pair


def main() -> None:
    source, target, trash = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = RunOptions(safety=Safety(trash_s=None if trash == "none" else 86_400))
    with Tree.open(os.fsencode(target)) as tree:
        advance_marker(tree, check_marker(tree, None), None)
    Pair(source, target, options).run()


if __name__ == "__main__":
    main()
