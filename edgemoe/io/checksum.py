"""CRC-32C (Castagnoli), with which every read verifies that its bytes are those that were written.

It detects damage, not malice: every change within 32 successive bits, and all other changes except one in 2^32. The
native library computes it nearly as fast as memory is read. Where that library is missing, Numba computes it (0.7 GB/s,
about the rate of hashlib's SHA-256), since it runs the model there too: a package for it alone would gain little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError

if TYPE_CHECKING:
    from edgemoe.kernels.native.checksum import NativeChecksum


def crc32c(data: Any, crc: int = 0) -> int:
    """The CRC-32C of bytes-like data that follows bytes whose CRC-32C is `crc` (0 at the beginning)."""
    return _implementation()(np.frombuffer(data, np.uint8), crc)


def as_written(data: Any, expected: int | None) -> bool:
    """Whether bytes-like data has the expected CRC-32C; true where none is known."""
    return expected is None or crc32c(data) == expected


def combined_crc32c(parts: Iterable[tuple[int, int | None]]) -> int | None:
    """The CRC-32C of parts that follow one another, from the bytes and the CRC-32C of each.

    None where one is unknown, or without the native library.
    """
    native, whole = _native(), 0
    for size, crc in parts:
        if native is None or crc is None:
            return None
        whole = native.combine(whole, crc, size)
    return whole


@functools.cache
def _native() -> NativeChecksum | None:
    try:
        from edgemoe.kernels.native.checksum import NativeChecksum

        return NativeChecksum()
    except KernelError:
        return None


@functools.cache
def _implementation() -> Callable[[npt.NDArray[np.uint8], int], int]:
    native = _native()
    if native is not None:
        return native.crc32c
    from edgemoe.kernels.jit.checksum import jit_crc32c

    return jit_crc32c
