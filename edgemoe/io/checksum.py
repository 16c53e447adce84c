"""CRC-32C (Castagnoli), with which every read verifies that its bytes are those that were written.

It detects damage, not malice: every change within 32 successive bits, and all other changes except one in 2^32. The
native library computes it nearly as fast as memory is read. Where that library is missing, Numba computes it (0.7 GB/s,
about the rate of hashlib's SHA-256), since it runs the model there too: a package for it alone would gain little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError


def crc32c(data: Any, crc: int = 0) -> int:
    """The CRC-32C of bytes-like data that follows bytes whose CRC-32C is `crc` (0 at the beginning)."""
    return _implementation()(np.frombuffer(data, np.uint8), crc)


def as_written(data: Any, expected: int | None) -> bool:
    """Whether bytes-like data has the expected CRC-32C; true where none is known."""
    return expected is None or crc32c(data) == expected


@functools.cache
def _implementation() -> Callable[[npt.NDArray[np.uint8], int], int]:
    try:
        from edgemoe.kernels.native.checksum import NativeChecksum

        return NativeChecksum().crc32c
    except KernelError:
        from edgemoe.kernels.jit.checksum import jit_crc32c

        return jit_crc32c
