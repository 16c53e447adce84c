"""A device whose calls fail when a test says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemoe.kernels.device.runtime import Argument, CopiesInLine, DeviceError, Place
from edgemoe.kernels.operations import Bytes


class FailingDevice(CopiesInLine):
    """Memory without kernels: launches do nothing, and from the call of a number on every call fails.

    What it would give back is nothing but zeros, so a result that was taken from it shows.
    """

    name = "failing"
    unified = coherent = False

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.failures = 0

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failures += 1
            raise DeviceError("The device is lost.")

    def free_bytes(self) -> int:
        return 1 << 30

    def allocate(self, size: int) -> Bytes:
        self._count()
        return np.zeros(size, np.uint8)

    def adopt(self, host: Bytes) -> Any | None:
        return None

    def upload(self, to: Place, host: Bytes) -> None:
        self._count()

    def download(self, of: Place, size: int) -> Bytes:
        self._count()
        return np.zeros(size, np.uint8)

    def arrived(self, copy: Any) -> bool:
        self._count()
        return True

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        self._count()

    def finish(self) -> None:
        self._count()

    def close(self) -> None:
        """Nothing to free."""
