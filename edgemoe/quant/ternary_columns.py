"""The inner loop of rounding to ternary weights with feedback of errors, compiled by Numba."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.jit.compile import jit

Floats = npt.NDArray[np.float32]


@jit
def round_columns(
    targets: Floats,
    levels: Floats,
    spreads: Floats,
    inverse: Floats,
    rate: np.float32,
    trits: npt.NDArray[np.int8],
    rests: Floats,
) -> None:
    """Round the first columns of rows `(rows, columns)`, one after the other, each to what costs least.

    A trit other than 0 costs `rate`, an error its square times that of the column's spread. Levels `(rows, 2)` are
    minus and plus; `inverse` `(columns, columns)` says what a rest takes from later targets; trits and rests
    `(rows, columns)` are filled.
    """
    count = targets.shape[1]
    for row in range(targets.shape[0]):
        own = targets[row]
        for column in range(count):
            value, spread = own[column], spreads[column]
            side = 1 if value > 0 else 0
            level, weight = levels[row, side], spread * spread
            left = value - level
            chosen = left * left * weight + rate < value * value * weight
            trits[row, column] = (2 * side - 1) if chosen else 0
            rest = (left if chosen else value) * spread
            rests[row, column] = rest
            taken = inverse[column]
            for later in range(column + 1, count):
                own[later] -= rest * taken[later]


@jit
def fitted_levels(values: Floats, rate: float, rounds: int, levels: Floats) -> None:
    """The levels `(rows, 2)` of rows: each the mean of the weights that are nearer to it, by `rate`, than to 0."""
    for row in range(values.shape[0]):
        square, least, most = 0.0, 0.0, 0.0
        for value in values[row]:
            square += np.float64(value) * np.float64(value)
            least, most = min(least, np.float64(value)), max(most, np.float64(value))
        start = 1.5 * np.sqrt(square / values.shape[1])
        low, high = max(-start, least), min(start, most)
        for _ in range(rounds):
            above = (high * high + rate) / (2 * high) if high > 0 else np.inf
            below = (low * low + rate) / (2 * low) if low < 0 else -np.inf
            sums, counts = np.zeros(2), np.zeros(2)
            for value in values[row]:
                if value > above or value < below:
                    side = 1 if value > 0 else 0
                    sums[side] += np.float64(value)
                    counts[side] += 1
            low = sums[0] / counts[0] if counts[0] > 0 else least
            high = sums[1] / counts[1] if counts[1] > 0 else most
        levels[row, 0] = low
        levels[row, 1] = high
