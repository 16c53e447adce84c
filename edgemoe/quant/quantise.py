"""Quantisers: convert float32 weights to `Blocks` of the formats in `TARGETS`, with scales of least squared error.

The error of a scale is measured after rounding it to float16, as it is stored. m4 has the scale that the OCP
Microscaling Formats specification 1.0 gives (section 6.3), without a search. Memory: the result, and a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.blocks import Blocks, Scales
from edgemoe.kernels.formats import E8M0_ONE, GROUP_COLUMNS, Format, group_count
from edgemoe.kernels.trellis import TRELLISES, Trellis
from edgemoe.kernels.trellis_tables import NORMAL_DEVIATIONS, NORMAL_TABLES
from edgemoe.quant.feedback import Feedback, quantise_with_feedback
from edgemoe.quant.trellis import quantise_rows

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Weighing = Union[Floats, Feedback, None]
"""The cost of errors of columns: their importance, or how they feed back; None: all the same."""

TARGETS = ("q4", "q4m", "m4", "q8", "bf16", "f16", "f32", *TRELLISES)
"""The names of the formats that weights can be quantised to; the others are those of files, whose blocks are kept."""

_WEIGHTS_AT_ONCE = 1 << 20

_LARGEST_F16 = 65504
_LARGEST_BF16 = 2.0**128 - 2.0**120
_SMALLEST_NORMAL_F16 = 2.0**-14

_SYMMETRIC_LEVELS = np.array([-8, -7, -6, -5, -4, 4, 5, 6, 7, -9.25, -8.75, -8.5, -8.25, -7.5, 7.25], np.float32)
"""Integers to which q4's candidate scales map the weight of largest magnitude, of either sign.

