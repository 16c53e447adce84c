"""The short convolution: every backend against the reference, and the same bits on all instruction sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.library import available_isas
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, places, seeds
from tests.kernels.conftest import make_backend
from tests.support.every_case import every_case

FINITE_KINDS = st.sampled_from(["normal", "zeros", "equal", "spike", "halves"])


def convolution(
    tokens: int,
    width: int,
    length: int,
    undo: int,
    kind: str,
    random: np.random.Generator,
    bias: bool = True,
    parts: int = 3,
    dilation: int = 1,
) -> so.ShortConv:
    """The operation on rows that follow some earlier ones of the same sequence, the second of two."""
    position, ring = int(random.integers(0, 40)), (length - 1) * dilation + undo
    positions, sequences, _ = places(tokens, position)
    sequences.fill(1)
    return so.ShortConv(
        numbers(kind, (tokens, parts * width), random),
        numbers("normal", (width * length,), random),
        numbers("normal", (width,), random) if bias else None,
        positions,
        sequences,
        numbers("normal", (2, ring, width), random),
        aligned((tokens, width), np.float32),
        parts,
        dilation,
    )


def by_hand(o: so.ShortConv) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The output as the definition reads, in float64; the sum of its terms' magnitudes; the ring afterwards."""
    width, ring = o.output.shape[1], o.inputs.copy()
    added = o.input if o.parts == 1 else o.input[:, :width] * o.input[:, 2 * width :]
    taps = o.taps.reshape(width, -1).astype(np.float64)
    exact, terms = np.zeros(added.shape), np.zeros(added.shape)
    for t, position in enumerate(o.positions.tolist()):
        kept = ring[o.sequences[t]]
        kept[position % len(kept)] = added[t]
        wanted = range(position - (taps.shape[1] - 1) * o.dilation, position + 1, o.dilation)
        earlier = [added[t - (position - p)] if position - p <= t else o.inputs[1, p % len(kept)] for p in wanted]
        total = [tap * u if p >= 0 else np.zeros(width) for tap, u, p in zip(taps.T, earlier, wanted, strict=True)]
        total.append(np.zeros(width) if o.bias is None else o.bias.astype(np.float64))
        exact[t], terms[t] = sum(total), sum(map(np.abs, total))
        if o.parts == 1:
            # The slope of SiLU is at most 1.1, and its own rounding counts on top of the sum's.
            with np.errstate(over="ignore"):  # the quotient is then 0, as it should be
                exact[t], terms[t] = exact[t] / (1 + np.exp(-exact[t])), 1.1 * terms[t] + 16 * np.abs(exact[t])
        else:
            between = o.input[t, width : 2 * width]
            exact[t], terms[t] = between * exact[t], np.abs(between) * terms[t]
    return exact, terms, ring


@few_examples
@given(
    st.integers(1, 40),
    st.sampled_from([1, 7, 16, 63, 64, 65, 130]),
    st.integers(2, 5),
    st.sampled_from([0, 1, 16]),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
    FINITE_KINDS,
    seeds,
)
def test_short_conv(
    any_backend: Backend,
    tokens: int,
    width: int,
    length: int,
    undo: int,
    bias: bool,
    parts: int,
    dilation: int,
    kind: str,
    seed: int,
) -> None:
    operation = convolution(tokens, width, length, undo, kind, np.random.default_rng(seed), bias, parts, dilation)
    expected, terms, ring = by_hand(operation)
    any_backend.program([operation]).run(tokens)
    bound = tolerance.UNIT * (2 * length + 3) * terms
    tolerance.assert_within(operation.output, expected.astype(np.float32), bound)
    assert operation.inputs.tobytes() == ring.tobytes()


@every_case("parts", [1, 3])
@every_case("threads", ["", " 3 threads"])
@every_case("isa", available_isas())
def test_the_bits_are_the_same_on_every_instruction_set(isa: str, threads: str, parts: int) -> None:
    found = []
    for name in ("native generic", f"native {isa}{threads}"):
        operation = convolution(90, 200, 3, 5, "normal", np.random.default_rng(1), parts=parts)
        backend = make_backend(name)
        backend.program([operation]).run(90)
        backend.close()
        found.append(operation.output.tobytes() + operation.inputs.tobytes())
    assert found[0] == found[1]


def test_rows_may_change_between_sequences_and_come_back(any_backend: Backend) -> None:
    random = np.random.default_rng(2)
    alone = convolution(12, 20, 3, 2, "normal", random)
    mixed = so.ShortConv(
        aligned_copy(np.repeat(alone.input, 2, axis=0)),
        alone.taps,
        alone.bias,
        aligned_copy(np.repeat(alone.positions, 2)),
        aligned_copy(np.tile(np.array([0, 1], np.int32), 12)),
        aligned_copy(np.stack([alone.inputs[1], alone.inputs[1]])),
        aligned((24, 20), np.float32),
    )
    for operation, rows in ((alone, 12), (mixed, 24)):
        any_backend.program([operation]).run(rows)
    assert mixed.output[::2].tobytes() == mixed.output[1::2].tobytes() == alone.output.tobytes()
    assert mixed.inputs[0].tobytes() == mixed.inputs[1].tobytes() == alone.inputs[1].tobytes()


@every_case("parts", [2, 4])
def test_other_numbers_of_parts_are_refused(any_backend: Backend, parts: int) -> None:
    operation = convolution(1, 4, 4, 0, "normal", np.random.default_rng(0), parts=parts)
    with pytest.raises(KernelError, match=f"parts: expected 1 or 3, found {parts}"):
        any_backend.program([operation])


def test_a_dilation_beyond_what_a_ring_may_hold_is_refused(any_backend: Backend) -> None:
    operation = convolution(1, 4, 4, 0, "normal", np.random.default_rng(0))
    with pytest.raises(KernelError, match="dilation: expected 1 to 64, found 65"):
        any_backend.program([replace(operation, dilation=65)])


def test_a_ring_shorter_than_the_convolution_is_refused(any_backend: Backend) -> None:
    operation = convolution(1, 4, 4, 0, "normal", np.random.default_rng(0))
    short = so.ShortConv(
        operation.input,
        operation.taps,
        None,
        operation.positions,
        operation.sequences,
        operation.inputs[:, :2].copy(),
        operation.output,
    )
    with pytest.raises(KernelError, match="a ring of at least 3"):
        any_backend.program([short])
