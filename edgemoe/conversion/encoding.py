"""Encodes rows of a checkpoint as panels of the store, and measures the error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError, SourceError
from edgemoe.kernels.blocks import Blocks, dequantise, pack
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import E2M1_DOUBLED, E4M3, E8M0_HALVED, E8M0_NAN, GROUP_COLUMNS, Format
from edgemoe.quant.quantise import quantise

_DAMAGED = "Was the checkpoint damaged? Download it again."


@dataclass(frozen=True)
class Encoded:
    """Encoded bytes, with the sums of squared errors and of squared weights over all weights."""

    data: npt.NDArray[np.uint8]
    squared_error: float
    squared_weight: float


def encode(rows: Rows, fmt: Format | None, tensor: str) -> Encoded:
    """Encode rows `(rows, columns)` as whole panels of `fmt`, or elements as float32 if `fmt` is None.

    Raises SourceError, naming the tensor, if a weight is not finite or exceeds the range of the format.
    """
    if fmt is None:
        values = (dequantise(rows) if isinstance(rows, Blocks) else rows).reshape(-1)
        _check_finite(values, tensor)
        vector = np.ascontiguousarray(values, np.float32)
        return Encoded(vector.view(np.uint8), 0.0, _sum_of_squares(vector))
    if isinstance(rows, Blocks):
        _check_blocks(rows, tensor)
        carried = _carry(rows, fmt)
        values = dequantise(rows)
        if rows.format.scale == "e8m0":
            _check_finite(values, tensor)  # finite scales have weights beyond float32
        if carried is not None:
            return Encoded(pack(carried), 0.0, _sum_of_squares(values))
    else:
        values = rows
    try:
        blocks = quantise(values, fmt)
    except SourceError:
        raise
    except EdgemoeError as problem:
        raise SourceError(f"{tensor}: {problem.message}", problem.hint) from None
    squared_weight = _sum_of_squares(values)
    if fmt.name == "f32":
        return Encoded(pack(blocks), 0.0, squared_weight)
    return Encoded(pack(blocks), _sum_of_squares(dequantise(blocks) - values), squared_weight)


def _carry(blocks: Blocks, fmt: Format) -> Blocks | None:
    """Convert blocks to another format bit for bit; None if that format cannot represent them."""
    source = blocks.format.name
    if source == fmt.name:
        return blocks
    if source == "q4" and fmt.name == "q8":
        return Blocks(fmt, blocks.values.astype(np.int8) - np.int8(8), blocks.scales)
    if source == "q4" and fmt.name == "q4m":
        assert blocks.scales is not None
        with np.errstate(over="ignore"):
            minimums = blocks.scales * np.float16(-8)
        return Blocks(fmt, blocks.values, blocks.scales, minimums) if np.isfinite(minimums).all() else None
    if source == "m4" and fmt.name == "q8":
        return _m4_as_q8(blocks, fmt)
    return None


def _m4_as_q8(blocks: Blocks, fmt: Format) -> Blocks | None:
    """Convert m4 to q8 exactly; None if a scale is beyond float16. The scale of a group of zeros may be any."""
    values, wanted = E2M1_DOUBLED[blocks.values], E8M0_HALVED[blocks.scales]
    with np.errstate(over="ignore"):
        scales = wanted.astype(np.float16)
    starts = np.arange(0, values.shape[1], GROUP_COLUMNS)
    zeros = ~np.logical_or.reduceat(values != 0, starts, axis=1)
    if not (zeros | (scales == wanted)).all():
        return None
    return Blocks(fmt, values, np.where(zeros, np.float16(0), scales))


def _check_blocks(blocks: Blocks, tensor: str) -> None:
    if blocks.format.scale == "e8m0" and np.any(blocks.scales == E8M0_NAN):
        raise SourceError(
            f"{tensor}: expected scales that are numbers, found NaN (the e8m0 byte {E8M0_NAN}).", _DAMAGED
        )
    for numbers in (blocks.scales, blocks.minimums):
        if numbers is not None:
            _check_finite(numbers, tensor)
    if blocks.factors is not None and blocks.format.factor == "e4m3":
        _check_finite(E4M3[blocks.factors], tensor)
    if blocks.format.floating and blocks.scales is not None:
        _check_finite(E4M3[blocks.values], tensor)


def _check_finite(values: npt.NDArray[np.number], tensor: str) -> None:
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)].flat[0]
        raise SourceError(f"{tensor}: expected finite numbers, found {bad}.", _DAMAGED)


def _sum_of_squares(values: npt.NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