The whole numbers reproduce every matrix that q4 can represent. The others were picked one by one, each the best
addition for normal, Laplace and Student weights; all quarters from 4 to 11 together reduce the error by 0.1 % more.
"""

_AFFINE_LEVELS = np.array(
    [
        *((0, 15), (0, 14), (0, 13), (0, 12), (0, 11), (0, 10)),
        *((-0.5, 15), (0, 15.5), (-0.5, 15.5), (0.5, 15), (0, 14.5), (-1, 15)),
    ],
    np.float32,
)
"""Integers to which q4m's candidates map a group's smallest and largest weight; picked in the same way."""

_REFINEMENTS = 2
"""Rounds of refinement: choose the best integers for the scale, then the best scale for the integers."""


def quantise(values: Floats, fmt: Format, weighing: Weighing = None) -> Blocks:
    """Quantise weights `(rows, columns)` to blocks of `fmt`.

    q8 maps each group's largest magnitude to 127; q4 and q4m search the scale (and minimum) of least squared
    error; m4 follows the OCP rule (`_shared_exponents`). Formats with a trellis search the codes and scales of least
    squared error. They alone take a weighing: the importance of columns `(columns,)` multiplies squares, and a
    `Feedback` has later columns make up for errors. Raises EdgemoeError for weights that are not finite, or outside the
    range of the format.
    """
    if fmt.name not in TARGETS:
        raise EdgemoeError(
            f"Expected a format that weights can be quantised to ({', '.join(TARGETS)}), found {fmt.name}."
        )
    _check_finite(values)
    if fmt.trellis is not None:
        return _quantise_trellis(values, fmt, fmt.trellis, weighing)
    if fmt.name == "f32":
        return Blocks(fmt, values)
    rows, columns = values.shape
    if fmt.name == "f16":
        halves = np.empty(values.shape, np.float16)
        for chunk in _row_chunks(values):
            halves[chunk] = _to_f16(values[chunk])
            _check_range(halves[chunk], values[chunk], fmt)
        return Blocks(fmt, halves)
    if fmt.name == "bf16":
        upper = np.empty(values.shape, np.uint16)
        for chunk in _row_chunks(values):
            upper[chunk] = _to_bf16(values[chunk])
        return Blocks(fmt, upper)
    integers = np.empty(values.shape, np.int8 if fmt.name == "q8" else np.uint8)
    shape = (rows, group_count(columns))
    scales: Scales = np.zeros(shape, np.uint8) if fmt.name == "m4" else np.zeros(shape, np.float16)
    minimums = np.zeros(shape, np.float16) if fmt.has_minimums else None
    whole = columns // GROUP_COLUMNS
    # Whole groups first, then the shorter group at the end of each row, if the row has one.
    for groups, width in ((slice(0, whole), GROUP_COLUMNS), (slice(whole, whole + 1), columns % GROUP_COLUMNS)):
        if width == 0 or groups.start == groups.stop:
            continue
        for chunk in _row_chunks(values):
            part = np.ascontiguousarray(values[chunk], np.float32)
            if fmt.name == "m4":
                scales[chunk, groups] = _quantise_m4_groups(part, groups, width, integers[chunk])
                continue
            found = _quantise_groups(part, groups, width, fmt, integers[chunk])
            scales[chunk, groups] = found[0]
            if minimums is not None:
                minimums[chunk, groups] = found[1]
    return Blocks(fmt, integers, scales, minimums)


def _quantise_trellis(values: Floats, fmt: Format, trellis: Trellis, weighing: Weighing) -> Blocks:
    rows, columns = values.shape
    codes = np.empty((rows, trellis.code_count(columns)), np.uint8)
    scales = np.empty((rows, trellis.scale_count(columns)), np.float16)
    factors = np.empty((rows, trellis.factor_count(columns)), np.uint8) if trellis.has_factors else None
    tables = NORMAL_TABLES[fmt.name]
    for chunk in _row_chunks(values):
        part = np.ascontiguousarray(values[chunk], np.float32)
        what = (tables, NORMAL_DEVIATIONS[fmt.name])
        if isinstance(weighing, Feedback):
            codes[chunk], scales[chunk], own = quantise_with_feedback(part, *what, weighing)
        else:
            codes[chunk], scales[chunk], own = quantise_rows(part, trellis, *what, weighing)
        if factors is not None and own is not None:
            factors[chunk] = own
        _check_range(scales[chunk], part, fmt)
    return Blocks(fmt, codes, scales, None, factors, tables=tables, width=columns)


def _row_chunks(values: Floats) -> Iterator[slice]:
    rows, columns = values.shape
    step = max(1, _WEIGHTS_AT_ONCE // max(1, columns))
    for first in range(0, rows, step):
        yield slice(first, min(rows, first + step))


def _check_finite(values: Floats) -> None:
    for chunk in _row_chunks(values):
        finite = np.isfinite(values[chunk])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise EdgemoeError(
                f"the weight at row {chunk.start + row}, column {column} is {values[chunk][row, column]}; "
                "expected finite numbers.",
                "Was the checkpoint damaged? Fetch it again, then convert again.",
            )


def _to_f16(values: Floats) -> Halves:
    """Round to the nearest float16; values beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _to_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bf16, of two that are as near the even one. Raises EdgemoeError beyond its range."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    upper = ((bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16).astype(np.uint16)
    if np.any(upper & 0x7F80 == 0x7F80):
        raise EdgemoeError(
            f"there are weights as large as {np.abs(values).max():.6g}; bf16 ends at {_LARGEST_BF16:.6g}.",
            "Store this class of tensors in f32.",
        )
    return upper


def _check_range(halves: Halves, values: Floats, fmt: Format) -> None:
    """Raises EdgemoeError if `halves`, the float16 numbers stored for the weights `values`, are not finite."""
    if not np.isfinite(halves).all():
        largest = np.abs(values).max()
        what = "stores them" if fmt.name == "f16" else "stores their scales"
        raise EdgemoeError(
            f"there are weights as large as {largest:.6g}; {fmt.name} {what} in float16, which ends at {_LARGEST_F16}.",
            "Store this class of tensors in f32" + (", or in q8." if fmt.name in ("q4", "q4m") or fmt.trellis else "."),
        )


