"""Which formats hold the numbers of another one exactly, and the way there: blocks that a checkpoint has quantised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks, float_values
from edgemoe.kernels.formats import E2M1_DOUBLED, E8M0_HALVED, FORMATS, GROUP_COLUMNS, TABLES, Format


def common_format(names: Iterable[str]) -> str | None:
    """The smallest format that holds all numbers of these formats exactly; None if no format does.

    m4 may have scales that q8 lacks, and q4 some that make no minimum of q4m: `carry` sees the numbers.
    """
    sources = [FORMATS[name] for name in names]
    found = [fmt for fmt in FORMATS.values() if all(_holds(fmt, source) for source in sources)]
    return min(found, key=lambda fmt: fmt.bits_per_weight).name if found else None


def carry(blocks: Blocks, fmt: Format) -> Blocks | None:
    """Convert blocks to another format without a change of any weight; None if that format does not have them."""
    source = blocks.format
    if source.name == fmt.name:
        return blocks
    if not _holds(fmt, source):
        return None
    if source.scale == "e8m0":
        return _m4_as_q8(blocks, fmt)
    assert blocks.scales is not None
    times = source.scale_columns // fmt.scale_columns
    groups = -(-blocks.values.shape[1] // fmt.scale_columns)

    def spread(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
        return np.repeat(numbers, times, axis=1)[:, :groups]

    scales = spread(blocks.scales)
    minimums = None if blocks.minimums is None else spread(blocks.minimums)
    zero = fmt.zero
    if fmt.has_minimums and minimums is None:  # a code of 0 is the lowest number
        zero = -_range(source)[0]
        with np.errstate(over="ignore"):
            minimums = scales * np.float16(-zero)
        if not np.isfinite(minimums).all():
            return None
    codes = (float_values(blocks) + np.float32(zero)).astype(np.int8 if fmt.name == "q8" else np.uint8)
    return Blocks(fmt, codes, scales, minimums, blocks.factors, blocks.offsets)


def _range(fmt: Format) -> tuple[int, int]:
    """The lowest and the highest number that a code stands for."""
    if fmt.name == "q8":
        return -128, 127
    if fmt.table != "none":
        return int(TABLES[fmt.table].min()), int(TABLES[fmt.table].max())
    return -fmt.zero, (1 << fmt.bits) - 1 - fmt.zero


def _holds(fmt: Format, source: Format) -> bool:
    """Whether every number of `source` is one of `fmt`: codes reach as far, and scales are as many or more."""
    if fmt.name == source.name:
        return True
    if source.name == "m4":
        return fmt.name == "q8"
    if fmt.floating or source.floating or fmt.table != "none" or (fmt.scale, source.scale) != ("f16", "f16"):
        return False
    if fmt.grid != "none" or source.grid != "none" or fmt.trellis or source.trellis:
        return False
    of_factors = [(one.factor, one.factor_columns, one.has_offsets) for one in (fmt, source)]
    if of_factors[0] != of_factors[1] or source.scale_columns % fmt.scale_columns:
        return False
    if source.factor != "none" and source.scale_columns != fmt.scale_columns:
        return False
    (low, high), (least, most) = _range(source), _range(fmt)
    if fmt.has_minimums and not source.has_minimums:
        exact = -low & (-low - 1) == 0  # a power of two, whose products with scales are float16 too
        return exact and source.factor == "none" and high - low <= most
    return fmt.has_minimums == source.has_minimums and least <= low and high <= most


def _m4_as_q8(blocks: Blocks, fmt: Format) -> Blocks | None:
    """Convert m4 to q8 exactly; None if a scale is beyond float16. The scale of a group of zeros may be any."""
    values: npt.NDArray[np.int8] = E2M1_DOUBLED[blocks.values]
    wanted = E8M0_HALVED[blocks.scales]
    with np.errstate(over="ignore"):
        scales = wanted.astype(np.float16)
    starts = np.arange(0, values.shape[1], GROUP_COLUMNS)
    zeros = ~np.logical_or.reduceat(values != 0, starts, axis=1)
    if not (zeros | (scales == wanted)).all():
        return None
    return Blocks(fmt, values, np.where(zeros, np.float16(0), scales))
