"""Routers of several levels: every backend against all paths at once, on all instruction sets with the same bits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.backend import Backend
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, seeds, token_counts

levels = st.lists(
    st.integers(1, 9).flatmap(lambda size: st.builds(ex.Level, st.just(size), st.integers(1, min(size, 3)))),
    min_size=1,
    max_size=4,
).map(tuple)


def route(of: tuple[ex.Level, ...], tokens: int, seed: int, normalise: bool = True) -> ex.LevelRoute:
    random = np.random.default_rng(seed)
    top_k = int(np.prod([level.top_k for level in of]))
    logits = numbers("normal", (tokens, ex.logits_of(of)), random)
    return ex.LevelRoute(
        *(logits, of, normalise, 1.25),
        aligned((tokens, top_k), np.int32),
        aligned((tokens, top_k), np.float32),
    )


def expected_of(o: ex.LevelRoute, row: np.ndarray) -> dict[int, float]:
    """The weight of each chosen expert of a row, in order: a walk through all groups, one after the other."""
    paths, start, groups = {0: 1.25}, 0, 1
    for level in o.levels:
        further: dict[int, float] = {}
        for group, weight in paths.items():
            own = row[start + group * level.size :][: level.size].astype(np.float64)
            best = sorted(range(level.size), key=lambda member, own=own: (-own[member], member))[: level.top_k]
            among = own[best] if o.renormalise else own
            for member in best:
                share = np.exp(own[member]) / np.exp(among).sum()
                further[group * level.size + member] = weight * share
        start, groups = start + groups * level.size, groups * level.size
        paths = further
    return paths


@few_examples
@given(levels, token_counts, st.booleans(), seeds)
def test_weights_are_products_of_shares(
    any_backend: Backend, of: tuple[ex.Level, ...], tokens: int, normalise: bool, seed: int
) -> None:
    o = route(of, tokens, seed, normalise)
    any_backend.program([o]).run(tokens)
    for token in range(tokens):
        expected = expected_of(o, o.logits[token])
        assert o.experts[token].tolist() == list(expected)
        weights = np.array(list(expected.values()), np.float32)
        bound = len(of) * tolerance.route(weights, max(level.size for level in of))
        tolerance.assert_within(o.weights[token], weights, bound)
    if normalise:
        np.testing.assert_allclose(o.weights.sum(axis=1), 1.25, rtol=1e-5)


def test_the_lower_number_is_chosen_on_a_tie_and_what_is_no_number_last(any_backend: Backend) -> None:
    o = route((ex.Level(2, 1), ex.Level(3, 2)), 3, 0)
    o.logits[:] = [[0, 0, 5, 5, 5, 0, 0, 0], [0, 1, 0, 0, 0, 7, 7, 8], [np.nan, -9, 0, 0, 0, 2, 1, 2]]
    any_backend.program([o]).run(3)
    assert o.experts.tolist() == [[0, 1], [5, 3], [3, 5]]


def test_one_level_is_the_usual_router(any_backend: Backend) -> None:
    o = replace(route((ex.Level(12, 3),), 20, 1), scale=1.0)
    usual = ex.Route(o.logits, True, aligned((20, 3), np.int32), aligned((20, 3), np.float32))
    any_backend.program([o, usual]).run(20)
    np.testing.assert_array_equal(o.experts, usual.experts)
    np.testing.assert_allclose(o.weights, usual.weights, rtol=1e-6)


def test_a_row_has_the_same_bits_in_any_company(any_backend: Backend) -> None:
    o = route((ex.Level(4, 2), ex.Level(8, 2), ex.Level(2, 1)), 33, 2)
    any_backend.program([o]).run(33)
    for first, end in itertools.pairwise((0, 1, 20, 33)):
        part = replace(o, logits=aligned_copy(o.logits[first:end]))
        part = replace(part, experts=o.experts[first:end].copy(), weights=np.zeros_like(o.weights[first:end]))
        any_backend.program([part]).run(end - first)
        np.testing.assert_array_equal(part.experts, o.experts[first:end])
        np.testing.assert_array_equal(part.weights, o.weights[first:end])


def test_levels_of_other_sizes_are_refused(any_backend: Backend) -> None:
    o = route((ex.Level(4, 2), ex.Level(8, 2)), 2, 0)
    for of, message in (
        ((ex.Level(4, 2), ex.Level(7, 2)), "logits: expected 32 columns, found 36"),
        ((ex.Level(4, 2), ex.Level(8, 1)), "experts: expected 2 columns, found 4"),
        ((ex.Level(4, 5), ex.Level(8, 2)), r"levels\[0\].top_k: expected 1 to 4, found 5"),
        ((ex.Level(0, 1), ex.Level(8, 2)), r"levels\[0\].size: expected 1 or more, found 0"),
        ((), "levels: expected 1 to 8, found 0"),
    ):
        with pytest.raises(KernelError, match=message):
            any_backend.program([replace(o, levels=of)])
