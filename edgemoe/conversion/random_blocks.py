"""Blocks of random weights of one standard deviation and zero mean, in every format that a file of GGUF has.

Codes are normal. Groups have scales, or factors, that differ from group to group. The mean is zero by construction:
codes that stand for numbers of opposite sign are equally likely, or the sign of a group's factor is random, or a
minimum stands opposite to the mean code, or an entry of a grid has random signs, or the sum of a trellis's tables is
zero. Every row of a matrix follows from its key by itself.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.formats import E2M1_DOUBLED, E4M3, E8M0_ONE, TABLES, Format
from edgemoe.kernels.grid_blocks import decode
from edgemoe.kernels.grids import GRIDS
from edgemoe.kernels.trellis import Trellis, window_values
from edgemoe.kernels.trellis_tables import NORMAL_TABLES
from edgemoe.quant.quantise import quantise

_COUNTER_BYTES = 32
"""Bytes that the generator gives for each step of its counter."""

_ZEROS = 0.885
"""The share of zeros among weights for sub1, as among those of QMoE's models."""

_ONE_E4M3 = 0x38
"""The byte of 1, after which come 1.125 to 1.875."""

_LEAST_FACTOR = {"q2k": 8, "q3k": 16, "q4k": 32, "q5k": 32, "q6k": 64, "iq4xs": 16}
"""Factors are this to less than twice as much: the largest that the type of the file has are among them."""


