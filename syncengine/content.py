"""Digests of single files of a listing, read when somebody asks for just these."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

from syncengine.agreed import Sighting
from syncengine.directories import Directories
from syncengine.model import Entry, Kind
from syncengine.names import order_key
from syncengine.scan import OPEN_FILE, fingerprint

_READ_BYTES = 1 << 20


def read_digest(directories: Directories, path: bytes, seen: int) -> bytes:
    """Return the digest of a file, or nothing when it is not, or no longer, what was seen; blocks."""
    parent, _, name = path.rpartition(b"/")
    try:
        fd = os.open(name, OPEN_FILE, dir_fd=directories.fd(parent))
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or fingerprint(status) != seen:
            return b""
        hasher = blake3()
        while data := os.read(fd, _READ_BYTES):
            hasher.update(data)
        return hasher.digest() if fingerprint(os.fstat(fd)) == seen else b""
    except OSError:
        return b""
    finally:
        os.close(fd)


def with_digests(
    entries: Iterable[Entry], wanted: Iterator[bytes], read: Callable[[Entry], bytes]
) -> Iterator[Entry]:
    """Put digests to the files at the paths wanted, both in tree order; blocks on the disk.

    What cannot be read, or changes meanwhile, gets one that nothing else has: it differs from
    everything.
    """
    path = next(wanted, None)
    for entry in entries:
        while path is not None and order_key(path) < order_key(entry.path):
            path = next(wanted, None)
        if entry.path == path and entry.kind is Kind.FILE and not entry.digest:
            yield entry._replace(digest=read(entry) or os.urandom(32))
        else:
            yield entry


def sightings_with_digests(
    sightings: Iterable[Sighting], wanted: Iterator[bytes], read: Callable[[Entry], bytes]
) -> Iterator[Sighting]:
    """Put digests to what is there now, as `with_digests` does."""
    path = next(wanted, None)
    for sighting in sightings:
        while path is not None and order_key(path) < order_key(sighting.path):
            path = next(wanted, None)
        now = sighting.now
        if sighting.path == path and now is not None and now.kind is Kind.FILE and not now.digest:
            yield sighting._replace(now=now._replace(digest=read(now) or os.urandom(32)))
        else:
            yield sighting
