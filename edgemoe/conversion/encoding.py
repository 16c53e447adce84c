"""Encodes rows of a checkpoint as panels of the store, and measures the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.carrying import carry
from edgemoe.errors import EdgemoeError, SourceError
from edgemoe.kernels.blocks import Blocks, dequantise, pack_head, pack_panels
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import E4M3, E8M0_NAN, Format
from edgemoe.kernels.sub1 import Trits, weights_of
from edgemoe.quant import sub1
from edgemoe.quant.quantise import Weighing, quantise

_DAMAGED = "Was the checkpoint damaged? Download it again."


@dataclass(frozen=True)
class Encoded:
    """Encoded bytes, with the sums of squared errors and of squared weights over all weights."""

    data: npt.NDArray[np.uint8]
    squared_error: float
    squared_weight: float
    head: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """The bytes that stand before the panels of the whole matrix; the same whichever of its rows were encoded."""
    panels: Sequence[bytes] = ()
    """The same bytes, panel by panel, of a format whose panels differ in length."""
    base: Encoded | None = None
    """The base plane of which these bytes are the residual."""


def encode(rows: Rows, fmt: Format | None, tensor: str, weighing: Weighing = None) -> Encoded:
    """Encode rows `(rows, columns)` as whole panels of `fmt`, or elements as float32 if `fmt` is None.

    `weighing`: what errors of columns cost, for a format with a trellis.

    Raises SourceError, naming the tensor, if a weight is not finite or exceeds the range of the format.
    """
    if fmt is None:
        values = (dequantise(rows) if isinstance(rows, Blocks) else rows).reshape(-1)
        check_finite(values, tensor)
        vector = np.ascontiguousarray(values, np.float32)
        return Encoded(vector.view(np.uint8), 0.0, _sum_of_squares(vector))
    if isinstance(rows, Blocks):
        _check_blocks(rows, tensor)
        halved = _with_halves(rows)
        if halved is None and fmt == rows.format:
            raise SourceError(
                f"{tensor}: expected scales that float16 holds exactly, as {fmt.name} has them; found others.",
                "Convert it with another format of `experts` and `dense`: f32 holds its weights, q8 rounds them.",
            )
        carried = None if halved is None else carry(halved, fmt)
        with np.errstate(over="ignore"):
            values = dequantise(rows)
        if rows.format.scale in ("e8m0", "f32"):
            check_finite(values, tensor)  # finite scales have weights beyond float32
        if carried is not None:
            carried, error = _with_single(carried, values)
            return Encoded(pack_panels(carried), error, _sum_of_squares(values), pack_head(carried))
    else:
        values = rows
    if fmt.varying:
        return _rounded_trits(values, tensor)
    blocks = _rounded(values, fmt, tensor, weighing)
    squared_weight = _sum_of_squares(values)
    if fmt.name == "f32":
        return Encoded(pack_panels(blocks), 0.0, squared_weight)
    squared_error = _sum_of_squares(dequantise(blocks) - values)
    return Encoded(pack_panels(blocks), squared_error, squared_weight, pack_head(blocks))


def encode_rows(rows: Rows, fmt: Format, tensor: str) -> Encoded:
    """Encode rows one after the other, in f16 or f32, as neurons have them. Raises SourceError as `encode`."""
    values = dequantise(rows) if isinstance(rows, Blocks) else rows
    check_finite(values, tensor)
    blocks = _rounded(values, fmt, tensor)
    squared_error = _sum_of_squares(dequantise(blocks) - values)
    return Encoded(
        np.ascontiguousarray(blocks.values).view(np.uint8).reshape(-1), squared_error, _sum_of_squares(values)
    )


def encode_planes(rows: Rows, base: Format, residual: Format, tensor: str) -> Encoded:
    """Encode rows as panels of a base plane, and what that leaves as panels of a residual; errors are those of the sum.

    Raises SourceError as `encode`.
    """
    if isinstance(rows, Blocks):
        _check_blocks(rows, tensor)
    values = dequantise(rows) if isinstance(rows, Blocks) else rows
    check_finite(values, tensor)
    drawn = rows.base if isinstance(rows, Blocks) else None
    if drawn is not None:
        values = values + dequantise(drawn)
    squared_weight = _sum_of_squares(values)

    def encoded(blocks: Blocks, left: npt.NDArray[np.float32], base: Encoded | None = None) -> Encoded:
        return Encoded(pack_panels(blocks), _sum_of_squares(left), squared_weight, pack_head(blocks), base=base)

    below = _rounded(values, base, tensor) if drawn is None else drawn
    left = values - dequantise(below)
    above = _rounded(left, residual, tensor) if drawn is None else cast("Blocks", rows)
    return encoded(above, left - dequantise(above), encoded(below, left))


def _rounded(values: npt.NDArray[np.float32], fmt: Format, tensor: str, weighing: Weighing = None) -> Blocks:
    try:
        return quantise(values, fmt, weighing)
    except SourceError:
        raise
    except EdgemoeError as problem:
        raise SourceError(f"{tensor}: {problem.message}", problem.hint) from None


def lengths_of_trits(rows: Rows, tensor: str) -> list[int]:
    """The lengths of the panels that `encode` makes of rows in sub1. Raises SourceError as it does."""
    values = dequantise(rows) if isinstance(rows, Blocks) else rows
    return sub1.panel_lengths(_trits_of(values, tensor)[0], sub1.LEVEL_BYTES)


def _rounded_trits(values: npt.NDArray[np.float32], tensor: str) -> Encoded:
    """Round rows to trits, and encode these."""
    return encode_trits(*_trits_of(values, tensor), values)


def encode_trits(trits: Trits, levels: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> Encoded:
    """Encode trits with levels of float16 that stand for values."""
    panels = sub1.pack_panels(trits, levels, sub1.LEVEL_BYTES)
    error = _sum_of_squares(weights_of(trits, levels) - values)
    return Encoded(np.frombuffer(b"".join(panels), np.uint8), error, _sum_of_squares(values), panels=panels)


def _trits_of(values: npt.NDArray[np.float32], tensor: str) -> tuple[Trits, npt.NDArray[np.float32]]:
    """Trits, with levels of float16: all of a matrix must have one type, and its rows come in pieces."""
    check_finite(values, tensor)
    trits, exact = sub1.quantise(values)
    with np.errstate(over="ignore"):
        levels = exact.astype(np.float16).astype(np.float32)
    check_levels(levels, exact, tensor)
    return trits, levels


def check_levels(levels: npt.NDArray[np.float32], values: npt.NDArray[np.float32], tensor: str) -> None:
    """Raises SourceError if levels for some values, rounded to float16, are not finite."""
    if not np.isfinite(levels).all():
        largest = float(np.abs(values).max())
        raise SourceError(
            f"{tensor}: expected weights within the range of float16, found one of magnitude {largest:.3g}.",
            "Convert it with another format of `experts`.",
        )


def _with_halves(blocks: Blocks) -> Blocks | None:
    """The same blocks with scales and minimums of float16, where their format has such; None if that rounds one."""
    if blocks.format.scale != "f16":
        return blocks
    halves: list[npt.NDArray[np.float16] | None] = []
    for numbers in (blocks.scales, blocks.minimums):
        half = None
        if numbers is not None:
            with np.errstate(over="ignore"):
                half = numbers.astype(np.float16)
            if not np.array_equal(half, numbers):
                return None
        halves.append(half)
    return replace(blocks, scales=halves[0], minimums=halves[1])


def _with_single(blocks: Blocks, values: npt.NDArray[np.float32]) -> tuple[Blocks, float]:
    """The same blocks with float32 scales in place of float64 ones, and the sum of squared errors of that."""
    wide: npt.NDArray[Any] | None = blocks.scales
    if wide is None or wide.dtype != np.float64:
        return blocks, 0.0
    single = wide.astype(np.float32)
    errors = single / wide - 1  # of rows, as only a scale of whole rows comes in float64
    return replace(blocks, scales=single), float((np.square(values, dtype=np.float64).sum(axis=1) @ errors**2).sum())


def _check_blocks(blocks: Blocks, tensor: str) -> None:
    if blocks.format.scale == "e8m0" and np.any(blocks.scales == E8M0_NAN):
        raise SourceError(
            f"{tensor}: expected scales that are numbers, found NaN (the e8m0 byte {E8M0_NAN}).", _DAMAGED
        )
    for numbers in (blocks.scales, blocks.minimums):
        if numbers is not None:
            check_finite(numbers, tensor)
    if blocks.factors is not None and blocks.format.factor == "e4m3":
        check_finite(E4M3[blocks.factors], tensor)
    if blocks.format.floating and blocks.scales is not None:
        check_finite(E4M3[blocks.values], tensor)


def check_finite(values: npt.NDArray[np.number], tensor: str) -> None:
    """Raises SourceError, naming the tensor, for numbers that are not finite."""
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)].flat[0]
        raise SourceError(f"{tensor}: expected finite numbers, found {bad}.", _DAMAGED)


def _sum_of_squares(values: npt.NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
