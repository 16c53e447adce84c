"""Retrieval by keys and sums of neurons: every backend against the definition, and in the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.kernels.reference.neurons import retrieve_by_keys, sum_neurons
from tests.kernels.builders import aligned, few_examples, numbers, seeds
from tests.support.every_case import every_case


def retrieval(first: op.Floats, second: op.Floats, heads: int, count: int, scoring: no.Scoring) -> no.RetrieveByKeys:
    shape = (len(first), heads * count)
    return no.RetrieveByKeys(first, second, heads, np.zeros(shape, np.int32), np.zeros(shape, np.float32), scoring)


@few_examples
@given(
    seeds,
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(1, 16),
    st.sampled_from(["softmax", "sigmoid", "relu"]),
    st.booleans(),
)
def test_retrieval(
    backend: Backend, seed: int, tokens: int, heads: int, keys: int, count: int, scoring: no.Scoring, ties: bool
) -> None:
    random = np.random.default_rng(seed)
    halves = [random.standard_normal((tokens, heads * keys)).astype(np.float32) for _ in range(2)]
    if ties:  # of few numbers, so that most scores and sums are like others
        halves = [np.round(half * 2) / 2 for half in halves]
        halves[0][random.random(halves[0].shape) < 0.1] = np.nan
    operation = retrieval(*halves, heads, min(count, keys), scoring)
    backend.program([operation]).run(tokens)
    experts, weights = retrieve_by_keys(*halves, heads, min(count, keys), scoring)
    np.testing.assert_array_equal(operation.experts, experts)
    np.testing.assert_allclose(operation.weights, weights, rtol=3e-6, atol=1e-7)


def test_ties_are_decided_by_the_lower_number() -> None:
    experts, weights = retrieve_by_keys(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), 1, 3, "softmax")
    assert experts.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def made_neurons(
    tokens: int, width: int, chosen: int, count: int, element: str, random: np.random.Generator, first: int = 0
) -> no.Neurons:
    """A sum of random neurons, whose pages lie in their slots in another order."""
    kind = np.dtype(np.float32 if element == "f32" else np.float16)
    size = -(-2 * width * kind.itemsize // 1024) * 1024
    per_page = int(np.lcm(size, PAGE_BYTES)) // size
    pages = -(-(first + count) // per_page)
    slots = random.permutation(pages).astype(np.int32)
    arena = aligned((pages, size * per_page), np.uint8)
    drawn = (random.standard_normal((pages * per_page, 2 * width)) / np.sqrt(width)).astype(kind)
    for number, neuron in enumerate(drawn):
        at = number % per_page * size
        arena[slots[number // per_page], at : at + neuron.nbytes] = neuron.view(np.uint8)
    return no.Neurons(
        numbers("normal", (tokens, width), random),
        random.integers(0, count, (tokens, chosen)).astype(np.int32),
        random.random((tokens, chosen)).astype(np.float32),
        arena,  # type: ignore[arg-type]  # bytes
        slots,
        no.NeuronLayout("f32" if element == "f32" else "f16", size, per_page),
        first,
        count,
        op.GELU,
        numbers("normal", (tokens, width), random),
        0.5,
        bool(random.integers(0, 2)),
    )


@few_examples
@given(
    seeds,
    st.integers(1, 6),
    st.sampled_from([1, 7, 8, 64, 250, 260, 1024]),
    st.integers(1, 40),
    st.sampled_from(["f32", "f16"]),
    st.integers(0, 9),
)
def test_sums_of_neurons(
    backend: Backend, seed: int, tokens: int, width: int, chosen: int, element: str, first: int
) -> None:
    operation = made_neurons(tokens, width, chosen, 30, element, np.random.default_rng(seed), first)
    before = operation.output.copy()
    backend.program([operation]).run(tokens)
    kind = np.float32 if element == "f32" else np.float16
    for t in range(tokens):
        pages, within = np.divmod(first + operation.experts[t], operation.layout.neurons_per_page)
        at = within * operation.layout.neuron_bytes
        size = 2 * width * np.dtype(kind).itemsize
        rows = [
            operation.arena[slot, start : start + size].view(kind)
            for slot, start in zip(operation.slots[pages], at, strict=True)
        ]
        weights = np.stack(rows).astype(np.float64)
        total = sum_neurons(operation.input[t], weights[:, :width], weights[:, width:], operation.weights[t], op.GELU)
        expected = before[t] * operation.accumulate + np.float32(0.5) * total
        np.testing.assert_allclose(operation.output[t], expected, rtol=1e-5, atol=1e-5)


def test_a_token_has_the_same_bits_in_any_company(any_backend: Backend) -> None:
    together = made_neurons(6, 96, 9, 30, "f16", np.random.default_rng(1))
    alone = [
        no.Neurons(
            together.input[t : t + 1].copy(),
            together.experts[t : t + 1].copy(),
            together.weights[t : t + 1].copy(),
            *(together.arena, together.slots, together.layout, together.first, together.count, together.activation),
            together.output[t : t + 1].copy(),
            together.scale,
            together.accumulate,
        )
        for t in range(6)
    ]
    any_backend.program([together]).run(6)
    for t, operation in enumerate(alone):
        any_backend.program([operation]).run(1)
        np.testing.assert_array_equal(operation.output[0], together.output[t])


def test_an_expert_that_is_none_is_refused(any_backend: Backend) -> None:
    operation = made_neurons(2, 16, 3, 30, "f16", np.random.default_rng(2))
    operation.experts[1, 2] = 30
    with pytest.raises(KernelError):
        any_backend.program([operation]).run(2)


@every_case(
    ("field", "value", "message"),
    [
        ("activation", op.SILU, "activation: expected one without a gate"),
        ("layout", no.NeuronLayout("f16", 1000, 4), r"layout.neuron_bytes: expected a multiple of 64"),
        ("layout", no.NeuronLayout("f16", 1024, 3), r"layout.neurons_per_page: expected pages of a multiple of 4096"),
        ("layout", no.NeuronLayout("f16", 1024, 8), r"arena: expected slots of 8192 bytes, found 4096"),
        ("count", 300, r"slots: expected at least 75 pages, found 8"),
    ],
)
def test_contradictions_are_refused(field: str, value: object, message: str) -> None:
    from dataclasses import replace

    from edgemoe.kernels.reference.backend import REFERENCE

    operation = made_neurons(1, 16, 3, 30, "f16", np.random.default_rng(3))
    with pytest.raises(KernelError, match=message):
        REFERENCE.program([replace(operation, **{field: value})])
