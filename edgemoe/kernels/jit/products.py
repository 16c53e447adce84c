"""Products with packed matrices, compiled by Numba; `formats.py` shows the byte layout.

Letters as in `operations.py`; `r` is a row of a panel. Each product covers panels `first` to `last` (16 rows
each), so that threads can share a matrix; a sum is never split, and each token is computed alone. The
innermost loop runs over a panel's 16 rows, so it vectorises although sums keep their order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS
from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.jit.numbers import half_to_float, halved_scale
from edgemoe.kernels.operations import Floats, Integers

Words = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

_ZERO = np.float32(0)
_LARGEST = np.float32(127)
_SMALLEST_ACTIVATION = np.float32(1e-35)  # `reference.SMALLEST_ACTIVATION`


@jit
def quantise_activations(values: Floats, integers: Integers, scales: Floats, sums: Floats) -> None:
    """Same as the reference's: values `(T, columns)` to integers `(T, groups * 32)` and scales `(T, groups)`.

    `sums` `(T, groups)` receives scale times the sum of the integers, by which a zero point or minimum is multiplied.
    """
    tokens, columns = values.shape
    for t in range(tokens):
        for g in range(scales.shape[1]):
            start = g * GROUP_COLUMNS
            end = min(start + GROUP_COLUMNS, columns)
            largest = _ZERO
            for c in range(start, end):
                largest = max(largest, abs(values[t, c]))
            if largest < _SMALLEST_ACTIVATION:
                largest = _ZERO
            inverse = _LARGEST / largest if largest > _ZERO else _ZERO
            total = 0
            for c in range(start, end):
                integers[t, c] = np.rint(values[t, c] * inverse)
                total += integers[t, c]
            for c in range(end, start + GROUP_COLUMNS):
                integers[t, c] = 0
            scales[t, g] = largest / _LARGEST
            sums[t, g] = scales[t, g] * np.float32(total)


@jit
def _to_floats(halves: Halves, floats: Floats) -> None:
    for i in range(len(halves)):
        floats[i] = half_to_float(halves[i])


@jit
def _scales_to_floats(scales: Bytes, floats: Floats) -> None:
    for i in range(len(scales)):
        floats[i] = halved_scale(scales[i])


@jit
def _q8_dot(words: Words, x: Integers, dots: Integers) -> None:
    """`dots[r]` = the sum over a group's columns of weight times activation; a word is 4 columns of a row."""
    for r in range(PANEL_ROWS):
        total = np.int32(0)
        for quad in range(8):
            word = np.int32(words[quad * PANEL_ROWS + r])
            for k in range(4):
                weight = np.int32(word << np.int32(24 - 8 * k)) >> np.int32(24)
                total = np.int32(total + weight * x[quad * 4 + k])
        dots[r] = total


@jit
def _q4_dot(words: Words, x: Integers, dots: Integers) -> None:
    """Same as `_q8_dot`, with columns 0-15 in the low nibbles and 16-31 in the high ones."""
    for r in range(PANEL_ROWS):
        total = np.int32(0)
        for quad in range(4):
            word = words[quad * PANEL_ROWS + r]
            for k in range(4):
                low = np.int32((word >> np.uint32(8 * k)) & np.uint32(15))
                high = np.int32((word >> np.uint32(8 * k + 4)) & np.uint32(15))
                total = np.int32(total + low * x[quad * 4 + k])
                total = np.int32(total + high * x[16 + quad * 4 + k])
        dots[r] = total


@jit
def _doubled(code: np.int32) -> np.int32:
    """Look up `formats.E2M1_DOUBLED` by comparisons, which vectorise."""
    size = np.int32(code & np.int32(7))
    value = np.int32(size + np.int32(size > 4) + np.int32(size > 5) + np.int32(3) * np.int32(size > 6))
    return np.int32(-value) if code > 7 else value


@jit
def _m4_dot(words: Words, x: Integers, dots: Integers) -> None:
    """Same as `_q4_dot`, with the doubled values of e2m1 codes."""
    for r in range(PANEL_ROWS):
        total = np.int32(0)
        for quad in range(4):
            word = words[quad * PANEL_ROWS + r]
            for k in range(4):
                low = np.int32((word >> np.uint32(8 * k)) & np.uint32(15))
                high = np.int32((word >> np.uint32(8 * k + 4)) & np.uint32(15))
                total = np.int32(total + _doubled(low) * x[quad * 4 + k])
                total = np.int32(total + _doubled(high) * x[16 + quad * 4 + k])
        dots[r] = total


