"""Random ternary matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

QMOE_ZEROS = 0.885
"""The share of zeros that QMoE's code is made for."""


def draw_trits(random: np.random.Generator, shape: tuple[int, int], zeros: float = QMOE_ZEROS) -> npt.NDArray[np.int8]:
    """Independent trits, of which about that share is 0, and the others are -1 or 1 alike."""
    drawn = random.random(shape, np.float32)
    signs = np.where(drawn < zeros + (1 - zeros) / 2, np.int8(-1), np.int8(1))
    return np.where(drawn < zeros, np.int8(0), signs)


def draw_levels(random: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
    """Levels that float16 holds, and a quarter of them too: minus and plus `(rows, 2)`."""
    sizes = random.integers(1, 2048, (rows, 2)).astype(np.float32) / np.float32(1024)
    return sizes * np.array([-1, 1], np.float32)
