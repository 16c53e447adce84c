"""The packed layouts against the drawing in the docstring of `formats.py`, and against GGUF's blocks."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.kernels.blocks import Blocks, dequantise, pack, pack_head, pack_panels, unpack
from edgemoe.kernels.formats import FORMATS, Format, group_count, panel_count
from tests.kernels.builders import (
    FORMAT_NAMES,
    column_counts,
    few_examples,
    format_names,
    random_blocks,
    row_counts,
    seeds,
)
from tests.kernels.grid_drawing import packed_grid_slowly
from tests.kernels.trellis_drawing import packed_trellis_slowly, trellis_value
from tests.support.every_case import every_case

BITS = {
    "f32": 32, "f16": 16, "bf16": 16,
    "q8": 8.5, "q4": 4.5, "q4m": 5, "m4": 4.25, "q5": 5.5, "q5m": 6, "q8m": 9, "q4z": 4.75,
    "iq4nl": 4.5, "iq4xs": 4.3125, "q2k": 2.625, "q3k": 3.5625, "q4k": 4.625, "q5k": 5.625, "q6k": 6.5625, "nv4": 4.5,
    "tq2": 2.0625, "q2": 2.25, "q1": 1.125, "f8": 8.25, "m8": 8.25,
    "iq2xxs": 2.0625, "iq2xs": 2.3125, "iq2s": 2.5625, "iq3xxs": 3.0625, "iq3s": 3.4375, "iq1s": 1.5625, "iq1m": 1.75,
    "n4": 4.1875, "n3": 3.1875, "n2": 2.1875, "n15": 1.6875, "n1": 1, "n075": 0.75,
}  # fmt: skip
HEADS = {"n4": 64, "n3": 64, "n2": 64, "n15": 64, "n1": 64, "n075": 128}
"""Bytes before the panels, of formats that have any."""
UNITS = {"iq2xxs": 1 / 8, "iq2xs": 1 / 8, "iq2s": 1 / 8, "iq3xxs": 1 / 4, "iq3s": 1, "iq1s": 1 / 8, "iq1m": 1 / 8}
MISSING = {"q4": 8, "q5": 16, "q8m": 128, "q3k": 4, "q6k": 32, "tq2": 1, "q2": 1}
"""The codes of missing rows and columns, where they are not 0."""


def packed_slowly(blocks: Blocks) -> bytes:
    """The bytes of a matrix, one weight at a time, as the docstring draws them."""
    if blocks.format.grid != "none":
        return packed_grid_slowly(blocks)
    if blocks.format.trellis is not None:
        return packed_trellis_slowly(blocks)
    rows, columns = blocks.values.shape
    groups = group_count(columns)
    fmt, bits = blocks.format, blocks.format.bits
    planes = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 8: [8]}.get(bits, [])
    whole = bytearray()
    for panel in range(panel_count(rows)):
        body = bytearray()
        for g in range(groups):
            payload = bytearray(64 * bits)
            for r in range(16):
                for c in range(32):
                    row, column = panel * 16 + r, g * 32 + c
                    inside = row < rows and column < columns
                    if fmt.floating:
                        at = (c * 16 + r) * bits // 8
                        payload[at : at + bits // 8] = (
                            blocks.values[row, column].tobytes() if inside else bytes(bits // 8)
                        )
                        continue
                    code = int(blocks.values[row, column]) & 255 if inside else MISSING.get(fmt.name, 0)
                    code ^= 128 * (fmt.name == "q8m")
                    first = 0
                    for plane in planes:
                        span = 4 * plane  # columns before the next field of a byte
                        byte = first * 64 + c % span // 4 * 64 + r * 4 + c % 4
                        payload[byte] |= (code & (1 << plane) - 1) << c // span * plane
                        code >>= plane
                        first += plane
            body += payload
        both = blocks.factors if fmt.factor != "nibble" else blocks.factors | blocks.offsets << 4
        for numbers in (blocks.scales, blocks.minimums, both, None if fmt.factor == "nibble" else blocks.offsets):
            if numbers is None:
                continue
            for number in range(numbers.shape[1]):
                for row in range(panel * 16, panel * 16 + 16):
                    missing = b"\x7f" if fmt.scale == "e8m0" else bytes(numbers.itemsize)
                    body += numbers[row, number].tobytes() if row < rows else missing
        whole += body + bytes(-len(body) % 64)
    return bytes(whole)


def assert_same_blocks(found: Blocks, expected: Blocks) -> None:
    assert found.format == expected.format
    assert found.shape == expected.shape
    pairs = zip(
        (found.values, *found.numbers, found.tables), (expected.values, *expected.numbers, expected.tables), strict=True
    )
    for one, other in pairs:
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
    parts = [pack_head(blocks)]
    for start in range(0, panels * 16 + 3, 16):
        parts.append(pack_panels(blocks.rows(slice(start, start + 16))))
    assert np.concatenate(parts).tobytes() == pack(blocks).tobytes()


@few_examples
@given(format_names, row_counts, column_counts, seeds)
def test_dequantised_weights_are_what_the_table_says(format_name: str, rows: int, columns: int, seed: int) -> None:
    blocks = random_blocks(format_name, rows, columns, np.random.default_rng(seed))
    weights = dequantise(blocks)
    assert weights.dtype == np.float32
    row, column = rows - 1, columns - 1
    fmt = blocks.format
    value = trellis_value(blocks, row, column) if fmt.trellis else value_of(format_name, blocks.values[row, column])
    if blocks.scales is None:
        assert float(weights[row, column]) == value
        return
    scale = blocks.scales[row, column // fmt.scale_columns]
    exact = 2.0 ** (int(scale) - 127) if fmt.scale == "e8m0" else float(scale)
    minimum = exact if blocks.minimums is None else float(blocks.minimums[row, column // fmt.scale_columns])
    if blocks.factors is not None:
        factor = blocks.factors[row, column // fmt.factor_columns]
        if fmt.grid != "none":
            exact *= (2 * int(factor) + 1) * UNITS[format_name]
        else:
            exact *= e4m3(int(factor)) if fmt.factor == "e4m3" else int(factor) + (fmt.factor == "beside")
    expected = exact * value
    if blocks.offsets is not None:
        expected -= minimum * int(blocks.offsets[row, column // fmt.factor_columns])
    elif blocks.minimums is not None:
        expected += minimum
    slack = 0 if fmt.scale != "f32" and blocks.minimums is None and blocks.offsets is None else 1e-7
    assert abs(float(weights[row, column]) - expected) <= slack * (abs(exact * value) + 256 * abs(minimum))


def value_of(format_name: str, code: int | float) -> float:
    """The value of a code by the docstring's table; of doubled ones the true one."""
    if format_name in ("m4", "nv4"):
        return e2m1(int(code))
    if format_name in ("f8", "m8"):
        return e4m3(int(code))
    if format_name == "bf16":
        return float(struct.unpack("<f", struct.pack("<I", int(code) << 16))[0])
    if format_name in ("iq4nl", "iq4xs"):
        return (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)[int(code)]
    if format_name == "q1":
        return 1 if code else -1
    zero = 0 if format_name == "q8m" else MISSING.get(format_name, 0)
    return float(code) - zero


def e4m3(code: int) -> float:
    """The number of a byte by the OCP OFP8 specification: sign, 4 bits of exponent with the bias 7, 3 of mantissa."""
    sign, exponent, mantissa = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8))


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
    of_rows = {"nv4": 32, "n1": 16, "n075": 16}.get(format_name, 0)  # a row's own scale
    used = math.ceil((BITS[format_name] * 16 * 4096 + 16 * of_rows) / 512) * 64  # of a panel
    assert fmt.matrix_bytes(64, 4096) == HEADS.get(format_name, 0) + 4 * used


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
