"""CRC-32C by the native library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.native.library import available_isas, load_library


class NativeChecksum:
    """CRC-32C with the kernels of one instruction set, by default the best available. Raises KernelError."""

    def __init__(self, isa: str | None = None) -> None:
        self._library = load_library()
        self._kernels = self._library.em_kernels_for((isa or available_isas()[0]).encode())

    def crc32c(self, data: npt.NDArray[np.uint8], crc: int = 0) -> int:
        """Return the CRC-32C of earlier bytes with checksum `crc`, then `data` (contiguous). Releases the GIL."""
        return int(self._library.em_crc32c(self._kernels, crc, data.ctypes.data, data.size))

    def combine(self, first: int, second: int, second_bytes: int) -> int:
        """Return the CRC-32C of two parts together, from the checksum of each part."""
        return int(self._library.em_crc32c_combine(first, second, second_bytes))
