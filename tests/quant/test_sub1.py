"""sub1: exact in both directions, as small as it is said to be, and no bytes lead it astray."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS
from edgemoe.kernels.native.sub1 import NativeSub1
from edgemoe.kernels.sub1 import (
    HEADER_BYTES,
    MAGIC,
    TAIL_BYTES,
    pack_panels,
    pack_trits,
    panels_fault,
    unpack_trits,
    weights_of,
)
from edgemoe.quant.sub1 import decode, encode, quantise
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.pair_dictionary import PairDictionary, encoded_bytes
from tests.support.trits import QMOE_ZEROS, draw_levels, draw_trits

few_examples = settings(max_examples=examples(40), deadline=None)
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 50), st.integers(1, 150))
shares = st.sampled_from([0.0, 0.3, QMOE_ZEROS, 0.99, 1.0])

LAYERS = {
    "1536 x 2080": [(1536, 2080)],
    "base-128": [(3072, 768), (768, 3072)],
    "large-128": [(4096, 1024), (1024, 4096)],
    "c2048": [(6144, 2080), (2080, 6144)],
}
"""The matrices of an expert: those of QMoE's SwitchTransformers, and the shape that its paper measures alone."""


@given(shapes, shares, seeds)
@few_examples
def test_what_is_encoded_comes_back(shape: tuple[int, int], zeros: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    trits, levels = draw_trits(random, shape, zeros), draw_levels(random, shape[0])
    data = encode(trits, levels)
    found, found_levels = unpack_trits(np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(found, trits)
    assert found_levels.tobytes() == levels.tobytes()
    np.testing.assert_array_equal(decode(data), weights_of(trits, levels))


def test_every_block_comes_back() -> None:
    every = np.array(list(itertools.product((-1, 0, 1), repeat=8)), np.int8)
    groups = -(-len(every) // 64)
    blocks = np.zeros((groups * 64, 8), np.int8)
    blocks[: len(every)] = every
    trits = blocks.reshape(groups, PANEL_ROWS, 4, 8).transpose(1, 0, 3, 2).reshape(PANEL_ROWS, groups * GROUP_COLUMNS)
    levels = draw_levels(np.random.default_rng(1), PANEL_ROWS)
    np.testing.assert_array_equal(unpack_trits(np.frombuffer(encode(trits, levels), np.uint8))[0], trits)


@every_case(("levels", "level_bytes"), [([-0.5, 0.25], 2), ([-0.0, 65504], 2), ([-0.1, 0.25], 4), ([-7e4, 1e-30], 4)])
def test_levels_take_the_fewest_bytes_that_hold_them(levels: list[float], level_bytes: int) -> None:
    trits = np.array([[-1, 0, 1]], np.int8)
    given_levels = np.array([levels], np.float32)
    data = encode(trits, given_levels)
    assert data[12] == level_bytes
    assert decode(data).tobytes() == np.array([[levels[0], 0, levels[1]]], np.float32).tobytes()


@every_case(
    ("trits", "levels", "message"),
    [
        (np.zeros((2, 3), np.int32), np.zeros((2, 2), np.float32), "trits as int8 (rows, columns), found int32"),
        (np.zeros((0, 3), np.int8), np.zeros((0, 2), np.float32), "Expected trits as int8"),
        (np.zeros((2, 3), np.int8), np.zeros(2, np.float32), "Expected levels as float32 (2, 2), found float32 (2,)"),
        (np.array([[0, 2]], np.int8), np.zeros((1, 2), np.float32), "found 2 in row 0, column 1"),
        (np.zeros((1, 2), np.int8), np.array([[0, np.inf]], np.float32), "Row 0: expected levels that are finite"),
        (np.zeros((1, 2), np.int8), np.array([[np.nan, 1]], np.float32), "found nan for minus"),
    ],
)
def test_what_is_no_ternary_matrix_is_refused(trits: np.ndarray, levels: np.ndarray, message: str) -> None:
    with pytest.raises(EdgemoeError) as caught:
        encode(trits, levels)
    assert message in str(caught.value)


@given(shapes, seeds, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
@few_examples
def test_altered_bytes_mean_a_matrix_or_are_refused(
    shape: tuple[int, int], seed: int, changes: list[tuple[int, int]]
) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(encode(draw_trits(random, shape, 0.7), draw_levels(random, shape[0])))
    for place, byte in changes:
        data[HEADER_BYTES + place % (len(data) - HEADER_BYTES)] = byte
    try:
        trits, _ = unpack_trits(np.frombuffer(bytes(data), np.uint8))
    except EdgemoeError:
        return
    assert trits.shape == shape
    assert set(np.unique(trits)) <= {-1, 0, 1}


def test_bytes_of_something_else_are_refused_by_name() -> None:
    data = encode(np.ones((17, 3), np.int8), np.ones((17, 2), np.float32))

    def altered(place: int, number: int) -> bytes:
        return data[:place] + number.to_bytes(4, "little") + data[place + 4 :]

    cases = {
        b"": "begins with b'sub1', found b''",
        b"gguf" + data[4:]: "found b'gguf'",
        altered(4, 0): "found 0, 3 and 2",
        altered(12, 3): "found 17, 3 and 3",
        altered(4, 1 << 30): "panels begin",
        altered(16, 29): "Expected panels of 80 bytes or more between byte 28",
        altered(24, 1 << 20): "to byte 1048576",
        altered(20, 28 + 80): "Panel 0: expected",
        data[:-1]: "Expected panels",
        data[: 12 + TAIL_BYTES]: "panels begin",
    }
    for changed, message in cases.items():
        with pytest.raises(EdgemoeError) as caught:
            decode(changed)
        assert message in str(caught.value), changed[:4]
    assert data.startswith(MAGIC)


def _bits(shape: tuple[int, int], dictionary: PairDictionary | None = None) -> float:
    """Bits for a weight, all told, by sub1 or by a dictionary."""
    random = np.random.default_rng(2)
    trits = draw_trits(random, shape)
    size = encoded_bytes(dictionary.encode(trits)) if dictionary else len(encode(trits, draw_levels(random, shape[0])))
    return 8 * size / trits.size


def test_an_expert_is_at_least_22_times_smaller_than_in_bfloat16() -> None:
    up, down = LAYERS["base-128"]  # which has the shortest rows, and so the most levels for a weight
    few_rows = [(rows // 8, columns) for rows, columns in (up, down)]
    assert 16 / np.mean([_bits(shape) for shape in few_rows]) > 22.5


@pytest.mark.slow
def test_sub1_is_smaller_than_the_dictionary_of_qmoe() -> None:
    dictionary = PairDictionary()
    for layer, matrices in LAYERS.items():
        found = []
        for shape in matrices:
            ours, theirs = _bits(shape), _bits(shape, dictionary)
            found.append((ours, theirs))
            print(f"{layer} {shape}: sub1 {ours:.4f} ({16 / ours:.2f}x), QMoE {theirs:.4f} ({16 / theirs:.2f}x)")
        ours, theirs = np.mean(found, axis=0)
        print(f"{layer}: sub1 {ours:.4f} ({16 / ours:.2f}x), QMoE {theirs:.4f} ({16 / theirs:.2f}x)")
        assert 16 / ours > 22.6, layer
        assert 20 < 16 / theirs < 21.2, layer


def test_the_dictionary_of_qmoe_is_lossless() -> None:
    dictionary = PairDictionary(entries=1 << 10)
    trits = draw_trits(np.random.default_rng(3), (40, 64))
    np.testing.assert_array_equal(dictionary.decode(dictionary.encode(trits)), trits)


def test_rounding_goes_to_the_nearest_level_of_the_row() -> None:
    values = np.array([[-4, -2.5, -2, 0.9, 1, 2.5], [1, 2, 3, 0, 1.5, 4], [0, 0, 0, 0, 0, 0]], np.float32)
    trits, levels = quantise(values)
    assert levels.tolist() == [[-4, 2.5], [0, 4], [0, 0]]
    assert trits.tolist() == [[-1, -1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1], [0] * 6]
    np.testing.assert_array_equal(decode(encode(trits, levels)), weights_of(trits, levels))


@pytest.fixture(scope="module")
def codec() -> NativeSub1:
    return NativeSub1()


@few_examples
@given(shapes, shares, st.booleans(), seeds)
def test_c_encodes_and_decodes_as_numpy_does(shape: tuple[int, int], zeros: float, wide: bool, seed: int) -> None:
    codec, random = NativeSub1(), np.random.default_rng(seed)
    rows, columns = shape
    trits = draw_trits(random, shape, zeros)
    levels = draw_levels(random, rows) if wide else draw_levels(random, rows).astype(np.float16).astype(np.float32)
    level_bytes = 4 if wide else 2
    expected = pack_panels(trits, levels, level_bytes)
    assert codec.pack_panels(trits, levels, level_bytes) == expected
    assert codec.panel_lengths(trits, level_bytes) == list(map(len, expected))
    matrix = pack_trits(trits, levels)
    found = codec.unpack(matrix, rows, columns)
    assert found is not None
    for own, known in zip(found, unpack_trits(matrix), strict=True):
        np.testing.assert_array_equal(own, known)
    assert codec.is_sound(matrix, rows, columns)
    assert panels_fault(matrix, rows, columns) is None


def test_damaged_bytes_are_refused_by_both_or_mean_the_same(codec: NativeSub1) -> None:
    """Whatever the bytes are: C and NumPy agree on whether a matrix is sound, and what it says then."""
    random = np.random.default_rng(4)
    trits, levels = draw_trits(random, (20, 70), 0.8), draw_levels(random, 20)
    matrix = pack_trits(trits, levels)
    refused = 0
    for _ in range(300):
        damaged = matrix.copy()
        for place in random.integers(0, len(matrix), random.integers(1, 4)):
            damaged[place] ^= 1 << random.integers(8)
        damaged = damaged[: random.integers(1, len(damaged) + 1)] if random.random() < 0.2 else damaged
        sound = codec.is_sound(damaged, 20, 70)
        assert sound == (panels_fault(damaged, 20, 70) is None)
        refused += not sound
        if sound:
            found = codec.unpack(damaged, 20, 70)
            assert found is not None
            for own, known in zip(found, unpack_trits(damaged), strict=True):
                np.testing.assert_array_equal(own, known)
    assert 50 < refused < 300
