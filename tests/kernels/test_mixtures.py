"""Mixtures that no router routes, and rules of choices: every backend against their formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.reference.backend import REFERENCE
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, random_plain_ffn, seeds, token_counts

widths = st.sampled_from([1, 7, 8, 9, 40, 130])


def floats(*shape: int) -> op.Floats:
    return aligned(shape, np.float32)


@few_examples
@given(st.integers(1, 9), st.integers(1, 4), token_counts, seeds)
def test_first_choices_take_places_before_any_second_one(
    any_backend: Backend, experts: int, top_k: int, tokens: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    chosen = aligned_copy(random.integers(0, experts, (tokens, top_k)).astype(np.int32))
    weights = aligned_copy(random.integers(0, 3, (tokens, top_k)).astype(np.float32))
    operation = ex.Capacity(chosen, weights, experts, 2, 1_250_000, by_rank=True)
    most = max(2, min(tokens, int(tokens * 1.25 / experts)))
    expected, taken = weights.copy(), [0] * experts
    for k in range(top_k):
        for t in range(tokens):
            if expected[t, k] and taken[chosen[t, k]] == most:
                expected[t, k] = 0
            elif expected[t, k]:
                taken[chosen[t, k]] += 1
    any_backend.program([operation]).run(tokens)
    np.testing.assert_array_equal(weights, expected)


def test_only_further_choices_need_a_weight(any_backend: Backend) -> None:
    weights = aligned_copy(np.array([[0.1, 0.2, 0.3], [0.9, np.nan, 0.2], [0.0, 0.5, 0.21]], np.float32))
    any_backend.program([ex.LeastWeight(weights, 0.2)]).run(3)
    assert weights.tolist() == np.array([[0.1, 0, 0.3], [0.9, 0, 0], [0, 0.5, 0.21]], np.float32).tolist()


@few_examples
@given(st.sampled_from(["normal", "equal", "zeros", "halves", "spike"]), token_counts, st.integers(1, 70), seeds)
def test_entmax(any_backend: Backend, kind: str, tokens: int, experts: int, seed: int) -> None:
    values = numbers(kind, (tokens, experts), np.random.default_rng(seed))
    exact = values.astype(np.float64)
    any_backend.program([mx.Entmax(values)]).run(tokens)
    # The number that is subtracted is found by halves, not in closed form: the sum falls as it grows.
    halves = (exact - exact.max(axis=1, keepdims=True)) / 2
    low, high = np.full((tokens, 1), -1.0), np.zeros((tokens, 1))
    for _ in range(60):
        middle = (low + high) / 2
        above = np.square(np.maximum(halves - middle, 0)).sum(axis=1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    np.testing.assert_allclose(values, np.square(np.maximum(halves - low, 0)), atol=2e-6)


@few_examples
@given(token_counts, widths, seeds)
def test_batch_norm(any_backend: Backend, tokens: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, mean = (numbers("normal", shape, random) for shape in ((tokens, width), (width,)))
    variance = aligned_copy((0.1 + random.random(width)).astype(np.float32))
    terms = (np.abs(values) + np.abs(mean)) / np.sqrt(variance)
    expected = (values.astype(np.float64) - mean) / np.sqrt(variance.astype(np.float64) + np.float32(1e-5))
    any_backend.program([mx.BatchNorm(values, mean, variance, 1e-5)]).run(tokens)
    tolerance.assert_within(values, expected.astype(np.float32), 6 * tolerance.UNIT * terms)


@few_examples
@given(token_counts, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), seeds)
def test_products_of_pairs(
    any_backend: Backend, tokens: int, count: int, height: int, inner: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    left, right = (numbers("normal", (tokens, count * inner * n), random) for n in (height, width))
    output = floats(tokens, count * height * width)
    any_backend.program([mx.PairProducts(left, right, count, inner, output)]).run(tokens)
    a, b = left.reshape(tokens, count, height, inner), right.reshape(tokens, count, inner, width)
    exact = (a.astype(np.float64), b.astype(np.float64))
    expected, terms = (np.einsum("tnpq,tnqr->tnpr", *pair) for pair in (exact, map(np.abs, exact)))
    bound = (inner + 1) * tolerance.UNIT * terms
    tolerance.assert_within(output.reshape(expected.shape), expected.astype(np.float32), bound)


def soft_moe(
    tokens: int, experts: int, slots: int, width: int, seed: int, units: tuple[bool, bool] = (True, True)
) -> list[op.Operation]:
    """All operations of a block with slots."""
    random = np.random.default_rng(seed)
    count = experts * slots
    values, gain, scale = (numbers("normal", shape, random) for shape in ((tokens, width), (width,), (1,)))
    logits, mixed, results, output = (
        floats(*shape) for shape in ((tokens, count), (count, width), (count, width), (tokens, width))
    )
    vectors = numbers("normal", (count * width,), random)
    ffns = [
        mx.SlotFfn(mixed, e * slots, slots, *random_plain_ffn("f32", width, 24, random), results)
        for e in range(experts)
    ]
    of_slots = mx.SlotLogits(values, vectors, gain, scale, 2.0, logits, *units)
    return [of_slots, mx.Dispatch(logits, values, mixed), *ffns, mx.Collect(logits, results, output)]


@few_examples
@given(token_counts, st.integers(1, 3), st.integers(1, 4), widths, st.booleans(), st.booleans(), seeds)
def test_slots(
    any_backend: Backend, tokens: int, experts: int, slots: int, width: int, own: bool, of_input: bool, seed: int
) -> None:
    """Each step as the paper writes it, for a whole input at once."""
    operations = soft_moe(tokens, experts, slots, width, seed, (own, of_input))
    logits, dispatch, *_, collect = operations
    assert isinstance(logits, mx.SlotLogits)
    assert isinstance(dispatch, mx.Dispatch)
    assert isinstance(collect, mx.Collect)
    any_backend.program(operations).run(tokens)
    x, phi = logits.input.astype(np.float64), logits.slots.reshape(-1, width).astype(np.float64)
    phi = phi / (np.linalg.norm(phi, axis=1, keepdims=True) if own else 1) * logits.gain
    inputs = x / (np.linalg.norm(x, axis=1, keepdims=True) if of_input else 1)
    assert logits.scale is not None
    scores = 2.0 * logits.scale[0] * inputs @ phi.T
    np.testing.assert_allclose(logits.logits, scores, atol=1e-5 * max(1, np.abs(scores).max()))
    shares = np.exp(logits.logits.astype(np.float64) - logits.logits.max())
    np.testing.assert_allclose(dispatch.slots, (shares / shares.sum(axis=0)).T @ x, atol=1e-5)
    results = collect.values.astype(np.float64)
    expected = shares / shares.sum(axis=1, keepdims=True) @ results
    np.testing.assert_allclose(collect.output, expected, atol=1e-5 * max(1, np.abs(results).max()))
    for number, ffn in enumerate(operations[2:-1]):
        assert isinstance(ffn, mx.SlotFfn)
        rows = slice(number * slots, (number + 1) * slots)
        alone = REFERENCE.plain_ffn(dispatch.slots[rows], ffn.up, ffn.down, None, ffn.activation)
        np.testing.assert_allclose(ffn.output[rows], alone, atol=1e-5 * max(1, np.abs(alone).max()))


def test_mixtures_of_other_sizes_are_refused(any_backend: Backend) -> None:
    logits, dispatch, ffn, collect = soft_moe(2, 1, 3, 8, 0)
    weights, chosen = floats(2, 2), np.zeros((2, 2), np.int32)
    capacity = ex.Capacity(chosen, weights, 2, 1)
    for wrong, message in (
        (replace(logits, slots=floats(23)), r"slots: expected shape \(S\*8,\)"),
        (replace(dispatch, slots=floats(4, 8)), r"slots: expected shape \(3, 8\)"),
        (replace(ffn, first=3), "first: expected 0 to 2, found 3"),
        (replace(ffn, first=1), "count: expected 1 to 2, found 3"),
        (replace(ffn, activation=op.SILU), "activation.gated: expected False, found True"),
        (replace(collect, values=floats(3, 7)), r"output: expected shape \(T, 7\)"),
        (mx.PairProducts(floats(2, 6), floats(2, 9), 1, 2, floats(2, 9)), r"right: expected shape"),
        (mx.BatchNorm(weights, floats(2), floats(2), 0.0), "epsilon: expected a number above 0, found 0"),
        (ex.LeastWeight(weights, 0.0), "least: expected a number above 0, found 0"),
        (replace(capacity, capacity=0), "capacity: expected 1 or more, found 0"),
        (replace(capacity, share=-1), "share: expected 0 to 1000000000, found -1"),
    ):
        with pytest.raises(KernelError, match=message):
            any_backend.program([wrong])  # type: ignore[list-item]
