"""Files into the page cache, or out of it, so that engines that are compared find there the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgemoe.process import available_bytes

READ_BYTES = 1 << 24


def bring_into_cache(paths: Sequence[Path]) -> None:
    """Read files, for the system to keep them: engines that read past its cache find there what others left.

    Files that would take more than half of the free memory are left where they are.
    """
    if sum(path.stat().st_size for path in paths) > available_bytes() // 2:
        return
    memory = memoryview(bytearray(READ_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Take files out of the page cache as far as nobody holds them there; where the system cannot, leave them."""
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what was not written yet would stay
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
