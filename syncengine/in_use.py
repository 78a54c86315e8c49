"""Whether somebody has a file open to write to it, asked of the kernel by a lease.

A read lease is granted only while nobody has the file open for writing. It is given back at once: what
opens the file afterwards is seen by the checks of whoever changes it.
"""

import errno
import fcntl
import os
import signal

from syncengine.scan import OPEN_FILE

_F_SETSIG = 10
_UNKNOWN = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}
"""Not our file, or a file system without leases: nobody can tell."""


def is_open_for_writing(name: bytes, *, dir_fd: int) -> bool:
    """Say whether a regular file is open for writing; False when nobody can tell. Raises OSError."""
    fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    try:
        # Who opens the file while we hold the lease makes the kernel tell us, with a signal that by
        # default would end the process; this one is ignored.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        if error.errno in _UNKNOWN:
            return False
        raise
    finally:
        os.close(fd)
    return False
