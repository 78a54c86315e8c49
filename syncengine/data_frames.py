"""Frames with nothing but content in them, read from a file straight into their place.

Packing content into a frame costs a copy of it, and on a fast link copies are much of what a large file
costs. So the frame is made first, empty but for its header, and the file is read into it.
"""

import ctypes
import os
import struct

from syncengine.frames import Data

_HEADER = struct.Struct(">4BI")
"""What MessagePack begins a frame of one Data record with: two arrays, the tag, and 32 bits of size."""

_ARRAY_OF_ONE, _ARRAY_OF_TWO, _TAG, _BINARY = 0x91, 0x92, Data.__struct_config__.tag, 0xC6

HEADER_BYTES = _HEADER.size

LEAST_BYTES = 1 << 16
"""Below this MessagePack has shorter headers."""

# The documented way to fill bytes in place: made with no content, they may be written to until
# somebody else has seen them (PyBytes_FromStringAndSize in Python's C API).
_make_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
    ("PyBytes_AsString", ctypes.pythonapi)
)


def read_frame(fd: int, size: int, offset: int | None = None) -> tuple[bytes, memoryview]:
    """Read the next `size` bytes of a file, or those at an offset, into the frame of one Data record.

    Returns the frame and its content. `size` is at least LEAST_BYTES. Where the file has fewer, so
    has the content, and the frame is no frame. Blocks on the disk; raises OSError.
    """
    assert LEAST_BYTES <= size < 1 << 32
    frame: bytes = _make_bytes(None, _HEADER.size + size)
    at: int = _address_of(frame)
    header = _HEADER.pack(_ARRAY_OF_ONE, _ARRAY_OF_TWO, _TAG, _BINARY, size)
    ctypes.memmove(at, header, len(header))
    at += len(header)
    left = size
    while left:
        room = (ctypes.c_char * left).from_address(at)
        got = (
            os.readv(fd, [room]) if offset is None else os.preadv(fd, [room], offset + size - left)
        )
        if not got:
            break
        at += got
        left -= got
    return frame, memoryview(frame)[_HEADER.size : _HEADER.size + size - left]
