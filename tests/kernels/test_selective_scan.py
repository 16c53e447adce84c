"""The selective scan of Mamba-2: every backend against its formula, and the same bits on all instruction sets."""

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
from tests.kernels.test_delta_rule import KINDS, matrices, panels
from tests.support.every_case import every_case


def scan(
    tokens: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    random: np.random.Generator,
    kind: str = "normal",
    position: int = 0,
    steps: bool = True,
) -> so.SelectiveScan:
    """The operation on rows of the second of two sequences, `(groups, heads)` and `(W, Wv)` as given.

    Without steps it has no skip either.
    """
    (G, H), (W, Wv) = heads, widths
    positions, sequences, _ = places(tokens, position)
    sequences.fill(1)
    states = np.full((2, H, panel_count(Wv) * PANEL_ROWS, W), np.nan, np.float32)
    if position:
        states = panels(random.standard_normal((2, H, W, Wv)).astype(np.float32))
    return so.SelectiveScan(
        numbers(kind, (tokens, H * Wv + 2 * G * W), random),
        numbers("normal", (tokens, H), random) if steps else None,
        numbers("normal", (H,), random) if steps else None,
        aligned_copy(-np.exp(random.uniform(-2, 2, H)).astype(np.float32)),
        numbers("normal", (H,), random) if steps else None,
        G,
        positions,
        sequences,
        aligned_copy(states),
        aligned((tokens, H * Wv), np.float32),
    )


