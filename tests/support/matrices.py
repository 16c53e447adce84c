"""Matrices as kernels read them, and how far quantised ones are from what they were."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.formats import Matrix


def interleave_panels(gate: Matrix, up: Matrix) -> npt.NDArray[np.uint8]:
    """Interleave two matrices to one `gate_up`: gate panel 0, up panel 0, gate 1, ...

    Both have the same format, head and shape; the result is a matrix of as many rows as their panels have.
    """
    panels = np.stack([gate.panels, up.panels], axis=1).reshape(-1)
    return np.concatenate([gate.data[: gate.format.head_bytes], panels])


def quantisation_error(values: npt.NDArray[np.float32], blocks: Blocks) -> float:
    """The root mean square of the quantisation errors of weights that are not all zero, relative to that of these."""
    exact = values.astype(np.float64)
    return float(np.sqrt(np.square(exact - dequantise(blocks)).sum() / np.square(exact).sum()))
