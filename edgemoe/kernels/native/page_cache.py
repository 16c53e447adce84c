"""What the page cache holds of a file: told by the system without a read, which would bring it there."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from pathlib import Path

FAILED = ctypes.c_void_p(-1).value


def tells_cached(path: Path) -> bool:
    """Whether `cached_bytes` may be asked of a file, and what it tells be read by itself (`RWF_NOWAIT`).

    Linux answers who owns the file or may write it: to all others `mincore` says that everything is there. Raises
    OSError where the file is missing.
    """
    return hasattr(os, "RWF_NOWAIT") and (path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK))


def cached_bytes(descriptor: int, offset: int, size: int) -> int:
    """How many of `size` bytes from `offset` on the page cache holds, before the first that it lacks.

    0 where the system cannot tell, and where no page of its own begins at `offset`. It takes some 10 ms a gibibyte.
    """
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if address == FAILED:
        return 0
    present = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    told = libc.mincore(address, size, present) == 0
    libc.munmap(address, size)
    missing = present.raw.find(b"\0") if told else 0
    return size if missing < 0 else missing * mmap.PAGESIZE


@cache
def _libc() -> ctypes.PyDLL:
    """The C library, called with Python's lock kept: to want it back can take longer than all of the calls."""
    libc = ctypes.PyDLL(None)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.argtypes = (address, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.mmap.restype = address
    libc.munmap.argtypes = (address, size)
    libc.mincore.argtypes = (address, size, ctypes.c_char_p)
    return libc
