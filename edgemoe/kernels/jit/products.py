"""Products with packed matrices, compiled by Numba; `formats.py` shows the byte layout.

Letters as in `operations.py`; `r` is a row of a panel. Each product covers panels `first` to `last` (16 rows
each), so that threads can share a matrix; a sum is never split, and each token is computed alone. The
innermost loop runs over a panel's 16 rows, so it vectorises although sums keep their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import E4M3, GROUP_COLUMNS, PANEL_ROWS, TABLES, Format, Matrix, group_count, panel_count
from edgemoe.kernels.jit import grids
from edgemoe.kernels.jit.compile import jit, jit_calling
from edgemoe.kernels.jit.numbers import half_to_float, halved_scale
from edgemoe.kernels.operations import Floats, Integers

Words = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

_ZERO = np.float32(0)
_LARGEST = np.float32(127)
_SMALLEST_ACTIVATION = np.float32(1e-35)  # `reference.SMALLEST_ACTIVATION`


_QUADS = GROUP_COLUMNS // 4
_NONE, _HALF, _E8M0, _SINGLE = range(4)
_SCALES = {"none": _NONE, "f16": _HALF, "e8m0": _E8M0, "f32": _SINGLE}
_INT8, _NIBBLE, _E4M3 = range(1, 4)
_FACTORS = {"none": _NONE, "int8": _INT8, "nibble": _NIBBLE, "e4m3": _E4M3}


class Panels(NamedTuple):
    """A matrix `(panels, panel bytes)` in several types, and what its format has where in a panel."""

    bytes: Bytes
    words: Words
    halves: Halves
    floats: Floats
    bits: int
    scale: int
    share: int
    """Groups that share a scale."""
    scales_at: int
    """Where scales begin in a panel, in bytes; the others follow: minimums, factors, offsets."""
    has_minimums: bool
    factor: int
    parts: int
    """Factors of a group."""
    has_offsets: bool
    zero: int
    table: Bytes
    """The values of codes, with `zero` added; empty where codes are their own."""
    is_bf16: bool
    grid: grids.GridPlaces
    """Where the format has a grid; it has entries then."""


def takes(fmt: Format) -> bool:
    """Whether the functions of this module have the format: those with a trellis, and sub1, they do not."""
    return fmt.trellis is None and not fmt.varying


def panels_of(matrix: Matrix) -> Panels:
    """A matrix as the functions of this module take it."""
    fmt: Format = matrix.format
    data = matrix.data.reshape(panel_count(matrix.rows), -1)
    share = min(fmt.scale_columns // GROUP_COLUMNS, group_count(matrix.columns))
    # Values are unsigned bytes here: Numba's products of those are three times as fast.
    table, zero = np.empty(0, np.uint8), 128 if fmt.name == "q8" else fmt.zero
    if fmt.table != "none":
        table, zero = (TABLES[fmt.table] + np.int16(128)).astype(np.uint8), 128
    if fmt.grid != "none":
        zero = grids.ZERO
    return Panels(
        data,
        data.view(np.uint32),
        data.view(np.uint16),
        data.view(np.float32),
        fmt.bits,
        _SCALES.get(fmt.scale, _NONE),
        share,
        group_count(matrix.columns) * fmt.payload_bytes,
        fmt.has_minimums,
        _FACTORS.get(fmt.factor, _NONE),
        GROUP_COLUMNS // fmt.factor_columns,
        fmt.has_offsets,
        zero,
        table,
        fmt.name == "bf16",
        grids.places_of(fmt),
    )


@jit
def quantise_activations(values: Floats, integers: Integers, scales: Floats, sums: Integers) -> None:
    """Same as the reference's: values `(T, columns)` to integers `(T, groups * 32)` and scales `(T, groups)`.

    `sums` `(T, groups, 2)` receives the sums of the integers of both halves of a group, by which zero points and
    minimums are multiplied.
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
            for c in range(start, end):
                integers[t, c] = np.rint(values[t, c] * inverse)
            for c in range(end, start + GROUP_COLUMNS):
                integers[t, c] = 0
            for half in range(2):
                total = 0
                for c in range(start + half * 16, start + half * 16 + 16):
                    total += integers[t, c]
                sums[t, g, half] = total
            scales[t, g] = largest / _LARGEST


