"""Operations without packed matrices, on every backend, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.reference.attention import cache_elements
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.reference.experts import choice_scores
from tests.kernels import tolerance
from tests.kernels.builders import (
    CACHE_FORMATS,
    Places,
    aligned,
    aligned_copy,
    cache_arrays,
    cache_formats,
    empty_cache,
    few_examples,
    fill_cache,
    kinds,
    numbers,
    places,
    seeds,
    token_counts,
)
from tests.kernels.conftest import BACKENDS, make_backend
from tests.support.every_case import every_case


def mixed_places(random: np.random.Generator, tokens: int, position: int) -> Places:
    """Rows of 1 to 4 sequences in any order, each of which goes on from near `position`, in scattered pages."""
    count = int(random.integers(1, 5))
    sequences = np.sort(random.integers(0, count, tokens))
    if random.integers(2):  # else prompts one after the other
        sequences = random.permutation(sequences)
    begins = random.integers(position // 2, position + 1, count)
    positions = np.empty(tokens)
    for sequence in range(count):
        rows = np.flatnonzero(sequences == sequence)
        positions[rows] = begins[sequence] + np.arange(len(rows))
    room = -(-(position + tokens) // PAGE_TOKENS) + 1
    pages = random.permutation(count * room).reshape(count, room)
    return Places(*(aligned_copy(array.astype(np.int32)) for array in (positions, sequences, pages)))


head_widths = st.sampled_from([8, 16, 24, 32, 64, 80, 96, 128])
moderate_kinds = kinds.filter(lambda kind: kind != "huge")  # float32 cannot hold 1e30 squared


@few_examples
@given(st.integers(1, 5), st.integers(1, 130), token_counts, moderate_kinds, st.booleans(), st.booleans(), seeds)
def test_rms_norm(
    backend: Backend, heads: int, width: int, tokens: int, kind: str, in_place: bool, weighed: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = numbers(kind, (tokens, heads * width), random)
    weight = numbers("normal", (width,), random) if weighed else None
    expected = REFERENCE.rms_norm(values.reshape(tokens, heads, width), weight, 1e-5).reshape(tokens, -1)
    output = values if in_place else aligned(values.shape, np.float32)
    backend.program([op.RmsNorm(values, weight, 1e-5, output, heads)]).run(tokens)
    tolerance.assert_within(output, expected, tolerance.rms_norm(expected, width))


@few_examples
@given(st.integers(1, 5), st.sampled_from([1, 7, 16, 130, 300]), token_counts, moderate_kinds, st.integers(0, 2), seeds)
def test_gated_rms_norm(
    backend: Backend, heads: int, width: int, tokens: int, kind: str, place: int, seed: int
) -> None:
    """The output may be the input or the gate."""
    random = np.random.default_rng(seed)
    values, gate = numbers(kind, (tokens, heads * width), random), numbers("normal", (tokens, heads * width), random)
    weight = numbers("normal", (width,), random)
    shape = (tokens, heads, width)
    normed = REFERENCE.rms_norm(values.reshape(shape), weight, 1e-5)
    exact = gate.astype(np.float64).reshape(shape)
    expected = (normed * (exact / (1 + np.exp(-exact)))).astype(np.float32).reshape(tokens, -1)
    output = (values, gate, aligned(values.shape, np.float32))[place]
    backend.program([op.RmsNorm(values, weight, 1e-5, output, heads, gate)]).run(tokens)
    gating = 16 * tolerance.UNIT * np.abs(expected)
    tolerance.assert_within(output, expected, tolerance.rms_norm(expected, width) + gating)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("own_weights", [1, 3])
def test_rms_norm_with_a_weight_for_each_run(backend: Backend, own_weights: int, gated: bool) -> None:
    """Each run of a row is normalised as if it stood alone with its weight."""
    random = np.random.default_rng(own_weights)
    values, gate = numbers("normal", (5, 3 * 300), random), numbers("normal", (5, 3 * 300), random)
    weight, output = numbers("normal", (own_weights * 300,), random), aligned((5, 3 * 300), np.float32)
    own = op.RmsNorm(values, weight, 1e-5, output, 3, gate if gated else None, own_weights)
    backend.program([own]).run(5)
    for run in range(3):
        columns = slice(300 * run, 300 * run + 300)
        alone, part = aligned((5, 300), np.float32), weight[300 * (run % own_weights) :][:300]
        single = op.RmsNorm(
            aligned_copy(values[:, columns]),
            aligned_copy(part),
            1e-5,
            alone,
            gate=aligned_copy(gate[:, columns]) if gated else None,
        )
        backend.program([single]).run(5)
        np.testing.assert_array_equal(output[:, columns], alone)


def test_weights_for_some_runs_are_refused(backend: Backend) -> None:
    values = np.zeros((1, 12), np.float32)
    with pytest.raises(KernelError, match="own_weights: expected 1 or 4, found 2"):
        backend.program([op.RmsNorm(values, np.ones(6, np.float32), 1e-5, values, 4, own_weights=2)])


@few_examples
@given(st.integers(1, 6), head_widths, token_counts, st.booleans(), st.tuples(*[st.booleans()] * 3), kinds, seeds)
def test_rope(
    backend: Backend, heads: int, width: int, tokens: int, whole: bool, way: tuple[bool, ...], kind: str, seed: int
) -> None:
    neighbours, last, back = way
    random = np.random.default_rng(seed)
    values = numbers(kind, (tokens, heads * width), random)
    before = values.reshape(tokens, heads, width).copy()
    positions = aligned_copy(random.integers(0, 60, tokens, np.int32))
    half = width // 2 if whole else int(random.integers(1, width // 2 + 1))
    angles = random.random((60, half)) * 7
    cosine, sine = (aligned_copy(table(angles).astype(np.float32)) for table in (np.cos, np.sin))
    backend.program([op.Rope(values, heads, positions, cosine, sine, *way)]).run(tokens)
    expected = REFERENCE.rope(before, cosine[positions], sine[positions], *way)
    if back:
        np.testing.assert_array_equal(expected, REFERENCE.rope(before, cosine[positions], -sine[positions], *way[:2]))
    after = values.reshape(before.shape)
    if last:  # as what comes first, of channels in another order
        before, after, expected = (np.roll(array, 2 * half, axis=2) for array in (before, after, expected))
    order = np.arange(2 * half).reshape(half, 2).T.reshape(-1) if neighbours else np.arange(2 * half)
    bound = tolerance.rope(before[:, :, order], cosine[positions], sine[positions])
    tolerance.assert_within(after[:, :, order], expected[:, :, order], bound)
    assert after[:, :, 2 * half :].tobytes() == before[:, :, 2 * half :].tobytes()


@few_examples
@given(st.integers(1, 130), token_counts, kinds, st.sampled_from([1e-6, 0.5, 8.0, 1e30]), seeds)
def test_clip(backend: Backend, width: int, tokens: int, kind: str, limit: float, seed: int) -> None:
    values = numbers(kind, (tokens, width), np.random.default_rng(seed))
    edges = np.array([np.nan, np.inf, -np.inf, -0.0, limit, -limit], np.float32)
    values.reshape(-1)[: len(edges)] = edges[: values.size]
    expected = REFERENCE.clip(values, limit)
    backend.program([op.Clip(values, limit)]).run(tokens)
    assert np.array_equal(np.isnan(values), np.isnan(expected))
    np.testing.assert_array_equal(values, expected)


@few_examples
@given(st.integers(1, 4), head_widths, token_counts, st.integers(0, 50), cache_formats, kinds, seeds)
def test_store_kv(
    backend: Backend, kv_heads: int, width: int, tokens: int, position: int, format_name: str, kind: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    keys = numbers("normal", (tokens, kv_heads * width), random)
    keys[0, 0], keys[0, -1] = 65503.0, 1e-7  # float16's largest after rounding, and one of its denormals
    values = numbers("normal" if kind == "huge" and format_name == "f16" else kind, keys.shape, random)
    where = mixed_places(random, tokens, position)
    caches = [empty_cache(format_name, (where.pages.max() + 2, kv_heads, PAGE_TOKENS, width)) for _ in range(2)]
    for cache in caches:
        for array in cache_arrays(cache):
            array[...] = 7
    backend.program([so.StoreKv(keys, values, *where, *caches)]).run(tokens)
    for rows, cache in zip((keys, values), caches, strict=True):
        heads = rows.reshape(tokens, kv_heads, width)
        dtype = CACHE_FORMATS[format_name]
        stored = REFERENCE.quantise_cache_rows(heads) if dtype is None else [heads.astype(dtype)]
        for array, here in zip(cache_arrays(cache), stored, strict=True):
            expected = np.full(array.shape, 7, array.dtype)
            for t in range(tokens):
                page = where.pages[where.sequences[t], where.positions[t] // PAGE_TOKENS]
                expected[page, :, where.positions[t] % PAGE_TOKENS] = here[t]
            assert array.tobytes() == expected.tobytes()


@every_case("bad", [np.nan, np.inf, -np.inf, 9e6])
@every_case("width", [16, 96])
def test_a_group_that_8_bits_cannot_hold_is_not_a_number(backend: Backend, bad: float, width: int) -> None:
    keys = numbers("normal", (2, width), np.random.default_rng(9))
    values = keys.copy()
    values[0, width - 5] = bad
    caches = [empty_cache("q8", (1, 1, PAGE_TOKENS, width)) for _ in range(2)]
    output = aligned(keys.shape, np.float32)
    where = places(2)
    attention = so.Attention(keys, *where, *caches, 1.0, output)
    backend.program([so.StoreKv(keys, values, *where, *caches), attention]).run(2)
    for stored, cached in zip(REFERENCE.quantise_cache_rows(values), cache_arrays(caches[1]), strict=True):
        assert cached[0, 0, :2].tobytes() == stored.tobytes()
    lost = np.zeros((2, width), np.bool_)
    lost[:, (width - 5) // 32 * 32 :][:32] = True
    assert np.array_equal(np.isnan(output), lost)


def first_seen(position: int, window: int, chunked: bool) -> int:
    if not window:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


@few_examples
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    head_widths,
    head_widths,
    st.sampled_from([0, 0, 1, 2, 7, 16, 63, 64, 65, 100]),
    st.booleans(),
    st.sampled_from([0.0, 0.0, 0.5, 30.0]),
    st.booleans(),
    st.booleans(),
    token_counts,
    st.integers(0, 130),
    cache_formats,
    st.sampled_from(["normal", "zeros", "equal", "denormal", "peaked"]),
    seeds,
)
def test_attention(
    backend: Backend,
    kv_heads: int,
    group: int,
    width: int,
    value_width: int,
    window: int,
    chunked: bool,
    cap: float,
    has_sinks: bool,
    has_factors: bool,
    tokens: int,
    position: int,
    format_name: str,
    kind: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    chunked = chunked and window > 0
    query = numbers("normal" if kind == "peaked" else kind, (tokens, kv_heads * group * width), random)
    if kind == "peaked":  # scores so far apart that all but one share underflow
        query *= 40
    where = mixed_places(random, tokens, position)
    seen = np.zeros((where.pages.max() + 2, PAGE_TOKENS), np.bool_)
    for sequence, last in zip(where.sequences, where.positions, strict=True):
        for c in range(first_seen(last, window, chunked), last + 1):
            seen[where.pages[sequence, c // PAGE_TOKENS], c % PAGE_TOKENS] = True
    caches = []
    for own_width in (width, value_width):
        elements = random.standard_normal((len(seen), kv_heads, PAGE_TOKENS, own_width))
        elements.transpose(0, 2, 1, 3)[~seen] = np.nan  # what no row may look at
        caches.append(empty_cache(format_name, elements.shape))
        fill_cache(caches[-1], elements)
    scale = width**-0.5
    output = aligned((tokens, kv_heads * group * value_width), np.float32)
    sinks = numbers("normal", (kv_heads * group,), random) * np.float32(4) if has_sinks else None
    by_position = aligned_copy(random.uniform(0.5, 2, int(where.positions.max()) + 1).astype(np.float32))
    factors = by_position[where.positions] if has_factors else None
    attention = so.Attention(query, *where, *caches, scale, output, window, sinks, chunked, cap)
    backend.program([replace(attention, factors=by_position if has_factors else None)]).run(tokens)
    heads = query.reshape(tokens, kv_heads * group, width)
    expected = REFERENCE.attention(heads, *where, *caches, scale, window, sinks, chunked, cap, factors=factors)
    for t in range(tokens):
        last = int(where.positions[t])
        first = first_seen(last, window, chunked)
        begin = first // PAGE_TOKENS
        held = where.pages[where.sequences[t], begin : last // PAGE_TOKENS + 1]
        here = slice(first - begin * PAGE_TOKENS, last + 1 - begin * PAGE_TOKENS)
        elements = [cache_elements(cache, held)[:, here] for cache in caches]
        bound = tolerance.attention(heads[t], *elements, scale, sinks, cap, 1.0 if factors is None else factors[t])
        tolerance.assert_within(output.reshape(expected.shape)[t], expected[t], bound)


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
    backend.program([ex.Route(logits, renormalise, chosen, weights)]).run(tokens)
    expected_experts, expected_weights = REFERENCE.route(logits, count, renormalise)
    assert np.array_equal(chosen, expected_experts)
    tolerance.assert_within(weights, expected_weights, tolerance.route(expected_weights, experts))


@few_examples
@given(st.integers(1, 70), st.integers(1, 70), token_counts, st.booleans(), st.booleans(), st.floats(0, 1), seeds)
def test_route_with_a_bonus(
    backend: Backend, experts: int, count: int, tokens: int, renormalise: bool, ties: bool, bonus: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = min(count, experts)
    logits = numbers("normal", (tokens, experts), random) * np.float32(3)
    logits = aligned_copy(np.round(logits / 2) if ties else logits)
    slots = aligned_copy(random.integers(-2, 3, experts).astype(np.int32))
    chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
    backend.program([ex.Route(logits, renormalise, chosen, weights, slots, bonus)]).run(tokens)
    in_memory = (slots >= 0).astype(np.int32)
    expected_experts, expected_weights = REFERENCE.route(logits, count, renormalise, in_memory, bonus)
    assert np.array_equal(chosen, expected_experts)
    tolerance.assert_within(weights, expected_weights, tolerance.route(expected_weights, experts))


@few_examples
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 20), token_counts, st.booleans(), st.booleans(), seeds)
def test_choices_of_no_expert_are_minus_1_and_need_no_slot(
    backend: Backend, experts: int, count: int, passing: int, tokens: int, biased: bool, with_slots: bool, seed: int
) -> None:
    """And all else of a route is as it would be without them; the bonus counts for them as for what is in memory."""
    random = np.random.default_rng(seed)
    choices, count = experts + passing, min(count, experts + passing)
    logits = aligned_copy(numbers("normal", (tokens, choices), random) * np.float32(3))
    bias = numbers("normal", (choices,), random) if biased else None
    slots = random.integers(-2, 3, experts).astype(np.int32)
    options = {"choice_bias": bias, "scale": 6.0, "bonus": 0.4 if with_slots else 0.0}
    found = []
    for own in (passing, 0):
        chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
        held = aligned_copy(np.append(slots, np.full(passing - own, 7, np.int32))) if with_slots else None
        backend.program([ex.Route(logits, False, chosen, weights, held, passing=own, **options)]).run(tokens)
        found.append((chosen, weights.tobytes()))
    assert found[0][1] == found[1][1]
    np.testing.assert_array_equal(found[0][0], np.where(found[1][0] < experts, found[1][0], -1))


@few_examples
@given(st.integers(1, 70), st.integers(1, 9), token_counts, st.booleans(), st.sampled_from(["none", "all", "0"]), seeds)
def test_a_bonus_for_none_for_all_or_of_nothing_changes_no_bit(
    any_backend: Backend, experts: int, count: int, tokens: int, renormalise: bool, case: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = min(count, experts)
    # so close together that a large bonus rounds many to the same score
    logits = aligned_copy(1e-7 * np.round(numbers("normal", (tokens, experts), random) * 9))
    logits[:, 0] = random.choice(np.array([-1, 0, 1], np.float32), tokens)
    slots = aligned((experts,), np.int32)
    slots[:] = {"none": -1, "all": 3, "0": random.integers(-1, 2)}[case]
    outcomes = []
    for with_bonus in ((), (slots, 0.0 if case == "0" else 0.9)):
        chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
        any_backend.program([ex.Route(logits, renormalise, chosen, weights, *with_bonus)]).run(tokens)
        outcomes.append(chosen.tobytes() + weights.tobytes())
    assert outcomes[0] == outcomes[1]


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """A router other than softmax of logits alone: the number of experts and the settings of `ex.Route`."""
    groups = draw(st.integers(1, 8))
    kept_groups = draw(st.integers(1, groups))
    size = draw(st.integers(2 if groups > 1 else 1, 12 if groups > 1 else 130))
    score, renormalise = draw(st.sampled_from(["sigmoid", "sqrt_softplus", "softmax", "softmax"])), draw(st.booleans())
    alone = score in ex.BY_THEMSELVES
    return {
        "experts": groups * size,
        "count": draw(st.integers(1, size * kept_groups)),
        "renormalise": renormalise,
        "score": score,
        "biased": draw(st.booleans()),
        "groups": groups,
        "kept_groups": kept_groups,
        "group_best": draw(st.sampled_from([1, 2])),
        "epsilon": draw(st.sampled_from([0.0, 1e-20, 0.1])) if alone else 0.0,
        "scale": draw(st.sampled_from([1.0, 2.5, 0.1])),
        "choose_by": draw(st.sampled_from(["score", "score", "logit"])),
        "scaled": draw(st.booleans()),
        "least_sum": draw(st.sampled_from([0.0, 1e-12, 0.7])) if renormalise and not alone else 0.0,
    }


@few_examples
@given(rules(), token_counts, st.booleans(), st.sampled_from([None, 0.0, 0.4]), seeds)
def test_route_by_scores_and_groups(
    backend: Backend, rule: dict[str, Any], tokens: int, ties: bool, bonus: float | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rule = dict(rule)
    experts, count, biased, scaled = (rule.pop(name) for name in ("experts", "count", "biased", "scaled"))
    logits = numbers("normal", (tokens, experts), random) * np.float32(3)
    scales = numbers("normal", (experts,), random) if scaled else None
    choice_bias = numbers("normal", (experts,), random) * np.float32(0.3) if biased else None
    if ties:  # equal inputs have equal scores on every backend, but equal sums of unequal inputs need not
        logits = np.abs(np.round(logits / 3))
        if choice_bias is not None:
            choice_bias = np.round(choice_bias * 4) / 4 * (rule["groups"] == 1)
    logits, choice_bias = aligned_copy(logits), None if choice_bias is None else aligned_copy(choice_bias)
    slots = None if bonus is None else aligned_copy(random.integers(-1, 2, experts).astype(np.int32))
    rule |= {"choice_bias": choice_bias, "bonus": bonus or 0.0, "expert_scales": scales}
    chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
    backend.program([ex.Route(logits, experts=chosen, weights=weights, slots=slots, **rule)]).run(tokens)
    in_memory = None if slots is None else (slots >= 0).astype(np.int32)
    expected_experts, expected_weights = REFERENCE.route(logits, count, in_memory=in_memory, **rule)
    grouping = rule["groups"], rule["kept_groups"], rule["group_best"]
    clear = clear_choices(logits, rule["score"], choice_bias, *grouping, rule["choose_by"], bonus)
    assert clear.mean() > 0.1 or tokens < 20  # most draws compare many
    np.testing.assert_array_equal(chosen[clear], expected_experts[clear])
    bound = 2 * tolerance.route(expected_weights, experts)
    if clear.any():  # a few tokens may all hang on a rounding
        tolerance.assert_within(weights[clear], expected_weights[clear], bound[clear])


def clear_choices(
    logits: op.Floats,
    score: ex.Score,
    choice_bias: op.Floats | None,
    groups: int,
    kept_groups: int,
    group_best: int,
    choose_by: ex.Choice,
    bonus: float | None,
) -> npt.NDArray[np.bool_]:
    """Whether a token's choice hangs on no rounding: scores, and the sums of groups, are far apart or equal."""
    scores = choice_scores(logits, score, choice_bias, groups, groups, choose_by)
    best = -np.sort(-scores.reshape(len(scores), groups, -1), axis=2)
    sums = best[:, :, :group_best].sum(axis=2)
    clear = _apart(scores, choice_bias is None) & _apart(sums, choice_bias is None)
    if bonus:
        kept = choice_scores(logits, score, choice_bias, groups, kept_groups, choose_by, group_best)
        reach = kept.max(axis=1) - np.where(np.isfinite(kept), kept, np.inf).min(axis=1)
        clear &= _apart(np.concatenate([kept, kept + np.float32(bonus) * reach[:, None]], axis=1))
    return clear


