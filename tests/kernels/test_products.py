"""Operations with packed matrices, on every backend, against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.blocks import Blocks, pack
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, Matrix, panel_count
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.reference.products import activate
from tests.kernels import tolerance
from tests.kernels.builders import (
    CLAMPED,
    activations,
    aligned,
    aligned_copy,
    column_counts,
    few_examples,
    format_names,
    kinds,
    numbers,
    plain_activations,
    random_biases,
    random_ffn,
    random_matrix,
    random_plain_ffn,
    row_counts,
    seeds,
    token_counts,
)
from tests.support.matrices import interleave_panels

ffn_kinds = kinds.filter(lambda kind: kind != "huge")  # gate times up of 1e30 each has no float32


@few_examples
@given(format_names, row_counts, column_counts, token_counts, kinds, seeds)
def test_linear(backend: Backend, format_name: str, rows: int, columns: int, tokens: int, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random_matrix(format_name, rows, columns, random)
    values = numbers(kind, (tokens, columns), random)
    output = aligned((tokens, rows), np.float32)
    backend.program([op.Linear(values, (op.LinearPart(matrix, None, output),))]).run(tokens)
    tolerance.assert_within(output, REFERENCE.matmul(values, matrix), tolerance.product(values, matrix))


@few_examples
@given(st.lists(format_names, min_size=1, max_size=4), column_counts, st.booleans(), st.booleans(), seeds)
def test_linear_parts_bias_scale_and_accumulation(
    backend: Backend, formats: list[str], columns: int, with_bias: bool, accumulate: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    tokens, scale = 3, np.float32(0.37)
    values = numbers("normal", (tokens, columns), random)
    parts, before = [], []
    for number, format_name in enumerate(formats):
        matrix = random_matrix(format_name, 5 + 16 * number, columns, random)
        bias = numbers("normal", (matrix.rows,), random) if with_bias else None
        before.append(numbers("normal", (tokens, matrix.rows), random))
        parts.append(op.LinearPart(matrix, bias, aligned_copy(before[-1])))
    backend.program([op.Linear(values, tuple(parts), float(scale), accumulate)]).run(tokens)
    for part, old in zip(parts, before, strict=True):
        product = REFERENCE.matmul(values, part.matrix)
        bound = tolerance.linear(
            tolerance.product(values, part.matrix), product, part.bias, float(scale), old if accumulate else None
        )
        exact = product.astype(np.float64) + (0 if part.bias is None else part.bias)
        expected = (exact * scale + (old if accumulate else 0)).astype(np.float32)
        tolerance.assert_within(part.output, expected, bound)


@few_examples
@given(format_names, row_counts, column_counts, seeds)
def test_a_run_touches_only_its_own_rows(
    backend: Backend, format_name: str, rows: int, columns: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    matrix = random_matrix(format_name, rows, columns, random)
    values = numbers("normal", (6, columns), random)
    output = aligned((6, rows), np.float32)
    output[...] = 7
    backend.program([op.Linear(values, (op.LinearPart(matrix, None, output),))]).run(4)
    assert (output[4:] == 7).all()


@few_examples
@given(format_names, row_counts, column_counts, token_counts, seeds)
def test_embed(backend: Backend, format_name: str, rows: int, columns: int, tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random_matrix(format_name, rows, columns, random)
    ids = aligned_copy(random.integers(0, rows, tokens).astype(np.int32))
    output = aligned((tokens, columns), np.float32)
    backend.program([op.Embed(ids, matrix, 1.7, output)]).run(tokens)
    expected = REFERENCE.embed(ids, matrix, 1.7)
    tolerance.assert_within(output, expected, 3 * tolerance.UNIT * np.abs(expected.astype(np.float64)))


@few_examples
@given(format_names, column_counts, column_counts, token_counts, ffn_kinds, activations, st.booleans(), seeds)
@example("q4", 32, 1, 39, "spike", op.SILU, False, 21587)  # a hidden value of rounding alone, times a weight of zero
def test_gated_ffn(
    backend: Backend,
    format_name: str,
    width: int,
    intermediate_size: int,
    tokens: int,
    kind: str,
    activation: op.Activation,
    biased: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    gate_up, down = random_ffn(format_name, width, intermediate_size, random)
    values = numbers(kind, (tokens, width), random)
    biases = random_biases(width, intermediate_size, random) if biased else None
    output = aligned((tokens, width), np.float32)
    backend.program([op.GatedFfn(values, gate_up, down, output, activation, biases)]).run(tokens)
    ffn = gate_up, down, biases, activation
    tolerance.assert_within(output, REFERENCE.gated_ffn(values, *ffn), tolerance.gated_ffn(values, *ffn))


@few_examples
@given(format_names, column_counts, column_counts, token_counts, ffn_kinds, plain_activations, st.booleans(), seeds)
def test_plain_ffn(
    backend: Backend,
    format_name: str,
    width: int,
    intermediate_size: int,
    tokens: int,
    kind: str,
    activation: op.Activation,
    biased: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    up, down = random_plain_ffn(format_name, width, intermediate_size, random)
    values = numbers(kind, (tokens, width), random)
    biases = random_biases(width, intermediate_size, random, gated=False) if biased else None
    output = aligned((tokens, width), np.float32)
    backend.program([op.PlainFfn(values, up, down, output, activation, biases)]).run(tokens)
    ffn = up, down, biases, activation
    tolerance.assert_within(output, REFERENCE.plain_ffn(values, *ffn), tolerance.gated_ffn(values, *ffn))


@pytest.mark.parametrize(("activation", "hidden"), [(op.RELU, [0.5, 2.0, 0.0]), (op.RELU2, [0.25, 4.0, 0.0])])
def test_an_ffn_without_a_gate_by_its_formula(
    any_backend: Backend, activation: op.Activation, hidden: list[float]
) -> None:
    """Up is the input itself plus a bias, and down adds a bias: every number by hand."""
    one = Matrix(aligned_copy(pack(Blocks(FORMATS["f32"], np.ones((1, 1), np.float32)))), FORMATS["f32"], 1, 1)
    biases = op.FfnBiases(None, *(aligned_copy(np.array([x], np.float32)) for x in (0.5, 3.0)))
    values = aligned_copy(np.array([[0.0], [1.5], [-9.0]], np.float32))
    output = aligned((3, 1), np.float32)
    any_backend.program([op.PlainFfn(values, one, one, output, activation, biases)]).run(3)
    assert output[:, 0].tolist() == [3 + h for h in hidden]


def test_relu_keeps_what_is_no_number() -> None:
    strange = np.array([np.nan, np.inf, -np.inf, -1.0], np.float32)
    ones = np.ones(4, np.float32)
    np.testing.assert_array_equal(activate(strange, ones, op.RELU2), [np.nan, np.inf, 0, 0])


def test_a_clamped_activation_by_its_formula(any_backend: Backend) -> None:
    """Gate and up are the inputs themselves plus biases, and down adds them up: every number by hand."""
    one = np.ones((1, 1), np.float32)
    both = np.zeros((32, 1), np.float32)
    both[0], both[16] = 1, 1
    gate_up, down = (
        Matrix(aligned_copy(pack(Blocks(FORMATS["f32"], x))), FORMATS["f32"], *x.shape) for x in (both, one)
    )
    biases = op.FfnBiases(*(aligned_copy(np.array([x], np.float32)) for x in (0.5, -1.0, 3.0)))
    values = aligned_copy(np.array([[0.0], [1.5], [9.0], [-9.0]], np.float32))
    output = aligned((4, 1), np.float32)
    activation = op.Activation("clamped_silu", 1.702, 7.0, 1.0)
    any_backend.program([op.GatedFfn(values, gate_up, down, output, activation, biases)]).run(4)
    # gate and up: (0.5, -1), (2, 0.5), (9.5, 8) held to (7, 7), (-8.5, -10) held to (-8.5, -7)
    pairs = [(0.5, -1.0), (2.0, 0.5), (7.0, 7.0), (-8.5, -7.0)]
    expected = [3 + g / (1 + np.exp(-1.702 * g)) * (u + 1) for g, u in pairs]
    np.testing.assert_allclose(output[:, 0], expected, rtol=1e-6)


def test_a_capped_activation_is_held_after_its_function(any_backend: Backend) -> None:
    one = np.ones((1, 1), np.float32)
    both = np.zeros((32, 1), np.float32)
    both[0], both[16] = 1, -1
    gate_up, down = (
        Matrix(aligned_copy(pack(Blocks(FORMATS["f32"], x))), FORMATS["f32"], *x.shape) for x in (both, one)
    )
    values = aligned_copy(np.array([[0.5], [1.5], [9.0], [-2.0]], np.float32))
    output = aligned((4, 1), np.float32)
    activation = op.Activation("capped_silu", limit=1.3)
    any_backend.program([op.GatedFfn(values, gate_up, down, output, activation)]).run(4)
    gates, ups = np.array([0.5, 1.5, 9.0, -2.0]), np.array([-0.5, -1.3, -1.3, 1.3])
    expected = np.minimum(gates / (1 + np.exp(-gates)), 1.3) * ups  # of 1.5 the function is 1.226, below the limit
    np.testing.assert_allclose(output[:, 0], expected, rtol=1e-6)


@few_examples
@given(
    format_names,
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 4),
    token_counts,
    activations | plain_activations,
    st.booleans(),
    seeds,
)
def test_experts(
    backend: Backend,
    format_name: str,
    width: int,
    intermediate_size: int,
    expert_count: int,
    per_token: int,
    tokens: int,
    activation: op.Activation,
    biased: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    per_token = min(per_token, expert_count)
    make, gated = random_ffn if activation.gated else random_plain_ffn, activation.gated
    ffns: list[Ffn] = [make(format_name, width, intermediate_size, random) for _ in range(expert_count)]
    if biased:  # all but the last
        ffns[:-1] = [(*matrices, random_biases(width, intermediate_size, random, gated)) for matrices in ffns[:-1]]
    slots = aligned_copy(random.permutation(expert_count).astype(np.int32))
    slots[random.random(expert_count) < 0.3] = -1
    arena, layouts = pack_experts(ffns, slots)
    chosen = np.array([random.permutation(expert_count)[:per_token] for _ in range(tokens)], np.int32)
    chosen[random.random(chosen.shape) < 0.2] = -1
    values = numbers("normal", (tokens, width), random)
    output = aligned((tokens, per_token, width), np.float32)
    output[...] = 7
    operation = ex.Experts(values, aligned_copy(chosen), slots, arena, *layouts, output, None, activation)
    backend.program([operation]).run(tokens)
    for t in range(tokens):
        for k, expert in enumerate(chosen[t]):
            if expert == -1:
                assert output[t, k].tobytes() == values[t].tobytes()
            elif slots[expert] < 0:
                assert (output[t, k] == 7).all()
            else:
                gate_up, down, *biases = ffns[expert]
                row = values[t : t + 1]
                ffn = gate_up, down, biases[0] if biases else None, activation
                bound = tolerance.gated_ffn(row, *ffn)
                exact = REFERENCE.gated_ffn(row, *ffn) if gated else REFERENCE.plain_ffn(row, *ffn)
                tolerance.assert_within(output[t, k : k + 1], exact, bound)


Ffn = Union[tuple[Matrix, Matrix], tuple[Matrix, Matrix, op.FfnBiases]]


def pack_experts(ffns: Sequence[Ffn], slots: np.ndarray) -> tuple[np.ndarray, ex.RecordLayouts]:
    """An arena of 4096-byte aligned slots that holds each expert where `slots` says, and the layouts of the experts.

    Experts whose first matrix has as many rows as `down` has columns have no gate.
    What no vector of biases fills is not a number: kernels must not use it.
    """
    of_each = [
        ex.ExpertLayout(
            *(d.rows, d.columns, g.format, g.format, d.format),
            *(len(g.data), (len(g.data) + len(d.data)) * bool(biases)),
            gated=g.rows > d.columns,
        )
        for g, d, *biases in ffns
    ]
    layouts = tuple(dict.fromkeys(of_each))
    longest = max(
        len(g.data) + len(d.data) + layout.bias_bytes for (g, d, *_), layout in zip(ffns, of_each, strict=True)
    )
    arena = aligned((max(1, int(slots.max()) + 1), -(-longest // 4096) * 4096), np.uint8, 4096)
    for (gate_up, down, *biases), layout, slot in zip(ffns, of_each, slots, strict=True):
        if slot >= 0:
            record = np.concatenate([gate_up.data, down.data, np.full(layout.bias_bytes, 255, np.uint8)])
            arena[slot, : len(record)] = record
            places = layout.weights(arena[slot]).biases
            if biases:
                for part in ("gate", "up", "down")[not layout.gated :]:
                    getattr(places, part)[:] = getattr(biases[0], part)
    return arena, ex.RecordLayouts(layouts, np.array([layouts.index(layout) for layout in of_each], np.uint8))


@few_examples
@given(
    format_names, format_names, st.integers(1, 70), st.integers(1, 70), token_counts, activations, st.booleans(), seeds
)
def test_gate_and_up_may_lie_apart(
    backend: Backend,
    gate_name: str,
    up_name: str,
    width: int,
    intermediate_size: int,
    tokens: int,
    activation: op.Activation,
    biased: bool,
    seed: int,
) -> None:
    """Apart they have the bits that they have panel by panel in turn, and unlike ones the same in any company."""
    random = np.random.default_rng(seed)
    names = [(gate_name, up_name), (up_name, up_name), ("q8", "f32")]
    sizes, down = (intermediate_size, width), random_matrix("q8", width, intermediate_size, random)
    ffns = [(*(random_matrix(name, *sizes, random) for name in pair), down) for pair in names]
    biases = random_biases(width, intermediate_size, random) if biased else None
    records, layouts = [], []
    for gate, up, _ in ffns:
        at = len(gate.data) + len(up.data)
        end = (at + len(down.data)) * biased
        layouts.append(
            ex.ExpertLayout(
                *(width, intermediate_size, gate.format, up.format, down.format, at, end), up_offset=len(gate.data)
            )
        )
        own = np.full(layouts[-1].bias_bytes, 255, np.uint8)
        records.append(np.concatenate([gate.data, up.data, down.data, own]))
    arena = aligned((3, -(-max(map(len, records)) // 4096) * 4096), np.uint8, 4096)
    for slot, record, layout in zip(arena, records, layouts, strict=True):
        slot[: len(record)] = record
        if biases is not None:
            for part in ("gate", "up", "down"):
                getattr(layout.weights(slot).biases, part)[:] = getattr(biases, part)
    slots, layout_of = aligned_copy(np.arange(3, dtype=np.int32)), np.arange(3, dtype=np.uint8)
    values = numbers("normal", (tokens, width), random)
    chosen = aligned_copy(np.array([random.permutation(3)[:2] for _ in range(tokens)], np.int32))

    def outputs(experts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        output = aligned((*experts.shape, width), np.float32)
        operation = ex.Experts(rows, experts, slots, arena, tuple(layouts), layout_of, output, None, activation)
        backend.program([operation]).run(len(rows))
        return output

    together = outputs(chosen, values)
    for expert, (gate, up, _) in enumerate(ffns):
        rows, ranks = np.nonzero(chosen == expert)
        if not len(rows):
            continue
        own = aligned_copy(values[rows])
        alone = outputs(aligned_copy(np.full((len(rows), 1), expert, np.int32)), own)[:, 0]
        assert np.array_equal(together[rows, ranks], alone)
        bound = tolerance.gated_ffn(own, gate, down, biases, activation, up)
        tolerance.assert_within(alone, REFERENCE.gated_ffn(own, gate, down, biases, activation, up), bound)
        by_itself = aligned((len(rows), width), np.float32)
        unlike = op.UnlikeMatrices(gate, up)
        backend.program([op.GatedFfn(own, None, down, by_itself, activation, biases, unlike)]).run(len(rows))
        assert np.array_equal(alone, by_itself)
        head = gate.data[: gate.format.head_bytes]
        if gate.format == up.format and np.array_equal(head, up.data[: len(head)]):
            both = aligned_copy(interleave_panels(gate, up))
            gate_up = Matrix(both, gate.format, 2 * PANEL_ROWS * panel_count(intermediate_size), width)
            in_turn = aligned((len(rows), width), np.float32)
            backend.program([op.GatedFfn(own, gate_up, down, in_turn, activation, biases)]).run(len(rows))
            assert np.array_equal(alone, in_turn)


def test_experts_take_slots_as_they_are_at_each_run(backend: Backend) -> None:
    random = np.random.default_rng(5)
    ffns = [random_ffn("q4", 40, 24, random) for _ in range(2)]
    slots = aligned_copy(np.array([0, 1], np.int32))
    arena, layouts = pack_experts(ffns, slots)
    values = numbers("normal", (1, 40), random)
    output = aligned((1, 2, 40), np.float32)
    experts = aligned_copy(np.array([[0, 1]], np.int32))
    program = backend.program([ex.Experts(values, experts, slots, arena, *layouts, output)])
    program.run(1)
    first = output.copy()
    slots[:] = [1, -1]
    program.run(1)
    assert np.array_equal(output[0, 0], first[0, 1])
    assert np.array_equal(output[0, 1], first[0, 1])


def test_experts_may_mix_formats(backend: Backend) -> None:
    random = np.random.default_rng(6)
    gate_up, _ = random_ffn("q4", 40, 24, random)
    down = random_matrix("q8", 40, 24, random)
    slots = aligned_copy(np.array([0], np.int32))
    arena, layouts = pack_experts([(gate_up, down)], slots)
    assert [layout.down_format for layout in layouts.layouts] == [FORMATS["q8"]]
    values = numbers("normal", (2, 40), random)
    output = aligned((2, 1, 40), np.float32)
    experts = aligned((2, 1), np.int32)
    backend.program([ex.Experts(values, experts, slots, arena, *layouts, output)]).run(2)
    expected = REFERENCE.gated_ffn(values, gate_up, down)
    tolerance.assert_within(output[:, 0], expected, tolerance.gated_ffn(values, gate_up, down))


@few_examples
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.integers(1, 40), seeds)
def test_experts_of_one_layer_may_differ_in_formats(
    backend: Backend, width: int, intermediate_size: int, per_token: int, tokens: int, seed: int
) -> None:
    """In company and alone an expert gives the same bits, whatever formats the others of its layer have."""
    random = np.random.default_rng(seed)
    names = list(FORMATS)
    ffns = [
        (
            random_ffn(gate_up, width, intermediate_size, random)[0],
            random_matrix(down, width, intermediate_size, random),
        )
        for gate_up, down in [(names[n], names[(n + seed) % 6]) for n in range(6)]
        + [("q4", "q8"), ("f16", "q4"), ("n075", "n3")]
    ]
    biases = [random_biases(width, intermediate_size, random) if n % 2 else None for n in range(len(ffns))]
    slots = aligned_copy(random.permutation(len(ffns)).astype(np.int32))
    packed = [(*ffn, own) if own else ffn for ffn, own in zip(ffns, biases, strict=True)]
    arena, layouts = pack_experts(packed, slots)
    assert len(layouts.layouts) >= 5
    chosen = aligned_copy(np.array([random.permutation(len(ffns))[:per_token] for _ in range(tokens)], np.int32))
    values = numbers("normal", (tokens, width), random)
    together = aligned((tokens, per_token, width), np.float32)
    backend.program([ex.Experts(values, chosen, slots, arena, *layouts, together, None, CLAMPED)]).run(tokens)
    for expert, ffn in enumerate(ffns):
        rows, ranks = np.nonzero(chosen == expert)
        if len(rows):
            alone = aligned((len(rows), width), np.float32)
            own = aligned_copy(values[rows])
            backend.program([op.GatedFfn(own, *ffn, alone, CLAMPED, biases[expert])]).run(len(rows))
            assert np.array_equal(together[rows, ranks], alone)
            bound = tolerance.gated_ffn(own, *ffn, biases[expert], CLAMPED)
            tolerance.assert_within(alone, REFERENCE.gated_ffn(own, *ffn, biases[expert], CLAMPED), bound)
