"""Quantised matrices of every scheme are shown as the same real numbers, a few rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.quantised.raw import Raw
from edgemoe.conversion.quantised.source import shown_dtypes, with_blocks
from tests.conversion.quantised.schemes import CASES, Case
from tests.support.bytes_source import BytesSource
from tests.support.checkpoints import SMALL_MIXTRAL
from tests.support.quantised_writers import Writer, nvfp4
from tests.support.real_numbers import real_numbers

STEM = "model.layers.0.mlp.experts.1.up_proj"
SHAPE = (144, 192)
"""Rows of more than one block of 128, and columns of one and a half."""


def written(case: Case, writer: Writer, shape: tuple[int, ...] = SHAPE) -> tuple[BytesSource, np.ndarray[Any, Any]]:
    tensors, meant = writer(shape, np.random.default_rng(4))
    arrays = {STEM + end: values for end, values in tensors.items()}
    dtypes = {STEM + end: dtype for end, dtype in case.dtypes.items() if end in tensors}
    return BytesSource(arrays, {**SMALL_MIXTRAL, case.key: case.settings}, dtypes), meant


@pytest.mark.parametrize("name", CASES)
def test_the_real_numbers_are_those_that_were_written(name: str) -> None:
    case = CASES[name]
    source, meant = written(case, case.writer)
    shown = with_blocks(source)
    assert dict.fromkeys(shown.tensors()) == {STEM + case.shown: None}
    info = shown.tensors()[STEM + case.shown]
    assert (info.shape, info.dtype) == (SHAPE, case.format)
    for start, stop in ((0, 144), (0, 16), (16, 48), (127, 129), (143, 144), (5, 5)):
        found = real_numbers(shown.read_rows(STEM + case.shown, None, start, stop))
        np.testing.assert_array_equal(found, meant[start:stop], strict=True)
    if "deepseek" not in name:  # whose two schemes have the same names
        assert shown_dtypes(source.config, source.tensors()) == {STEM + case.shown: case.format}


FEW = ("int4 with zero points", "mlx, 5 bits", "fp8 in blocks", "nvfp4 of modelopt", "mxfp8")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in CASES])
def test_a_few_rows_need_a_few_bytes(name: str) -> None:
    case = CASES[name]
    source, _ = written(case, case.writer, (512, 192))
    shown = with_blocks(source)
    shown.read_rows(STEM + case.shown, None, 256, 512)
    half = source.bytes_read
    shown.read_rows(STEM + case.shown, None, 320, 336)
    assert source.bytes_read - half < half / 8


def test_a_divisor_of_nvfp4_is_kept_in_float64() -> None:
    case = CASES["nvfp4 of compressed-tensors"]
    source, meant = written(case, nvfp4(divides=True, exact=False))
    rows: Any = with_blocks(source).read_rows(STEM + case.shown, None, 0, 144)
    np.testing.assert_allclose(real_numbers(rows), meant, rtol=1e-15)
    assert rows.scales.dtype == np.float64


@pytest.mark.parametrize("name", ["awq", "gptq with zero points", "gptq, 3 bits with zero points"])
def test_columns_of_a_large_file_matrix_are_read_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.conversion.quantised.raw.HELD_BYTES", 0)
    source, meant = written(CASES[name], CASES[name].writer, (512, 192))
    shown = with_blocks(source)
    for start, stop in ((0, 512), (320, 352), (511, 512)):
        before = source.bytes_read
        found = real_numbers(shown.read_rows(f"{STEM}.weight", None, start, stop))
        np.testing.assert_array_equal(found, meant[start:stop])
        read = source.bytes_read - before
        assert read < 512 * 192 / 8 or stop - start == 512


def test_only_so_many_bytes_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.conversion.quantised.raw.HELD_BYTES", 144 * 192)
    source, _ = written(CASES["awq"], CASES["awq"].writer)
    raw = Raw(source)
    for end in (".qweight", ".qzeros", ".scales", ".qweight"):
        raw.turned(STEM + end, 0, 8)
        assert sum(held.nbytes for held in raw._held.values()) <= 144 * 192
    assert set(raw._held) == {STEM + end for end in (".qweight", ".qzeros", ".scales")}
