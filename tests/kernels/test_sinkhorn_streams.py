"""Several residual streams: every backend against the reference, on all instruction sets with the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.reference.sinkhorn import balance, shares_of_streams
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, seeds, token_counts

counts, widths = st.sampled_from([1, 2, 4, 7]), st.sampled_from([1, 8, 63, 64, 65, 200])


def collapse(tokens: int, count: int, width: int, seed: int) -> sk.CollapseStreams:
    random = np.random.default_rng(seed)
    return sk.CollapseStreams(
        numbers("normal", (tokens, count * width), random),
        numbers("normal", (tokens, count), random),
        numbers("normal", (count,), random),
        numbers("normal", (1,), random),
        1e-3,
        count,
        aligned((tokens, width), np.float32),
    )


def balancing(tokens: int, count: int, seed: int, iterations: int = 20, epsilon: float = 1e-3) -> sk.BalanceStreams:
    random, columns = np.random.default_rng(seed), count * (1 + count)
    shapes = ((tokens, columns), (columns,), (2,))
    return sk.BalanceStreams(*(numbers("normal", shape, random) for shape in shapes), epsilon, iterations, count)


SLACK = 2 * tolerance.EXPONENTIAL + 40 * tolerance.UNIT
"""The rounding of a share: arguments of a few units are rounded twice, exponentials once."""


@few_examples
@given(token_counts, counts, widths, seeds)
def test_streams_collapse(any_backend: Backend, tokens: int, count: int, width: int, seed: int) -> None:
    o = collapse(tokens, count, width, seed)
    any_backend.program([o]).run(tokens)
    shares = shares_of_streams(o.numbers, o.base, o.scale, o.epsilon)[:, :, None]
    streams = o.streams.reshape(tokens, count, width).astype(np.float64)
    expected = (shares * streams).sum(axis=1).astype(np.float32)
    tolerance.assert_within(o.output, expected, SLACK * (shares * np.abs(streams)).sum(axis=1))


@few_examples
@given(token_counts, counts, st.sampled_from([1, 2, 20]), seeds)
def test_mixtures_are_balanced(any_backend: Backend, tokens: int, count: int, iterations: int, seed: int) -> None:
    o = balancing(tokens, count, seed, iterations)
    post, mix = balance(o.numbers, o.base, o.scales, count, o.epsilon, iterations)
    any_backend.program([o]).run(tokens)
    expected = np.concatenate([post, mix.reshape(tokens, -1)], axis=1)
    tolerance.assert_within(o.numbers, expected.astype(np.float32), (2 + iterations) * SLACK * expected)


def test_a_mixture_keeps_the_sum_of_streams(any_backend: Backend) -> None:
    """After twenty turns rows and columns sum to nearly 1, though the matrix has two different sides."""
    o = balancing(5, 4, 3, epsilon=1e-6)
    any_backend.program([o]).run(5)
    mix = o.numbers[:, 4:].reshape(5, 4, 4)
    np.testing.assert_allclose(mix.sum(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(mix.sum(axis=2), 1, atol=1e-2)
    assert np.abs(mix - mix.swapaxes(1, 2)).max() > 0.1


@few_examples
@given(token_counts, counts, widths, seeds)
def test_a_result_joins_streams(any_backend: Backend, tokens: int, count: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = ((tokens, width), (tokens, count * (1 + count)), (tokens, count * width))
    result, joining, streams = (numbers("normal", shape, random) for shape in shapes)
    before = streams.reshape(tokens, count, width).astype(np.float64)
    any_backend.program([sk.JoinStreams(result, joining, count, streams)]).run(tokens)
    post, mix = joining[:, :count, None], joining[:, count:].reshape(tokens, count, count).swapaxes(1, 2)
    expected = post * result[:, None].astype(np.float64) + mix @ before
    terms = np.abs(post) * np.abs(result[:, None]) + np.abs(mix) @ np.abs(before)
    bound = (count + 3) * tolerance.UNIT * terms
    tolerance.assert_within(streams.reshape(tokens, count, width), expected.astype(np.float32), bound)


def test_streams_of_other_sizes_are_refused(any_backend: Backend) -> None:
    o, balanced = collapse(2, 4, 8, 0), balancing(2, 4, 0)
    joining = aligned_copy(balanced.numbers)
    for wrong, message in (
        (replace(o, numbers=joining), r"numbers: expected shape \(T, 4\)"),
        (replace(balanced, count=5), "numbers: expected 30 columns, found 20"),
        (replace(balanced, iterations=0), "iterations: expected 1 or more, found 0"),
        (replace(o, epsilon=-1.0), "epsilon: expected 0 or a number above it, found -1.0"),
        (collapse(1, 17, 1, 0), "count: expected at most 16 streams, found 17"),
        (sk.JoinStreams(o.output, o.numbers, 4, o.streams), "joining: expected 20 columns, found 4"),
    ):
        with pytest.raises(KernelError, match=message):
            any_backend.program([wrong])
