"""The numbers that blocks of checkpoints stand for, in float64, by the definition of each format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.file_rows import Rows
from tests.support.quantised_writers import e2m1, e4m3


def real_numbers(rows: Rows) -> npt.NDArray[np.float64]:
    """Weights `(rows, columns)`, without any rounding."""
    if not isinstance(rows, Blocks):
        return rows.astype(np.float64)
    values: Any = rows.values
    width, name = values.shape[1], rows.format.name

    def spread(numbers: Any, share: int) -> Any:
        return np.repeat(numbers.astype(np.float64), share, axis=1)[:, :width]

    scales: Any = rows.scales
    if name in ("m4", "m8"):
        return (e2m1 if name == "m4" else e4m3)(values) * spread(2.0 ** (scales.astype(float) - 127), 32)
    if name == "nv4":
        return e2m1(values) * spread(e4m3(rows.factors), 16) * scales.astype(np.float64)  # type: ignore[arg-type]
    if name == "f8":
        return e4m3(values) * spread(scales, 128)
    numbers = values.astype(np.float64)
    if name in ("q4m", "q5m", "q8m"):
        return numbers * spread(scales, 32) + spread(rows.minimums, 32)
    if name == "q4z":
        return (numbers - spread(rows.offsets, 32)) * spread(scales, 32)
    return (numbers - {"q4": 8, "q8": 0}[name]) * spread(scales, 32)
