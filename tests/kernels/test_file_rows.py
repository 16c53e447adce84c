"""Rows of GGUF's types: what their bytes mean, and the way back to the same bytes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.kernels.blocks import Blocks, dequantise, pack, unpack
from edgemoe.kernels.file_rows import decode_rows, encode_rows, scaled
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.row_types import BLOCK_FORMATS, ROW_TYPES, TYPE_NAMES, block_columns, row_bytes
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.file_blocks import random_rows

READABLE = [name for name in BLOCK_FORMATS if name not in ("Q2_0", "Q1_0")]
"""The types that the package `gguf` dequantises."""


def decoded(data: np.ndarray, row_type: str) -> Blocks:
    rows = decode_rows(data, row_type)
    assert isinstance(rows, Blocks)
    return rows


def bits(values: np.ndarray) -> np.ndarray:
    """Numbers as they are compared: -0 and 0 are equal, as are all NaN."""
    return np.where(np.isnan(values), np.float32(np.inf), values + np.float32(0))


@every_case("name", ROW_TYPES)
def test_types_have_the_numbers_and_sizes_of_gguf(name: str) -> None:
    kind = ROW_TYPES[name]
    if name == "Q2_0":  # in newer releases of the package
        return
    type_ = gguf.GGMLQuantizationType[name]
    assert kind.number == type_.value
    assert (kind.columns, kind.bytes) == gguf.GGML_QUANT_SIZES[type_]
    if not kind.is_float:
        assert TYPE_NAMES[kind.twin] == name or name == "TQ1_0"


@settings(max_examples=examples(60), deadline=None)
@given(
    row_type=st.sampled_from([*BLOCK_FORMATS]),
    rows=st.integers(1, 20),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_all_bits_come_back_and_mean_what_gguf_says(row_type: str, rows: int, blocks: int, seed: int) -> None:
    """Scales that are infinite or not numbers, and negative zeros, included."""
    columns = blocks * block_columns(row_type)
    data = np.random.default_rng(seed).integers(0, 256, (rows, row_bytes(row_type, columns))).astype(np.uint8)
    if row_type == "NVFP4":  # whose other scales are refused
        data.reshape(rows, -1, 36)[:, :, :4] %= 0x7F
    if row_type == "MXFP4":  # whose scale 255 is not a number here, and large there
        data.reshape(rows, -1, 17)[:, :, 0] %= 0xFF
    found = decoded(data, row_type)
    again = unpack(pack(found), found.format, rows, columns)
    if row_type != "TQ1_0":
        np.testing.assert_array_equal(encode_rows(again), data)
    if row_type in READABLE:
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[row_type])
            np.testing.assert_array_equal(bits(dequantise(again)), bits(expected))


def test_ternary_rows_go_to_the_other_ternary_type() -> None:
    """Both types have the same three numbers, and a store does not know from which one they came."""
    data = random_rows("TQ1_0", 3, 512, np.random.default_rng(0))
    found = decoded(data, "TQ1_0")
    other = encode_rows(found)
    assert other.shape == (3, row_bytes("TQ2_0", 512))
    np.testing.assert_array_equal(dequantise(decoded(other, "TQ2_0")), dequantise(found))


def test_types_of_one_and_two_bits() -> None:
    half = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    row = np.concatenate([half, np.array([0b11_10_01_00, 0b00_01_10_11], np.uint8), np.zeros(14, np.uint8)])[None]
    expected = [-0.5, 0, 0.5, 1, 1, 0.5, 0, -0.5, *[-0.5] * 56]
    np.testing.assert_array_equal(dequantise(decoded(row, "Q2_0"))[0], expected)
    row = np.concatenate([half, np.array([0b1000_0101], np.uint8), np.full(15, 255, np.uint8)])[None]
    expected = [0.5, -0.5, 0.5, -0.5, -0.5, -0.5, -0.5, 0.5, *[0.5] * 120]
    np.testing.assert_array_equal(dequantise(decoded(row, "Q1_0"))[0], expected)


def test_the_scale_of_a_matrix_multiplies_all_rows() -> None:
    found = decoded(random_rows("NVFP4", 4, 128, np.random.default_rng(3)), "NVFP4")
    np.testing.assert_array_equal(dequantise(scaled(found, 0.25)), dequantise(found) / 4)
    q4 = decoded(random_rows("Q4_0", 4, 128, np.random.default_rng(3)), "Q4_0")
    assert scaled(q4, 0.25) is q4


@every_case("factor", [0x7F, 0x80, 0x9A, 0xFF])
def test_factors_of_nvfp4_that_nobody_writes_are_not_finite(factor: int) -> None:
    data = random_rows("NVFP4", 2, 64, np.random.default_rng(4))
    assert decoded(data, "NVFP4").finite
    data[1, 2] = factor
    assert not decoded(data, "NVFP4").finite


def test_whole_blocks_are_asked_for() -> None:
    with pytest.raises(ValueError, match="rows of 96 columns in blocks of 256"):
        row_bytes("Q4_K", 96)
    assert row_bytes("Q4_K", 512) == 288
    assert block_columns("I64") == 1


# ---- ggml's own quantiser ----------------------------------------------------------------------------------------


def ggml() -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    [path] = sorted(Path(llama_cpp.__file__).parent.rglob("libggml-base.*"))[:1]
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library


@pytest.mark.peer
@pytest.mark.parametrize("row_type", BLOCK_FORMATS)
def test_what_ggml_quantises_is_kept(row_type: str) -> None:
    library, rows, columns = ggml(), 24, 512
    random = np.random.default_rng(7)
    values = (random.standard_t(4, (rows, columns)) * random.lognormal(-3, 1, (rows, 1))).astype(np.float32)
    values[3] = 0
    data = np.zeros((rows, row_bytes(row_type, columns)), np.uint8)
    number, importance = ROW_TYPES[row_type].number, np.ones(columns, np.float32)
    written = library.ggml_quantize_chunk(
        number, values.ctypes.data, data.ctypes.data, 0, rows, columns, importance.ctypes.data
    )
    assert written == data.nbytes
    found = decoded(data, row_type)
    assert found.finite
    assert found.format is FORMATS[BLOCK_FORMATS[row_type]]
    if row_type != "TQ1_0":
        np.testing.assert_array_equal(encode_rows(found), data)
    theirs = np.empty_like(values)
    dequantise_row = getattr(library, "dequantize_row_" + row_type.lower().replace("_k", "_K"))
    dequantise_row.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    dequantise_row(data.ctypes.data, theirs.ctypes.data, values.size)
    np.testing.assert_array_equal(bits(dequantise(found)), bits(theirs))
