"""Child processes that end with their parent, even when that is killed."""

import os
import sys
from collections.abc import Sequence

# The child asks the kernel to be told of its parent's end, makes sure that this has not come yet, and
# becomes the program. A program of its own does it, since code between fork and exec is unsafe with
# threads. The signal is SIGTERM, so that what is started can stop in order.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to_us(argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` (an absolute program first) as such a child.

    The parent is the thread that starts it, as PR_SET_PDEATHSIG in prctl(2) says: start children
    from the main thread.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *argv]
