"""The inner loops for the scales of trellis formats, compiled by Numba: sums over groups, and the best of a few scales.

A group is 32 neighbouring weights of a row, a block the 8 groups that share a float16 scale. Every sum has one order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import CHAINS, LARGEST_FACTOR

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_MOST = float(LARGEST_FACTOR + 1)


@jit
def sizes(values: Floats, importance: Floats, sums: Doubles, squares: Doubles) -> None:
    """The weighted sums of groups of magnitudes and of squares: values `(rows, columns)`, sums `(rows, groups)`."""
    for row in range(values.shape[0]):
        for group in range(sums.shape[1]):
            total, square = 0.0, 0.0
            for column in range(group * GROUP_COLUMNS, (group + 1) * GROUP_COLUMNS):
                value = np.float64(values[row, column])
                weighted = abs(value) * np.float64(importance[column])
                total += weighted
                square += weighted * abs(value)
            sums[row, group] = total
            squares[row, group] = square


@jit
def fits(
    values: Floats,
    codes: npt.NDArray[np.uint8],
    levels: Floats,
    importance: Floats,
    step_bits: int,
    products: Doubles,
    squares: Doubles,
) -> None:
    """The weighted sums of groups of value times level, and of squared levels, by codes; levels `(windows, V)`."""
    windows, step_weights = levels.shape
    last = np.empty(CHAINS, np.int64)
    for row in range(values.shape[0]):
        last[:] = 0
        products[row] = 0
        squares[row] = 0
        column = 0
        for step in range(codes.shape[1] // CHAINS):
            for chain in range(CHAINS):
                last[chain] = (last[chain] << step_bits | codes[row, step * CHAINS + chain]) & (windows - 1)
            for v in range(step_weights):
                product, square = 0.0, 0.0
                for chain in range(CHAINS):
                    level = np.float64(levels[last[chain], v])
                    weighted = level * np.float64(importance[column + chain])
                    product += weighted * np.float64(values[row, column + chain])
                    square += weighted * level
                products[row, column // GROUP_COLUMNS] += product
                squares[row, column // GROUP_COLUMNS] += square
                column += CHAINS


@jit
def _count(step: float, scale: float) -> float:
    """The number from 1 to 16 that makes a scale come closest to a step."""
    return min(max(np.rint(step / scale), 1.0), _MOST) if scale > 0 else 1.0


@jit
def offer(steps: Doubles, costs: Doubles, starts: Doubles, offers: Doubles) -> None:
    """Fill offers `(blocks, starts)` for steps of groups `(blocks, 8)`: scales of least cost for the counts they give.

    A start is what the block's largest step is in scales at first; costs multiply squared differences.
    """
    for block in range(steps.shape[0]):
        largest = steps[block].max()
        for n in range(len(starts)):
            first = largest / starts[n]
            product, square = 0.0, 0.0
            for group in range(steps.shape[1]):
                count = _count(steps[block, group], first)
                product += costs[block, group] * count * steps[block, group]
                square += costs[block, group] * count * count
            offers[block, n] = product / square if square > 0 else 0.0


@jit
def choose(
    steps: Doubles, costs: Doubles, offers: Doubles, chosen: npt.NDArray[np.int64], factors: npt.NDArray[Any]
) -> None:
    """Choose the offer of least cost for each block, as they were rounded, and the factors `(blocks, 8)` for it."""
    for block in range(steps.shape[0]):
        best, least = 0, np.inf
        for n in range(offers.shape[1]):
            cost = 0.0
            for group in range(steps.shape[1]):
                count = _count(steps[block, group], offers[block, n])
                difference = steps[block, group] - count * offers[block, n]
                cost += costs[block, group] * difference * difference
            if cost < least:
                best, least = n, cost
        chosen[block] = best
        for group in range(steps.shape[1]):
            factors[block, group] = np.uint8(_count(steps[block, group], offers[block, best]) - 1)
