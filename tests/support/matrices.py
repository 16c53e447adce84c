"""Matrices as kernels read them, and how far quantised ones are from what they were."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks, dequantise


def interleave_panels(gate: npt.NDArray[np.uint8], up: npt.NDArray[np.uint8], panels: int) -> npt.NDArray[np.uint8]:
    """Interleave two packed matrices to one `gate_up`: gate panel 0, up panel 0, gate 1, ...

    Both have the same format and shape, with `panels` panels; the result is a matrix of `2 * panels * 16` rows.
    """
    return np.stack([gate.reshape(panels, -1), up.reshape(panels, -1)], axis=1).reshape(-1)


def quantisation_error(values: npt.NDArray[np.float32], blocks: Blocks) -> float:
    """The root mean square of the quantisation errors of weights that are not all zero, relative to that of these."""
    exact = values.astype(np.float64)
    return float(np.sqrt(np.square(exact - dequantise(blocks)).sum() / np.square(exact).sum()))
