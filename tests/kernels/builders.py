"""Matrices, buffers and numbers for the kernel tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from edgemoe.kernels.blocks import Blocks, float_blocks, pack
from edgemoe.kernels.formats import FORMATS, Format, Matrix, group_count, panel_count
from edgemoe.kernels.grid_blocks import decode
from edgemoe.kernels.grids import GRIDS
from edgemoe.kernels.operations import (
    GELU,
    GELU_TANH,
    PAGE_TOKENS,
    RELU,
    RELU2,
    SILU,
    Activation,
    Cache,
    FfnBiases,
    Integers,
    QuantisedCache,
)
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.trellis import Trellis
from tests.support.examples import examples
from tests.support.matrices import interleave_panels

few_examples = settings(max_examples=examples(18), deadline=None)
"""For every property here: the first call of a kernel compiles it, and there are many backends."""

FORMAT_NAMES = tuple(FORMATS)
CACHE_FORMATS = {"f32": np.float32, "f16": np.float16, "q8": None}
"""Formats of a KV cache, with their types where they are plain arrays."""

KINDS = ("normal", "zeros", "denormal", "threshold", "huge", "equal", "spike", "halves")
"""Kinds of activations; see `numbers`."""


def aligned(shape: Sequence[int], dtype: npt.DTypeLike, alignment: int = 64) -> npt.NDArray[np.generic]:
    """Zeros in memory aligned to `alignment` bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def numbers(kind: str, shape: Sequence[int], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Float32 numbers of a kind:

    normal; all zero; below float32's normal range; about where a group counts as zeros; huge; all equal; one
    that dwarfs the rest; multiples of a half, so that int8 rounding meets ties.
    """
    normal = random.standard_normal(shape)
    values = {
        "normal": lambda: normal,
        "zeros": lambda: np.zeros(shape),
        "denormal": lambda: normal * 1e-41,
        "threshold": lambda: normal * 1e-35,
        "huge": lambda: normal * 1e30,
        "equal": lambda: np.full(shape, 0.37),
        "spike": lambda: np.where(random.random(shape) < 0.02, 1e4, normal * 1e-3),
        "halves": lambda: np.where(random.random(shape) < 0.1, 63.5, random.integers(-127, 128, shape) / 2),
    }[kind]()
    return aligned_copy(values.astype(np.float32))


def random_blocks(format_name: str, rows: int, columns: int, random: np.random.Generator) -> Blocks:
    """Blocks that use the whole range of the format, with scales of about a tenth."""
    fmt = FORMATS[format_name]
    shape = (rows, columns)
    if fmt.bits > 8:
        return float_blocks(random.standard_normal(shape).astype(np.float32), fmt)
    if fmt.trellis is not None:
        return random_trellis_blocks(fmt, fmt.trellis, rows, columns, random)
    values: np.ndarray = random.integers(0, 1 << fmt.bits, shape).astype(np.uint8)
    if fmt.grid != "none":
        grid = GRIDS[fmt.grid]
        codes = random.integers(0, len(grid.packed), (rows, -(-columns // grid.columns))).astype(np.uint16)
        marks = random.integers(0, 2 if fmt.grid == "iq1" else 256, (rows, -(-columns // 8))).astype(np.uint8)
        if format_name == "iq1s":  # one for a group
            marks = np.repeat(marks[:, ::4], 4, axis=1)[:, : marks.shape[1]]
        values = decode(codes, marks, fmt)[:, :columns]
    if fmt.floating:
        values = np.where(values & 127 == 127, 3, values).astype(np.uint8)  # no NaN; 3 is a subnormal number
    if format_name == "q8":
        values = values.view(np.int8)
    scale_shape, factor_shape = (rows, fmt.scale_count(columns)), (rows, fmt.factor_count(columns))
    scales: np.ndarray = (random.standard_normal(scale_shape) / 10).astype(
        np.float32 if fmt.scale == "f32" else np.float16
    )
    if fmt.scale == "e8m0":
        scales = random.integers(120, 126, scale_shape).astype(np.uint8)
    minimums = random.standard_normal(scale_shape).astype(np.float16) if fmt.has_minimums else None
    factors: np.ndarray | None = None
    if fmt.grid != "none":
        factors = random.integers(0, 8 if fmt.grid == "iq1" else 16, factor_shape).astype(np.uint8)
    elif fmt.factor_bytes:
        factors = random.integers(0, 16 if fmt.factor == "nibble" else 127, factor_shape).astype(np.uint8)
        if fmt.factor == "int8":
            factors = random.integers(-128, 128, factor_shape).astype(np.int8)
    offsets = random.integers(0, 16 if fmt.factor == "nibble" else 256, factor_shape) if fmt.has_offsets else None
    return Blocks(fmt, values, scales, minimums, factors, None if offsets is None else offsets.astype(np.uint8))


def random_trellis_blocks(
    fmt: Format, trellis: Trellis, rows: int, columns: int, random: np.random.Generator
) -> Blocks:
    """Blocks of a format with a trellis; matrices of one format have one set of tables, so that they can be joined."""
    codes = random.integers(0, 1 << trellis.step_bits, (rows, trellis.code_count(columns))).astype(np.uint8)
    scales = (random.standard_normal((rows, fmt.scale_count(columns))) / 10).astype(np.float16)
    factors = (
        random.integers(0, 16, (rows, fmt.factor_count(columns))).astype(np.uint8) if trellis.has_factors else None
    )
    tables = np.random.default_rng(fmt.code).integers(-15, 16, (trellis.step_weights, 2, 16)).astype(np.int8)
    tables[:, 0, :2] = 16, -16
    tables[:, 1, :2] = -15, 15  # a window of 0 and 1 and one of 1 and 0 reach both ends
    return Blocks(fmt, codes, scales, None, factors, tables=tables, width=columns)


def random_matrix(format_name: str, rows: int, columns: int, random: np.random.Generator) -> Matrix:
    blocks = random_blocks(format_name, rows, columns, random)
    return Matrix(aligned_copy(pack(blocks)), blocks.format, rows, columns)


def random_ffn(
    format_name: str, hidden_size: int, intermediate_size: int, random: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """The `gate_up` and `down` matrices of an FFN."""
    panels = panel_count(intermediate_size)
    gate, up = (random_matrix(format_name, intermediate_size, hidden_size, random) for _ in range(2))
    both = aligned_copy(interleave_panels(gate, up))
    gate_up = Matrix(both, gate.format, 32 * panels, hidden_size)
    return gate_up, random_matrix(format_name, hidden_size, intermediate_size, random)


def random_plain_ffn(
    format_name: str, hidden_size: int, intermediate_size: int, random: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """The `up` and `down` matrices of an FFN without a gate."""
    return (
        random_matrix(format_name, intermediate_size, hidden_size, random),
        random_matrix(format_name, hidden_size, intermediate_size, random),
    )


def random_biases(
    hidden_size: int, intermediate_size: int, random: np.random.Generator, gated: bool = True
) -> FfnBiases:
    """Biases of an FFN."""
    sizes = (intermediate_size, intermediate_size, hidden_size)
    gate, up, down = (numbers("normal", (size,), random) for size in sizes)
    return FfnBiases(gate if gated else None, up, down)


CLAMPED = Activation("clamped_silu", 1.702, 0.7, 1.0)
"""The activation of gpt-oss, with a limit that the numbers of these tests often exceed."""

activations = st.sampled_from(
    [
        SILU,
        CLAMPED,
        Activation("clamped_silu", 1.0, 10.0),
        GELU_TANH,
        Activation("relu"),
        Activation("relu2"),
        Activation("capped_silu", limit=0.4),
        Activation("gelu"),
    ]
)
plain_activations = st.sampled_from(
    [GELU, RELU, RELU2, Activation("silu", gated=False), Activation("gelu_tanh", gated=False)]
)


class Places(NamedTuple):
    """Where the rows of a run stand: the fields of operations on the KV cache."""

    positions: Integers
    sequences: Integers
    pages: Integers


def places(tokens: int, position: int = 0, room: int = 0) -> Places:
    """Consecutive rows of one sequence from `position` on, whose pages are numbered in order; at least `room` pages."""
    pages = max(room, -(-(position + tokens) // PAGE_TOKENS))
    numbers = [np.arange(position, position + tokens), np.zeros(tokens), np.arange(pages).reshape(1, pages)]
    return Places(*(aligned_copy(array.astype(np.int32)) for array in numbers))


def empty_cache(format_name: str, shape: tuple[int, ...]) -> Cache:
    """Pages of keys or values `(N, G, 64, W)`, all zeros."""
    dtype = CACHE_FORMATS[format_name]
    if dtype is not None:
        return aligned(shape, dtype)
    return QuantisedCache(aligned(shape, np.int8), aligned((*shape[:-1], group_count(shape[-1])), np.float16))


def fill_cache(cache: Cache, elements: npt.NDArray[np.floating]) -> None:
    """Puts elements `(N, G, 64, W)` in a cache, rounded as its format has it."""
    if isinstance(cache, QuantisedCache):
        cache.values[...], cache.scales[...] = REFERENCE.quantise_cache_rows(elements.astype(np.float32))
    else:
        cache[...] = elements


def cache_arrays(cache: Cache) -> list[npt.NDArray[np.generic]]:
    return [cache.values, cache.scales] if isinstance(cache, QuantisedCache) else [cache]


seeds = st.integers(0, 2**32 - 1)
format_names = st.sampled_from(FORMAT_NAMES)
cache_formats = st.sampled_from(list(CACHE_FORMATS))
kinds = st.sampled_from(KINDS)
token_counts = st.one_of(st.integers(1, 9), st.integers(10, 40))
row_counts = st.one_of(st.sampled_from([1, 15, 16, 17, 33]), st.integers(1, 80))
column_counts = st.one_of(st.sampled_from([1, 4, 31, 32, 33, 64, 128]), st.integers(1, 200))
