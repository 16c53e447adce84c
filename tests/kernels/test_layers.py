"""Operations without packed matrices, on every backend, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.kernels import operations as op
from edgemoe.kernels import reference
from edgemoe.kernels.operations import Backend
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, kinds, numbers, seeds, token_counts

head_widths = st.sampled_from([8, 16, 24, 32, 64, 80, 96, 128])
cache_types = st.sampled_from([np.float16, np.float32])
moderate_kinds = kinds.filter(lambda kind: kind != "huge")  # float32 cannot hold 1e30 squared


@few_examples
@given(st.integers(1, 5), st.integers(1, 130), token_counts, moderate_kinds, st.booleans(), seeds)
def test_rms_norm(backend: Backend, heads: int, width: int, tokens: int, kind: str, in_place: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = numbers(kind, (tokens, heads * width), random)
    weight = numbers("normal", (width,), random)
    expected = reference.rms_norm(values.reshape(tokens, heads, width), weight, 1e-5).reshape(tokens, -1)
    output = values if in_place else aligned(values.shape, np.float32)
    backend.program([op.RmsNorm(values, weight, 1e-5, output, heads)]).run(tokens, 0)
    tolerance.assert_within(output, expected, tolerance.rms_norm(expected, width))


@few_examples
@given(st.integers(1, 6), head_widths, token_counts, st.integers(0, 50), kinds, seeds)
def test_rope(backend: Backend, heads: int, width: int, tokens: int, position: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = numbers(kind, (tokens, heads * width), random)
    before = values.reshape(tokens, heads, width).copy()
    angles = random.random((position + tokens + 3, width // 2)) * 7
    cosine, sine = (aligned_copy(table(angles).astype(np.float32)) for table in (np.cos, np.sin))
    backend.program([op.Rope(values, heads, cosine, sine)]).run(tokens, position)
    here = slice(position, position + tokens)
    expected = reference.rope(before, cosine[here], sine[here])
    bound = tolerance.rope(before, cosine[here], sine[here])
    tolerance.assert_within(values.reshape(before.shape), expected, bound)


@few_examples
@given(st.integers(1, 4), head_widths, token_counts, st.integers(0, 50), cache_types, seeds)
def test_store_kv(
    backend: Backend, kv_heads: int, width: int, tokens: int, position: int, cache_type: type, seed: int
) -> None:
    random = np.random.default_rng(seed)
    keys, values = (numbers("normal", (tokens, kv_heads * width), random) for _ in range(2))
    keys[0, 0], keys[0, -1] = 65503.0, 1e-7  # float16's largest after rounding, and one of its denormals
    shape = (kv_heads, position + tokens + 2, width)
    caches = [aligned(shape, cache_type) for _ in range(2)]
    for cache in caches:
        cache[...] = 7
    backend.program([op.StoreKv(keys, values, *caches)]).run(tokens, position)
    for rows, cache in zip((keys, values), caches, strict=True):
        expected = np.full(shape, 7, cache_type)
        here = slice(position, position + tokens)
        expected[:, here] = rows.reshape(tokens, kv_heads, width).transpose(1, 0, 2).astype(cache_type)
        assert np.array_equal(cache, expected)


@few_examples
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    head_widths,
    token_counts,
    st.integers(0, 70),
    cache_types,
    st.sampled_from(["normal", "zeros", "equal", "denormal", "peaked"]),
    seeds,
)
def test_attention(
    backend: Backend,
    kv_heads: int,
    group: int,
    width: int,
    tokens: int,
    position: int,
    cache_type: type,
    kind: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    query = numbers("normal" if kind == "peaked" else kind, (tokens, kv_heads * group * width), random)
    if kind == "peaked":  # scores so far apart that all but one share underflow
        query *= 40
    caches = []
    for _ in range(2):
        cache = aligned((kv_heads, position + tokens + 5, width), cache_type)
        cache[...] = random.standard_normal(cache.shape)
        cache[:, position + tokens :] = np.nan  # what no token may look at
        caches.append(cache)
    scale = width**-0.5
    output = aligned(query.shape, np.float32)
    backend.program([op.Attention(query, *caches, scale, output)]).run(tokens, position)
    heads = query.reshape(tokens, kv_heads * group, width)
    expected = reference.attention(heads, *caches, position, scale)
    bound = tolerance.attention(heads, *caches, position, scale)
    tolerance.assert_within(output.reshape(heads.shape), expected, bound)


@few_examples
@given(st.integers(1, 140), st.integers(1, 140), token_counts, st.booleans(), st.booleans(), seeds)
def test_route(
    backend: Backend, experts: int, count: int, tokens: int, renormalise: bool, ties: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = min(count, experts)
    logits = numbers("normal", (tokens, experts), random) * np.float32(3)
    if ties:
        logits = np.round(logits / 4)
        logits[logits == 0] = random.choice(np.array([0.0, -0.0], np.float32), (logits == 0).sum())
    logits = aligned_copy(logits)
    chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
    backend.program([op.Route(logits, renormalise, chosen, weights)]).run(tokens, 0)
    expected_experts, expected_weights = reference.route(logits, count, renormalise)
    assert np.array_equal(chosen, expected_experts)
    tolerance.assert_within(weights, expected_weights, tolerance.route(expected_weights, experts))


@pytest.mark.parametrize("logits", [[5.0, 5.0, 5.0, 5.0], [-1e30, 1e30, -1e30, 1e30], [1e-42, 0.0, -1e-42, 2e-42]])
def test_route_at_the_edges(backend: Backend, logits: list[float]) -> None:
    rows = aligned_copy(np.array([logits], np.float32))
    chosen, weights = aligned((1, 3), np.int32), aligned((1, 3), np.float32)
    backend.program([op.Route(rows, True, chosen, weights)]).run(1, 0)
    expected_experts, expected_weights = reference.route(rows, 3, True)
    assert np.array_equal(chosen, expected_experts)
    tolerance.assert_within(weights, expected_weights, tolerance.route(expected_weights, 4))


@few_examples
@given(
    st.integers(0, 8),
    st.sampled_from(["none", "plain", "gated"]),
    st.integers(1, 100),
    token_counts,
    moderate_kinds,
    seeds,
)
def test_combine(
    backend: Backend, per_token: int, shared_kind: str, width: int, tokens: int, kind: str, seed: int
) -> None:
    if per_token == 0 and shared_kind == "none":
        per_token = 1
    random = np.random.default_rng(seed)
    residual = numbers("normal", (tokens, width), random)
    before, scale = residual.copy(), np.float32(0.6)
    routed = numbers(kind, (tokens, per_token, width), random) if per_token else None
    weights = numbers("normal", (tokens, per_token), random) if per_token else None
    shared = numbers(kind, (tokens, width), random) if shared_kind != "none" else None
    gate = aligned_copy(numbers("normal", (tokens, 1), random) * 50) if shared_kind == "gated" else None
    backend.program([op.Combine(residual, float(scale), routed, weights, shared, gate)]).run(tokens, 0)
    added = reference.combine(routed, weights, shared, gate).astype(np.float64)
    terms = np.abs(before.astype(np.float64))
    if routed is not None and weights is not None:
        terms += scale * (np.abs(weights)[:, :, None] * np.abs(routed.astype(np.float64))).sum(axis=1)
    if shared is not None:
        terms += scale * np.abs(shared.astype(np.float64))
    bound = tolerance.combine(terms, per_token + 1)
    tolerance.assert_within(residual, (before + scale * added).astype(np.float32), bound)
