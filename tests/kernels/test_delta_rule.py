"""The gated delta rule: every backend against its formula; the same bits on all instruction sets and in all cuts."""

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
from tests.support.every_case import every_case

KINDS = st.sampled_from(["normal", "zeros", "equal", "spike", "halves"])
FORMS = ("head", "channel", "bounded")


def delta_rule(
    tokens: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    random: np.random.Generator,
    kind: str = "normal",
    position: int = 0,
    form: str = "head",
) -> so.DeltaRule:
    """The operation on rows of the second of two sequences, `(key heads, heads)` and `(W, Wv)` as given.

    By its `form` a head has one decay, or one for each row of its state, which a bound may hold; then queries, keys and
    values lie apart.
    """
    (G, H), (W, Wv) = heads, widths
    positions, sequences, _ = places(tokens, position)
    sequences.fill(1)
    states = np.full((2, H, panel_count(Wv) * PANEL_ROWS, W), np.nan, np.float32)
    if position:
        states = panels(random.standard_normal((2, H, W, Wv)).astype(np.float32))
    mixed, decays, apart = numbers(kind, (tokens, 2 * G * W + H * Wv), random), H, {}
    if form != "head":
        queries, keys, values = np.split(mixed, [G * W, 2 * G * W], axis=1)
        mixed, decays, apart = (
            aligned_copy(queries),
            H * W,
            {"keys": aligned_copy(keys), "values": aligned_copy(values)},
        )
    return so.DeltaRule(
        mixed,
        numbers("normal", (tokens, H), random),
        numbers("normal", (tokens, decays), random),
        numbers("normal", (decays,), random),
        aligned_copy(-np.exp(random.uniform(-2, 2, H)).astype(np.float32)),
        1e-6,
        G,
        positions,
        sequences,
        aligned_copy(states),
        aligned((tokens, H * Wv), np.float32),
        **apart,
        lower_bound=-3.0 if form == "bounded" else 0.0,
    )


