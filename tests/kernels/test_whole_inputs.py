"""Operations of an encoder: attention over a whole input, numbers added by distance, and the capacity of experts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.reference.attention import cache_elements
from edgemoe.kernels.reference.backend import REFERENCE
from tests.kernels import tolerance
from tests.kernels.builders import (
    aligned,
    aligned_copy,
    cache_formats,
    empty_cache,
    few_examples,
    fill_cache,
    numbers,
    seeds,
    token_counts,
)

REACH = 9


def bias_of(heads: int, random: np.random.Generator) -> so.DistanceBias:
    """A bias that is unlike for every head and bucket, of distances up to `REACH`."""
    table = (2 * random.standard_normal(5 * heads)).astype(np.float32)
    return so.DistanceBias(table, random.integers(0, 5, 2 * REACH + 1).astype(np.int32))


def by_hand(
    query: np.ndarray, position: int, keys: np.ndarray, values: np.ndarray, scale: float, bias: so.DistanceBias | None
) -> np.ndarray:
    """Attention of one row `(H, W)` over keys and values `(G, C, W or Wv)` from position 0 on, in float64."""
    heads = len(query)
    rows = []
    for head in range(heads):
        own = head // (heads // len(keys))
        scores = keys[own] @ query[head].astype(np.float64) * scale
        for key in range(len(scores) if bias is not None else 0):
            assert bias is not None
            bucket = bias.bucket_of[min(max(key - position, -REACH), REACH) + REACH]
            scores[key] += bias.table[bucket * heads + head]
        shares = np.exp(scores - scores.max())
        rows.append(shares / shares.sum() @ values[own])
    return np.array(rows)


@few_examples
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([(16, 16), (64, 64), (24, 40)]),
    token_counts,
    st.lists(st.integers(1, 150), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    cache_formats,
    seeds,
)
def test_rows_see_what_lengths_say_and_scores_what_distances_add(
    backend: Backend,
    kv_heads: int,
    group: int,
    widths: tuple[int, int],
    tokens: int,
    lengths: list[int],
    causal: bool,
    biased: bool,
    format_name: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    heads, room = kv_heads * group, -(-max(lengths) // PAGE_TOKENS)
    ends = aligned_copy(np.array(lengths, np.int32))
    sequences = aligned_copy(np.sort(random.integers(0, len(lengths), tokens)).astype(np.int32))
    positions = aligned_copy((random.integers(0, 1000, tokens) % ends[sequences]).astype(np.int32))
    pages = aligned_copy(random.permutation(len(lengths) * room).reshape(-1, room).astype(np.int32))
    caches = [empty_cache(format_name, (pages.size, kv_heads, PAGE_TOKENS, width)) for width in widths]
    elements = [random.standard_normal(cache.shape) for cache in caches]
    for sequence, end in enumerate(lengths):  # what no row may look at
        for page in range(room):
            for own in elements:
                own[pages[sequence, page], :, max(0, end - page * PAGE_TOKENS) :] = np.nan
    for cache, own in zip(caches, elements, strict=True):
        fill_cache(cache, own)
    query = numbers("normal", (tokens, heads * widths[0]), random)
    output = aligned((tokens, heads * widths[1]), np.float32)
    bias = bias_of(heads, random) if biased else None
    where = positions, sequences, pages
    seen = so.Attention(query, *where, *caches, 0.3, output, lengths=None if causal else ends, bias=bias)
    backend.program([seen]).run(tokens)
    for t in range(tokens):
        end = positions[t] + 1 if causal else lengths[sequences[t]]
        held = pages[sequences[t], : -(-end // PAGE_TOKENS)]
        keys, values = (cache_elements(cache, held)[:, :end] for cache in caches)
        heads_of_row = query[t].reshape(heads, -1)
        expected = by_hand(heads_of_row, int(positions[t]), keys, values, 0.3, bias)
        bound = tolerance.attention(heads_of_row, keys, values, 0.3)
        if bias is not None:  # shares are others, and a score is rounded once more
            bound = bound + 1e-5 * np.abs(values).max(axis=1).repeat(group, axis=0)
        tolerance.assert_within(output[t].reshape(heads, -1), expected.astype(np.float32), bound)


def test_a_row_has_the_same_bits_in_company_and_alone_on_every_instruction_set() -> None:
    random = np.random.default_rng(5)
    tokens, heads, width = 70, 3, 16
    query = numbers("normal", (tokens, heads * width), random)
    caches = [empty_cache("f16", (2, heads, PAGE_TOKENS, width)) for _ in range(2)]
    for cache in caches:
        fill_cache(cache, random.standard_normal(cache.shape))
    bias, ends, pages = bias_of(heads, random), np.full(1, tokens, np.int32), np.array([[1, 0]], np.int32)
    expected = None
    for isa in available_isas():
        for threads, at_once in ((1, tokens), (3, tokens), (2, 1)):
            backend = NativeBackend(threads, isa)
            source, output = (aligned((at_once, heads * width), np.float32) for _ in range(2))
            positions, sequences = (aligned((at_once,), np.int32) for _ in range(2))
            rows = positions, sequences, pages
            program = backend.program([so.Attention(source, *rows, *caches, 1.0, output, lengths=ends, bias=bias)])
            found = []
            for first in range(0, tokens, at_once):
                source[:], positions[:] = query[first : first + at_once], np.arange(first, first + at_once)
                program.run(at_once)
                found.append(output.copy())
            expected = np.concatenate(found) if expected is None else expected
            np.testing.assert_array_equal(np.concatenate(found), expected)
            backend.close()


@pytest.mark.parametrize("fault", ["no length", "a length beyond the table", "a bucket beyond the table", "below 0"])
def test_lengths_and_buckets_that_do_not_exist_are_refused(any_backend: Backend, fault: str) -> None:
    query, output = np.ones((2, 16), np.float32), np.zeros((2, 16), np.float32)
    caches = [empty_cache("f32", (2, 1, PAGE_TOKENS, 16)) for _ in range(2)]
    places, pages = [np.zeros(2, np.int32) for _ in range(2)], np.array([[0, 1]], np.int32)
    ends, bias = np.array([70], np.int32), bias_of(1, np.random.default_rng(0))
    program = any_backend.program([so.Attention(query, *places, pages, *caches, 1.0, output, lengths=ends, bias=bias)])
    program.run(2)
    if "length" in fault:
        ends[0] = 0 if fault == "no length" else 2 * PAGE_TOKENS + 1
    else:
        bias.bucket_of[3] = -1 if fault == "below 0" else 5
    output[:] = 7
    with pytest.raises(KernelError):
        program.run(2)
    assert (output == 7).all()


@few_examples
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), token_counts, seeds)
def test_an_expert_takes_the_first_choices_up_to_its_capacity(
    any_backend: Backend, experts: int, capacity: int, top_k: int, tokens: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    chosen = aligned_copy(random.integers(0, experts, (tokens, top_k)).astype(np.int32))
    weights = aligned_copy((1 + random.random((tokens, top_k))).astype(np.float32))
    expected, taken = weights.copy(), [0] * experts
    for t in range(tokens):
        for k in range(top_k):
            taken[chosen[t, k]] += 1
            if taken[chosen[t, k]] > capacity:
                expected[t, k] = 0
    program = any_backend.program([ex.Capacity(chosen, weights, experts, capacity)])
    program.run(tokens)
    np.testing.assert_array_equal(weights, expected)
    program.run(tokens)  # counts begin anew
    np.testing.assert_array_equal(weights, expected)
    chosen[0, 0] = experts
    with pytest.raises(KernelError):
        program.run(tokens)


def test_the_reference_has_no_bias_where_there_is_none() -> None:
    query = np.ones((1, 2, 8), np.float32)
    cache = np.random.default_rng(1).standard_normal((1, 2, PAGE_TOKENS, 8)).astype(np.float32)
    where = np.array([40], np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    nothing = so.DistanceBias(np.zeros(2, np.float32), np.zeros(3, np.int32))
    plain = REFERENCE.attention(query, *where, cache, cache, 1.0)
    np.testing.assert_array_equal(REFERENCE.attention(query, *where, cache, cache, 1.0, bias=nothing), plain)
    whole = REFERENCE.attention(query, *where, cache, cache, 1.0, lengths=np.array([41], np.int32))
    np.testing.assert_array_equal(whole, plain)
