"""The operations on several residual streams: every backend against the reference, and the same bits on all ISAs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.reference.backend import REFERENCE
from tests.kernels import tolerance
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, random_matrix, seeds, token_counts
from tests.kernels.conftest import make_backend
from tests.support.every_case import every_case

FINITE_KINDS = st.sampled_from(["normal", "zeros", "equal", "spike", "halves"])
counts, widths = st.integers(1, 5), st.sampled_from([1, 7, 16, 130, 256, 300])


def shaped(rows: np.ndarray, count: int) -> np.ndarray:
    return rows.reshape(len(rows), count, -1).copy()


@few_examples
@given(counts, widths, token_counts, FINITE_KINDS, seeds)
def test_read_streams(any_backend: Backend, count: int, width: int, tokens: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    streams, shares = numbers(kind, (tokens, count * width), random), numbers("normal", (tokens, count * width), random)
    output = aligned((tokens, width), np.float32)
    any_backend.program([sm.ReadStreams(streams, shares, output)]).run(tokens)
    expected = REFERENCE.read_streams(shaped(streams, count), shaped(shares, count))
    bound = tolerance.UNIT * (count + 12) * np.abs(shaped(streams, count)).sum(axis=1)
    tolerance.assert_within(output, expected, bound)


@few_examples
@given(counts, widths, token_counts, FINITE_KINDS, seeds)
def test_write_streams(any_backend: Backend, count: int, width: int, tokens: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    streams, result = numbers(kind, (tokens, count * width), random), numbers("normal", (tokens, width), random)
    shares = numbers("normal", (tokens, count), random)
    expected = REFERENCE.write_streams(shaped(streams, count), shares, result)
    bound = tolerance.UNIT * (np.abs(expected) + 24 * np.abs(result)[:, None])
    any_backend.program([sm.WriteStreams(shares, result, streams)]).run(tokens)
    tolerance.assert_within(streams, expected.reshape(tokens, -1), bound.reshape(tokens, -1))


@few_examples
@given(counts, widths, token_counts, FINITE_KINDS, seeds)
def test_gate_by_agreement(any_backend: Backend, count: int, width: int, tokens: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    key, query = numbers(kind, (tokens, count * width), random), numbers("halves", (tokens, count * width), random)
    value, output = numbers("normal", (tokens, width), random), aligned((tokens, count * width), np.float32)
    any_backend.program([sm.GateByAgreement(key, query, value, 1e-6, output)]).run(tokens)
    parts = shaped(key, count), shaped(query, count)
    expected = REFERENCE.gate_by_agreement(*parts, value, 1e-6)
    # The root is steepest, 500 times, where the agreement is least; the slope of the sigmoid is at most 1/4.
    sums = np.abs(parts[0] * parts[1]).sum(axis=2) / np.sqrt(width)
    bound = tolerance.UNIT * (12 + 125 * (width / 8 + 8) * sums)[:, :, None] * np.abs(value)[:, None]
    exact = np.einsum("tsd,tsd->ts", *(part.astype(np.float64) for part in parts)) / np.sqrt(width)
    clear = (np.abs(exact) > tolerance.UNIT * (width + 8) * sums) | (sums == 0)  # else rounding may turn its sign
    tolerance.assert_within(shaped(output, count)[clear], expected[clear], bound[clear])


def test_agreement_of_nothing_has_no_sign(any_backend: Backend) -> None:
    key = aligned_copy(np.array([[1, 1, -1, 1, 1e-9, 0]], np.float32))
    query = aligned_copy(np.array([[4, 4, 4, 4, 1e-9, 1]], np.float32))
    value, output = aligned_copy(np.array([[2, -6]], np.float32)), aligned((1, 6), np.float32)
    any_backend.program([sm.GateByAgreement(key, query, value, 1e-6, output)]).run(1)
    sigmoid = [1 / (1 + np.exp(-x)) for x in (np.sqrt(8 / np.sqrt(2)), 0, 1e-3)]
    expected = np.array([[share * number for share in sigmoid for number in (2, -6)]], np.float32)
    np.testing.assert_allclose(output, expected, rtol=1e-6)


@every_case("threads", ["", " 3 threads"])
@every_case("isa", available_isas())
def test_the_bits_are_the_same_on_every_instruction_set(isa: str, threads: str) -> None:
    found = []
    for name in ("native generic", f"native {isa}{threads}"):
        random = np.random.default_rng(3)
        streams, other = (numbers("normal", (70, 4 * 290), random) for _ in range(2))
        shares, row = numbers("normal", (70, 4), random), aligned((70, 290), np.float32)
        agreed = aligned(streams.shape, np.float32)
        backend = make_backend(name)
        backend.program(
            [
                sm.ReadStreams(streams, other, row),
                sm.GateByAgreement(streams, other, row, 1e-6, agreed),
                sm.WriteStreams(shares, row, streams),
            ]
        ).run(70)
        backend.close()
        found.append(row.tobytes() + agreed.tobytes() + streams.tobytes())
    assert found[0] == found[1]


def test_the_root_of_nothing_is_refused(any_backend: Backend) -> None:
    rows = np.zeros((1, 4), np.float32)
    with pytest.raises(KernelError, match="least: expected a number above 0, found 0"):
        any_backend.program([sm.GateByAgreement(rows, rows.copy(), rows.copy(), 0.0, rows.copy())])


def test_an_embedding_may_fill_several_streams(any_backend: Backend) -> None:
    matrix = random_matrix("q4", 20, 40, np.random.default_rng(4))
    ids = aligned_copy(np.array([19, 0, 7], np.int32))
    one, three = aligned((3, 40), np.float32), aligned((3, 120), np.float32)
    any_backend.program([op.Embed(ids, matrix, 1.5, one), op.Embed(ids, matrix, 1.5, three, 3)]).run(3)
    assert three.tobytes() == np.tile(one, 3).tobytes()
