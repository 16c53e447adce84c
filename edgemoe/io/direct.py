"""Reads of whole pages that leave the page cache unchanged: direct I/O, or the nearest alternative where refused."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path

from edgemoe.errors import BudgetError
from edgemoe.io.pages import PAGE_BYTES, round_up
from edgemoe.kernels.native.page_cache import cached_bytes, can_probe_page_cache


def allocate_pages(size: int) -> mmap.mmap:
    """Anonymous private memory of `size` bytes, zeroed on first touch, beginning at a page. Raises BudgetError."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise BudgetError(
            f"{size} bytes of memory cannot be had from this system.", "Use a smaller model, or free some memory."
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages; ordinary pages work too
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def open_direct(path: Path, direct: bool = True) -> tuple[int, bool]:
    """A descriptor for reading past the page cache, and whether direct I/O was both requested and granted.

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
    """Whether files in a folder can be read past the page cache. Raises OSError where the folder cannot be written."""
    import tempfile  # only planning needs it; starts avoid the import

    with tempfile.NamedTemporaryFile(dir=folder, prefix=".edgemoe-probe-") as file:
        file.write(bytes(PAGE_BYTES))
        file.flush()
        descriptor, direct = open_direct(Path(file.name))
        os.close(descriptor)
        return direct


def describe_reads(direct: bool) -> str:
    """A description for people of how files are read: directly, or by this system's alternative."""
    if direct:
        return "past the page cache, by direct I/O"
    if sys.platform == "darwin":
        return "by plain reads that the page cache does not keep (F_NOCACHE): this system has no direct I/O"
    if not hasattr(os, "O_DIRECT"):
        return "by plain reads through the page cache: this system has no direct I/O"
    return "by plain reads through the page cache: this file system refuses direct I/O"


def _reads_directly(descriptor: int) -> bool:
    """Whether the first page can be read; some file systems refuse direct I/O only then."""
    try:
        with mmap.mmap(-1, PAGE_BYTES) as page:
            return os.preadv(descriptor, [page], 0) > 0
    except OSError:
        return False


class PageFile:
    """A file that any number of threads read in whole pages, leaving the page cache unchanged.

    Pages in the page cache are copied from there, which costs less than the disk. All others are read past it or,
    where the file system refuses direct reads (`direct` is then False), dropped from it again.
    """

    def __init__(self, path: Path, direct: bool = True) -> None:
        """Raises OSError where the file cannot be opened."""
        self.path = path
        self._can_probe_page_cache = can_probe_page_cache(path)
        self._descriptor, self.direct = open_direct(path, direct)
        try:
            self._plain = os.open(path, os.O_RDONLY) if self.direct else self._descriptor
        except OSError:
            os.close(self._descriptor)
            raise
        if self.direct and hasattr(os, "posix_fadvise"):  # plain reads then only copy cached pages
            os.posix_fadvise(self._plain, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, size: int, into: memoryview) -> None:
        """Read `size` bytes from `offset`, a multiple of 4096, into page-aligned memory with room for whole pages.

        Cached pages from `offset` on are copied by one system call, so that a thread takes the GIL only once for them.
        Raises PageReadError where the file cannot be read or ends early.
        """
        # The last page may reach past the file's end: its read is short.
        whole = into[: round_up(size, PAGE_BYTES)]
        done = self._copy_cached(offset, size, whole)
        while done < size:
            try:
                count = self._read_some(offset + done, whole[done:])
            except OSError as problem:
                raise PageReadError(self.path, offset + done, problem.strerror or str(problem)) from problem
            if not count:
                raise PageReadError(self.path, offset + done)
            done += count

    def close(self) -> None:
        """Close the file; no thread may be reading."""
        for descriptor in {self._descriptor, self._plain}:
            os.close(descriptor)

    def _read_some(self, offset: int, into: memoryview) -> int:
        """Read some bytes and return their number; 0 only at the file's end."""
        if self.direct and offset % PAGE_BYTES == 0:  # false after a short read within a page
            with contextlib.suppress(OSError):  # refused just here: a plain read reports the error, if any
                return os.preadv(self._descriptor, [into], offset)
        count = os.preadv(self._plain, [into], offset)
        self._forget(offset, count)
        return count

    def _copy_cached(self, offset: int, size: int, into: memoryview) -> int:
        """Copy cached bytes from `offset` on, up to `size` bytes, and return their number."""
        cached = cached_bytes(self._plain, offset, size) if self._can_probe_page_cache else 0
        if cached:
            with contextlib.suppress(OSError):  # no longer cached, or a file system without the flag
                return os.preadv(self._plain, [into[:cached]], offset, os.RWF_NOWAIT)
        return 0

    def _forget(self, offset: int, size: int) -> None:
        """Drop the pages from the page cache that reading this range brought there."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._plain, offset, size, os.POSIX_FADV_DONTNEED)


class PageReadError(Exception):
    """A failed read of a PageFile: the offset in the file, and the system's reason; None where the file ends early."""

    def __init__(self, path: Path, offset: int, reason: str | None = None) -> None:
        super().__init__(f"{path}: byte {offset}: {reason or 'the file ends'}")
        self.path, self.offset, self.reason = path, offset, reason