@jit
def quantised_product(
    integers: Integers,
    scales: Floats,
    sums: Floats,
    words: Words,
    halves: Halves,
    payload: Bytes,
    bits: int,
    zero_point: float,
    has_minimums: bool,
    microscaled: bool,
    first: int,
    last: int,
    output: Floats,
) -> None:
    """`(T, columns)` quantised activations times panels of a q8 (`bits` 8), q4, q4m or m4 matrix (4) to `(T, rows)`.

    `words`, `halves` and `payload` are views of the matrix, `(panels, panel bytes / 4)`, `(panels, panel bytes / 2)`
    and `(panels, panel bytes)`; `microscaled` is true for m4.
    """
    tokens, groups = scales.shape
    rows = output.shape[1]
    group_words = PANEL_ROWS * bits
    per_group = groups * PANEL_ROWS
    factors = np.empty((groups, PANEL_ROWS), np.float32)
    offsets = np.empty((groups, PANEL_ROWS), np.float32)
    dots = np.empty(PANEL_ROWS, np.int32)
    totals = np.empty(PANEL_ROWS, np.float32)
    for panel in range(first, last):
        scales_at = groups * group_words * 2
        if microscaled:
            _scales_to_floats(payload[panel, 2 * scales_at : 2 * scales_at + per_group], factors.reshape(-1))
        else:
            _to_floats(halves[panel, scales_at : scales_at + per_group], factors.reshape(-1))
        if has_minimums:
            section = halves[panel, scales_at + per_group : scales_at + 2 * per_group]
            _to_floats(section, offsets.reshape(-1))
        else:
            for g in range(groups):
                for r in range(PANEL_ROWS):
                    offsets[g, r] = -np.float32(zero_point) * factors[g, r]
        panel_words = words[panel]
        for t in range(tokens):
            for r in range(PANEL_ROWS):
                totals[r] = _ZERO
            for g in range(groups):
                # Slices, not offsets: with slices Numba knows that no index is negative, and vectorises.
                group = panel_words[g * group_words : (g + 1) * group_words]
                x = integers[t, g * GROUP_COLUMNS : (g + 1) * GROUP_COLUMNS]
                if bits == 8:
                    _q8_dot(group, x, dots)
                elif microscaled:
                    _m4_dot(group, x, dots)
                else:
                    _q4_dot(group, x, dots)
                scale, total = scales[t, g], sums[t, g]
                factor, offset = factors[g], offsets[g]
                for r in range(PANEL_ROWS):
                    totals[r] += np.float32(dots[r]) * (factor[r] * scale) + offset[r] * total
            for r in range(min(PANEL_ROWS, rows - panel * PANEL_ROWS)):
                output[t, panel * PANEL_ROWS + r] = totals[r]


@jit
def _float_panel(x: Floats, weights: Floats, rows: int, output: Floats) -> None:
    """One token's activations times one panel of float32 weights `(columns * 16,)`."""
    totals = np.zeros(PANEL_ROWS, np.float32)
    for start in range(0, len(x), GROUP_COLUMNS):
        group = weights[start * PANEL_ROWS : (start + GROUP_COLUMNS) * PANEL_ROWS]
        inputs = x[start : start + GROUP_COLUMNS]
        for r in range(PANEL_ROWS):
            total = _ZERO
            for c in range(GROUP_COLUMNS):
                total += group[c * PANEL_ROWS + r] * inputs[c]
            totals[r] += total
    for r in range(rows):
        output[r] = totals[r]


@jit
def f32_product(values: Floats, floats: Floats, first: int, last: int, output: Floats) -> None:
    """`(T, groups * 32)` activations times panels of an f32 matrix `(panels, panel bytes / 4)` to `(T, rows)`."""
    tokens, rows = output.shape
    for panel in range(first, last):
        row = panel * PANEL_ROWS
        for t in range(tokens):
            _float_panel(values[t], floats[panel], min(PANEL_ROWS, rows - row), output[t, row:])


@jit
def f16_product(values: Floats, halves: Halves, first: int, last: int, output: Floats) -> None:
    """Same as `f32_product`, for an f16 matrix `(panels, panel bytes / 2)`."""
    tokens, rows = output.shape
    weights = np.empty(halves.shape[1], np.float32)
    for panel in range(first, last):
        _to_floats(halves[panel], weights)
        row = panel * PANEL_ROWS
        for t in range(tokens):
            _float_panel(values[t], weights, min(PANEL_ROWS, rows - row), output[t, row:])


@jit
def embed_quantised(
    ids: Integers,
    payload: Bytes,
    halves: Halves,
    groups: int,
    bits: int,
    zero_point: float,
    has_minimums: bool,
    microscaled: bool,
    factor: float,
    output: Floats,
) -> None:
    """Rows `ids` of a q8, q4, q4m or m4 matrix, times `factor`; `payload` is the matrix `(panels, panel bytes)`."""
    for t in range(len(ids)):
        panel, r = ids[t] // PANEL_ROWS, ids[t] % PANEL_ROWS
        per_group = groups * PANEL_ROWS
        scales_at = per_group * bits * 2
        for c in range(output.shape[1]):
            g, column = c // GROUP_COLUMNS, c % GROUP_COLUMNS
            within = column if bits == 8 else column % 16
            byte = payload[panel, g * PANEL_ROWS * bits * 4 + within // 4 * 64 + r * 4 + within % 4]
            if bits == 8:
                value = np.float32(np.int8(byte))
            else:
                nibble = np.int32(byte & 15) if column < 16 else np.int32(byte >> 4)
                value = np.float32(_doubled(nibble)) if microscaled else np.float32(nibble) - np.float32(zero_point)
            if microscaled:
                weight = value * halved_scale(payload[panel, 2 * scales_at + g * PANEL_ROWS + r])
            else:
                weight = value * half_to_float(halves[panel, scales_at + g * PANEL_ROWS + r])
            if has_minimums:
                weight += half_to_float(halves[panel, scales_at + per_group + g * PANEL_ROWS + r])
            output[t, c] = weight * np.float32(factor)


@jit
def embed_f32(ids: Integers, floats: Floats, factor: float, output: Floats) -> None:
    """Rows `ids` of an f32 matrix `(panels, panel bytes / 4)`, times `factor`."""
    for t in range(len(ids)):
        for c in range(output.shape[1]):
            weight = floats[ids[t] // PANEL_ROWS, c * PANEL_ROWS + ids[t] % PANEL_ROWS]
            output[t, c] = weight * np.float32(factor)


@jit
def embed_f16(ids: Integers, halves: Halves, factor: float, output: Floats) -> None:
    """Rows `ids` of an f16 matrix `(panels, panel bytes / 2)`, times `factor`."""
    for t in range(len(ids)):
        for c in range(output.shape[1]):
            weight = half_to_float(halves[ids[t] // PANEL_ROWS, c * PANEL_ROWS + ids[t] % PANEL_ROWS])
            output[t, c] = weight * np.float32(factor)
