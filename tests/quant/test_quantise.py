"""Quantisers: never worse than plain rounding, exact where a format can be, and loud where it cannot."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.blocks import Blocks, dequantise, pack, unpack
from edgemoe.kernels.formats import FORMATS, group_count
from edgemoe.quant import quantise as module
from edgemoe.quant.quantise import TARGETS, quantise
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.matrices import quantisation_error

Q8, Q4, Q4M, M4, F16, F32 = (FORMATS[name] for name in ("q8", "q4", "q4m", "m4", "f16", "f32"))
KINDS = ("normal", "heavy", "uniform", "offset", "sparse", "equal", "two", "tiny", "mixed")

few_examples = settings(max_examples=examples(25), deadline=None)
searched = st.sampled_from(["q8", "q4", "q4m"])
quantised = st.sampled_from(["q8", "q4", "q4m", "m4"])
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32 - 1)
columns = st.one_of(st.sampled_from([1, 31, 32, 33, 64]), st.integers(1, 150))


def weights(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Weights of a kind; `tiny` ones reach into and below what float16 can scale, `mixed` ones have every size."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal(shape)
    values = {
        "normal": normal,
        "heavy": random.standard_t(3, shape) / 50,
        "uniform": random.random(shape),
        "offset": 5 + normal / 100,
        "sparse": normal * (random.random(shape) < 0.1),
        "equal": np.full(shape, -0.123),
        "two": np.where(random.random(shape) < 0.5, -0.7, 0.3),
        "tiny": normal * 1e-7,
        "mixed": normal * 10.0 ** random.integers(-9, 4, (shape[0], 1)),
    }[kind]
    return values.astype(np.float32)


def group_errors(values: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """The sum of squared error of each group: `(rows, groups)`."""
    squares = np.square(values.astype(np.float64) - restored)
    return np.add.reduceat(squares, np.arange(0, values.shape[1], 32), axis=1)


def spread(per_group: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(per_group.astype(np.float32), 32, axis=1)[:, :count]


def plainly_rounded(values: np.ndarray, name: str) -> list[np.ndarray]:
    """The weights restored from rounding with the obvious scale, stored in float16."""
    starts = np.arange(0, values.shape[1], 32)
    count = values.shape[1]
    high, low = np.maximum.reduceat(values, starts, axis=1), np.minimum.reduceat(values, starts, axis=1)
    extreme = np.where(high >= -low, high, low)
    if name == "q4m":
        offers = [((high - low) / 15, low, 0, 15)]
    else:
        zeros = np.zeros_like(low)
        offers = [(np.abs(extreme) / 127, zeros, -127, 127)]
        if name == "q4":
            offers = [(extreme / -8, zeros, -8, 7), (np.abs(extreme) / 7, zeros, -8, 7)]
    restored = []
    for scale, minimum, lowest, highest in offers:
        d, m = spread(scale.astype(np.float16), count), spread(minimum.astype(np.float16), count)
        with np.errstate(divide="ignore", invalid="ignore"):
            n = np.where(d == 0, 0, np.clip(np.rint((values - m) / d), lowest, highest))
        restored.append(n.astype(np.float32) * d + m)
    return restored


@few_examples
@given(searched, kinds, st.integers(1, 20), columns, seeds)
def test_no_group_is_worse_than_plain_rounding(name: str, kind: str, rows: int, count: int, seed: int) -> None:
    values = weights(kind, (rows, count), seed)
    found = group_errors(values, dequantise(quantise(values, FORMATS[name])))
    for restored in plainly_rounded(values, name):
        # The offers are compared in float32, so one that is equal but for its last digits may win.
        slack = 1e-5 * group_errors(values, np.zeros_like(values)) * 2.0**-10
        assert (found <= group_errors(values, restored) * (1 + 1e-5) + slack).all()


@few_examples
@given(quantised, kinds, st.integers(1, 20), columns, seeds)
def test_blocks_are_well_formed(name: str, kind: str, rows: int, count: int, seed: int) -> None:
    fmt, values = FORMATS[name], weights(kind, (rows, count), seed)
    blocks = quantise(values, fmt)
    low, high = (-127, 127) if name == "q8" else (0, 15)
    assert blocks.format == fmt
    assert blocks.values.dtype == (np.int8 if name == "q8" else np.uint8)
    assert blocks.values.min() >= low
    assert blocks.values.max() <= high
    assert blocks.scales is not None
    assert blocks.scales.shape == (rows, group_count(count))
    assert blocks.scales.dtype == (np.uint8 if name == "m4" else np.float16)
    assert (blocks.minimums is not None) == (name == "q4m")
    kept = unpack(pack(blocks), fmt, rows, count)
    assert np.array_equal(dequantise(kept), dequantise(blocks))


@few_examples
@given(kinds, st.integers(1, 10), columns, seeds)
def test_q8_lies_within_half_a_step_of_its_stored_scale(kind: str, rows: int, count: int, seed: int) -> None:
    values = weights(kind, (rows, count), seed)
    blocks = quantise(values, Q8)
    assert blocks.scales is not None
    step = spread(blocks.scales, count).astype(np.float64)
    step[step < 2.0**-14] = np.inf  # float16 loses digits there
    # A scale rounded down by float16 (a part in 2048) leaves the largest weight, 127 steps, a little outside.
    assert (np.abs(values - dequantise(blocks).astype(np.float64)) <= step * (0.5 + 127 / 2048)).all()


def q4_weights(extremes: np.ndarray, count: int, exponent: int, random: np.random.Generator) -> np.ndarray:
    """Weights `(rows, count)` that q4 holds exactly; each group has its extreme integer `(rows, groups)`."""
    bound = spread(np.abs(extremes), count)
    integers = random.integers(-8, 8, bound.shape).clip(-bound, bound)
    integers[:, ::32] = extremes
    scales = random.uniform(1, 2, extremes.shape) * 2.0**exponent * random.choice([-1, 1], extremes.shape)
    return dequantise(Blocks(Q4, (integers + 8).astype(np.uint8), scales.astype(np.float16)))


@few_examples
@given(st.integers(1, 10), columns, st.integers(-12, 4), seeds)
def test_what_fills_q4_comes_back_exactly(rows: int, count: int, exponent: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = q4_weights(random.choice([-8, 7], (rows, group_count(count))), count, exponent, random)
    assert np.array_equal(dequantise(quantise(values, Q4)), values)


@few_examples
@given(st.integers(1, 10), columns, st.integers(-10, 4), seeds)
def test_what_q4_can_hold_comes_back_to_float16_s_last_digit(rows: int, count: int, exponent: int, seed: int) -> None:
    # The weights of a group of few integers fit several scales, and float16 rounds some of them.
    random = np.random.default_rng(seed)
    values = q4_weights(random.integers(1, 7, (rows, group_count(count))), count, exponent, random)
    assert (np.abs(dequantise(quantise(values, Q4)) - values) <= 2.0**-11 * np.abs(values)).all()


@few_examples
@given(st.integers(1, 10), st.integers(1, 4), st.integers(-12, 4), seeds)
def test_what_q8_can_hold_comes_back_exactly(rows: int, groups: int, exponent: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    integers = random.integers(-127, 128, (rows, groups * 32)).astype(np.int8)
    integers[:, ::32] = 127
    scales = (random.uniform(1, 2, (rows, groups)) * 2.0**exponent).astype(np.float16)
    values = dequantise(Blocks(Q8, integers, scales))
    blocks = quantise(values, Q8)
    assert np.array_equal(blocks.values, integers)
    assert np.array_equal(dequantise(blocks), values)


@few_examples
@given(st.integers(1, 10), st.integers(1, 4), seeds)
def test_what_q4m_can_hold_comes_back_almost_exactly(rows: int, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    integers = random.integers(0, 16, (rows, groups * 32)).astype(np.uint8)
    scales = random.uniform(0.01, 0.1, (rows, groups)).astype(np.float16)
    minimums = random.uniform(-0.8, 0.1, (rows, groups)).astype(np.float16)
    values = dequantise(Blocks(Q4M, integers, scales, minimums))
    # Where no weight has the integer 0, the minimum becomes another, which float16 rounds.
    assert quantisation_error(values, quantise(values, Q4M)) < 2.0**-10


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def rounded_to_m4(group: np.ndarray) -> tuple[int, list[float]]:
    """One group by the OCP MX specification 1.0, section 6.3, in Python's numbers: e8m0 byte, weights."""
    largest = max(abs(float(x)) for x in group)
    if largest == 0:
        return 127, [0.0] * len(group)
    shared = max(math.floor(math.log2(largest)) - 2, -127)
    restored = []
    for x in group:
        size = abs(float(x)) / 2.0**shared
        distances = [abs(size - number) for number in E2M1]
        nearest = [n for n in range(8) if distances[n] == min(distances)]
        chosen = next(n for n in nearest if len(nearest) == 1 or n % 2 == 0)
        restored.append(math.copysign(E2M1[chosen] * 2.0**shared, float(x)))
    return shared + 127, restored


