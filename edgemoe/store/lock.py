"""The lock of a store: held by a process that changes the files of a finished store."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edgemoe.errors import UsageError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager: holds the lock of a store. Raises UsageError where another process holds it.

    Readers need no lock: they see each file as it was or as it will be.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder}: another process is changing this store (edgemoe update, or edgemoe verify with `migrate`).",
                "Wait for it to end.",
            ) from None
        except OSError:
            pass  # some network file systems cannot lock folders: users must take turns
        yield
    finally:
        os.close(descriptor)
