"""Trellis formats: the meaning of a stream of codes, written out bit by bit, and the way in and out of the layout."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.kernels.trellis import (
    TRELLISES,
    decode,
    dequantise,
    pack_codes,
    pack_scales,
    pack_tables,
    unpack_codes,
    unpack_scales,
    unpack_tables,
)
from edgemoe.kernels.trellis_tables import NORMAL_TABLES

every_trellis = pytest.mark.parametrize("name", TRELLISES)


def random_codes(name: str, rows: int, columns: int) -> np.ndarray:
    trellis = TRELLISES[name]
    random = np.random.default_rng(columns)
    return random.integers(0, 1 << trellis.step_bits, (rows, trellis.code_count(columns)), dtype=np.uint8)


@every_trellis
def test_values_are_those_of_the_stream_s_windows(name: str) -> None:
    """The bits of a chain are read from the payload as one stream, and each value is looked up by hand."""
    trellis, tables = TRELLISES[name], np.random.default_rng(1).integers(-15, 16, (4, 2, 16)).astype(np.int8)
    k, lag, per_step = trellis.step_bits, trellis.lag, trellis.step_weights
    tables = tables[:per_step]
    codes = random_codes(name, 32, 300)
    values = decode(codes, tables, trellis)
    payload = pack_codes(codes, trellis)
    assert payload.shape == (2, trellis.payload_bytes(300))
    assert values.shape == (32, trellis.padded(300))
    planes = payload.reshape(2, -1, 16, 4)
    for panel, row, chain in ((0, 0, 0), (0, 13, 2), (1, 15, 3)):
        stream = "0" * 32 + "".join(f"{byte:08b}" for byte in planes[panel, :, row, chain])
        for step in range(trellis.code_count(300) // 4):
            end = 32 + k * (step + 1)
            last = int(stream[end - 4 : end], 2)
            before = int(stream[end - k * lag - 4 : end - k * lag], 2)
            for v in range(per_step):
                column = 4 * (step * per_step + v) + chain
                expected = tables[v, 0, last ^ before] + tables[v, 1, before]
                assert values[16 * panel + row, column] == expected


@every_trellis
@pytest.mark.parametrize("columns", [1, 32, 100, 256, 600])
def test_what_is_packed_comes_back(name: str, columns: int) -> None:
    trellis, random = TRELLISES[name], np.random.default_rng(2)
    codes = random_codes(name, 48, columns)
    assert np.array_equal(unpack_codes(pack_codes(codes, trellis), trellis), codes)
    scales = random.standard_normal((48, trellis.scale_count(columns))).astype(np.float16)
    factors = None
    if trellis.has_factors:
        factors = random.integers(0, 16, (48, trellis.factor_count(columns)), dtype=np.uint8)
    section = pack_scales(scales, factors)
    assert section.shape == (3, trellis.scale_bytes(columns))
    kept, own = unpack_scales(section, trellis, columns)
    assert np.array_equal(kept, scales)
    assert (own is None) == (factors is None)
    if own is not None:
        assert np.array_equal(own, factors)
    head = pack_tables(NORMAL_TABLES[name], trellis)
    assert len(head) == trellis.table_bytes
    assert np.array_equal(unpack_tables(head, trellis), NORMAL_TABLES[name])


def test_sections_of_a_panel_lie_where_they_are_said_to() -> None:
    trellis = TRELLISES["n2"]
    factors = np.zeros((16, 11), np.uint8)
    factors[5, 2], factors[5, 3], factors[7, 8] = 9, 6, 3
    scales = np.zeros((16, 2), np.float16)
    scales[3, 1] = 1
    section = pack_scales(scales, factors)[0]
    assert list(np.flatnonzero(section)) == [32 + 16 + 5, 96 + 7, 96 + 32 + 7]
    assert section[32 + 16 + 5] == 9 + 16 * 6
    assert section[96 + 32 + 7] == 3
    assert trellis.panel_bytes(352) == 11 * 128 + 192
    assert trellis.panel_bytes(32) == 256
    assert TRELLISES["n075"].panel_bytes(130) == 2 * 192 + 64


@every_trellis
def test_sizes_are_the_bits_that_are_promised(name: str) -> None:
    trellis = TRELLISES[name]
    bits = {"n4": 4.1875, "n3": 3.1875, "n2": 2.1875, "n15": 1.6875, "n1": 1.0, "n075": 0.75}[name]
    long = 1 << 20
    assert trellis.panel_bytes(long) * 8 / (16 * long) == pytest.approx(bits, abs=1e-4)


@every_trellis
def test_a_weight_is_the_product_of_scale_factor_and_value(name: str) -> None:
    trellis, random = TRELLISES[name], np.random.default_rng(3)
    values = decode(random_codes(name, 16, 300), NORMAL_TABLES[name], trellis)[:, :300]
    scales = random.standard_normal((16, trellis.scale_count(300))).astype(np.float16)
    factors = random.integers(0, 16, (16, 10), dtype=np.uint8) if trellis.has_factors else None
    found = dequantise(values, scales, factors)
    assert found.dtype == np.float32
    for row, column in ((0, 0), (4, 31), (15, 299)):
        scale = float(scales[row, column // 256 if trellis.has_factors else 0])
        factor = 1 if factors is None else int(factors[row, column // 32]) + 1
        assert found[row, column] == scale * factor * int(values[row, column])


@every_trellis
def test_tables_keep_their_values_small(name: str) -> None:
    tables = NORMAL_TABLES[name].astype(int)
    assert tables.shape == (TRELLISES[name].step_weights, 2, 16)
    assert np.abs(tables[:, 0, :, None] + tables[:, 1, None, :]).max() <= 31
