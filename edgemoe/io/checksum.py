"""CRC-32C (Castagnoli), with which every read verifies that its bytes are those that were written.

Unlike SHA-256 it is fast enough for every read. It detects damage, not malice: every change within 32 successive bits,
and all other changes except one in 2^32.

Source: RFC 3720, appendix B.4, has its examples. Registers are polynomials in reflected order, as
`native/kernels/checksum/polynomial.h` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError

POLYNOMIAL = 0x82F63B78
ONE_BYTE = 0x00800000
"""x^8: multiplying a register by this appends a zero byte."""
CHUNK_BYTES = 1 << 22
MOST_LANES = 4096
STEP_BYTES = 8

Words = npt.NDArray[np.uint32]


def crc32c(data: Any, crc: int = 0) -> int:
    """The CRC-32C of bytes-like data that follows bytes whose CRC-32C is `crc` (0 at the beginning)."""
    return _implementation()(np.frombuffer(data, np.uint8), crc)


def as_written(data: Any, sha256: str | None, crc32c: int | None) -> bool:
    """Whether bytes-like data matches its checksum: CRC-32C, or SHA-256 where that is the faster one.

    Without the native library hashlib's SHA-256 is the faster one. With it, and without a known CRC-32C, nothing is
    checked: SHA-256 would take longer than the read.
    """
    if (crc32c if native_crc32c_usable() else sha256) is None:
        return True
    whole = Checksum()
    whole.add(data)
    return whole.agrees(sha256, crc32c)


class Checksum:
    """Computes the checksum that `as_written` compares, over bytes that come in pieces."""

    def __init__(self) -> None:
        self._crc32c = 0
        self._sha256: Any = None
        if not native_crc32c_usable():
            import hashlib

            self._sha256 = hashlib.sha256()

    def add(self, data: Any) -> None:
        """Take in the next bytes-like piece."""
        if self._sha256 is not None:
            self._sha256.update(data)
        else:
            self._crc32c = crc32c(data, self._crc32c)

    @property
    def values(self) -> tuple[str | None, int | None]:
        """SHA-256 and CRC-32C of all pieces: the one that `as_written` compares, None for the other."""
        return (None, self._crc32c) if self._sha256 is None else (self._sha256.hexdigest(), None)

    def agrees(self, sha256: str | None, crc32c: int | None) -> bool:
        """Whether all pieces together match the checksum."""
        pairs = zip(self.values, (sha256, crc32c), strict=True)
        return all(found is None or expected is None or found == expected for found, expected in pairs)


@functools.cache
def native_crc32c_usable() -> bool:
    """Whether the native library can compute CRC-32C here."""
    from edgemoe.kernels.native.library import load_library

    try:
        load_library()
    except KernelError:
        return False
    return True


@functools.cache
def _implementation() -> Callable[[npt.NDArray[np.uint8], int], int]:
    if not native_crc32c_usable():
        return portable_crc32c
    from edgemoe.kernels.native.checksum import NativeChecksum

    return NativeChecksum().crc32c


def portable_crc32c(data: npt.NDArray[np.uint8], crc: int = 0) -> int:
    """CRC-32C in NumPy: the same values as the native library."""
    register = crc ^ 0xFFFFFFFF
    for start in range(0, data.size, CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        register = _product(register, _power(chunk.size)) ^ _from_zero(chunk)
    return register ^ 0xFFFFFFFF


def _from_zero(chunk: npt.NDArray[np.uint8]) -> int:
    """The register after a chunk, starting at zero: lanes are computed side by side, and combined in pairs.

    Leading zero bytes leave a zero register unchanged, so the chunk is padded at its front.
    """
    lanes = min(MOST_LANES, 1 << (chunk.size >> 9).bit_length())
    lane_bytes = -(-chunk.size // (lanes * STEP_BYTES)) * STEP_BYTES
    filled = np.zeros(lanes * lane_bytes, np.uint8)
    filled[filled.size - chunk.size :] = chunk
    steps = filled.view("<u8").reshape(lanes, lane_bytes // STEP_BYTES).T.copy()
    tables = _tables()
    registers = np.zeros(lanes, np.uint32)
    for step in steps:
        halves = (step ^ registers).view("<u2").reshape(lanes, 4)
        registers = tables[0][halves[:, 0]]
        for number in (1, 2, 3):
            registers ^= tables[number][halves[:, number]]
    while len(registers) > 1:
        registers = _products(registers[::2], _power(lane_bytes)) ^ registers[1::2]
        lane_bytes *= 2
    return int(registers[0])


@functools.cache
def _tables() -> list[Words]:
    """Table i at h is the register after the half word h and 6 - 2 * i zero bytes, `(65536,)` each."""
    words = np.arange(1 << 16, dtype=np.uint32)
    return [_products(words, _power(8 - 2 * i)) for i in range(4)]


@functools.lru_cache(maxsize=256)
def _power(count: int) -> int:
    """x^(8 * count): multiplying a register by this appends `count` zero bytes."""
    result, factor = 1 << 31, ONE_BYTE  # x^0, x^8
    while count:
        if count & 1:
            result = _product(result, factor)
        factor = _product(factor, factor)
        count >>= 1
    return result


def _product(a: int, b: int) -> int:
    """The product of two polynomials modulo P."""
    product = 0
    for bit in range(31, -1, -1):
        product ^= b if a >> bit & 1 else 0
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


def _products(values: Words, by: int) -> Words:
    """The products of polynomials with one polynomial, modulo P: the sum of the products of its bits."""
    products = np.zeros_like(values)
    for bit in range(32):
        products ^= (values >> np.uint32(bit) & np.uint32(1)) * np.uint32(_product(1 << bit, by))
    return products
