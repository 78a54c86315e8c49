"""How this process deals with memory: it asks the kernel seldom, and looks for garbage seldom.

Payload comes and goes by the megabyte, entries of trees by the ten thousand.

glibc gives every large block back to the kernel when it is freed, and every thread an arena of its own.
For messages of half a MiB that meant a page fault for each 4 KiB that arrived: the kernel clears a page,
we fill it once, it is gone. Kept blocks cost some megabytes and save a quarter of a target's CPU time.
"""

import ctypes
import gc

# Of <malloc.h>; its values have not changed since they were introduced.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

KEPT_BYTES = 64 * 1024 * 1024
"""How much free memory at its end the heap keeps, at most."""
_MMAP_BYTES = 32 * 1024 * 1024
"""From this size on, blocks are the kernel's; the most that glibc takes."""


_YOUNG = 20_000
"""New objects between two looks for garbage in cycles; entries and records are in none."""


def collect_seldom() -> None:
    """Let many objects be made between two garbage collections; what is there now is never looked at.

    To be called when everything is imported.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)


def keep_freed_memory() -> bool:
    """Let freed blocks be used again; False where the C library has no such setting.

    To be called before there are threads: each takes its arena when it first allocates.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False  # another C library
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _MMAP_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
    )
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
