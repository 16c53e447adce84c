"""Several residual streams: every backend against the reference, on all instruction sets with the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.reference.streams import stream_shares
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, seeds, token_counts

counts, widths = st.sampled_from([1, 2, 4, 7]), st.sampled_from([1, 8, 63, 64, 65, 200])


def collapse(
    tokens: int, count: int, width: int, seed: int, joins: bool = True, iterations: int = 20
) -> sm.CollapseStreams:
    random = np.random.default_rng(seed)
    columns = count * (2 + count) if joins else count
    return sm.CollapseStreams(
        numbers("normal", (tokens, count * width), random),
        numbers("normal", (tokens, columns), random),
        numbers("normal", (columns,), random),
        numbers("normal", (3 if joins else 1,), random),
        1e-3,
        iterations,
        count,
        aligned((tokens, count * (1 + count)), np.float32) if joins else None,
        aligned((tokens, width), np.float32),
    )


@few_examples
@given(token_counts, counts, widths, st.booleans(), st.sampled_from([1, 2, 20]), seeds)
def test_streams_collapse(
    any_backend: Backend, tokens: int, count: int, width: int, joins: bool, iterations: int, seed: int
) -> None:
    o = collapse(tokens, count, width, seed, joins, iterations)
    any_backend.program([o]).run(tokens)
    pre, post, mix = stream_shares(o.numbers, o.base, o.scales, count, o.epsilon, iterations)
    streams = o.streams.reshape(tokens, count, width).astype(np.float64)
    terms = np.einsum("ti,tid->td", pre, np.abs(streams))
    expected = np.einsum("ti,tid->td", pre, streams).astype(np.float32)
    # Arguments of a few units are rounded twice, exponentials once.
    slack = 2 * tolerance.EXPONENTIAL + 40 * tolerance.UNIT
    tolerance.assert_within(o.output, expected, slack * terms)
    if o.joining is not None:
        joining = np.concatenate([post, mix.reshape(tokens, -1)], axis=1)
        bound = (2 + iterations) * slack * joining
        tolerance.assert_within(o.joining, joining.astype(np.float32), bound)


def test_a_mixture_of_streams_keeps_their_sum(any_backend: Backend) -> None:
    """After twenty turns rows and columns sum to nearly 1, which the two sides of a matrix that is not even show."""
    o = replace(collapse(5, 4, 16, 3), epsilon=1e-6)
    any_backend.program([o]).run(5)
    assert o.joining is not None
    mix = o.joining[:, 4:].reshape(5, 4, 4)
    np.testing.assert_allclose(mix.sum(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(mix.sum(axis=2), 1, atol=1e-2)
    assert np.abs(mix - mix.swapaxes(1, 2)).max() > 0.1


@few_examples
@given(token_counts, counts, widths, st.booleans(), seeds)
def test_a_result_joins_streams(
    any_backend: Backend, tokens: int, count: int, width: int, alike: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    result = numbers("normal", (tokens, width), random)
    joining = None if alike else numbers("normal", (tokens, count * (1 + count)), random)
    streams = numbers("normal", (tokens, count * width), random)
    before = streams.reshape(tokens, count, width).astype(np.float64)
    any_backend.program([sm.JoinStreams(result, joining, count, streams)]).run(tokens)
    after = streams.reshape(tokens, count, width)
    if joining is None:
        assert (after == result[:, None]).all()
        return
    post, mix = joining[:, :count, None], joining[:, count:].reshape(tokens, count, count).swapaxes(1, 2)
    expected = post * result[:, None].astype(np.float64) + mix @ before
    terms = np.abs(post) * np.abs(result[:, None]) + np.abs(mix) @ np.abs(before)
    tolerance.assert_within(after, expected.astype(np.float32), (count + 3) * tolerance.UNIT * terms)


def test_streams_of_other_sizes_are_refused(any_backend: Backend) -> None:
    o = collapse(2, 4, 8, 0)
    for wrong, message in (
        (replace(o, scales=np.ones(2, np.float32)), "scales: expected 3 numbers, found 2"),
        (replace(o, joining=None), "numbers: expected 4 columns, found 24"),
        (replace(o, joining=aligned((2, 21), np.float32)), "joining: expected 20 columns, found 21"),
        (replace(o, iterations=0), "iterations: expected 1 or more, found 0"),
        (collapse(1, 17, 1, 0), "count: expected at most 16 streams, found 17"),
        (sm.JoinStreams(o.output, aligned_copy(o.numbers), 4, o.streams), "joining: expected 20 columns, found 24"),
    ):
        with pytest.raises(KernelError, match=message):
            any_backend.program([wrong])
