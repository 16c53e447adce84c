"""The packed layouts against the drawing in the docstring of `formats.py`, and against GGUF's blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.kernels.formats import (
    FORMATS,
    Blocks,
    Format,
    dequantise,
    group_count,
    pack,
    panel_count,
    unpack,
)
from tests.kernels.builders import (
    FORMAT_NAMES,
    column_counts,
    few_examples,
    format_names,
    random_blocks,
    row_counts,
    seeds,
)
from tests.support.every_case import every_case

BITS = {"f32": 32, "f16": 16, "q8": 8.5, "q4": 4.5, "q4m": 5, "m4": 4.25}


def packed_slowly(blocks: Blocks) -> bytes:
    """The bytes of a matrix, one weight at a time, as the docstring draws them."""
    rows, columns = blocks.values.shape
    groups = group_count(columns)
    name = blocks.format.name
    whole = bytearray()
    for panel in range(panel_count(rows)):
        body = bytearray()
        for g in range(groups):
            payload = bytearray({"f32": 2048, "f16": 1024, "q8": 512, "q4": 256, "q4m": 256, "m4": 256}[name])
            for r in range(16):
                for c in range(32):
                    row, column = panel * 16 + r, g * 32 + c
                    inside = row < rows and column < columns
                    if name in ("f32", "f16"):
                        size = 4 if name == "f32" else 2
                        at = (c * 16 + r) * size
                        payload[at : at + size] = blocks.values[row, column].tobytes() if inside else bytes(size)
                    elif name == "q8":
                        value = int(blocks.values[row, column]) if inside else 0
                        payload[(c // 4) * 64 + r * 4 + c % 4] = value & 255
                    else:
                        nibble = int(blocks.values[row, column]) if inside else (8 if name == "q4" else 0)
                        payload[(c % 16 // 4) * 64 + r * 4 + c % 4] |= nibble << (0 if c < 16 else 4)
            body += payload
        for per_group in (blocks.scales, blocks.minimums):
            if per_group is not None:
                for g in range(groups):
                    for row in range(panel * 16, panel * 16 + 16):
                        missing = b"\x7f" if name == "m4" else bytes(2)
                        body += per_group[row, g].tobytes() if row < rows else missing
        whole += body + bytes(-len(body) % 64)
    return bytes(whole)


def assert_same_blocks(found: Blocks, expected: Blocks) -> None:
    assert found.format == expected.format
    for one, other in zip(
        (found.values, found.scales, found.minimums), (expected.values, expected.scales, expected.minimums), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()


@few_examples
@given(format_names, row_counts, column_counts, seeds)
def test_bytes_lie_where_the_docstring_says(format_name: str, rows: int, columns: int, seed: int) -> None:
    blocks = random_blocks(format_name, min(rows, 34), min(columns, 70), np.random.default_rng(seed))
    assert pack(blocks).tobytes() == packed_slowly(blocks)


@few_examples
@given(format_names, row_counts, column_counts, seeds)
def test_unpack_inverts_pack(format_name: str, rows: int, columns: int, seed: int) -> None:
    blocks = random_blocks(format_name, rows, columns, np.random.default_rng(seed))
    packed = pack(blocks)
    assert len(packed) == blocks.format.matrix_bytes(rows, columns)
    assert_same_blocks(unpack(packed, blocks.format, rows, columns), blocks)


@few_examples
@given(format_names, st.integers(1, 5), column_counts, seeds)
def test_slices_of_whole_panels_pack_alone(format_name: str, panels: int, columns: int, seed: int) -> None:
    blocks = random_blocks(format_name, panels * 16 + 3, columns, np.random.default_rng(seed))
    parts = []
    for start in range(0, panels * 16 + 3, 16):
        rows = slice(start, start + 16)
        scales = None if blocks.scales is None else blocks.scales[rows]
        minimums = None if blocks.minimums is None else blocks.minimums[rows]
        parts.append(pack(Blocks(blocks.format, blocks.values[rows], scales, minimums)))
    assert np.concatenate(parts).tobytes() == pack(blocks).tobytes()


@few_examples
@given(format_names, row_counts, column_counts, seeds)
def test_dequantised_weights_are_scale_times_value_plus_minimum(
    format_name: str, rows: int, columns: int, seed: int
) -> None:
    blocks = random_blocks(format_name, rows, columns, np.random.default_rng(seed))
    weights = dequantise(blocks)
    assert weights.dtype == np.float32
    row, column = rows - 1, columns - 1
    expected = np.float32(blocks.values[row, column])
    if format_name == "m4":
        assert blocks.scales is not None
        expected = np.float32(e2m1(int(expected)) * 2.0 ** (int(blocks.scales[row, column // 32]) - 127))
    elif blocks.scales is not None:
        if format_name == "q4":
            expected -= np.float32(8)
        expected *= np.float32(blocks.scales[row, column // 32])
        if blocks.minimums is not None:
            expected += np.float32(blocks.minimums[row, column // 32])
    assert weights[row, column] == expected


def e2m1(code: int) -> float:
    """The number that a code stands for by the OCP MX specification: sign, exponent with the bias 1, mantissa."""
    sign, exponent, mantissa = -1 if code & 8 else 1, code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2))


def test_m4_means_every_code_and_every_scale_exactly() -> None:
    fmt = FORMATS["m4"]
    values = np.tile(np.arange(16, dtype=np.uint8), (256, 2))
    weights = dequantise(Blocks(fmt, values, np.arange(256, dtype=np.uint8)[:, None]))
    assert np.isnan(weights[255]).all()
    for e in range(255):
        for code in range(16):
            exact = math.ldexp(e2m1(code), e - 127)
            if abs(exact) < 2.0**128:
                assert float(weights[e, code]) == exact
                assert float(weights[e, 16 + code]) == exact
            else:
                assert e >= 253
                assert weights[e, code] == math.copysign(math.inf, exact)


@every_case("format_name", FORMAT_NAMES)
def test_bits_per_weight(format_name: str) -> None:
    fmt = FORMATS[format_name]
    assert fmt.bits_per_weight == BITS[format_name]
    assert fmt.matrix_bytes(64, 4096) * 8 == BITS[format_name] * 64 * 4096


# ---- GGUF's blocks: little-endian structs of 32 weights, (scale, [minimum,] quants); nibbles split as 0-15 | 16-31.

GGUF_BYTES = {"q8": 34, "q4": 18, "q4m": 20, "m4": 17}
GGUF_NAMES = {"q8": "Q8_0", "q4": "Q4_0", "q4m": "Q4_1", "m4": "MXFP4"}


def blocks_of_gguf(data: np.ndarray, fmt: Format) -> Blocks:
    """Blocks from GGUF rows `(rows, groups * block bytes)`: numbers moved, none changed."""
    rows = len(data)
    parts = data.reshape(rows, -1, GGUF_BYTES[fmt.name])
    if fmt.name == "m4":
        values = np.concatenate([parts[:, :, 1:] & 15, parts[:, :, 1:] >> 4], axis=2).reshape(rows, -1)
        return Blocks(fmt, values, parts[:, :, 0])
    scales = np.ascontiguousarray(parts[:, :, :2]).view(np.float16)[:, :, 0]
    if fmt.name == "q8":
        values = np.ascontiguousarray(parts[:, :, 2:]).view(np.int8)
        return Blocks(fmt, values.reshape(rows, -1), scales)
    quants = parts[:, :, 4 if fmt.has_minimums else 2 :]
    values = np.concatenate([quants & 15, quants >> 4], axis=2).reshape(rows, -1)
    minimums = np.ascontiguousarray(parts[:, :, 2:4]).view(np.float16)[:, :, 0] if fmt.has_minimums else None
    return Blocks(fmt, values, scales, minimums)


@pytest.mark.parametrize("format_name", GGUF_NAMES)
@few_examples
@given(rows=st.integers(1, 20), groups=st.integers(1, 4), seed=seeds)
def test_gguf_blocks_carry_over_bit_for_bit(format_name: str, rows: int, groups: int, seed: int) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[GGUF_NAMES[format_name]]
    weights = np.random.default_rng(seed).standard_normal((rows, groups * 32)).astype(np.float32)
    data = gguf.quants.quantize(weights, kind)
    fmt = FORMATS[format_name]
    kept = unpack(pack(blocks_of_gguf(data, fmt)), fmt, rows, groups * 32)
    assert dequantise(kept).tobytes() == gguf.quants.dequantize(data, kind).tobytes()
