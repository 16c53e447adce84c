"""Products straight from the code sub1, on every backend, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.conversion.records import join_record
from edgemoe.errors import EdgemoeError, KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.formats import EXPERT_FORMATS, SUB1, Matrix
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.reference.products import quantise_activations
from edgemoe.kernels.sub1 import HEADER_BYTES, pack_panels, pack_trits, unpack_trits, weights_of
from tests.kernels import tolerance
from tests.kernels.builders import (
    aligned,
    aligned_copy,
    column_counts,
    few_examples,
    kinds,
    numbers,
    random_matrix,
    row_counts,
    seeds,
)
from tests.kernels.conftest import make_backend
from tests.support.agreeing import AgreeingBackends
from tests.support.trits import draw_levels, draw_trits

shares = st.sampled_from([0.0, 0.5, 0.885, 1.0])
token_counts = st.sampled_from([1, 2, 3, 4, 7, 33])


@pytest.fixture(scope="module")
def native() -> Iterator[Backend]:
    """The native kernels of every instruction set."""
    made = AgreeingBackends({isa: make_backend(f"native {isa}") for isa in available_isas()})
    yield made
    made.close()


def matrix_of(trits: np.ndarray, levels: np.ndarray) -> Matrix:
    return Matrix(aligned_copy(pack_trits(trits, levels)), SUB1, *trits.shape)


def bound(values: np.ndarray, matrix: Matrix) -> np.ndarray:
    """The error of float32 sums of plus and of minus: each is rounded once for every group, and three times more."""
    weights = np.abs(weights_of(*unpack_trits(matrix.data))).astype(np.float64)
    integers, scales = quantise_activations(values)
    inputs = np.abs(integers * scales.astype(np.float64)[:, :, None]).reshape(len(values), -1)[:, : matrix.columns]
    return (integers.shape[1] + 3) * 2.0**-23 * (inputs @ weights.T) + 1e-37


@few_examples
@given(row_counts, column_counts, token_counts, shares, kinds, st.booleans(), seeds)
def test_products(
    backend: Backend, rows: int, columns: int, tokens: int, zeros: float, kind: str, single: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    levels = draw_levels(random, rows) * np.float32(1.1 if single else 1)
    matrix = matrix_of(draw_trits(random, (rows, columns), zeros), levels)
    values = numbers(kind, (tokens, columns), random)
    output = aligned((tokens, rows), np.float32)
    backend.program([op.Linear(values, (op.LinearPart(matrix, None, output),))]).run(tokens)
    tolerance.assert_within(output, REFERENCE.matmul(values, matrix), bound(values, matrix))


@pytest.mark.parametrize("columns", [2080, 1024])
def test_long_rows_alone_and_in_company(backend: Backend, columns: int) -> None:
    random = np.random.default_rng(columns)
    matrix = matrix_of(draw_trits(random, (35, columns)), draw_levels(random, 35))
    values = random.standard_normal((5, columns)).astype(np.float32)
    output, alone = aligned((5, 35), np.float32), aligned((1, 35), np.float32)
    backend.program([op.Linear(values, (op.LinearPart(matrix, None, output),))]).run(5)
    tolerance.assert_within(output, REFERENCE.matmul(values, matrix), bound(values, matrix))
    for t in range(5):
        one = np.ascontiguousarray(values[t : t + 1])
        backend.program([op.Linear(one, (op.LinearPart(matrix, None, alone),))]).run(1)
        np.testing.assert_array_equal(alone[0], output[t])


def test_native_kernels_refuse_a_matrix_whose_panels_lie_outside(native: Backend) -> None:
    matrix = matrix_of(np.ones((20, 40), np.int8), np.ones((20, 2), np.float32))
    values, output = np.ones((1, 40), np.float32), aligned((1, 20), np.float32)
    for place in (4, 8, 12, HEADER_BYTES, HEADER_BYTES + 4, HEADER_BYTES + 8):
        changed = aligned_copy(matrix.data)
        changed[place + 2] = 1  # 65536 more
        with pytest.raises(EdgemoeError):
            native.program([op.Linear(values, (op.LinearPart(Matrix(changed, SUB1, 20, 40), None, output),))])


def test_experts_whose_record_is_none_are_named(native: Backend) -> None:
    random = np.random.default_rng(4)
    hidden, width = 40, 24
    panels = {
        name: pack_panels(draw_trits(random, (rows, columns)), draw_levels(random, rows), 2)
        for name, rows, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width))
    }
    arena = aligned_copy(join_record(panels, hidden, width)).reshape(1, -1)
    layout = ex.ExpertLayout(hidden, width, SUB1, SUB1, SUB1, 0)
    values, output = random.standard_normal((2, hidden)).astype(np.float32), aligned((2, 1, hidden), np.float32)
    chosen, slots, layout_of = np.zeros((2, 1), np.int32), np.zeros(1, np.int32), np.zeros(1, np.uint8)
    program = native.program([ex.Experts(values, chosen, slots, arena, (layout,), layout_of, output)])
    program.run(2)
    gate_up, down, _, _ = layout.weights(arena[0])
    expected = REFERENCE.gated_ffn(values, gate_up, down)
    assert np.abs(output[:, 0] - expected).max() < 0.02 * np.abs(expected).max()
    begin_of_down = down.data.ctypes.data - arena.ctypes.data
    for place in (0, 6, HEADER_BYTES + 2, HEADER_BYTES + 10, begin_of_down, begin_of_down + 18):
        before = arena[0, place]
        arena[0, place] ^= 1
        with pytest.raises(KernelError, match="its record contradicts itself"):
            program.run(2)
        arena[0, place] = before


@pytest.mark.parametrize(
    ("gate", "up", "down"),
    [("q4", "bf16", "sub1"), ("n2", "q8", "sub1"), ("n2", "n2", "sub1"), ("sub1", "sub1", "n2")],
)
def test_experts_may_have_some_matrices_in_sub1(native: Backend, gate: str, up: str, down: str) -> None:
    random = np.random.default_rng(6)
    hidden, width = 70, 40
    formats = [EXPERT_FORMATS[name] for name in (gate, up, down)]

    def drawn(name: str, rows: int, columns: int) -> Matrix:
        if name != "sub1":
            return random_matrix(name, rows, columns, random)
        return matrix_of(draw_trits(random, (rows, columns)), draw_levels(random, rows))

    parts = [drawn(gate, 2 * -(-width // 16) * 16, hidden)]
    if gate != up:
        parts = [drawn(gate, width, hidden), drawn(up, width, hidden)]
    parts.append(drawn(down, hidden, width))
    record, begins = np.zeros(0, np.uint8), []
    for part in parts:
        begins.append(len(record))
        record = np.concatenate([record, part.data, np.zeros(-len(part.data) % 64, np.uint8)])
    places = {"down_offset": 0 if gate == "sub1" else begins[-1], "up_offset": begins[1] if gate != up else 0}
    layout = ex.ExpertLayout(hidden, width, *formats, **places)
    arena = aligned_copy(record).reshape(1, -1)
    values, output = random.standard_normal((3, hidden)).astype(np.float32), aligned((3, 1, hidden), np.float32)
    chosen, slots, layout_of = np.zeros((3, 1), np.int32), np.zeros(1, np.int32), np.zeros(1, np.uint8)
    operation = ex.Experts(values, chosen, slots, arena, (layout,), layout_of, output)
    native.program([operation]).run(3)
    apart = parts[1] if gate != up else None
    expected = REFERENCE.gated_ffn(values, parts[0], parts[-1], up_apart=apart)
    assert np.abs(output[:, 0] - expected).max() < 0.02 * np.abs(expected).max()
    found = output.copy()
    REFERENCE.program([operation]).run(3)
    np.testing.assert_array_equal(output[:, 0], expected)
    short = replace(operation, output=found, arena=aligned_copy(arena[:, :-128]))  # down ends beyond its slot
    with pytest.raises(KernelError):
        native.program([short]).run(3)


@pytest.mark.parametrize(
    ("formats", "places", "field"),
    [
        (("sub1", "q4", "q4"), (64, 0, 64), "up_offset"),
        (("q4", "sub1", "q4"), (4096, 0, 2048), "up_offset"),
        (("sub1", "q4", "q4"), (64, 0, 0), "gate_format"),
        (("sub1", "sub1", "sub1"), (64, 0, 0), "down_offset"),
        (("q4", "q4", "sub1"), (0, 0, 0), "down_offset"),
        (("sub1", "sub1", "q4"), (0, 64, 0), "biases_offset"),
    ],
)
def test_layouts_that_sub1_cannot_have_are_refused(
    native: Backend, formats: tuple[str, ...], places: tuple[int, int, int], field: str
) -> None:
    down, biases, up = places
    layout = ex.ExpertLayout(40, 24, *(EXPERT_FORMATS[name] for name in formats), down, biases, up_offset=up)
    values, output = np.zeros((1, 40), np.float32), aligned((1, 1, 40), np.float32)
    chosen, slots, layout_of = np.zeros((1, 1), np.int32), np.zeros(1, np.int32), np.zeros(1, np.uint8)
    arena = aligned((1, 8192), np.uint8)
    with pytest.raises(KernelError, match=field):
        native.program([ex.Experts(values, chosen, slots, arena, (layout,), layout_of, output)])


@few_examples
@given(seeds, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_native_kernels_agree_on_altered_panels(native: Backend, seed: int, changes: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(seed)
    matrix = matrix_of(draw_trits(random, (32, 96), 0.7), draw_levels(random, 32))
    panels = HEADER_BYTES + 4 * 3 + 64  # behind the first levels, which might become infinite
    for place, byte in changes:
        matrix.data[panels + place % (len(matrix.data) - panels - 64)] = byte
    values, output = random.standard_normal((3, 96)).astype(np.float32), aligned((3, 32), np.float32)
    native.program([op.Linear(values, (op.LinearPart(matrix, None, output),))]).run(3)
    try:
        expected = REFERENCE.matmul(values, matrix)
    except EdgemoeError:
        return
    tolerance.assert_within(output[:, :16], expected[:, :16], bound(values, matrix)[:, :16])