@jit
def _unpack_plane(lines: Words, bits: int, low: int, codes: Words) -> None:
    """Add the bits of a plane (`formats.PLANES`) to the codes of a group, `(8 quads * 16 rows,)`, four in a word."""
    mask = np.uint32(((1 << bits) - 1) * 0x01010101)
    up = np.uint32(low)
    for field in range(_QUADS // bits):
        of_field = codes[field * len(lines) : (field + 1) * len(lines)]
        down = np.uint32(field * bits)
        for i in range(len(lines)):
            code = np.uint32(np.uint32(np.uint32(lines[i] >> down) & mask) << up)
            of_field[i] = np.uint32(of_field[i] | code)


@jit
def _unpack_group(matrix: Panels, panel: int, g: int, codes: Words) -> None:
    """The values of a group as unsigned bytes, `zero` not yet taken off: `(8 quads * 16 rows,)`, four in a word."""
    if len(matrix.grid.entries):
        grid_payload = matrix.bytes[panel, g * matrix.grid.payload_bytes :]
        grids.unpack_group(grid_payload, matrix.grid, codes.view(np.uint8))
        return
    words, bits, table = matrix.words[panel], matrix.bits, matrix.table
    payload = words[g * bits * PANEL_ROWS : (g + 1) * bits * PANEL_ROWS]
    if bits == 8:
        for i in range(len(payload)):
            codes[i] = np.uint32(payload[i] ^ np.uint32(0x80808080))
        return
    codes[:] = 0
    low_bits = 4 if bits > 4 else 2 if bits == 3 else bits
    _unpack_plane(payload[: low_bits * PANEL_ROWS], low_bits, 0, codes)
    if bits > low_bits:
        _unpack_plane(payload[low_bits * PANEL_ROWS :], bits - low_bits, low_bits, codes)
    if len(table):
        each = codes.view(np.uint8)
        for i in range(len(each)):
            each[i] = table[each[i]]


@jit
def _halves_to_floats(halves: Halves, floats: Floats) -> None:
    for i in range(len(floats)):
        floats[i] = half_to_float(halves[i])


@jit
def _load_scales(matrix: Panels, panel: int, scales: Floats) -> None:
    """All scales of a panel, `(shared groups * 16,)`."""
    if matrix.scale == _HALF:
        _halves_to_floats(matrix.halves[panel, matrix.scales_at // 2 :], scales)
    elif matrix.scale == _SINGLE:
        scales[:] = matrix.floats[panel, matrix.scales_at // 4 : matrix.scales_at // 4 + len(scales)]
    else:
        e8m0 = matrix.bytes[panel, matrix.scales_at :]
        for i in range(len(scales)):
            scales[i] = halved_scale(e8m0[i])


@jit
def _load_numbers(matrix: Panels, panel: int, scales: Floats, factors: Floats, offsets: Floats) -> None:
    """The factors of the dots of each part of each group, and what the sums of activations: `(groups, parts, 16)`.

    `scales` is `(2, shared groups * 16)`, to be overwritten: scales and minimums.
    """
    groups, shared = len(factors), scales.shape[1]
    if len(matrix.grid.entries):
        grid_factors_at = matrix.scales_at + 2 * shared
        grids.load_factors(matrix.bytes[panel], matrix.scales_at, grid_factors_at, matrix.grid, factors)
        offsets[:] = _ZERO
        return
    minimums_at = matrix.scales_at + shared * (2 if matrix.scale == _HALF else 4 if matrix.scale == _SINGLE else 1)
    factors_at = minimums_at + (2 * shared if matrix.has_minimums else 0)
    offsets_at = factors_at + (groups * matrix.parts * PANEL_ROWS if matrix.factor else 0)
    _load_scales(matrix, panel, scales[0])
    if matrix.has_minimums:
        _halves_to_floats(matrix.halves[panel, minimums_at // 2 :], scales[1])
    elif matrix.has_offsets:
        scales[1] = scales[0]
    else:
        scales[1] = _ZERO
    of_factors, of_offsets = matrix.bytes[panel, factors_at:], matrix.bytes[panel, offsets_at:]
    for g in range(groups):
        first = g // matrix.share * PANEL_ROWS
        scale, minimum = scales[0, first : first + PANEL_ROWS], scales[1, first : first + PANEL_ROWS]
        for part in range(matrix.parts):
            factor, offset = factors[g, part], offsets[g, part]
            own = (g * matrix.parts + part) * PANEL_ROWS
            bytes_ = of_factors[own : own + PANEL_ROWS]
            factor[:] = scale
            offset[:] = minimum
            if matrix.factor == _INT8:
                for r in range(PANEL_ROWS):
                    factor[r] *= np.float32(np.int8(bytes_[r]))
            elif matrix.factor == _NIBBLE:
                for r in range(PANEL_ROWS):
                    factor[r] *= np.float32(bytes_[r] & 15)
                    offset[r] *= np.float32(-np.int32(bytes_[r] >> 4))
            elif matrix.factor == _E4M3:
                for r in range(PANEL_ROWS):
                    factor[r] *= E4M3[bytes_[r]] * np.float32(0.5)
            if matrix.has_offsets and matrix.factor != _NIBBLE:
                own_offsets = of_offsets[own : own + PANEL_ROWS]
                for r in range(PANEL_ROWS):
                    offset[r] *= np.float32(-np.int32(own_offsets[r]))


@jit
def _dot_halves(codes: Words, x: Integers, first: Integers, second: Integers) -> None:
    """The dots of each row over both halves of a group; a word of `codes` is 4 columns of a row."""
    for r in range(PANEL_ROWS):
        total = np.int32(0)
        for quad in range(4):
            word = codes[quad * PANEL_ROWS + r]
            for k in range(4):
                total = np.int32(total + np.int32((word >> np.uint32(8 * k)) & np.uint32(255)) * x[quad * 4 + k])
        first[r] = total
    for r in range(PANEL_ROWS):
        total = np.int32(0)
        for quad in range(4, 8):
            word = codes[quad * PANEL_ROWS + r]
            for k in range(4):
                total = np.int32(total + np.int32((word >> np.uint32(8 * k)) & np.uint32(255)) * x[quad * 4 + k])
        second[r] = total


@jit
def _add_part(
    dots: Integers, x_sum: int, scale: np.float32, zero: int, factors: Floats, offsets: Floats, totals: Floats
) -> None:
    """Add the share of a group, or of half of it, to the sums of a panel's rows."""
    start = np.int32(zero * x_sum)
    scaled_sum = np.float32(scale * np.float32(x_sum))
    for r in range(PANEL_ROWS):
        totals[r] += np.float32(dots[r] - start) * (factors[r] * scale) + offsets[r] * scaled_sum


@jit
def _shared_count(matrix: Panels, groups: int) -> int:
    """The number of scales of a panel."""
    return (groups + matrix.share - 1) // matrix.share * PANEL_ROWS


@jit_calling(grids.__file__)
def quantised_product(
    integers: Integers, scales: Floats, sums: Integers, matrix: Panels, first: int, last: int, output: Floats
) -> None:
    """`(T, columns)` quantised activations times panels of a matrix of a quantised format, to `(T, rows)`."""
    tokens, groups = scales.shape
    rows = output.shape[1]
    factors = np.empty((groups, matrix.parts, PANEL_ROWS), np.float32)
    offsets = np.empty((groups, matrix.parts, PANEL_ROWS), np.float32)
    shared = np.empty((2, _shared_count(matrix, groups)), np.float32)
    codes = np.empty(_QUADS * PANEL_ROWS, np.uint32)
    first_dots, second_dots = np.empty(PANEL_ROWS, np.int32), np.empty(PANEL_ROWS, np.int32)
    zero, parts = matrix.zero, matrix.parts
    totals = np.empty((tokens, PANEL_ROWS), np.float32)
    for panel in range(first, last):
        _load_numbers(matrix, panel, shared, factors, offsets)
        totals[:] = _ZERO
        for g in range(groups):
            _unpack_group(matrix, panel, g, codes)
            for t in range(tokens):
                _dot_halves(codes, integers[t, g * GROUP_COLUMNS : (g + 1) * GROUP_COLUMNS], first_dots, second_dots)
                scale, first_sum, second_sum, total = scales[t, g], sums[t, g, 0], sums[t, g, 1], totals[t]
                if parts == 2:
                    _add_part(first_dots, first_sum, scale, zero, factors[g, 0], offsets[g, 0], total)
                    _add_part(second_dots, second_sum, scale, zero, factors[g, 1], offsets[g, 1], total)
                    continue
                for r in range(PANEL_ROWS):
                    first_dots[r] = np.int32(first_dots[r] + second_dots[r])
                _add_part(first_dots, first_sum + second_sum, scale, zero, factors[g, 0], offsets[g, 0], total)
        for t in range(tokens):
            for r in range(min(PANEL_ROWS, rows - panel * PANEL_ROWS)):
                output[t, panel * PANEL_ROWS + r] = totals[t, r]


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


@jit_calling(grids.__file__)
def embed_quantised(ids: Integers, matrix: Panels, scale: float, output: Floats) -> None:
    """Rows `ids` of a matrix of a quantised format, times `scale`: `(T, columns)`."""
    columns = output.shape[1]
    groups = (columns + GROUP_COLUMNS - 1) // GROUP_COLUMNS
    factors = np.empty((groups, matrix.parts, PANEL_ROWS), np.float32)
    offsets = np.empty((groups, matrix.parts, PANEL_ROWS), np.float32)
    shared = np.empty((2, _shared_count(matrix, groups)), np.float32)
    codes = np.empty(_QUADS * PANEL_ROWS, np.uint32)
    values = codes.view(np.uint8)
    for t in range(len(ids)):
        panel, r = ids[t] // PANEL_ROWS, ids[t] % PANEL_ROWS
        _load_numbers(matrix, panel, shared, factors, offsets)
        for g in range(groups):
            _unpack_group(matrix, panel, g, codes)
            for c in range(min(GROUP_COLUMNS, columns - g * GROUP_COLUMNS)):
                value = np.int32(values[c // 4 * 4 * PANEL_ROWS + r * 4 + c % 4]) - np.int32(matrix.zero)
                part = c * matrix.parts // GROUP_COLUMNS
                weight = np.float32(value) * factors[g, part, r] + offsets[g, part, r]
                output[t, g * GROUP_COLUMNS + c] = weight * np.float32(scale)


@jit
def _float_weights(matrix: Panels, panel: int, weights: Floats) -> None:
    """The weights of a panel of a floating-point format, `(columns * 16,)`."""
    if matrix.bits == 32:
        weights[:] = matrix.floats[panel, : len(weights)]
    elif matrix.is_bf16:
        bits, halves = weights.view(np.uint32), matrix.halves[panel]
        for i in range(len(weights)):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
    elif matrix.bits == 16:
        halves = matrix.halves[panel]
        for i in range(len(weights)):
            weights[i] = half_to_float(halves[i])
    else:
        scales = np.empty(_shared_count(matrix, len(weights) // (PANEL_ROWS * GROUP_COLUMNS)), np.float32)
        _load_scales(matrix, panel, scales)
        scales *= np.float32(2 if matrix.scale == _E8M0 else 1)
        for column in range(len(weights) // PANEL_ROWS):
            scale = scales[column // (GROUP_COLUMNS * matrix.share) * PANEL_ROWS :]
            codes = matrix.bytes[panel, column * PANEL_ROWS : (column + 1) * PANEL_ROWS]
            for r in range(PANEL_ROWS):
                weights[column * PANEL_ROWS + r] = E4M3[codes[r]] * scale[r]


@jit
def float_product(values: Floats, matrix: Panels, first: int, last: int, output: Floats) -> None:
    """`(T, groups * 32)` activations times panels of a matrix of a floating-point format, to `(T, rows)`."""
    tokens, rows = output.shape
    weights = np.empty(values.shape[1] * PANEL_ROWS, np.float32)
    for panel in range(first, last):
        _float_weights(matrix, panel, weights)
        row = panel * PANEL_ROWS
        for t in range(tokens):
            _float_panel(values[t], weights, min(PANEL_ROWS, rows - row), output[t, row:])


@jit
def embed_floats(ids: Integers, matrix: Panels, scale: float, output: Floats) -> None:
    """Rows `ids` of a matrix of a floating-point format, times `scale`: `(T, columns)`."""
    groups = (output.shape[1] + GROUP_COLUMNS - 1) // GROUP_COLUMNS
    weights = np.empty(groups * GROUP_COLUMNS * PANEL_ROWS, np.float32)
    for t in range(len(ids)):
        _float_weights(matrix, ids[t] // PANEL_ROWS, weights)
        for c in range(output.shape[1]):
            output[t, c] = weights[c * PANEL_ROWS + ids[t] % PANEL_ROWS] * np.float32(scale)


def product(values: Floats, matrix: Matrix, output: Floats) -> Callable[[int, int], None]:
    """The product of activations `(T, columns)` and a matrix, for panels `first` to `last`."""
    tokens, groups = len(values), group_count(matrix.columns)
    panels = panels_of(matrix)
    if matrix.format.quantised:
        integers = np.empty((tokens, groups * GROUP_COLUMNS), np.int32)
        scales, sums = np.empty((tokens, groups), np.float32), np.empty((tokens, groups, 2), np.int32)
        quantise_activations(values, integers, scales, sums)
        return lambda first, last: quantised_product(integers, scales, sums, panels, first, last, output)
    inputs = values
    if matrix.columns % GROUP_COLUMNS:
        inputs = np.zeros((tokens, groups * GROUP_COLUMNS), np.float32)
        inputs[:, : matrix.columns] = values
    return lambda first, last: float_product(inputs, panels, first, last, output)