def draw_bytes(key: str, rows: slice, row_bytes: int) -> npt.NDArray[np.uint8]:
    """Random bytes `(rows, row_bytes)`, the same for a row whichever rows are drawn with it.

    Source: Philox 4x64, Salmon et al. 2011, as NumPy has it.
    """
    steps = -(-row_bytes // _COUNTER_BYTES)
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    generator = np.random.Philox(key=number, counter=rows.start * steps)
    count = rows.stop - rows.start
    words = generator.random_raw(count * steps * (_COUNTER_BYTES // 8))
    drawn: npt.NDArray[np.uint8] = np.asarray(words).view(np.uint8).reshape(count, steps * _COUNTER_BYTES)
    return drawn[:, :row_bytes]


def draw_ternary(key: str, rows: slice, columns: int, deviation: float) -> npt.NDArray[np.float32]:
    """Weights of that standard deviation, 88.5 % of them zeros and the others of one size in each row, in float16."""
    drawn = draw_bytes(key + " values", rows, 2 * columns).view(np.uint16)
    middle = deviation / math.sqrt(1 - _ZEROS)
    spread = (draw_bytes(key + " levels", rows, 1).astype(np.float32) - 127.5) / 512
    levels = (middle * (1 + spread)).astype(np.float16).astype(np.float32)
    signs = np.where(drawn & 1, levels, -levels)
    return np.where(drawn >> 1 < _ZEROS * (1 << 15), np.float32(0), signs)


def draw_planes(key: str, rows: slice, columns: int, deviation: float, base: Format, residual: Format) -> Blocks:
    """Blocks of a residual, beside a base that leaves as much as it leaves of normal weights."""
    left = _left_by(base)
    below = draw_blocks(key + " base", rows, columns, deviation * math.sqrt(1 - left**2), base)
    return replace(draw_blocks(key, rows, columns, deviation * left, residual), base=below)


@functools.cache
def _left_by(base: Format) -> float:
    """The relative error of normal weights in a format."""
    values = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    return float(np.linalg.norm(dequantise(quantise(values, base)) - values) / np.linalg.norm(values))


def draw_blocks(key: str, rows: slice, columns: int, deviation: float, fmt: Format) -> Blocks:
    """Blocks of weights of that standard deviation.

    Scales are whole numbers of at most seven bits times a power of two, so that minimums of minus the mean code are
    float16 exactly. m4's are one of two neighbouring powers of two, in such shares that the mean of their squares is
    right.
    """
    if fmt.grid != "none":
        return _of_grid(key, rows, columns, deviation, fmt)
    if fmt.trellis is not None:
        return _of_trellis(key, rows, columns, deviation, fmt, fmt.trellis)
    table, level_deviation = _levels(fmt)
    stored = draw_bytes(key + " values", rows, columns).tobytes().translate(table)
    values = np.frombuffer(stored, np.int8 if fmt.name == "q8" else np.uint8).reshape(-1, columns)
    drawn_scales = draw_bytes(key + " scales", rows, fmt.scale_count(columns))
    if fmt.name == "m4":
        exponent = math.floor(math.log2(deviation / level_deviation))
        share = ((deviation / level_deviation) ** 2 / 4.0**exponent - 1) / 3  # of the larger
        return Blocks(fmt, values, (exponent + E8M0_ONE + (drawn_scales < 256 * share)).astype(np.uint8))
    if fmt.factor_count(columns):
        return _with_factors(key, rows, columns, deviation / level_deviation, fmt, values, drawn_scales)
    mantissa, exponent = math.frexp(deviation / level_deviation)
    middle = round(mantissa * 64)  # 32 to 64
    spread = (drawn_scales & 31).astype(np.float32) - 16
    scales = np.ldexp(middle + spread, exponent - 6).astype(np.float16)
    if fmt.table == "iq4":
        scales = np.where(drawn_scales & 32, scales, -scales)
    minimums = scales * np.float16(-_mean_code(fmt)) if fmt.has_minimums else None
    return Blocks(fmt, values, scales, minimums)


def _with_factors(
    key: str,
    rows: slice,
    columns: int,
    deviation: float,
    fmt: Format,
    values: npt.NDArray[np.generic],
    drawn_scales: npt.NDArray[np.uint8],
) -> Blocks:
    """Blocks of two levels, whose products of scale and factor have that quadratic mean."""
    drawn = draw_bytes(key + " factors", rows, fmt.factor_count(columns))
    if fmt.factor == "e4m3":
        factors = (_ONE_E4M3 + (drawn & 7)).astype(np.uint8)
        scale = deviation / math.sqrt(np.square(E4M3[_ONE_E4M3 : _ONE_E4M3 + 8], dtype=np.float64).mean())
        return Blocks(fmt, values, np.full((len(values), 1), scale, np.float32), None, factors)
    least = _LEAST_FACTOR[fmt.name]
    own = least + drawn % least
    quadratic = math.sqrt(np.square(np.arange(least, 2 * least, dtype=np.float64)).mean())
    mantissa, exponent = math.frexp(deviation / quadratic)
    middle = round(mantissa * 32)  # 16 to 32: a bit less than scales of one level, as minimums have one more
    spread = (drawn_scales & 7).astype(np.float32) - 4
    scales = np.ldexp(middle + spread, exponent - 5).astype(np.float16)
    if fmt.has_offsets:
        minimums = scales * np.float16(_mean_code(fmt))
        factors = own.astype(np.uint8 if fmt.factor == "nibble" else np.int8)
        return Blocks(fmt, values, scales, minimums, factors, own.astype(np.uint8))
    signed = np.where(drawn & 128, own, -own.astype(np.int16)).astype(np.int8)
    return Blocks(fmt, values, scales, None, signed)


def _of_grid(key: str, rows: slice, columns: int, deviation: float, fmt: Format) -> Blocks:
    """Blocks of entries of a grid, each as likely as any other; signs, those of IQ1's scales too, are random."""
    grid = GRIDS[fmt.grid]
    words = draw_bytes(key + " values", rows, 2 * (columns // grid.columns)).astype(np.uint16)
    codes: npt.NDArray[Any] = (words[:, ::2] | words[:, 1::2] << 8) & np.uint16(len(grid.packed) - 1)
    marks: npt.NDArray[Any] = draw_bytes(key + " marks", rows, columns // 8)
    drawn_scales = draw_bytes(key + " scales", rows, fmt.scale_count(columns))
    drawn = draw_bytes(key + " factors", rows, fmt.factor_count(columns))
    least, sizes = 8, np.square(grid.entries, dtype=np.float64).mean()
    if fmt.grid == "iq1":
        least, sizes, marks = 4, sizes + 1, marks & 1
        if fmt.name == "iq1s":
            marks = np.repeat(marks[:, ::4], 4, axis=1)
    factors = least + drawn % least
    steps = (2 * np.arange(least, 2 * least) + 1) * fmt.factor_unit
    mantissa, exponent = math.frexp(deviation / math.sqrt(sizes * np.square(steps).mean()))
    spread = (drawn_scales & 7).astype(np.float32) - 4
    scales = np.ldexp(round(mantissa * 32) + spread, exponent - 5).astype(np.float16)
    if fmt.grid == "iq1":
        scales = np.where(drawn_scales & 32, scales, -scales)
    return Blocks(fmt, decode(codes, marks, fmt), scales, None, factors.astype(np.uint8))


def _of_trellis(key: str, rows: slice, columns: int, deviation: float, fmt: Format, trellis: Trellis) -> Blocks:
    """Blocks of random codes, which make every window of a chain's stream as likely as any other."""
    tables = _centred_tables(fmt.name)
    codes = draw_bytes(key + " values", rows, trellis.code_count(columns)) & np.uint8((1 << trellis.step_bits) - 1)
    drawn_scales = draw_bytes(key + " scales", rows, fmt.scale_count(columns))
    deviation /= math.sqrt(np.square(window_values(tables, trellis), dtype=np.float64).mean())
    factors = None
    if trellis.has_factors:
        factors = 7 + (draw_bytes(key + " factors", rows, fmt.factor_count(columns)) & np.uint8(7))
        deviation /= math.sqrt(np.square(np.arange(8, 16)).mean())
    mantissa, exponent = math.frexp(deviation)
    spread = (drawn_scales & 7).astype(np.float32) - 4
    scales = np.ldexp(round(mantissa * 32) + spread, exponent - 5).astype(np.float16)
    return Blocks(fmt, codes, scales, None, factors, tables=tables, width=columns)


@functools.cache
def _centred_tables(name: str) -> npt.NDArray[np.int8]:
    """`NORMAL_TABLES` with a mean of zero over all windows: outermost numbers of second halves move towards zero."""
    tables = NORMAL_TABLES[name].copy()
    for pair in tables:
        total = int(pair.sum(dtype=np.int64))
        for _ in range(abs(total)):
            pair[1, (pair[1] * np.sign(total)).argmax()] -= np.sign(total)
    return tables


def _mean_code(fmt: Format) -> float:
    return ((1 << fmt.bits) - 1) / 2


@functools.cache
def _levels(fmt: Format) -> tuple[bytes, float]:
    """The stored integer that each byte stands for, and the standard deviation of a weight whose scale is 1.

    Bytes are equal parts of a normal distribution, from its lowest to its highest; the two of the same distance from
    the middle stand for weights of opposite sign, where the format has the numbers for it.
    """
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((byte + 0.5) / 256) for byte in range(256)])
    if fmt.bits == 1:
        return (quantiles > 0).astype(np.uint8).tobytes(), 1.0
    if fmt.zero == 1:  # three numbers: the middle one for two thirds of the weights
        whole = np.sign(quantiles) * (np.abs(quantiles) > 0.967)
        return (whole + 1).astype(np.uint8).tobytes(), float(np.std(whole))
    quantiles /= quantiles[-1]
    if fmt.has_minimums:
        codes = np.floor(_mean_code(fmt) + 0.5 + _mean_code(fmt) * quantiles)
        return codes.astype(np.uint8).tobytes(), float(np.std(codes))
    if fmt.table != "none":
        numbers = E2M1_DOUBLED / 2 if fmt.scale == "e8m0" else TABLES[fmt.table].astype(np.float64)
        numbers = numbers / 2 if fmt.factor == "e4m3" else numbers
        codes = np.abs(numbers.max() * quantiles[:, None] - numbers).argmin(axis=1)
        return codes.astype(np.uint8).tobytes(), math.sqrt(np.square(numbers[codes]).mean())
    whole = np.rint(quantiles * (127 if fmt.name == "q8" else fmt.zero - 1))
    stored = whole.astype(np.int8) if fmt.name == "q8" else (whole + fmt.zero).astype(np.uint8)
    return stored.tobytes(), float(np.std(whole))