def _quantise_groups(
    values: Floats, groups: slice, width: int, fmt: Format, integers: npt.NDArray[np.integer]
) -> tuple[Halves, Halves]:
    """Fill `integers` for some groups of every row; returns their scales and minimums `(rows, groups)`.

    For every group the best of a few scales is taken. The plain scale, from the largest magnitude, is among them, so
    the search is never worse than no search.
    """
    from edgemoe.quant import search  # imports Numba, which only conversion needs

    count, column = groups.stop - groups.start, groups.start * GROUP_COLUMNS
    shape = (len(values), count)
    part = (values, column, width, count)
    lowest, highest, searched, minimum = (np.empty(len(values) * count, np.float32) for _ in range(4))
    search.bounds(*part, lowest, highest)
    extreme: Floats = np.where(highest >= -lowest, highest, lowest)
    offers: list[Floats]
    with np.errstate(over="ignore"):
        if fmt.name == "q8":
            plain = np.divide(np.abs(extreme), 127, dtype=np.float32)
            offers = [plain, _round_up_denormals(plain)]
            bounds, zero_point = (-127.0, 127.0), 0
        elif fmt.name == "q4":
            search.search_symmetric(*part, _SYMMETRIC_LEVELS, _REFINEMENTS, searched)
            offers = [searched, *(np.divide(extreme, level, dtype=np.float32) for level in (-8, 7))]
            bounds, zero_point = (-8.0, 7.0), 8
        else:
            search.search_affine(*part, _AFFINE_LEVELS, _REFINEMENTS, searched, minimum)
            offers = [searched, np.divide(highest - lowest, 15, dtype=np.float32)]
            bounds, zero_point = (0.0, 15.0), 0
    scales = _to_f16(np.stack(offers))
    minimums = _to_f16(np.stack([minimum, lowest])) if fmt.has_minimums else np.zeros_like(scales)
    choices = np.empty(len(extreme), np.uint8)
    stored = (scales.astype(np.float32), minimums.astype(np.float32))
    search.choose_and_round(*part, *stored, *bounds, zero_point, integers, choices)
    taken = (choices, np.arange(len(choices)))
    for chosen in (scales[taken], minimums[taken]):
        _check_range(chosen, extreme, fmt)
    return scales[taken].reshape(shape), minimums[taken].reshape(shape)


def _quantise_m4_groups(
    values: Floats, groups: slice, width: int, codes: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint8]:
    """Fill `codes` for some groups of every row; returns their e8m0 scales `(rows, groups)`."""
    from edgemoe.quant import search

    count, column = groups.stop - groups.start, groups.start * GROUP_COLUMNS
    lowest, highest = (np.empty(len(values) * count, np.float32) for _ in range(2))
    search.bounds(values, column, width, count, lowest, highest)
    exponents = _shared_exponents(np.maximum(highest, -lowest))
    inverses = np.ldexp(np.float32(1), E8M0_ONE - exponents.astype(np.int32)).astype(np.float32)
    search.round_to_e2m1(values, column, width, count, inverses, codes)
    return exponents.reshape(len(values), count)


def _shared_exponents(largest: Floats) -> npt.NDArray[np.uint8]:
    """Return the e8m0 scale of groups by their largest magnitudes.

    The scale is the power of two that brings the largest magnitude's exponent to the largest of e2m1, which is 2
    (magnitudes from 4 to below 8; those above 6 become 6). A group of zeros has the scale 1.
    """
    exponents = np.frexp(largest)[1] - 1
    scales = np.maximum(exponents - 2 + E8M0_ONE, 0)
    return np.where(largest > 0, scales, E8M0_ONE).astype(np.uint8)


def _round_up_denormals(scales: Floats) -> Floats:
    """Round scales in the denormal range of float16, where it has few digits, up, so that no weight is clipped."""
    halves = _to_f16(scales)
    short = (halves < _SMALLEST_NORMAL_F16) & (halves < scales)
    return np.where(short, np.nextafter(halves, np.float16(np.inf)), scales)
