"""Quantises matrices to ternary weights with feedback of errors, within a number of bytes of the code sub1.

A column is rounded when those before it are, for targets that make up for their errors (GPTQ: Frantar et al. 2022,
arXiv 2210.17323), each weight to what costs least: the square of its error, plus a rate for a trit that is not 0, as
each takes about as many bits. The rate is searched that makes the code as long as it may be. At rate 0, with a row's
smallest and largest weight as its levels, this is QMoE's rounding (Frantar and Alistarh 2023, arXiv 2310.16795).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.panel_sizes import PANEL_ROWS
from edgemoe.kernels.sub1 import Trits, joined_bytes
from edgemoe.quant.factors import Doubles, Floats, lower_factor, lower_inverse
from edgemoe.quant.sub1 import LEVEL_BYTES, extreme_levels, panel_lengths

_COLUMNS_AT_ONCE = 128
_ROWS_AT_ONCE = 256
_LEVEL_ROUNDS = 8
_RATES = (-16.0, 8.0)
"""Logarithms to base 2 of the lowest and the highest rate tried, in what a mean weight costs."""
_HALVINGS = 12
_SAMPLE = 8
"""One panel of so many says what a rate makes of a matrix; but four panels at least."""
_LEAST_PANELS = 4


@dataclass(frozen=True, eq=False)
class ColumnFeedback:
    """How errors of single columns feed back, by the factor `M` of their inputs' second moments, upper triangular."""

    spreads: Floats
    """The diagonal of `M`: the squares are the costs of squared errors, with those of earlier columns made up for."""
    inverse: Floats

    @classmethod
    def of(cls, moments: Doubles, damping: float) -> ColumnFeedback:
        """The feedback for second moments `(columns, columns)`, to whose diagonal `damping` times its mean is added.

        More is added where they are still singular. Raises EdgemoeError for moments that are none.
        """
        columns = len(moments)
        if moments.shape != (columns, columns) or not np.isfinite(moments).all():
            raise EdgemoeError("the second moments of inputs: expected a square matrix of numbers, found others.")
        mean = float(np.trace(moments)) / columns
        turned = np.ascontiguousarray(moments[::-1, ::-1]) if mean > 0 else np.eye(columns)
        np.einsum("ii->i", turned)[:] += damping * (mean if mean > 0 else 1)
        factor = lower_factor(turned).astype(np.float32)
        inverse = np.ascontiguousarray(lower_inverse(factor)[::-1, ::-1])
        return cls(np.diagonal(factor)[::-1].copy(), inverse)


def fit(matrices: Sequence[Floats], feedback: ColumnFeedback, room: int, fitted: bool) -> list[tuple[Trits, Floats]]:
    """The trits and levels of matrices of one input, whose panels in turn are a matrix of at most `room` bytes.

    `fitted`: levels are the means of the weights that become them at each rate; if not, the smallest and the largest
    weight of a row, at rate 0 if there is room. Levels are rounded to float16, and are infinite beyond it. Raises
    EdgemoeError where there is no room for any.
    """
    least = least_bytes(sum(-(-len(own) // PANEL_ROWS) for own in matrices), matrices[0].shape[1])
    if room < least:
        raise EdgemoeError(f"expected room for {least} bytes, of which no weight differs from 0; found {room}.")

    def found(parts: Sequence[Floats], rate: float) -> tuple[list[tuple[Trits, Floats]], list[int]]:
        results = [round_with_feedback(own, feedback, rate, fitted) for own in parts]
        return results, [length for trits, _ in results for length in panel_lengths(trits, LEVEL_BYTES)]

    whole = sum(own.size for own in matrices)
    mean = sum(float(np.square(own, dtype=np.float64).sum()) for own in matrices) / max(whole, 1)
    unit = mean * float(np.square(feedback.spreads, dtype=np.float64).mean())
    if not fitted:
        results, lengths = found(matrices, 0.0)
        if joined_bytes(lengths) <= room:
            return results
    samples = [_some_panels(own) for own in matrices]
    panels = sum(-(-len(own) // PANEL_ROWS) for own in matrices)
    lowest, highest = _RATES
    for _ in range(_HALVINGS):
        middle = (lowest + highest) / 2
        _, lengths = found(samples, unit * 2**middle)
        if joined_bytes([0] * panels) + sum(lengths) * panels / len(lengths) <= room:
            highest = middle
        else:
            lowest = middle
    step = 0.02
    while True:
        results, lengths = found(matrices, unit * 2**highest)
        if joined_bytes(lengths) <= room:
            return results
        highest, step = highest + step, 2 * step


def least_bytes(panels: int, columns: int) -> int:
    """The bytes of a matrix of zeros alone."""
    (panel,) = panel_lengths(np.zeros((PANEL_ROWS, columns), np.int8), LEVEL_BYTES)
    return joined_bytes([panel] * panels)


def round_with_feedback(values: Floats, feedback: ColumnFeedback, rate: float, fitted: bool) -> tuple[Trits, Floats]:
    """The trits and levels of weights `(rows, columns)` at a rate; see `fit`."""
    from edgemoe.quant import ternary_columns as loops  # imports Numba, which only conversion needs

    rows, columns = values.shape
    levels = np.empty((rows, 2), np.float32)
    if fitted:
        weight = float(np.square(feedback.spreads, dtype=np.float64).mean())
        loops.fitted_levels(values, rate / weight if weight > 0 else 0.0, _LEVEL_ROUNDS, levels)
    else:
        levels = extreme_levels(values)
    with np.errstate(over="ignore"):
        levels = levels.astype(np.float16).astype(np.float32)
    trits = np.empty(values.shape, np.int8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        own = slice(start, start + _ROWS_AT_ONCE)
        targets: npt.NDArray[np.float32] = values[own].astype(np.float32)
        for first in range(0, columns, _COLUMNS_AT_ONCE):
            end = min(first + _COLUMNS_AT_ONCE, columns)
            here, rests = slice(first, end), np.empty((len(targets), end - first), np.float32)
            part = targets[:, here], levels[own], feedback.spreads[here], feedback.inverse[here, here]
            loops.round_columns(*part, np.float32(rate), trits[own, here], rests)
            targets[:, end:] -= rests @ feedback.inverse[here, end:]
    return trits, levels


def _some_panels(values: Floats) -> Floats:
    panels = -(-len(values) // PANEL_ROWS)
    wanted = max(min(panels, _LEAST_PANELS), panels // _SAMPLE)
    numbers = np.arange(wanted) * panels // wanted
    rows = (numbers[:, None] * PANEL_ROWS + np.arange(PANEL_ROWS)).reshape(-1)
    chosen: Floats = values[rows[rows < len(values)]]
    return chosen
