"""The entry of the `baton` command: what it loads, it loads for what was asked.

`coordinator start` becomes the guardian, which starts the same command line again as its child; so this
module, and those that it imports at its top, must stay small.
"""

import os
import sys

from coordinator.guardian import LINK, guard


def main() -> None:
    """Run the command line; leaves with one of `cli.exits.Exit`, or as the guardian says."""
    asks_only = {"-h", "--help"} & set(sys.argv)
    if sys.argv[1:3] == ["coordinator", "start"] and LINK not in os.environ and not asks_only:
        sys.exit(guard([sys.executable, "-P", "-m", "cli.main", *sys.argv[1:]]))

    from cli.tree import app  # noqa: PLC0415 - typer is more than the guardian may weigh

    try:
        app()
    except BrokenPipeError:  # whoever read the output has gone: `baton job list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
