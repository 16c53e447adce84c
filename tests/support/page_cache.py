"""Counts the pages of a file in Linux's page cache, independently of the project's own code."""

import ctypes
import mmap
from pathlib import Path


def cached_pages(path: Path) -> list[bool]:
    """Return for every page of a file that this user owns whether it is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.addressof(view), size, pages) == 0
        del view
    return [bool(page & 1) for page in pages]
