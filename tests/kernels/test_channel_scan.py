"""The channel scan of Mamba-1: every backend against its formula, and the same bits on all instruction sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.formats import PANEL_ROWS, panel_count
from edgemoe.kernels.native.library import available_isas
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, places, seeds
from tests.kernels.conftest import make_backend
from tests.kernels.test_delta_rule import KINDS

ROWS = ("input", "step", "keys", "queries", "positions", "sequences", "output")


def scan(
    tokens: int, channels: int, width: int, random: np.random.Generator, kind: str = "normal", position: int = 0
) -> so.ChannelScan:
    """The operation on rows of the second of two sequences."""
    positions, sequences, _ = places(tokens, position)
    sequences.fill(1)
    states = np.full((2, panel_count(channels), width, PANEL_ROWS), np.nan, np.float32)
    if position:
        states = random.standard_normal(states.shape).astype(np.float32)
        states[:, -1, :, channels - (len(states[0]) - 1) * PANEL_ROWS :] = 0
    return so.ChannelScan(
        numbers(kind, (tokens, channels), random),
        numbers("normal", (tokens, channels), random),
        numbers("normal", (tokens, width), random),
        numbers("normal", (tokens, width), random),
        aligned_copy(-np.exp(random.uniform(-2, 2, channels * width)).astype(np.float32)),
        numbers("normal", (channels,), random),
        positions,
        sequences,
        aligned_copy(states.reshape(2, -1, width)),
        aligned((tokens, channels), np.float32),
    )


def matrix(o: so.ChannelScan) -> np.ndarray:
    """The numbers `(W, I)` of the second sequence, with the columns after the last channel."""
    _, columns, width = o.states.shape
    return o.states[1].reshape(columns // PANEL_ROWS, width, PANEL_ROWS).swapaxes(0, 1).reshape(width, columns)


def by_hand(o: so.ChannelScan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The formula in float64, a row at a time: the output, the last state, and a bound of the output's error.

    Errors of a number of the state, which decays, add up over rows; the bound follows magnitudes.
    """
    tokens, channels = o.output.shape
    rate = o.rate.reshape(channels, -1).T.astype(np.float64)
    width = len(rate)
    output, bound = np.empty((2, tokens, channels))
    S = matrix(o)[:, :channels].astype(np.float64) if o.positions[0] else np.zeros((width, channels))
    error = np.zeros((width, channels))
    for t in range(tokens):
        x, key, query = (rows[t].astype(np.float64) for rows in (o.input, o.keys, o.queries))
        step = np.logaddexp(0, o.step[t].astype(np.float64))
        exponent = rate * step
        error = np.exp(exponent) * error
        error += tolerance.UNIT * ((20 + 8 * np.abs(exponent)) * np.abs(np.exp(exponent) * S))
        error += tolerance.UNIT * 40 * np.abs(np.outer(key, step * x))
        S = np.exp(exponent) * S + np.outer(key, step * x)
        output[t] = query @ S + o.skip * x
        terms = np.abs(query) @ np.abs(S) + np.abs(o.skip * x)
        bound[t] = np.abs(query) @ error + tolerance.UNIT * (width + 20) * terms
    return output.astype(np.float32), S, bound


@few_examples
@given(
    st.integers(1, 40),
    st.sampled_from([(1, 1), (16, 16), (20, 7), (50, 16), (17, 256), (96, 8)]),
    st.sampled_from([0, 5]),
    KINDS,
    seeds,
)
def test_channel_scan(
    any_backend: Backend, tokens: int, sizes: tuple[int, int], position: int, kind: str, seed: int
) -> None:
    channels, width = sizes
    operation = scan(tokens, channels, width, np.random.default_rng(seed), kind, position)
    expected, state, bound = by_hand(operation)
    other = operation.states[0].copy()
    any_backend.program([operation]).run(tokens)
    tolerance.assert_within(operation.output, expected, bound)
    smallest = 1e-5 * np.abs(state).max(initial=0) + 1e-30
    found = matrix(operation)
    np.testing.assert_allclose(found[:, :channels], state, rtol=1e-4, atol=smallest)
    assert operation.states[0].tobytes() == other.tobytes()
    assert not found[:, channels:].any()


@pytest.mark.parametrize("threads", ["", " 3 threads"])
@pytest.mark.parametrize("isa", available_isas())
def test_the_bits_are_the_same_on_every_instruction_set(isa: str, threads: str) -> None:
    found = []
    for name in ("native generic", f"native {isa}{threads}"):
        operation = scan(90, 200, 13, np.random.default_rng(1), position=3)
        backend = make_backend(name)
        backend.program([operation]).run(90)
        backend.close()
        found.append(operation.output.tobytes() + operation.states.tobytes())
    assert found[0] == found[1]


def test_cuts_and_company_change_no_bit(any_backend: Backend) -> None:
    """A sequence alone; token by token; and in turn with another one, each row of which is the same."""
    alone = scan(80, 24, 16, np.random.default_rng(2))
    single = replace(alone, states=aligned_copy(alone.states), output=aligned(alone.output.shape, np.float32))
    doubled = {name: aligned_copy(np.repeat(getattr(alone, name), 2, axis=0)) for name in ROWS[:-2]}
    together = replace(
        alone,
        **doubled,
        sequences=aligned_copy(np.tile(np.array([0, 1], np.int32), 80)),
        states=aligned_copy(alone.states),
        output=aligned((160, 24), np.float32),
    )
    any_backend.program([alone]).run(80)
    any_backend.program([together]).run(160)
    assert together.output[::2].tobytes() == together.output[1::2].tobytes() == alone.output.tobytes()
    assert together.states[0].tobytes() == together.states[1].tobytes() == alone.states[1].tobytes()
    one = replace(single, **{name: aligned_copy(getattr(single, name)[:1]) for name in ROWS})
    program = any_backend.program([one])
    for t in range(80):
        for name in ROWS[:-1]:
            getattr(one, name)[0] = getattr(single, name)[t]
        program.run(1)
        assert one.output[0].tobytes() == alone.output[t].tobytes()
    assert one.states[1].tobytes() == alone.states[1].tobytes()


@pytest.mark.parametrize(("step", "decays_to"), [(-200.0, 1.0), (200.0, 0.0)])
def test_extreme_steps(any_backend: Backend, step: float, decays_to: float) -> None:
    """A step of nearly 0 keeps the state as it is, a very large one forgets it; neither is NaN."""
    operation = scan(1, 16, 8, np.random.default_rng(3), position=1)
    operation.step.fill(step)
    operation.rate.fill(-2)
    operation.input.fill(0)  # nothing is added
    before = matrix(operation).copy()
    any_backend.program([operation]).run(1)
    np.testing.assert_allclose(matrix(operation), decays_to * before, rtol=1e-6, atol=1e-10)


def test_too_many_numbers_are_refused(any_backend: Backend) -> None:
    operation = scan(1, 16, 257, np.random.default_rng(0))
    with pytest.raises(KernelError, match="states: expected at most 256 numbers of each channel, found 257"):
        any_backend.program([operation])
