"""What Linux's page cache holds of a file, counted apart from what the project itself asks."""

import ctypes
import mmap
from pathlib import Path


def cached_pages(path: Path) -> list[bool]:
    """Of every page of a file of ours, whether it is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.addressof(view), size, pages) == 0
        del view
    return [bool(page & 1) for page in pages]
