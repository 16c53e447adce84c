"""What the page cache holds of a file: told by the system without a read, which would bring it there."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from mmap import PAGESIZE
from pathlib import Path

PROT_READ, MAP_SHARED, FAILED = 1, 1, ctypes.c_void_p(-1).value  # as on every Linux but those of MIPS and Alpha


def tells_cached(path: Path) -> bool:
    """Whether `cached_bytes` may be asked of a file: Linux answers who owns it or may write it.

    To all others `mincore` says that everything is there. Raises OSError where the file is missing.
    """
    return sys.platform == "linux" and (path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK))


def cached_bytes(descriptor: int, offset: int, size: int) -> int:
    """How many of `size` bytes from `offset` on the page cache holds, before the first that it lacks.

    0 where the system cannot tell, and where no page of its own begins at `offset`. It takes some 10 ms a gibibyte.
    """
    libc = _libc()
    address = libc.mmap(None, size, PROT_READ, MAP_SHARED, descriptor, offset)
    if address == FAILED:
        return 0
    present = ctypes.create_string_buffer(-(-size // PAGESIZE))
    told = libc.mincore(address, size, present) == 0
    libc.munmap(address, size)
    missing = present.raw.find(b"\0") if told else 0
    return size if missing < 0 else missing * PAGESIZE


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
