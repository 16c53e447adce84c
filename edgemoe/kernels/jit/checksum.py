"""CRC-32C in Numba: eight bytes a step, by one table for each of them (slicing by eight).

Source: RFC 3720, appendix B.4, has examples; the polynomial is in reflected order, as in
`native/kernels/checksum/polynomial.h`.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.jit.compile import jit

POLYNOMIAL = np.uint32(0x82F63B78)
ONES = np.uint32(0xFFFFFFFF)
BYTE = np.uint32(255)

Words = npt.NDArray[np.uint32]


def jit_crc32c(data: npt.NDArray[np.uint8], crc: int = 0) -> int:
    """Return the CRC-32C of earlier bytes with checksum `crc`, then `data` (contiguous). Releases the GIL."""
    fixed = data.view()
    fixed.flags.writeable = False  # or Numba compiles once more for each kind
    return int(_update(fixed, np.uint32(crc), _tables()))


@functools.cache
def _tables() -> Words:
    """Table i at b is the register after byte b and i zero bytes, `(8, 256)`."""
    tables = np.zeros((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = tables[0] >> 1 ^ np.where(tables[0] & 1, POLYNOMIAL, np.uint32(0))
    for i in range(1, 8):
        tables[i] = tables[i - 1] >> 8 ^ tables[0][tables[i - 1] & 255]
    return tables


@jit
def _update(data: npt.NDArray[np.uint8], crc: np.uint32, tables: Words) -> np.uint32:
    register = np.uint32(crc ^ ONES)
    whole = data.size // 8 * 8
    for i in range(0, whole, 8):
        register ^= np.uint32(data[i])
        register ^= np.uint32(data[i + 1]) << np.uint32(8)
        register ^= np.uint32(data[i + 2]) << np.uint32(16)
        register ^= np.uint32(data[i + 3]) << np.uint32(24)
        register = (
            tables[7, register & BYTE]
            ^ tables[6, register >> np.uint32(8) & BYTE]
            ^ tables[5, register >> np.uint32(16) & BYTE]
            ^ tables[4, register >> np.uint32(24)]
            ^ tables[3, data[i + 4]]
            ^ tables[2, data[i + 5]]
            ^ tables[1, data[i + 6]]
            ^ tables[0, data[i + 7]]
        )
    for i in range(whole, data.size):
        register = register >> np.uint32(8) ^ tables[0, (register ^ data[i]) & BYTE]
    return np.uint32(register ^ ONES)