def by_hand(o: so.SelectiveScan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The formula in float64, a head and row at a time: the output, the last state, and a bound of the output's error.

    Errors of a column of the state, which decays, add up over rows; the bound follows magnitudes.
    """
    (tokens, outputs), H = o.output.shape, len(o.rate)
    G, W = o.groups, o.states.shape[3]
    Wv = outputs // H
    rows = o.mixed.astype(np.float64)
    skip = np.zeros(H) if o.skip is None else o.skip
    if o.step is None:  # queries, keys and values in the order of the others
        rows = np.concatenate([rows[:, 2 * G * W :], rows[:, G * W : 2 * G * W], rows[:, : G * W]], axis=1)
    output, bound = np.empty((2, tokens, H, Wv))
    states = matrices(o)[1].astype(np.float64) if o.positions[0] else np.zeros((H, W, Wv))
    for h in range(H):
        g = h // (H // G)
        S, error = states[h], np.zeros((W, Wv))
        for t in range(tokens):
            x, shared = rows[t, h * Wv : (h + 1) * Wv], rows[t, H * Wv :]
            key, query = shared[g * W : (g + 1) * W], shared[(G + g) * W : (G + g + 1) * W]
            step = 1.0
            if o.step is not None and o.step_bias is not None:
                step = np.logaddexp(0, float(o.step[t, h]) + float(o.step_bias[h]))
            exponent = float(o.rate[h]) * step
            rounding = tolerance.UNIT * (20 + 8 * abs(exponent))
            error = np.exp(exponent) * error + rounding * np.abs(np.exp(exponent) * S)
            error += tolerance.UNIT * 40 * np.abs(np.outer(key, step * x))
            S *= np.exp(exponent)
            S += np.outer(key, step * x)
            output[t, h] = S.T @ query + skip[h] * x
            terms = np.abs(S).T @ np.abs(query) + np.abs(skip[h] * x)
            bound[t, h] = error.T @ np.abs(query) + tolerance.UNIT * (W + 20) * terms
    return output.reshape(tokens, -1).astype(np.float32), states, bound.reshape(tokens, -1)


@few_examples
@given(
    st.integers(1, 70),
    st.sampled_from([(1, 1), (1, 3), (2, 4), (3, 6)]),
    st.sampled_from([(1, 1), (4, 16), (7, 20), (16, 16), (18, 40), (128, 32), (256, 17)]),
    st.sampled_from([0, 5]),
    KINDS,
    st.booleans(),
    seeds,
)
def test_selective_scan(
    any_backend: Backend,
    tokens: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    position: int,
    kind: str,
    steps: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    operation = scan(tokens, heads, widths, random, kind, position, steps)
    expected, states, bound = by_hand(operation)
    other = operation.states[0].copy()
    any_backend.program([operation]).run(tokens)
    tolerance.assert_within(operation.output, expected, bound)
    smallest = 1e-5 * np.abs(states).max(initial=0) + 1e-30
    np.testing.assert_allclose(matrices(operation)[1], states, rtol=1e-4, atol=smallest)
    assert operation.states[0].tobytes() == other.tobytes()
    padding = panels(np.ones((1, heads[1], *widths), bool))[0] == 0
    assert not operation.states[1][padding].any()


@pytest.mark.parametrize("threads", ["", " 3 threads"])
@pytest.mark.parametrize("isa", available_isas())
@every_case(("heads", "steps"), [((1, 2), True), ((4, 8), True), ((4, 4), False)])
def test_the_bits_are_the_same_on_every_instruction_set(
    isa: str, threads: str, heads: tuple[int, int], steps: bool
) -> None:
    found = []
    for name in ("native generic", f"native {isa}{threads}"):
        operation = scan(90, heads, (37, 50), np.random.default_rng(1), position=3, steps=steps)
        backend = make_backend(name)
        backend.program([operation]).run(90)
        backend.close()
        found.append(operation.output.tobytes() + operation.states.tobytes())
    assert found[0] == found[1]


@every_case("steps", [True, False])
def test_cuts_and_company_change_no_bit(any_backend: Backend, steps: bool) -> None:
    """A sequence alone; token by token; and in turn with another one, each row of which is the same."""
    alone = scan(80, (2, 4), (20, 24), np.random.default_rng(2), steps=steps)
    single = replace(alone, states=aligned_copy(alone.states), output=aligned(alone.output.shape, np.float32))
    together = replace(
        alone,
        mixed=aligned_copy(np.repeat(alone.mixed, 2, axis=0)),
        step=None if alone.step is None else aligned_copy(np.repeat(alone.step, 2, axis=0)),
        positions=aligned_copy(np.repeat(alone.positions, 2)),
        sequences=aligned_copy(np.tile(np.array([0, 1], np.int32), 80)),
        states=aligned_copy(alone.states),
        output=aligned((160, alone.output.shape[1]), np.float32),
    )
    any_backend.program([alone]).run(80)
    any_backend.program([together]).run(160)
    assert together.output[::2].tobytes() == together.output[1::2].tobytes() == alone.output.tobytes()
    assert together.states[0].tobytes() == together.states[1].tobytes() == alone.states[1].tobytes()
    rows = ("mixed", *(("step",) if steps else ()), "positions", "sequences", "output")
    one = replace(single, **{name: aligned_copy(getattr(single, name)[:1]) for name in rows})
    program = any_backend.program([one])
    for t in range(80):
        for name in rows[:-1]:
            getattr(one, name)[0] = getattr(single, name)[t]
        program.run(1)
        assert one.output[0].tobytes() == alone.output[t].tobytes()
    assert one.states[1].tobytes() == alone.states[1].tobytes()


@pytest.mark.parametrize(("shift", "decays_to"), [(-200.0, 1.0), (200.0, 0.0)])
def test_extreme_steps(any_backend: Backend, shift: float, decays_to: float) -> None:
    """A step of nearly 0 keeps the state as it is, a very large one forgets it; neither is NaN."""
    operation = scan(1, (1, 1), (8, 16), np.random.default_rng(3), position=1)
    assert operation.step is not None
    operation.step.fill(shift)
    operation.mixed[:, :16] = 0  # nothing is added
    before = matrices(operation)[1].copy()
    any_backend.program([operation]).run(1)
    np.testing.assert_allclose(matrices(operation)[1], decays_to * before, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups: expected a divisor of 4 heads, found 3"),
        ({"mixed": np.zeros((5, 100), np.float32)}, "mixed: expected 176 columns, found 100"),
        ({"step": None}, "step_bias: expected none without steps, found True"),
    ],
)
def test_contradictions_are_refused(any_backend: Backend, change: dict[str, object], message: str) -> None:
    operation = replace(scan(5, (2, 4), (20, 24), np.random.default_rng(0)), **change)
    with pytest.raises(KernelError, match=message):
        any_backend.program([operation])
