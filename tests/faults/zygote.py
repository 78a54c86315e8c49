"""A process that has the engine loaded and gives birth to one that runs a scenario, and perhaps dies.

Requests come on standard input, a line of JSON each: scenario, place, failpoints. The answers are the
statuses of os.wait. Forking from a small process that has one thread is cheap, and safe; forking pytest
is neither.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from syncengine import failpoints
from syncengine.errors import EngineError
from tests.faults import joint_scenarios  # noqa: F401 - registers its scenarios
from tests.faults.scenarios import SCENARIOS

WELL, TOLD, FAILED = 0, 3, 4
"""How a run ended that was not killed: all done, with problems, by an error of the system."""


def _run(name: str, base: str, spec: str) -> int:
    failpoints.arm(spec)
    try:
        return WELL if SCENARIOS[name](Path(base)).run() else TOLD
    except (OSError, EngineError):
        return FAILED
    except Exception:  # noqa: BLE001 - whatever it is, the test must see it and this process must end
        traceback.print_exc()
        return 5


def main() -> None:
    for line in sys.stdin:
        name, base, spec = json.loads(line)
        child = os.fork()
        if child == 0:
            # The answers go there: logs of the run must not.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            os._exit(_run(name, base, spec))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