@few_examples
@given(st.one_of(kinds, st.sampled_from(["ties", "denormal", "huge"])), st.integers(1, 6), columns, seeds)
def test_m4_is_rounded_as_the_specification_says(kind: str, rows: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    if kind in KINDS:
        values = weights(kind, (rows, count), seed)
    else:
        quarters = random.integers(-31, 32, (rows, count)) / 4  # every number of e2m1, and half way between them
        values = (quarters * {"ties": 1, "denormal": 2.0**-130, "huge": 2.0**124}[kind]).astype(np.float32)
    blocks = quantise(values, M4)
    assert blocks.scales is not None
    restored = dequantise(blocks)
    for row in range(rows):
        for g, start in enumerate(range(0, count, 32)):
            scale, expected = rounded_to_m4(values[row, start : start + 32])
            assert blocks.scales[row, g] == scale
            assert restored[row, start : start + 32].tolist() == expected


@few_examples
@given(st.integers(1, 10), columns, st.integers(3, 252), seeds)
def test_what_m4_holds_comes_back_to_the_bit(rows: int, count: int, exponent: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, count)).astype(np.uint8)
    codes[codes == 8] = 0  # minus zero
    codes[:, ::32] = random.integers(6, 8, codes[:, ::32].shape)  # each group uses the format's largest exponent
    scales = np.clip(random.integers(-2, 3, (rows, group_count(count))) + exponent, 0, 252).astype(np.uint8)
    blocks = quantise(dequantise(Blocks(M4, codes, scales)), M4)
    assert blocks.scales is not None
    assert np.array_equal(blocks.values, codes)
    assert np.array_equal(blocks.scales, scales)


