"""Reads of whole pages that leave the page cache unchanged: direct I/O, or the nearest alternative where refused."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path

from edgemoe.errors import BudgetError
from edgemoe.kernels.native.page_cache import cached_bytes, can_probe_page_cache
from edgemoe.kernels.pages import PAGE_BYTES, round_up


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
    """A file that is read past the page cache, but for the pages that are there already.

    Where the file system refuses direct reads `direct` is false, and both descriptors are the same.
    """

    def __init__(self, path: Path, direct: bool = True) -> None:
        """Raises OSError where the file cannot be opened."""
        self.path = path
        self._can_probe_page_cache = can_probe_page_cache(path)
        self.descriptor, self.direct = open_direct(path, direct)
        """For direct reads of whole pages."""
        try:
            self.plain = os.open(path, os.O_RDONLY) if self.direct else self.descriptor
            """For reads through the page cache."""
        except OSError:
            os.close(self.descriptor)
            raise
        if self.direct and hasattr(os, "posix_fadvise"):  # plain reads then only copy cached pages
            os.posix_fadvise(self.plain, 0, 0, os.POSIX_FADV_RANDOM)

    def cached_bytes(self, offset: int, size: int) -> int:
        """How many of `size` bytes from `offset` on are in the page cache, up to the first page that is not."""
        if not self._can_probe_page_cache:
            return 0
        page = offset // PAGE_BYTES * PAGE_BYTES
        return max(0, cached_bytes(self.plain, page, offset - page + size) - (offset - page))

    def read(self, offset: int, into: memoryview) -> None:
        """Read bytes through the page cache. Raises PageReadError where the file cannot be read or ends early."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self.plain, [into[done:]], offset + done)
            except OSError as problem:
                raise PageReadError(self.path, offset + done, problem.strerror or str(problem)) from problem
            if not count:
                raise PageReadError(self.path, offset + done)
            done += count

    def forget(self, begin: int, end: int) -> None:
        """Drop all pages of a range from the page cache."""
        if hasattr(os, "posix_fadvise"):
            begin = begin // PAGE_BYTES * PAGE_BYTES
            os.posix_fadvise(self.plain, begin, round_up(end, PAGE_BYTES) - begin, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; no thread may be reading."""
        for descriptor in {self.descriptor, self.plain}:
            os.close(descriptor)


class PageReadError(Exception):
    """A failed read of a PageFile: the offset in the file, and the system's reason; None where the file ends early."""

    def __init__(self, path: Path, offset: int, reason: str | None = None) -> None:
        super().__init__(f"{path}: byte {offset}: {reason or 'the file ends'}")
        self.path, self.offset, self.reason = path, offset, reason
