"""Ternary matrices: QMoE's row grid, to which weights are rounded, and the lossless code below one bit for them.

`kernels/sub1.py` has the code, byte by byte, and encodes and decodes in NumPy; with the native library C does.
Source of the grid: QMoE (Frantar and Alistarh 2023, arXiv 2310.16795).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError, KernelError
from edgemoe.kernels.sub1 import Trits, pack_trits, read_header, unpack_trits, weights_of
from edgemoe.kernels.sub1 import pack_panels as in_numpy

if TYPE_CHECKING:
    from edgemoe.kernels.native.sub1 import NativeSub1

LEVEL_BYTES = 2
"""Bytes of a level of experts."""
MOST_TRITS_OF_A_BYTE = 32
"""A panel has 16 bytes for the classes of each 512 trits, and a panel of one row as many."""

Floats = npt.NDArray[np.float32]


def encode(trits: Trits, levels: Floats) -> bytes:
    """The code of trits, int8 `(rows, columns)` of -1, 0 and 1, and of each row's levels for -1 and 1 `(rows, 2)`.

    Nothing is rounded: levels that float16 does not hold are kept as float32, which takes 4 more bytes a row.
    Raises EdgemoeError where these are no such matrix.
    """
    if trits.ndim != 2 or trits.dtype != np.int8 or not trits.size:
        raise EdgemoeError(f"Expected trits as int8 (rows, columns), found {trits.dtype} {trits.shape}.")
    if levels.shape != (len(trits), 2) or levels.dtype != np.float32:
        raise EdgemoeError(f"Expected levels as float32 ({len(trits)}, 2), found {levels.dtype} {levels.shape}.")
    if trits.min() < -1 or trits.max() > 1:
        row, column = np.argwhere((trits < -1) | (trits > 1))[0]
        raise EdgemoeError(f"Expected trits of -1, 0 and 1, found {trits[row, column]} in row {row}, column {column}.")
    return pack_trits(trits, levels, pack_panels).tobytes()


def decode(data: bytes) -> Floats:
    """The weights `(rows, columns)` that were encoded. Raises EdgemoeError for bytes that are no such code."""
    matrix, codec, found = np.frombuffer(data, np.uint8), _native(), None
    if codec is not None:
        header = read_header(matrix)
        if header.rows * header.columns <= MOST_TRITS_OF_A_BYTE * len(matrix):  # else nothing is allocated for it
            found = codec.unpack(matrix, header.rows, header.columns)
    return weights_of(*(found or unpack_trits(matrix)))  # which says what is wrong with it


def pack_panels(trits: Trits, levels: Floats, level_bytes: int) -> Sequence[bytes]:
    """The panels of rows from a panel's first row on: see `kernels.sub1.pack_panels`."""
    codec = _native()
    return (in_numpy if codec is None else codec.pack_panels)(trits, levels, level_bytes)


def panel_lengths(trits: Trits, level_bytes: int) -> list[int]:
    """The lengths of these panels; by the native library without encoding them."""
    codec = _native()
    if codec is not None:
        return codec.panel_lengths(trits, level_bytes)
    return [len(panel) for panel in in_numpy(trits, np.zeros((len(trits), 2), np.float32), level_bytes)]


@functools.cache
def _native() -> NativeSub1 | None:
    try:
        from edgemoe.kernels.native.sub1 import NativeSub1

        return NativeSub1()
    except KernelError:
        return None


def quantise(values: Floats) -> tuple[Trits, Floats]:
    """Round weights `(rows, columns)` to the nearest of 0 and the smallest and largest weight of their row.

    A row without negative weights has the minus level 0, one without positive weights the plus level 0.
    """
    levels = extreme_levels(values)
    halves = levels / 2
    plus, minus = values > halves[:, 1:], values < halves[:, :1]
    return plus.astype(np.int8) - minus.astype(np.int8), levels


def extreme_levels(values: Floats) -> Floats:
    """The smallest and the largest weight of each row `(rows, 2)`, or 0 where that is on the other side of it."""
    return np.stack([np.minimum(values.min(axis=1), 0), np.maximum(values.max(axis=1), 0)], axis=1)
