"""The matrices of an expert as numbers, whatever the layout of its record."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.expert_layouts import ExpertLayout, ExpertWeights
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, panel_count
from edgemoe.kernels.reference.products import weights_of_panels

Floats = npt.NDArray[np.float32]


def expert_parts(layout: ExpertLayout) -> tuple[str, ...]:
    """The names of an expert's matrices."""
    return ("gate", "up", "down") if layout.gated else ("up", "down")


def part_rows(gated: bool, own: ExpertWeights, part: str, start: int, stop: int) -> Floats:
    """Rows of `gate`, `up` or `down`, of whole panels: from a multiple of 16 to another, or the end."""
    matrix: Matrix = {"gate": own.first, "up": own.up or own.first, "down": own.down}[part]
    first, end = start // PANEL_ROWS, panel_count(stop)
    if part == "down" or not gated or own.up is not None:
        return weights_of_panels(matrix, first, end)[: stop - start]
    both = weights_of_panels(matrix, 2 * first, 2 * end).reshape(end - first, 2, PANEL_ROWS, -1)
    return np.ascontiguousarray(both[:, int(part == "up")]).reshape(-1, both.shape[-1])[: stop - start]


def height_of(layout: ExpertLayout, part: str) -> int:
    """The number of rows of `gate`, `up` or `down`."""
    return layout.hidden_size if part == "down" else layout.intermediate_size
