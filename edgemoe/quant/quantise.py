"""Quantisers: float32 weights to `Blocks` of any format, with scales searched for least squared error.

Every scale is judged as it will be stored, in float16. Memory: the result, and a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.formats import GROUP_COLUMNS, Blocks, Format, dequantise, group_count

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]

_WEIGHTS_AT_ONCE = 1 << 20
_LARGEST_F16 = 65504.0
_SMALLEST_NORMAL_F16 = 2.0**-14

_SYMMETRIC_LEVELS = np.array([-8, 7, 4, 5, 6, -4, -5, -6, -7, -7.5, 7.5, 8, -8.5, -9], np.float32)
"""Where q4's candidates put the weight of largest magnitude, of either sign.

The whole numbers make every matrix that q4 can hold come back exactly; the rest narrow the search.
"""

_AFFINE_LEVELS = np.array(
    [(0, 15), (0, 14), (0, 13), (0, 12), (0, 11), (0, 10), (-0.5, 15.5), (-1, 15), (0, 16), (-1, 16)], np.float32
)
"""Where q4m's candidates put a group's smallest and largest weight."""

_REFINEMENTS = 1
"""Rounds of choosing the integers for the scale and the scale for the integers."""


def quantise(values: Floats, fmt: Format) -> Blocks:
    """The blocks of `fmt` that stand nearest to the weights `(rows, columns)`.

    q8 takes each group's largest magnitude as 127; q4 and q4m search the scale (and minimum) of least squared
    error. Raises EdgemoeError for weights that are not finite or lie beyond what the format can hold.
    """
    _check_finite(values)
    if fmt.name == "f32":
        return Blocks(fmt, values)
    if fmt.name == "f16":
        return Blocks(fmt, _to_f16(values, fmt))
    rows, columns = values.shape
    integers = np.empty(values.shape, np.int8 if fmt.name == "q8" else np.uint8)
    scales = np.zeros((rows, group_count(columns)), np.float16)
    minimums = np.zeros_like(scales) if fmt.has_minimums else None
    for chunk in _row_chunks(values):
        # Whole groups, then the shorter group at the end of each row, if there is one.
        for first, width in ((0, GROUP_COLUMNS), (columns // GROUP_COLUMNS, columns % GROUP_COLUMNS)):
            groups = slice(first, columns // GROUP_COLUMNS if width == GROUP_COLUMNS else first + (width > 0))
            if groups.stop > groups.start:
                found = _quantise_groups(values[chunk], integers[chunk], groups, width, fmt)
                scales[chunk, groups] = found[0]
                if minimums is not None:
                    minimums[chunk, groups] = found[1]
    return Blocks(fmt, integers, scales, minimums)


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
                f"the weight at row {chunk.start + row}, column {column} is {values[chunk.start + row, column]}; "
                "expected finite numbers.",
                "Was the checkpoint damaged? Fetch it again, then convert again.",
            )


def _to_f16(values: Floats, fmt: Format) -> Halves:
    """float16, rounded to nearest. Raises EdgemoeError for numbers that float16 cannot hold."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        largest = np.abs(values).max()
        what = "a weight" if fmt.name == "f16" else f"the scale of a group of {GROUP_COLUMNS} weights"
        raise EdgemoeError(
            f"{what} is {largest:.6g}, and {fmt.name} holds it in float16, which ends at {_LARGEST_F16:.0f}.",
            "Store this class of tensors in a wider format (f32, or q8 in place of q4).",
        )
    return halves


def _quantise_groups(
    values: Floats, integers: npt.NDArray[np.integer], groups: slice, width: int, fmt: Format
) -> tuple[Halves, Halves]:
    """Fill `integers` for some groups of every row; returns their scales and minimums `(rows, groups)`."""
    from edgemoe.quant import search  # Numba is needed only here

    count = groups.stop - groups.start
    shape = (len(values), count)
    part = (values, groups.start * GROUP_COLUMNS, width, count)
    cut = values[:, groups.start * GROUP_COLUMNS : groups.start * GROUP_COLUMNS + count * width]
    grouped = cut.reshape(-1, width) if cut.flags.c_contiguous else cut.reshape(len(values) * count, width)
    highest, lowest = grouped.max(axis=1), grouped.min(axis=1)
    extreme = np.where(highest >= -lowest, highest, lowest)
    size = len(extreme)
    if fmt.name == "q8":
        offers = _round_up_denormals(np.abs(extreme) / np.float32(127))[None]
        bounds, zero_point = (-127.0, 127.0), 0
    elif fmt.name == "q4":
        searched = np.empty(size, np.float32)
        search.search_symmetric(*part, _SYMMETRIC_LEVELS, _REFINEMENTS, searched)
        offers = np.stack([searched, extreme / np.float32(-8), extreme / np.float32(7)])
        bounds, zero_point = (-8.0, 7.0), 8
    else:
        searched, searched_minimums = np.empty((2, size), np.float32)
        search.search_affine(*part, _AFFINE_LEVELS, _REFINEMENTS, searched, searched_minimums)
        offers = np.stack([searched, (highest - lowest) / np.float32(15)])
        bounds, zero_point = (0.0, 15.0), 0
    scales = _to_f16(offers, fmt)
    minimums = np.zeros_like(scales)
    if fmt.has_minimums:
        minimums = _to_f16(np.stack([searched_minimums, lowest]), fmt)
    choices = np.empty(size, np.uint8)
    stored = (scales.astype(np.float32), minimums.astype(np.float32))
    search.choose_and_round(*part, *stored, *bounds, zero_point, integers, choices)
    taken = (choices, np.arange(size))
    return scales[taken].reshape(shape), minimums[taken].reshape(shape)


def _round_up_denormals(scales: Floats) -> Floats:
    """Scales so small that float16 would round them by more than a part in 2000 go up, so that none clips."""
    halves = scales.astype(np.float16)
    short = (halves < _SMALLEST_NORMAL_F16) & (halves < scales)
    return np.where(short, np.nextafter(halves, np.float16(np.inf)), scales)


def quantisation_error(values: Floats, blocks: Blocks) -> float:
    """Root mean square of what quantisation changed, relative to that of the weights; 0 for zeros."""
    changed = total = 0.0
    for chunk in _row_chunks(values):
        part = Blocks(
            blocks.format,
            blocks.values[chunk],
            None if blocks.scales is None else blocks.scales[chunk],
            None if blocks.minimums is None else blocks.minimums[chunk],
        )
        exact = values[chunk].astype(np.float64)
        changed += float(np.square(exact - dequantise(part)).sum())
        total += float(np.square(exact).sum())
    return float(np.sqrt(changed / total)) if total > 0 else 0.0 if changed == 0 else float("inf")