def test_m4_has_room_for_every_float32() -> None:
    values = np.zeros((2, 32), np.float32)
    values[0, 3], values[1, 5] = np.finfo(np.float32).max, np.nextafter(np.float32(0), np.float32(1))
    restored = dequantise(quantise(values, M4))
    assert restored[0, 3] == 6 * 2.0**125
    assert (restored[1] == 0).all()  # 2**-149: half of the smallest weight is 2**-129


@few_examples
@given(quantised, columns, seeds)
def test_zeros_stay_zeros(name: str, count: int, seed: int) -> None:
    values = weights("sparse", (6, count), seed)
    values[2] = 0
    restored = dequantise(quantise(values, FORMATS[name]))
    assert (restored[2] == 0).all()
    if name != "q4m":
        assert (restored[values == 0] == 0).all()


@few_examples
@given(quantised, kinds, st.integers(2, 9), columns, seeds)
def test_rows_are_quantised_alone(name: str, kind: str, rows: int, count: int, seed: int) -> None:
    values = weights(kind, (rows, count), seed)
    whole = quantise(values, FORMATS[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WEIGHTS_AT_ONCE", 2 * count)
        pieces = quantise(values, FORMATS[name])
    last = quantise(np.asfortranarray(values)[rows - 1 :], FORMATS[name])
    assert np.array_equal(pack(pieces), pack(whole))
    assert np.array_equal(dequantise(last), dequantise(whole)[rows - 1 :])


@pytest.mark.parametrize(("kind", "ceiling"), [("normal", 0.945), ("heavy", 0.97)])
def test_the_search_is_worth_it(kind: str, ceiling: float) -> None:
    values = weights(kind, (64, 4096), 1)
    found = quantisation_error(values, quantise(values, Q4))
    plain = [
        np.sqrt(group_errors(values, restored).sum() / np.square(values).sum())
        for restored in plainly_rounded(values, "q4")
    ]
    assert found < ceiling * min(plain)


def test_minimums_pay_where_weights_lie_to_one_side() -> None:
    values = weights("offset", (8, 256), 2)
    assert quantisation_error(values, quantise(values, Q4M)) < 0.1 * quantisation_error(values, quantise(values, Q4))


@every_case("name", TARGETS)
@every_case("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_place(name: str, bad: float) -> None:
    values = weights("normal", (5, 40), 3)
    values[3, 37] = bad
    with pytest.raises(EdgemoeError, match=f"row 3, column 37 is {bad}"):
        quantise(values, FORMATS[name])


@every_case(
    ("name", "largest", "smallest_refused"),
    [("f16", 65504, 65536), ("q8", 8.3e6, 8.4e6), ("q4", 5.2e5, 5.4e5), ("q4m", 6.5e4, 6.6e4)],
)
@every_case("count", [32, 45])
def test_weights_beyond_a_format_are_refused_with_the_way_out(
    name: str, largest: float, smallest_refused: float, count: int
) -> None:
    values = weights("normal", (3, count), 4)
    values[1, count - 1] = -largest
    restored = dequantise(quantise(values, FORMATS[name]))
    assert restored[1, count - 1] == pytest.approx(-largest, rel=0.05)
    values[1, count - 1] = -smallest_refused
    with pytest.raises(EdgemoeError) as caught:
        quantise(values, FORMATS[name])
    assert f"{smallest_refused:.6g}" in caught.value.message
    assert name in caught.value.message
    assert "f32" in caught.value.hint
    values[1, count - 1] = 1e38
    with pytest.raises(EdgemoeError):
        quantise(values, FORMATS[name])


def test_bf16_rounds_to_the_nearest_and_of_two_to_the_even_one() -> None:
    bf16 = FORMATS["bf16"]
    given = [1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -3.0e38, 1e-40, 0.0]
    found = dequantise(quantise(np.array([given], np.float32), bf16))[0].tolist()
    assert found[:4] == [1.0, 1.0, 1 + 2.0**-6, 1 + 2.0**-7]
    assert found[4:] == pytest.approx(given[4:], rel=2.0**-8)
    kept = dequantise(quantise(weights("mixed", (7, 50), 5), bf16))
    assert np.array_equal(dequantise(quantise(kept, bf16)), kept)
    with pytest.raises(EdgemoeError, match=r"as large as 3\.40282e\+38; bf16 ends at 3\.38953e\+38"):
        quantise(np.full((2, 40), np.finfo(np.float32).max, np.float32), bf16)


def test_f32_and_f16_keep_what_they_can() -> None:
    values = weights("mixed", (7, 50), 5)
    assert np.array_equal(quantise(values, F32).values, values)
    assert np.array_equal(quantise(values, F16).values, values.astype(np.float16))


@pytest.mark.parametrize("name", [*(name for name in TARGETS if FORMATS[name].trellis is None), "n075"])
def test_memory_is_the_result_and_a_little(name: str) -> None:
    values = np.tile(weights("normal", (64, 2050), 6), (32, 1))
    quantise(values[:64], FORMATS[name])  # compiles
    tracemalloc.start()
    blocks = quantise(values, FORMATS[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = 0 if name == "f32" else blocks.values.nbytes
    assert peak <= result * 1.25 + 12e6
