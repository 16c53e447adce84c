"""The reference itself, against each formula written out number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.kernels.blocks import dequantise, unpack
from edgemoe.kernels.operations import QuantisedCache
from edgemoe.kernels.reference.attention import cache_elements
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.reference.products import SMALLEST_ACTIVATION, quantise_activations
from tests.kernels.builders import (
    FORMAT_NAMES,
    column_counts,
    few_examples,
    kinds,
    numbers,
    places,
    random_ffn,
    random_matrix,
    seeds,
)
from tests.support.every_case import every_case


@few_examples
@given(column_counts, kinds, seeds)
def test_int8_activations_lie_within_half_a_step(columns: int, kind: str, seed: int) -> None:
    values = numbers(kind, (3, columns), np.random.default_rng(seed))
    integers, scales = quantise_activations(values)
    assert integers.shape == (3, -(-columns // 32), 32)
    assert (np.abs(integers.astype(int)) <= 127).all()
    restored = (integers * scales.astype(np.float64)[:, :, None]).reshape(3, -1)[:, :columns]
    step = np.repeat(scales.astype(np.float64), 32, axis=1)[:, :columns]
    allowed = step * 0.50001 + float(SMALLEST_ACTIVATION)
    assert (np.abs(restored - values) <= allowed).all()


def test_int8_rounds_half_to_even() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :5] = [127, 0.5, 1.5, 2.5, -0.5]
    integers, scales = quantise_activations(values)
    assert scales[0, 0] == 1
    assert integers[0, 0, :5].tolist() == [127, 0, 2, 2, 0]


@every_case("format_name", FORMAT_NAMES)
def test_matmul_sums_weights_times_inputs(format_name: str) -> None:
    random = np.random.default_rng(1)
    matrix = random_matrix(format_name, 19, 45, random)
    values = numbers("normal", (2, 45), random)
    weights = dequantise(unpack(matrix.data, matrix.format, 19, 45)).astype(float)
    inputs = values.astype(float)
    if matrix.format.quantised:
        integers, scales = quantise_activations(values)
        inputs = np.array(
            [[integers[t, c // 32, c % 32] * float(scales[t, c // 32]) for c in range(45)] for t in (0, 1)]
        )
    found = REFERENCE.matmul(values, matrix)
    for t in range(2):
        for row in range(19):
            expected = math.fsum(weights[row, c] * inputs[t, c] for c in range(45))
            assert found[t, row] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_matmul_unpacks_a_tall_matrix_in_pieces() -> None:
    random = np.random.default_rng(2)
    matrix = random_matrix("q4m", 1024 * 2 + 5, 3, random)
    values = numbers("halves", (1, 3), random)
    weights = dequantise(unpack(matrix.data, matrix.format, matrix.rows, 3)).astype(np.float64)
    integers, scales = quantise_activations(values)
    expected = weights @ (integers[0, 0, :3] * scales[0].astype(np.float64))
    assert np.allclose(REFERENCE.matmul(values, matrix)[0], expected, rtol=1e-6, atol=1e-6)


def test_rope_turns_each_pair_by_its_angle() -> None:
    random = np.random.default_rng(3)
    values, angles = numbers("normal", (4, 2, 6), random), random.random((4, 3))
    found = REFERENCE.rope(values, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    for t in range(4):
        for head in range(2):
            for i in range(3):
                turned = complex(values[t, head, i], values[t, head, i + 3]) * np.exp(1j * angles[t, i])
                assert found[t, head, i] == pytest.approx(turned.real, abs=1e-6)
                assert found[t, head, i + 3] == pytest.approx(turned.imag, abs=1e-6)


def test_rope_of_neighbours_is_that_of_halves_in_another_order() -> None:
    random = np.random.default_rng(3)
    values, angles = numbers("normal", (4, 2, 10), random), random.random((4, 3))
    tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    order = [0, 2, 4, 1, 3, 5, 6, 7, 8, 9]
    found = REFERENCE.rope(values, *tables, True)
    assert (found[:, :, order] == REFERENCE.rope(np.ascontiguousarray(values[:, :, order]), *tables)).all()


def test_rms_norm_leaves_unit_mean_square() -> None:
    values = numbers("normal", (3, 50), np.random.default_rng(4)) * np.float32(40)
    normed = REFERENCE.rms_norm(values, np.ones(50, np.float32), 0.0)
    assert np.allclose(np.square(normed).mean(axis=1), 1, atol=1e-6)
    assert np.array_equal(REFERENCE.rms_norm(values, np.full(50, 2, np.float32), 0.0), 2 * normed)
    assert np.array_equal(REFERENCE.rms_norm(values, None, 0.0), normed)
    assert np.allclose(REFERENCE.rms_norm(values[:, :1], np.ones(1, np.float32), 0.0), np.sign(values[:, :1]))


@few_examples
@given(st.integers(1, 100), kinds, seeds)
def test_an_8_bit_cache_lies_within_half_a_step(width: int, kind: str, seed: int) -> None:
    rows = numbers(kind, (2, 3, width), np.random.default_rng(seed))
    values, scales = REFERENCE.quantise_cache_rows(rows)
    assert (values.shape, scales.shape) == (rows.shape, (2, 3, -(-width // 32)))
    assert (np.abs(values.astype(int)) <= 127).all()
    page = QuantisedCache(np.zeros((1, 2, 64, width), np.int8), np.zeros((1, 2, 64, scales.shape[2]), np.float16))
    page.values[0, :, :3], page.scales[0, :, :3] = values, scales
    restored = cache_elements(page, np.zeros(1, np.int32))
    for g, c, i in np.ndindex(rows.shape):
        group, scale = rows[g, c, i // 32 * 32 :][:32].astype(float), float(scales[g, c, i // 32])
        largest = np.abs(group).max()
        if largest > 127 * 65519:
            assert math.isnan(scale)
            assert values[g, c, i] == 0
            continue
        # float16 rounds the scale by at most a part in 2048, or half of its smallest number.
        assert scale == pytest.approx(largest / 127, rel=2**-11, abs=2**-25)
        assert restored[g, c, i] == values[g, c, i] * scale
        assert abs(restored[g, c, i] - rows[g, c, i]) <= 0.50001 * scale + 127 * 2**-25


def test_an_8_bit_cache_rounds_against_the_scale_as_it_is_stored() -> None:
    rows = np.zeros((1, 1, 32), np.float32)
    rows[0, 0, :4] = [127 * 1.0004, 0.5, 1.5, -2.5]  # 1.0004 is 1 in float16
    values, scales = REFERENCE.quantise_cache_rows(rows)
    assert scales[0, 0, 0] == 1
    assert values[0, 0, :4].tolist() == [127, 0, 2, -2]


def test_attention_is_a_weighted_mean_of_what_a_token_may_see() -> None:
    random = np.random.default_rng(5)
    tokens, position, heads, kv_heads, width = 3, 4, 6, 2, 8
    query = numbers("normal", (tokens, heads, width), random)
    caches = [random.standard_normal((1, kv_heads, 64, width)).astype(np.float16) for _ in range(2)]
    found = REFERENCE.attention(query, *places(tokens, position), *caches, 0.3)
    keys, values = (cache[0] for cache in caches)
    for t in range(tokens):
        for head in range(heads):
            g = head // 3
            seen = range(position + t + 1)
            shares = [math.exp(0.3 * float(query[t, head].astype(float) @ keys[g, c].astype(float))) for c in seen]
            for i in range(width):
                mean = math.fsum(s * float(values[g, c, i]) for s, c in zip(shares, seen, strict=True)) / sum(shares)
                assert found[t, head, i] == pytest.approx(mean, abs=1e-6)


@few_examples
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_route_takes_the_largest_and_the_lower_number_on_a_tie(logits: list[int], count: int) -> None:
    count = min(count, len(logits))
    rows = np.array([logits], np.float32)
    experts, weights = REFERENCE.route(rows, count, True)
    expected = sorted(range(len(logits)), key=lambda expert: (-logits[expert], expert))[:count]
    assert experts.tolist() == [expected]
    chosen = [math.exp(logits[expert]) for expert in expected]
    assert weights[0] == pytest.approx([value / sum(chosen) for value in chosen], rel=1e-6)
    everything = sum(math.exp(logit) for logit in logits)
    assert REFERENCE.route(rows, count, False)[1][0] == pytest.approx([v / everything for v in chosen], rel=1e-6)


@every_case("intermediate_size", [1, 16, 21, 40])
def test_gated_ffn_finds_gate_and_up_in_their_panels(intermediate_size: int) -> None:
    random = np.random.default_rng(6)
    gate_up, down = random_ffn("f32", 10, intermediate_size, random)
    values = numbers("normal", (2, 10), random)
    panels = dequantise(unpack(gate_up.data, gate_up.format, gate_up.rows, 10)).reshape(-1, 2, 16, 10)
    gate, up = (panels[:, half].reshape(-1, 10)[:intermediate_size].astype(float) for half in (0, 1))
    weights = dequantise(unpack(down.data, down.format, 10, intermediate_size)).astype(float)
    for t in range(2):
        g, u = gate @ values[t], up @ values[t]
        hidden = g / (1 + np.exp(-g)) * u
        assert np.allclose(REFERENCE.gated_ffn(values, gate_up, down)[t], weights @ hidden, atol=1e-5)


def test_silu_of_a_very_negative_gate_is_zero() -> None:
    gate_up, down = random_ffn("f32", 1, 1, np.random.default_rng(7))
    gate_up.data.view(np.float32)[0] = -1e30
    output = REFERENCE.gated_ffn(np.ones((1, 1), np.float32), gate_up, down)
    assert output[0, 0] == 0


def test_route_prefers_what_is_in_memory_but_keeps_the_best_and_the_weights_of_the_logits() -> None:
    logits = np.array([[0, 6, 5, 4, 3, 2]], np.float32)
    in_memory = np.array([1, 0, 0, 1, 0, 9], np.int32)  # half of the range is 3: scores 3, 6, 5, 7, 3, 5
    experts, weights = REFERENCE.route(logits, 3, True, in_memory, 0.5)
    assert experts.tolist() == [[1, 2, 3]]
    experts, weights = REFERENCE.route(logits, 3, True, in_memory, 1.0)  # scores 6, 6, 5, 10, 3, 8
    assert experts.tolist() == [[1, 3, 5]]
    shares = np.exp([6.0, 4.0, 2.0])
    assert weights[0] == pytest.approx(shares / shares.sum(), rel=1e-6)
    experts, weights = REFERENCE.route(logits, 1, False, in_memory, 1.0)
    assert experts.tolist() == [[1]]  # whatever the bonus of others
    assert weights[0, 0] == pytest.approx(np.exp(6.0) / np.exp(logits[0].astype(np.float64)).sum(), rel=1e-6)


def test_mix_keeps_shares_and_shifts() -> None:
    base, result = np.float32([[1, 2]]), np.float32([[10, 20]])
    keep, share, shift = np.float32([2, 3]), np.float32([0.5, 1]), np.float32([0.25, -1])
    assert REFERENCE.mix(base, result, 1.0, None, None, None, None).tolist() == [[11, 22]]
    assert REFERENCE.mix(base, result, 0.5, keep, share, shift, None).tolist() == [[4.75, 15]]
    assert REFERENCE.mix(base, result, 0.5, keep, share, shift, np.float32([2])).tolist() == [[9.5, 30]]


def test_combine_weighs_the_routed_and_gates_the_shared() -> None:
    routed = np.array([[[1.0, 2.0], [10.0, 20.0]]], np.float32)
    weights, shared = np.array([[0.75, 0.25]], np.float32), np.array([[100.0, 200.0]], np.float32)
    assert REFERENCE.combine(routed, weights, None, None).tolist() == [[3.25, 6.5]]
    assert REFERENCE.combine(None, None, shared, None).tolist() == [[100, 200]]
    assert REFERENCE.combine(routed, weights, shared, np.zeros((1, 1), np.float32)).tolist() == [[53.25, 106.5]]
