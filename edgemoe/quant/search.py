"""The inner loops of the quantisers, compiled by Numba: scales of least squared error, and rounding.

Numba rather than NumPy, because the search reads every weight some fifteen times: with NumPy arrays
each time is a pass through memory, and a model of billions of weights would take hours.

A group is 32 neighbouring weights of a row (fewer at the row's end). `LANES` groups are transposed into
a tile `(32, LANES)` and worked on together: the innermost loop runs over groups, so it vectorises
although sums keep their order. Letters: `x` a weight, `n` its integer, `d` a scale, `m` a minimum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS
from edgemoe.kernels.jit.compile import jit

Floats = npt.NDArray[np.float32]

LANES = 64

_ONE, _ZERO = np.float32(1), np.float32(0)
_ROUND = np.float32(1.5 * 2**23)
"""Adding and subtracting it rounds a float32 below 2**22 to the nearest integer (half to even)."""
_SMALLEST_SPREAD = np.float32(1e-30)
"""Groups whose weights differ by less than this count as constant: float16 has no scale so small."""


@jit
def _lanes() -> Floats:
    """Allocate one number for each lane. (Rows of one array would do, but Numba does not vectorise over them.)"""
    return np.empty(LANES, np.float32)


@jit
def _load(values: Floats, column: int, width: int, groups: int, first: int, tile: Floats) -> None:
    """Transpose `LANES` groups from group `first` on (counted row by row) into the tile; zeros after the last."""
    total = values.shape[0] * groups
    for lane in range(LANES):
        group = first + lane
        if group >= total:
            for c in range(width):
                tile[c, lane] = _ZERO
        else:
            row = values[group // groups]
            start = column + group % groups * GROUP_COLUMNS
            for c in range(width):
                tile[c, lane] = row[start + c]


@jit
def bounds(values: Floats, column: int, width: int, groups: int, lowest: Floats, highest: Floats) -> None:
    """Find the smallest and the largest weight of each group; shapes as in `search_symmetric`."""
    tile = np.empty((GROUP_COLUMNS, LANES), np.float32)
    low, high = _lanes(), _lanes()
    for first in range(0, len(lowest), LANES):
        _load(values, column, width, groups, first, tile)
        for lane in range(LANES):
            low[lane] = tile[0, lane]
            high[lane] = tile[0, lane]
        for c in range(1, width):
            for lane in range(LANES):
                low[lane] = min(low[lane], tile[c, lane])
                high[lane] = max(high[lane], tile[c, lane])
        for lane in range(min(LANES, len(lowest) - first)):
            lowest[first + lane] = low[lane]
            highest[first + lane] = high[lane]


@jit
def _symmetric_sums(tile: Floats, width: int, inverse: Floats, products: Floats, squares: Floats) -> None:
    """Compute the sums of `x n` and of `n n` for each lane, where `n` is `x * inverse` rounded into -8..7."""
    products[:] = _ZERO
    squares[:] = _ZERO
    for c in range(width):
        for lane in range(LANES):
            x = tile[c, lane]
            n = min(max(x * inverse[lane], np.float32(-8)), np.float32(7))
            n = (n + _ROUND) - _ROUND
            products[lane] += x * n
            squares[lane] += n * n


@jit
def search_symmetric(
    values: Floats, column: int, width: int, groups: int, levels: Floats, rounds: int, scales: Floats
) -> None:
    """Search for each group the scale of least squared error, with integers -8..7.

    A level is the number to which a candidate maps the weight of largest magnitude. The best candidate is refined
    `rounds` times: the best integers are chosen for the scale, then the best scale for the integers.
    Shapes: values `(rows, columns)`, of which `groups` groups of `width` from `column` on are taken;
    scales `(rows * groups,)`.
    """
    tile = np.empty((GROUP_COLUMNS, LANES), np.float32)
    extreme, inverse, best = _lanes(), _lanes(), _lanes()
    products, squares, scale = _lanes(), _lanes(), _lanes()
    for first in range(0, len(scales), LANES):
        _load(values, column, width, groups, first, tile)
        extreme[:] = _ZERO
        for c in range(width):
            for lane in range(LANES):
                x = tile[c, lane]
                extreme[lane] = x if abs(x) > abs(extreme[lane]) else extreme[lane]
        for lane in range(LANES):
            inverse[lane] = _ONE / extreme[lane] if abs(extreme[lane]) > _SMALLEST_SPREAD else _ZERO
            best[lane] = _ZERO
            scale[lane] = _ZERO
        for c in range(width):  # from here on the weight of largest magnitude is 1
            for lane in range(LANES):
                tile[c, lane] *= inverse[lane]
        for level in levels:
            inverse[:] = level
            _symmetric_sums(tile, width, inverse, products, squares)
            for lane in range(LANES):
                fit = products[lane] / max(squares[lane], _ONE)
                gain = fit * products[lane]
                better = gain > best[lane]
                scale[lane] = fit if better else scale[lane]
                best[lane] = gain if better else best[lane]
        for _ in range(rounds):
            for lane in range(LANES):
                inverse[lane] = _ONE / scale[lane] if scale[lane] != _ZERO else _ZERO
            _symmetric_sums(tile, width, inverse, products, squares)
            for lane in range(LANES):
                scale[lane] = products[lane] / max(squares[lane], _ONE)
        for lane in range(min(LANES, len(scales) - first)):
            scales[first + lane] = scale[lane] * extreme[lane]


@jit
def _affine_fit(
    tile: Floats, width: int, inverse: Floats, offset: Floats, sums: Floats, scale: Floats, minimum: Floats
) -> None:
    """Fit the least-squares scale and minimum of each lane, where `n` is `x * inverse + offset` rounded into 0..15.

    `sums` is scratch `(4, LANES)`; its first row becomes the squared error that the scale removes.
    """
    sums[:] = _ZERO
    for c in range(width):
        for lane in range(LANES):
            x = tile[c, lane]
            n = min(max(x * inverse[lane] + offset[lane], _ZERO), np.float32(15))
            n = (n + _ROUND) - _ROUND
            sums[0, lane] += x
            sums[1, lane] += n
            sums[2, lane] += x * n
            sums[3, lane] += n * n
    count = np.float32(width)
    for lane in range(LANES):
        covariance = sums[2, lane] - sums[0, lane] * sums[1, lane] / count
        variance = sums[3, lane] - sums[1, lane] * sums[1, lane] / count
        fit = covariance / variance if variance > _ZERO else _ZERO
        scale[lane] = fit
        minimum[lane] = (sums[0, lane] - fit * sums[1, lane]) / count
        sums[0, lane] = fit * covariance


@jit
def search_affine(
    values: Floats,
    column: int,
    width: int,
    groups: int,
    levels: Floats,
    rounds: int,
    scales: Floats,
    minimums: Floats,
) -> None:
    """Search for each group the scale and minimum of least squared error, with integers 0..15.

    A level `(first, last)` holds the numbers to which a candidate maps the smallest and the largest weight. Shapes:
    levels `(candidates, 2)`; the rest as in `search_symmetric`.
    """
    tile = np.empty((GROUP_COLUMNS, LANES), np.float32)
    lowest, spread, inverse, offset = _lanes(), _lanes(), _lanes(), _lanes()
    scale, minimum, best = _lanes(), _lanes(), _lanes()
    best_scale, best_minimum = _lanes(), _lanes()
    sums = np.empty((4, LANES), np.float32)
    for first in range(0, len(scales), LANES):
        _load(values, column, width, groups, first, tile)
        lowest[:] = tile[0]
        spread[:] = tile[0]
        for c in range(1, width):
            for lane in range(LANES):
                lowest[lane] = min(lowest[lane], tile[c, lane])
                spread[lane] = max(spread[lane], tile[c, lane])
        for lane in range(LANES):
            spread[lane] -= lowest[lane]
            inverse[lane] = _ONE / spread[lane] if spread[lane] > _SMALLEST_SPREAD else _ZERO
            best[lane] = -_ONE
        for c in range(width):  # from here on weights are 0 to 1
            for lane in range(LANES):
                tile[c, lane] = (tile[c, lane] - lowest[lane]) * inverse[lane]
        for level in range(len(levels)):
            inverse[:] = levels[level, 1] - levels[level, 0]
            offset[:] = levels[level, 0]
            _affine_fit(tile, width, inverse, offset, sums, scale, minimum)
            for lane in range(LANES):
                better = sums[0, lane] > best[lane]
                best[lane] = sums[0, lane] if better else best[lane]
                best_scale[lane] = scale[lane] if better else best_scale[lane]
                best_minimum[lane] = minimum[lane] if better else best_minimum[lane]
        for _ in range(rounds):
            for lane in range(LANES):
                inverse[lane] = _ONE / best_scale[lane] if best_scale[lane] != _ZERO else _ZERO
                offset[lane] = -best_minimum[lane] * inverse[lane]
            _affine_fit(tile, width, inverse, offset, sums, best_scale, best_minimum)
        for lane in range(min(LANES, len(scales) - first)):
            scales[first + lane] = best_scale[lane] * spread[lane]
            minimums[first + lane] = lowest[lane] + best_minimum[lane] * spread[lane]


@jit
def round_to_e2m1(
    values: Floats, column: int, width: int, groups: int, inverses: Floats, codes: npt.NDArray[np.integer]
) -> None:
    """Round each group, times the inverse of its scale, to the nearest e2m1 numbers: half to even, above 6 to 6.

    Even is a mantissa of zero: 0, 1, 2, 4. A negative weight that rounds to zero has the code 0, not minus zero's.
    Shapes: as in `search_symmetric`; inverses `(rows * groups,)`, codes as values.
    """
    for group in range(len(inverses)):
        row, start, inverse = group // groups, column + group % groups * GROUP_COLUMNS, inverses[group]
        x, n = values[row, start : start + width], codes[row, start : start + width]
        for c in range(width):
            scaled = x[c] * inverse
            size = abs(scaled)
            code = np.uint8(size > np.float32(0.25)) + np.uint8(size >= np.float32(0.75))
            code += np.uint8(size > np.float32(1.25)) + np.uint8(size >= np.float32(1.75))
            code += np.uint8(size > np.float32(2.5)) + np.uint8(size >= np.float32(3.5))
            code += np.uint8(size > np.float32(5))
            n[c] = code + 8 if scaled < np.float32(-0.25) else code


@jit
def choose_and_round(
    values: Floats,
    column: int,
    width: int,
    groups: int,
    scales: Floats,
    minimums: Floats,
    lowest: float,
    highest: float,
    zero_point: int,
    integers: npt.NDArray[np.integer],
    choices: npt.NDArray[np.uint8],
) -> None:
    """Round each group with each of the scales offered, and keep the one of least squared error.

    Shapes: scales and minimums `(offers, rows * groups)`, as they will be stored; integers as `values`;
    choices `(rows * groups,)`, the offer taken. `zero_point` is added to the stored integers.
    """
    tile = np.empty((GROUP_COLUMNS, LANES), np.float32)
    scale, minimum, inverse, error, best = _lanes(), _lanes(), _lanes(), _lanes(), _lanes()
    low, high, total = np.float32(lowest), np.float32(highest), len(choices)
    choice = np.empty(LANES, np.uint8)
    for first in range(0, total, LANES):
        _load(values, column, width, groups, first, tile)
        count = min(LANES, total - first)
        best[:] = np.inf
        choice[:] = 0
        for offer in range(len(scales)):
            scale[:count] = scales[offer, first : first + count]
            minimum[:count] = minimums[offer, first : first + count]
            error[:] = _ZERO
            for lane in range(LANES):
                inverse[lane] = _ONE / scale[lane] if scale[lane] != _ZERO else _ZERO
            for c in range(width):
                for lane in range(LANES):
                    x = tile[c, lane]
                    n = min(max((x - minimum[lane]) * inverse[lane], low), high)
                    n = (n + _ROUND) - _ROUND
                    distance = x - (scale[lane] * n + minimum[lane])
                    error[lane] += distance * distance
            for lane in range(LANES):
                choice[lane] = offer if error[lane] < best[lane] else choice[lane]
                best[lane] = min(error[lane], best[lane])
        for lane in range(count):
            group = first + lane
            row, start = group // groups, column + group % groups * GROUP_COLUMNS
            d, m = scales[choice[lane], group], minimums[choice[lane], group]
            inv = _ONE / d if d != _ZERO else _ZERO
            choices[group] = choice[lane]
            for c in range(width):
                n = min(max((tile[c, lane] - m) * inv, low), high)
                integers[row, start + c] = int((n + _ROUND) - _ROUND) + zero_point
