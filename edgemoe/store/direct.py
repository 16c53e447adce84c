"""Reads of whole pages that leave the page cache as it was: direct I/O, or its nearest kin where refused."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path

from edgemoe.errors import BudgetError
from edgemoe.store.headers import PAGE_BYTES, round_up

READ_BYTES = 1 << 24
CACHED_BYTES = 1 << 19
"""So much at a time is copied from the page cache, where it may not hold all."""
WHOLE_BYTES = 1 << 30


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
    import tempfile  # only those who plan want it, and a start does without

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


class PageFile:
    """A file to be read in whole pages, by any number of threads, that leaves the page cache as it was.

    What the page cache holds is copied from there, which costs less than the disk; all else is read past it, or
    dropped from it again where the file system refuses direct reads (`direct` says so).
    """

    def __init__(self, path: Path, direct: bool = True) -> None:
        """Raises OSError where the file cannot be opened."""
        self.path = path
        self._descriptor, self.direct = open_direct(path, direct)
        try:
            self._plain = os.open(path, os.O_RDONLY) if self.direct else self._descriptor
        except OSError:
            os.close(self._descriptor)
            raise
        self._may_be_cached = hasattr(os, "RWF_NOWAIT")
        if self.direct and hasattr(os, "posix_fadvise"):  # then only what the cache holds is read the plain way
            os.posix_fadvise(self._plain, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, size: int, into: memoryview, seems_cached: bool = False) -> None:
        """Read `size` bytes from `offset`, a multiple of 4096, into page-aligned memory with room for whole pages.

        What `seems_cached` is asked for by one call into the system, however long, so that a thread wants Python's lock
        no more than that. Raises PageReadError where the file cannot be read or ends early.
        """
        # The last page may reach past the file's end: it comes back short.
        whole = into[: round_up(size, PAGE_BYTES)]
        done, missed_bytes = self._copy_cached(offset, size, whole, WHOLE_BYTES if seems_cached else PAGE_BYTES)
        missed = offset + done
        while done < size:
            try:
                count = self._read_some(offset + done, whole[done : done + READ_BYTES])
            except OSError as problem:
                raise PageReadError(self.path, offset + done, problem.strerror or str(problem)) from problem
            if not count:
                raise PageReadError(self.path, offset + done)
            done += count
        if missed_bytes:
            self._forget(missed, missed_bytes)

    def seems_cached(self, offset: int, size: int, page: memoryview) -> bool:
        """Whether the page cache has the first and the last page of some bytes. `page` is room for one."""
        if not self._may_be_cached:
            return False
        for at in (offset, offset + (size - 1) // PAGE_BYTES * PAGE_BYTES):
            try:
                os.preadv(self._plain, [page], at, os.RWF_NOWAIT)
            except OSError:
                if at == offset:
                    self._may_be_cached = False  # as `read` would find: of a file that is not there one page is asked
                self._forget(at, PAGE_BYTES)
                return False
        return True

    def close(self) -> None:
        """Close it; no thread may be reading."""
        for descriptor in {self._descriptor, self._plain}:
            os.close(descriptor)

    def _read_some(self, offset: int, into: memoryview) -> int:
        """Some bytes, at least one; none only at the file's end."""
        if self.direct and offset % PAGE_BYTES == 0:  # after a short read, what is left is not whole pages
            with contextlib.suppress(OSError):  # refused just here: the plain way tells what is wrong, if it is
                return os.preadv(self._descriptor, [into], offset)
        count = os.preadv(self._plain, [into], offset)
        self._forget(offset, count)
        return count

    def _copy_cached(self, offset: int, size: int, into: memoryview, ask_bytes: int) -> tuple[int, int]:
        """Copies from the page cache, from `offset` to the first byte that it does not hold, `size` bytes or more.

        Returns how many bytes it copied, and how many it then asked for in vain. The system takes a question for a wish
        and begins to read what is missing: so where nothing is known a single page is asked for first, little after a
        short answer, and nothing after a miss.
        """
        done = 0
        while self._may_be_cached and done < size:
            ask = min(ask_bytes, len(into) - done)
            try:
                count = os.preadv(self._plain, [into[done : done + ask]], offset + done, os.RWF_NOWAIT)
            except BlockingIOError:
                self._may_be_cached = False
                return done, min(ask, CACHED_BYTES)  # more may be what others have there
            except OSError:  # this file system cannot tell; what else is wrong the other way finds out
                self._may_be_cached = False
                break
            if not count:  # the file's end
                break
            done += count
            ask_bytes = CACHED_BYTES if count < ask else max(ask_bytes, CACHED_BYTES)
        return done, 0

    def _forget(self, offset: int, size: int) -> None:
        """Drop from the page cache what reading this range brought there."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._plain, offset, size, os.POSIX_FADV_DONTNEED)


class PageReadError(Exception):
    """Where a PageFile could not be read: the byte in the file, and the system's reason; no reason at its end."""

    def __init__(self, path: Path, offset: int, reason: str | None = None) -> None:
        super().__init__(f"{path}: byte {offset}: {reason or 'the file ends'}")
        self.path, self.offset, self.reason = path, offset, reason