def _apart(values: op.Floats, relative: bool = False) -> npt.NDArray[np.bool_]:
    """Whether the numbers of a row are equal or far apart; those of dropped groups are -infinity.

    `relative` is for numbers that nothing was added to: then even small ones are exact in proportion.
    """
    ordered = np.sort(np.where(np.isfinite(values), values, -1e6), axis=1)
    gaps = np.diff(ordered, axis=1)
    least = 4e-6 * np.abs(ordered[:, 1:]) if relative else 4e-6
    result: npt.NDArray[np.bool_] = ((gaps == 0) | (gaps > least)).all(axis=1)
    return result


@few_examples
@given(token_counts, st.integers(1, 40), st.integers(1, 9), st.booleans(), seeds)
def test_route_by_a_table(
    any_backend: Backend, tokens: int, experts: int, count: int, weighed: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    ids = aligned_copy(random.integers(0, 7, tokens).astype(np.int32))
    table = aligned_copy(random.integers(0, experts, 7 * count).astype(np.float32))
    logits = numbers("normal", (tokens, experts), random) * np.float32(3) if weighed else None
    chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
    any_backend.program([ex.TableRoute(ids, table, logits, experts, 1e-20, 1.5, chosen, weights)]).run(tokens)
    np.testing.assert_array_equal(chosen, table.reshape(7, count)[ids])
    if logits is None:
        assert not weights.any()
        return
    shares = np.sqrt(np.log1p(np.exp(np.take_along_axis(logits.astype(np.float64), chosen, axis=1))))
    expected = (1.5 * shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    tolerance.assert_within(weights, expected, 2 * tolerance.route(expected, count))


@pytest.mark.parametrize(("token", "expert"), [(-1, 0.0), (7, 0.0), (0, -1.0), (0, 5.0), (0, np.nan)])
def test_a_table_without_an_expert_of_the_model_is_refused(any_backend: Backend, token: int, expert: float) -> None:
    table = np.zeros(14, np.float32)
    table[1] = expert
    chosen, weights = aligned((1, 2), np.int32), aligned((1, 2), np.float32)
    operation = ex.TableRoute(np.array([token], np.int32), table, None, 5, 0.0, 1.0, chosen, weights)
    with pytest.raises(KernelError):
        any_backend.program([operation]).run(1)


@few_examples
@given(rules(), token_counts, st.sampled_from([None, 0.4]), seeds)
def test_routes_are_the_same_bits_on_every_instruction_set(
    rule: dict[str, Any], tokens: int, bonus: float | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rule = dict(rule)
    experts, count, biased, scaled = (rule.pop(name) for name in ("experts", "count", "biased", "scaled"))
    logits = aligned_copy(numbers("normal", (tokens, experts), random) * np.float32(3))
    slots = None if bonus is None else aligned_copy(random.integers(-1, 2, experts).astype(np.int32))
    rule |= {"choice_bias": numbers("normal", (experts,), random) if biased else None, "slots": slots}
    rule["expert_scales"] = numbers("normal", (experts,), random) if scaled else None
    results = set()
    for name in BACKENDS:
        if name.startswith("native"):
            backend = make_backend(name)
            chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
            route = ex.Route(logits, experts=chosen, weights=weights, bonus=bonus or 0.0, **rule)
            backend.program([route]).run(tokens)
            results.add(chosen.tobytes() + weights.tobytes())
            backend.close()
    assert len(results) == 1


@every_case("bonus", [None, 1.0])
def test_a_choice_bias_chooses_and_does_not_weigh(any_backend: Backend, bonus: float | None) -> None:
    """Groups of two; scores 1/2 and 3/4 are exact on every backend."""
    logits = aligned_copy(np.array([[0, np.log(3), 0, np.log(3), 0, np.log(3), 40, 50]], np.float32))
    choice_bias = aligned_copy(np.array([0.5, 0, 0.25, 0, -1, -1, -2, -2], np.float32))
    # choice scores 1, .75, .75, .75, -.5, -.25, -1, -1: sums 1.75, 1.5, -.75, -2
    chosen, weights = aligned((1, 3), np.int32), aligned((1, 3), np.float32)
    slots = None if bonus is None else aligned_copy(np.array([-1, -1, -1, 0, 1, 2, 3, 4], np.int32))
    options: dict[str, Any] = {"score": "sigmoid", "choice_bias": choice_bias, "groups": 4, "kept_groups": 2}
    route = ex.Route(logits, True, chosen, weights, slots, bonus or 0.0, scale=2.0, epsilon=0.25, **options)
    any_backend.program([route]).run(1)
    if bonus is None:
        assert chosen.tolist() == [[0, 1, 2]]  # ties by the lower number
        np.testing.assert_allclose(weights, [[0.5, 0.75, 0.5]], rtol=1e-6)
    else:
        assert chosen.tolist() == [[0, 1, 3]]
        np.testing.assert_allclose(weights, [[4 / 9, 6 / 9, 6 / 9]], rtol=1e-6)


@every_case(("least_sum", "total"), [(0.0, 1.0), (1e-12, 1.0), (0.25, 1.0), (0.5, 0.8)])
def test_weights_are_divided_by_no_less_than_the_least_sum(
    any_backend: Backend, least_sum: float, total: float
) -> None:
    shares = np.array([[0.5, 0.1, 0.3, 0.1], [0.3, 0.1, 0.5, 0.1]], np.float32)
    chosen, weights = aligned((2, 2), np.int32), aligned((2, 2), np.float32)
    choice_bias = aligned_copy(np.array([-1, 0, 0, -1], np.float32))  # shares of 0.4 and 0.6
    logits = aligned_copy(np.log(shares))
    route = ex.Route(logits, True, chosen, weights, choice_bias=choice_bias, least_sum=least_sum)
    any_backend.program([route]).run(2)
    assert chosen.tolist() == [[2, 1], [2, 1]]
    assert weights.sum(axis=1) == pytest.approx([total, 1.0], rel=1e-5)
    assert weights[0] == pytest.approx([0.75 * total, 0.25 * total], rel=1e-5)


@every_case("epsilon", [0.0, 1e-20])
def test_sigmoids_at_the_edges(any_backend: Backend, epsilon: float) -> None:
    logits = aligned_copy(np.array([[-200, 30, 88, 3e38, -3e38], [-200, -210, -3e38, -190, -200]], np.float32))
    chosen, weights = aligned((2, 3), np.int32), aligned((2, 3), np.float32)
    any_backend.program([ex.Route(logits, True, chosen, weights, score="sigmoid", epsilon=epsilon)]).run(2)
    assert chosen[0].tolist() == [1, 2, 3]  # all exactly 1
    np.testing.assert_allclose(weights[0], 1 / 3, rtol=1e-6)
    assert sorted(set(chosen[1].tolist())) == sorted(chosen[1].tolist())
    if epsilon:
        np.testing.assert_array_equal(weights[1], 0)


@few_examples
@given(st.integers(2, 140), st.integers(1, 4), token_counts, st.sampled_from([0.0, 0.01, 0.3, 5.0]), seeds)
def test_route_by_sparsemixer(
    backend: Backend, experts: int, count: int, tokens: int, jitter: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = min(count, experts)
    logits = aligned_copy(numbers("normal", (tokens, experts), random) * np.float32(3))
    chosen, weights = aligned((tokens, count), np.int32), aligned((tokens, count), np.float32)
    route = ex.Route(logits, False, chosen, weights, score="sparsemixer", jitter=jitter)
    backend.program([route]).run(tokens)
    found = REFERENCE.route(logits, count, False, score="sparsemixer", jitter=jitter)
    assert np.array_equal(chosen, found[0])
    tolerance.assert_within(weights, found[1], tolerance.route(found[1], experts))


def test_sparsemixer_weighs_among_the_experts_near_the_best(any_backend: Backend) -> None:
    """Near 4 are those within 2 * 0.25 * 4; near 3, the best without it, those within 1.5; NaN spoils."""
    row = [2.0, 4.0, 3.0, 1.0, -3.0]
    logits = aligned_copy(np.array([row, [0.0] * 5, [*row[:4], np.nan]], np.float32))
    chosen, weights = aligned((3, 2), np.int32), aligned((3, 2), np.float32)
    any_backend.program([ex.Route(logits, False, chosen, weights, score="sparsemixer", jitter=0.25)]).run(3)
    assert chosen[:2].tolist() == [[1, 2], [0, 1]]
    first, second = 1 / (1 + np.exp(-1) + np.exp(-2)), 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(weights[:2], [[first, second], [1 / 5, 1 / 4]], rtol=1e-6)
    assert np.isnan(weights[2]).all()


def test_sparsemixer_counts_an_expert_that_a_bonus_chose_as_near(any_backend: Backend) -> None:
    logits = aligned_copy(np.array([[4.0, 3.9, -4.0]], np.float32))
    slots = aligned_copy(np.array([-1, -1, 0], np.int32))
    chosen, weights = aligned((1, 2), np.int32), aligned((1, 2), np.float32)
    any_backend.program([ex.Route(logits, False, chosen, weights, slots, 1.0, score="sparsemixer", jitter=0.01)]).run(1)
    assert chosen.tolist() == [[0, 2]]
    share = np.exp(-7.9) / (1 + np.exp(-7.9))
    np.testing.assert_allclose(weights, [[1.0, share]], rtol=1e-5)


@every_case("logits", [[5.0, 5.0, 5.0, 5.0], [-1e30, 1e30, -1e30, 1e30], [1e-42, 0.0, -1e-42, 2e-42]])
def test_route_at_the_edges(backend: Backend, logits: list[float]) -> None:
    rows = aligned_copy(np.array([logits], np.float32))
    chosen, weights = aligned((1, 3), np.int32), aligned((1, 3), np.float32)
    backend.program([ex.Route(rows, True, chosen, weights)]).run(1)
    expected_experts, expected_weights = REFERENCE.route(rows, 3, True)
    assert np.array_equal(chosen, expected_experts)
    tolerance.assert_within(weights, expected_weights, tolerance.route(expected_weights, 4))


@few_examples
@given(
    st.integers(0, 8),
    st.booleans(),
    st.sampled_from(["none", "plain", "gated"]),
    st.integers(1, 100),
    token_counts,
    moderate_kinds,
    seeds,
)
def test_combine(
    backend: Backend, per_token: int, weighed: bool, shared_kind: str, width: int, tokens: int, kind: str, seed: int
) -> None:
    if per_token == 0 and shared_kind == "none":
        per_token = 1
    random = np.random.default_rng(seed)
    residual = numbers("normal", (tokens, width), random)
    before, scale = residual.copy(), np.float32(0.6)
    routed = numbers(kind, (tokens, per_token, width), random) if per_token else None
    weights = numbers("normal", (tokens, per_token), random) if per_token and weighed else None
    shared = numbers(kind, (tokens, width), random) if shared_kind != "none" else None
    gate = aligned_copy(numbers("normal", (tokens, 1), random) * 50) if shared_kind == "gated" else None
    backend.program([ex.Combine(residual, float(scale), routed, weights, shared, gate)]).run(tokens)
    added = REFERENCE.combine(routed, weights, shared, gate).astype(np.float64)
    terms = np.abs(before.astype(np.float64))
    if routed is not None:
        factors = np.ones(1) if weights is None else np.abs(weights)[:, :, None]
        terms += scale * (factors * np.abs(routed.astype(np.float64))).sum(axis=1)
    if shared is not None:
        terms += scale * np.abs(shared.astype(np.float64))
    bound = tolerance.combine(terms, per_token + 1)
    tolerance.assert_within(residual, (before + scale * added).astype(np.float32), bound)
    alone = np.full((tokens, width), np.nan, np.float32)
    backend.program([ex.Combine(alone, float(scale), routed, weights, shared, gate, accumulate=False)]).run(tokens)
    tolerance.assert_within(alone, (scale * added).astype(np.float32), bound)


@few_examples
@given(
    st.integers(1, 100),
    token_counts,
    moderate_kinds,
    st.tuples(*[st.booleans()] * 4),
    st.sampled_from(["base", "apart"]),
    seeds,
)
def test_mix(
    backend: Backend, width: int, tokens: int, kind: str, present: tuple[bool, ...], target: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    base, result = numbers("normal", (tokens, width), random), numbers(kind, (tokens, width), random)
    keep, share, shift = (numbers("normal", (width,), random) if given else None for given in present[:3])
    factor = numbers("normal", (1,), random) if present[3] else None
    expected = REFERENCE.mix(base, result, 0.7, keep, share, shift, factor)
    terms = np.abs(base.astype(np.float64)) * (1.0 if keep is None else np.abs(keep))
    terms += 0.7 * np.abs(result.astype(np.float64)) * (1.0 if share is None else np.abs(share))
    terms += 0.0 if shift is None else np.abs(shift)
    terms *= 1.0 if factor is None else np.abs(factor)
    output = base if target == "base" else np.full_like(base, np.nan)
    backend.program([op.Mix(base, result, 0.7, keep, share, shift, output, factor)]).run(tokens)
    tolerance.assert_within(output, expected, tolerance.combine(terms, 4))


@few_examples
@given(
    st.integers(1, 300),
    st.integers(1, 24),
    token_counts,
    moderate_kinds,
    st.sampled_from(["sigmoid", "softplus", "identity", "silu"]),
    seeds,
)
def test_gate(
    backend: Backend, runs: int, width: int, tokens: int, kind: str, gating: op.GateFunction, seed: int
) -> None:
    random = np.random.default_rng(seed)
    gate, values = numbers(kind, (tokens, runs), random), numbers("normal", (tokens, runs * width), random)
    expected = REFERENCE.gate(values.reshape(tokens, runs, width), gate, gating).reshape(tokens, -1)
    found = values.copy()
    backend.program([op.Gate(gate, found, gating)]).run(tokens)
    tolerance.assert_within(found, expected, 2 * tolerance.EXPONENTIAL * np.abs(expected.astype(np.float64)))


@every_case("gating", ["sigmoid", "softplus"])
def test_gates_of_extreme_numbers(backend: Backend, gating: op.GateFunction) -> None:
    """Factors end at their limits, and a number that is none leaves none."""
    gate = np.array([[-np.inf, -200, -1e-30, 0, 200, np.inf, np.nan]], np.float32)
    values = np.full_like(gate, 2)
    backend.program([op.Gate(gate, values, gating)]).run(1)
    limits = [0, 0, 1, 1, 2, 2] if gating == "sigmoid" else [0, 0, 2 * np.log(2), 2 * np.log(2), 400, np.inf]
    assert values[0, :-1] == pytest.approx(np.array(limits, np.float32), rel=1e-6, abs=1e-37)
    assert np.isnan(values[0, -1])


@few_examples
@given(st.integers(1, 300), token_counts, moderate_kinds, st.sampled_from(["input", "apart"]), st.booleans(), seeds)
def test_layer_norm(backend: Backend, width: int, tokens: int, kind: str, target: str, biased: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, weight = numbers(kind, (tokens, width), random), numbers("normal", (width,), random)
    bias = numbers("normal", (width,), random) if biased else None
    expected = REFERENCE.layer_norm(values, weight, 1e-3, bias)
    exact = values.astype(np.float64)
    # Each number is the difference of two that may be much larger, and so are its roundings.
    sizes = np.abs(exact) + np.abs(exact).mean(axis=1, keepdims=True)
    factor = np.abs(weight) / np.sqrt(exact.var(axis=1, keepdims=True) + 1e-3)
    spread = (sizes * factor).max(axis=1, keepdims=True)
    added = np.zeros(1) if bias is None else np.abs(bias)
    results = np.abs(expected) + 2 * added
    bound = (width + 8) * tolerance.UNIT * (sizes * factor + results * (1 + spread / np.abs(weight).max()))
    output = values if target == "input" else np.full_like(values, np.nan)
    backend.program([op.LayerNorm(values, weight, 1e-3, output, bias)]).run(tokens)
    tolerance.assert_within(output, expected, bound)


@few_examples
@given(st.integers(1, 300), token_counts, kinds, st.sampled_from([0.5, 2.0, 30.0]), seeds)
def test_soft_cap(backend: Backend, width: int, tokens: int, kind: str, limit: float, seed: int) -> None:
    values = numbers(kind, (tokens, width), np.random.default_rng(seed))
    expected, found = REFERENCE.soft_cap(values, limit), values.copy()
    backend.program([op.SoftCap(found, limit)]).run(tokens)
    tolerance.assert_within(found, expected, np.full(values.shape, limit * 2 * tolerance.EXPONENTIAL))


@few_examples
@given(st.integers(1, 300), token_counts, kinds, seeds)
def test_scale_by_position(backend: Backend, width: int, tokens: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, factors = numbers(kind, (tokens, width), random), numbers("normal", (40,), random)
    positions = aligned_copy(random.integers(0, 40, tokens).astype(np.int32))
    expected = values * factors[positions][:, None]
    backend.program([op.ScaleByPosition(values, positions, factors)]).run(tokens)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("position", [-1, 40])
def test_a_position_without_a_factor_is_refused(any_backend: Backend, position: int) -> None:
    positions = aligned_copy(np.array([0, position], np.int32))
    factors = aligned((40,), np.float32)
    scale = op.ScaleByPosition(aligned((2, 3), np.float32), positions, factors)
    with pytest.raises(KernelError, match="position"):
        any_backend.program([scale]).run(2)
    where = Places(positions, aligned((2,), np.int32), aligned((1, 1), np.int32))
    caches = empty_cache("f16", (1, 1, PAGE_TOKENS, 8)), empty_cache("f16", (1, 1, PAGE_TOKENS, 8))
    query = aligned((2, 8), np.float32)
    attention = so.Attention(query, *where, *caches, 1.0, query.copy(), factors=factors)
    with pytest.raises(KernelError, match="position"):
        any_backend.program([attention]).run(2)
