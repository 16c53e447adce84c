"""Reads of whole pages that leave the page cache as it was: direct I/O, or its nearest kin where refused."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
from pathlib import Path

from edgemoe.errors import BudgetError, StoreError
from edgemoe.store.headers import PAGE_BYTES

READ_BYTES = 1 << 24


def allocate_pages(size: int) -> mmap.mmap:
    """Anonymous private memory of `size` bytes, zeroed on first touch, beginning at a page. Raises BudgetError."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise BudgetError(
            f"{size} bytes of memory cannot be had from this system.", "Use a smaller model, or free some memory."
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages; the memory serves as well
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def open_direct(path: Path, direct: bool = True) -> tuple[int, bool]:
    """A descriptor for reading past the page cache, and whether direct I/O was granted (and asked for).

    Raises OSError where the file cannot be opened at all.
    """
    if direct and hasattr(os, "O_DIRECT"):
        with contextlib.suppress(OSError):  # tmpfs and others refuse; a missing file fails again below
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            if _reads_directly(descriptor):
                return descriptor, True
            os.close(descriptor)
    descriptor = os.open(path, os.O_RDONLY)
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
    return descriptor, False


def grants_direct(folder: Path) -> bool:
    """Whether files in a folder can be read past the page cache. Raises OSError where none can be written there."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".edgemoe-probe-") as file:
        file.write(bytes(PAGE_BYTES))
        file.flush()
        descriptor, direct = open_direct(Path(file.name))
        os.close(descriptor)
        return direct


def describe_reads(direct: bool) -> str:
    """How files are read, for people: directly, or by what takes its place on this system."""
    if direct:
        return "past the page cache, by direct I/O"
    if sys.platform == "darwin":
        return "by plain reads that the page cache does not keep (F_NOCACHE): this system has no direct I/O"
    if not hasattr(os, "O_DIRECT"):
        return "by plain reads through the page cache: this system has no direct I/O"
    return "by plain reads through the page cache: this file system refuses direct I/O"


def _reads_directly(descriptor: int) -> bool:
    """Whether the first page can be read; some file systems refuse only then."""
    try:
        with mmap.mmap(-1, PAGE_BYTES) as page:
            return os.preadv(descriptor, [page], 0) > 0
    except OSError:
        return False


def read_pages(path: Path, offset: int, size: int, into: memoryview) -> None:
    """Read `size` bytes from `offset`, a multiple of 4096, into page-aligned memory with room for whole pages.

    Raises StoreError where the file cannot be read or ends early.
    """
    try:
        descriptor, direct = open_direct(path)
        try:
            _read(descriptor, direct, offset, size, into)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise StoreError(f"{path.name}: cannot be read ({problem.strerror or problem}).", "") from problem
    except EOFError:
        raise StoreError(
            f"{path.name}: ends before byte {offset + size}.",
            "Copy the store again, or run edgemoe convert again.",
        ) from None


def _read(descriptor: int, direct: bool, offset: int, size: int, into: memoryview) -> None:
    done = 0
    while done < size:
        # Direct reads take whole pages: the last one may reach past the file's end and come back short.
        wanted = min(READ_BYTES, -(-(size - done) // PAGE_BYTES) * PAGE_BYTES)
        try:
            count = os.preadv(descriptor, [into[done : done + wanted]], offset + done)
        except OSError:
            if not direct:
                raise
            direct = False
            _leave_direct(descriptor)
            continue
        if not count:
            raise EOFError
        if not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset + done, count, os.POSIX_FADV_DONTNEED)
        done += count
        if direct and done < size and done % PAGE_BYTES:
            direct = False  # a short read in the middle: go on where it ended, through the cache
            _leave_direct(descriptor)


def _leave_direct(descriptor: int) -> None:
    import fcntl

    if hasattr(os, "O_DIRECT"):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