def panels(states: np.ndarray) -> np.ndarray:
    """States `(S, H, W, Wv)` as the operation keeps them: element `(i, c)` at `[c // 16, i, c % 16]` of its head."""
    sequences, heads, width, columns = states.shape
    count = panel_count(columns)
    kept = np.zeros((sequences, heads, count, width, PANEL_ROWS), states.dtype)
    for c in range(columns):
        kept[:, :, c // PANEL_ROWS, :, c % PANEL_ROWS] = states[:, :, :, c]
    return kept.reshape(sequences, heads, count * PANEL_ROWS, width)


def matrices(o: so.DeltaRule) -> np.ndarray:
    """The inverse of `panels`, for the states of an operation."""
    sequences, heads, _, width = o.states.shape
    kept = o.states.reshape(sequences, heads, -1, width, PANEL_ROWS)
    columns = o.output.shape[1] // heads
    return np.stack([kept[:, :, c // PANEL_ROWS, :, c % PANEL_ROWS] for c in range(columns)], axis=-1)


def by_hand(o: so.DeltaRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The formula in float64, a head and row at a time: the output, the last state, and a bound of the output's error.

    Neither the decay nor the correction lengthens a column of the state, so that errors of rows add up.
    """
    tokens, H = o.strength.shape
    G, W = o.key_heads, o.states.shape[3]
    Wv = o.output.shape[1] // H
    parts = [o.mixed] if o.keys is None or o.values is None else [o.mixed, o.keys, o.values]
    rows = np.concatenate(parts, axis=1).astype(np.float64)
    inputs = (o.decay_input.astype(np.float64) + o.decay_bias).reshape(tokens, H, -1)
    output, bound = np.empty((2, tokens, H, Wv))
    states = matrices(o)[1].astype(np.float64) if o.positions[0] else np.zeros((H, W, Wv))
    for h in range(H):
        g = h // (H // G)
        S, error = states[h], np.zeros(Wv)
        for t in range(tokens):
            query, key = rows[t, g * W : (g + 1) * W], rows[t, (G + g) * W : (G + g + 1) * W]
            value = rows[t, 2 * G * W + h * Wv : 2 * G * W + (h + 1) * Wv]
            q = query / np.sqrt(query @ query + o.epsilon) / np.sqrt(W)
            k = key / np.sqrt(key @ key + o.epsilon)
            exponent = float(o.rate[h]) * np.logaddexp(0, inputs[t, h])
            if o.lower_bound:
                exponent = o.lower_bound / (1 + np.exp(float(o.rate[h]) * inputs[t, h]))
            decay, strength = np.exp(exponent), 1 / (1 + np.exp(-float(o.strength[t, h])))
            S *= decay[:, None]
            rounding = tolerance.UNIT * (4 * W + 40 + 8 * np.abs(exponent).max())
            error = decay.max() * error + rounding * (np.linalg.norm(S, axis=0) + np.abs(value))
            S += np.outer(k, strength * (value - S.T @ k))
            output[t, h] = S.T @ q
            bound[t, h] = error + tolerance.UNIT * (W + 20) * np.linalg.norm(S, axis=0)
    return output.reshape(tokens, -1).astype(np.float32), states, bound.reshape(tokens, -1)


@few_examples
@given(
    st.integers(1, 70),
    st.sampled_from([(1, 1), (1, 3), (2, 4), (3, 6)]),
    st.sampled_from([(1, 1), (4, 16), (7, 20), (16, 16), (18, 40), (128, 32), (256, 17)]),
    st.sampled_from([0, 5]),
    KINDS,
    st.sampled_from(FORMS),
    seeds,
)
def test_delta_rule(
    any_backend: Backend,
    tokens: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    position: int,
    kind: str,
    form: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    operation = delta_rule(tokens, heads, widths, random, kind, position, form)
    expected, states, bound = by_hand(operation)
    other = operation.states[0].copy()
    any_backend.program([operation]).run(tokens)
    tolerance.assert_within(operation.output, expected, bound)
    reached = np.abs(bound).max(initial=0) * np.sqrt(widths[0]) + 1e-30
    assert np.abs(matrices(operation)[1] - states).max() <= reached + 1e-6 * np.abs(states).max()
    assert operation.states[0].tobytes() == other.tobytes()
    padding = panels(np.ones((1, heads[1], *widths), bool))[0] == 0
    assert not operation.states[1][padding].any()


@pytest.mark.parametrize("threads", ["", " 3 threads"])
@pytest.mark.parametrize("isa", available_isas())
@every_case(("heads", "form"), [((1, 2), "head"), ((4, 8), "head"), ((1, 2), "channel"), ((4, 4), "bounded")])
def test_the_bits_are_the_same_on_every_instruction_set(
    isa: str, threads: str, heads: tuple[int, int], form: str
) -> None:
    found = []
    for name in ("native generic", f"native {isa}{threads}"):
        operation = delta_rule(90, heads, (37, 50), np.random.default_rng(1), position=3, form=form)
        backend = make_backend(name)
        backend.program([operation]).run(90)
        backend.close()
        found.append(operation.output.tobytes() + operation.states.tobytes())
    assert found[0] == found[1]


@every_case("form", FORMS)
def test_heads_in_turn_are_the_same_heads_at_other_places(any_backend: Backend, form: str) -> None:
    G, H, Wv = 2, 6, 20
    together = delta_rule(40, (G, H), (16, Wv), np.random.default_rng(4), position=3, form=form)
    order = np.arange(H).reshape(G, H // G).T.ravel()  # the first head of each key head, then the second of each

    def turned(array: np.ndarray) -> np.ndarray:
        return aligned_copy(array.reshape(*array.shape[:-1], H, -1)[..., order, :].reshape(array.shape))

    values = together.mixed if together.values is None else together.values
    moved = {name: turned(getattr(together, name)) for name in ("strength", "decay_input", "decay_bias", "rate")}
    of_keys = values.shape[1] - H * Wv
    turned_values = aligned_copy(np.concatenate([values[:, :of_keys], turned(values[:, of_keys:])], axis=1))
    in_turn = replace(
        together,
        **moved,
        **{"mixed" if together.values is None else "values": turned_values},
        states=aligned_copy(together.states[:, order]),
        output=aligned(together.output.shape, np.float32),
        in_turn=True,
    )
    for operation in (together, in_turn):
        any_backend.program([operation]).run(40)
    assert in_turn.output.tobytes() == turned(together.output).tobytes()
    assert in_turn.states[1].tobytes() == together.states[1][order].tobytes()


@every_case("form", FORMS)
def test_cuts_and_company_change_no_bit(any_backend: Backend, form: str) -> None:
    """A sequence alone; token by token; and in turn with another one, each row of which is the same."""
    random = np.random.default_rng(2)
    alone = delta_rule(80, (2, 4), (20, 24), random, form=form)
    single = replace(alone, states=aligned_copy(alone.states), output=aligned(alone.output.shape, np.float32))
    apart = ("keys", "values") if alone.keys is not None else ()
    double = {name: np.repeat(getattr(alone, name), 2, axis=0) for name in ("mixed", "strength", "decay_input", *apart)}
    together = replace(
        alone,
        **{name: aligned_copy(rows) for name, rows in double.items()},
        positions=aligned_copy(np.repeat(alone.positions, 2)),
        sequences=aligned_copy(np.tile(np.array([0, 1], np.int32), 80)),
        states=aligned_copy(alone.states),
        output=aligned((160, alone.output.shape[1]), np.float32),
    )
    any_backend.program([alone]).run(80)
    any_backend.program([together]).run(160)
    assert together.output[::2].tobytes() == together.output[1::2].tobytes() == alone.output.tobytes()
    assert together.states[0].tobytes() == together.states[1].tobytes() == alone.states[1].tobytes()
    rows = ("mixed", "strength", "decay_input", "positions", "sequences", *apart, "output")
    one = replace(single, **{name: aligned_copy(getattr(single, name)[:1]) for name in rows})
    program = any_backend.program([one])
    for t in range(80):
        for name in rows[:-1]:
            getattr(one, name)[0] = getattr(single, name)[t]
        program.run(1)
        assert one.output[0].tobytes() == alone.output[t].tobytes()
    assert one.states[1].tobytes() == alone.states[1].tobytes()


@every_case(
    ("form", "shift", "decays_to"),
    [
        *((form, shift, decay) for form in ("head", "channel") for shift, decay in ((-200.0, 1.0), (200.0, 0.0))),
        ("bounded", -2000.0, 1.0),
        ("bounded", 2000.0, np.exp(-3.0)),
    ],
)
def test_extreme_decays(any_backend: Backend, form: str, shift: float, decays_to: float) -> None:
    """A softplus or sigmoid of nearly 0 keeps the state as it is, a very large softplus forgets it, and a sigmoid of
    nearly 1 decays it to the bound; none is NaN.
    """
    random = np.random.default_rng(3)
    operation = delta_rule(1, (1, 1), (8, 16), random, position=1, form=form)
    operation.decay_input.fill(shift)
    operation.strength.fill(-200)  # nothing is written
    before = matrices(operation)[1].copy()
    any_backend.program([operation]).run(1)
    np.testing.assert_allclose(matrices(operation)[1], decays_to * before, rtol=1e-6, atol=1e-15)


@every_case(
    ("change", "message"),
    [
        ({"key_heads": 3}, "key_heads: expected a divisor of 4 heads, found 3"),
        ({"mixed": np.zeros((5, 100), np.float32)}, "mixed: expected 176 columns, found 100"),
        ({"keys": np.zeros((5, 40), np.float32)}, "values: expected a buffer if keys have one"),
        ({"lower_bound": 1.0}, "lower_bound: expected 0 or a number below it, found 1.0"),
        (
            {"decay_input": np.zeros((5, 8), np.float32), "decay_bias": np.zeros(8, np.float32)},
            "decay_input: expected 4 or 80 columns, found 8",
        ),
    ],
)
def test_contradictions_are_refused(any_backend: Backend, change: dict[str, object], message: str) -> None:
    operation = replace(delta_rule(5, (2, 4), (20, 24), np.random.default_rng(0)), **change)
    with pytest.raises(KernelError, match=message):
        any_backend.program([operation])


def test_keys_that_are_too_wide_are_refused(any_backend: Backend) -> None:
    operation = delta_rule(1, (1, 1), (257, 16), np.random.default_rng(0))
    with pytest.raises(KernelError, match="keys of at most 256 channels, found 257"):
        any_backend.program([operation])
