"""Ternary matrices: QMoE's row grid, to which weights are rounded, and the lossless code below one bit for them.

`kernels/sub1.py` has the code, byte by byte. Source of the grid: QMoE (Frantar and Alistarh 2023, arXiv 2310.16795).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.sub1 import Trits, pack_trits, unpack_trits, weights_of

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
    return pack_trits(trits, levels).tobytes()


def decode(data: bytes) -> Floats:
    """The weights `(rows, columns)` that were encoded. Raises EdgemoeError for bytes that are no such code."""
    trits, levels = unpack_trits(np.frombuffer(data, np.uint8))
    return weights_of(trits, levels)


def quantise(values: Floats) -> tuple[Trits, Floats]:
    """Round weights `(rows, columns)` to the nearest of 0 and the smallest and largest weight of their row.

    A row without negative weights has the minus level 0, one without positive weights the plus level 0.
    """
    levels = np.stack([np.minimum(values.min(axis=1), 0), np.maximum(values.max(axis=1), 0)], axis=1)
    halves = levels / 2
    plus, minus = values > halves[:, 1:], values < halves[:, :1]
    return plus.astype(np.int8) - minus.astype(np.int8), levels
