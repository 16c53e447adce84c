"""Definitions of operations: symbolic shapes are solved and checked, and errors name the field, on every backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.definition import Extent, Misfit, definition_of, measure
from edgemoe.kernels.formats import FORMATS, Matrix
from edgemoe.kernels.marks import buffer, rows, size, up_to
from edgemoe.kernels.native.structures import NATIVE_OPERATIONS
from tests.kernels.builders import aligned, empty_cache, places, random_ffn, random_matrix
from tests.kernels.planned import planned
from tests.kernels.test_mixtures import soft_moe
from tests.kernels.test_neurons import made_neurons, retrieval
from tests.kernels.test_products import pack_experts
from tests.kernels.test_runs import (
    CONTEXT,
    EXPERTS,
    FFN_WIDTH,
    HEAD_WIDTH,
    KV_HEADS,
    PAGES,
    PER_TOKEN,
    WIDTH,
    TinyLayer,
)
from tests.kernels.test_trees import Trees
from tests.support.every_case import every_case

TOKENS = 3


def floats(*shape: int) -> op.Floats:
    return aligned(shape, np.float32)


@every_case("text", ["", "H*", "2H", "H/W", "up16(2)", "2*up16(F*D)", "up16(F)*2", "-1", "H + W"])
def test_what_is_not_an_extent_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an extent|invalid literal"):
        Extent.parse(text)


@given(st.integers(1, 3), st.integers(1, 500), st.integers(1, 500), st.integers(1, 2))
def test_an_extent_is_solved_for_its_unknown_letter(factor: int, a: int, b: int, divisor: int) -> None:
    extent = Extent.parse(f"{factor}*A*B/{divisor}")
    whole = factor * a * b * divisor
    letters = {"A": a * divisor}
    assert extent.solve(whole // divisor, letters)
    assert letters["B"] == b
    assert extent.told(letters) == str(whole // divisor)
    assert not extent.solve(whole // divisor + 1, letters)
    assert extent.solve(whole // divisor, letters)


def test_what_does_not_divide_does_not_fit() -> None:
    extent = Extent.parse("H*W")
    assert not extent.solve(7, letters := {"W": 2})
    assert not extent.solve(0, letters)
    assert not extent.solve(6, {})
    assert letters == {"W": 2}
    assert not Extent.parse("W/2").solve(3, {"W": 7})
    padded = Extent.parse("2*up16(F)")
    assert padded.solve(64, {"F": 17})
    assert not padded.solve(64, {"F": 16})
    assert not padded.solve(64, {})


def test_a_layer_is_measured_with_and_without_memory() -> None:
    """Letters as the buffers have them, whatever stands in their place."""
    layer = TinyLayer("q4", 40, 0)
    expected = {
        "Rope": {"heads": KV_HEADS, "W": HEAD_WIDTH, "C": CONTEXT, "R": HEAD_WIDTH},
        "StoreKv": {"S": 1, "P": PAGES, "N": PAGES, "G": KV_HEADS, "W": HEAD_WIDTH, "Wv": HEAD_WIDTH},
        "Attention": {"S": 1, "P": PAGES, "N": PAGES, "G": KV_HEADS, "W": HEAD_WIDTH, "Wv": HEAD_WIDTH, "H": 4}
        | {"page_blocks": 1},
        "Route": {"E": EXPERTS, "K": PER_TOKEN, "groups": 1, "kept_groups": 1},
        "GatedFfn": {"D": WIDTH, "F": FFN_WIDTH},
        "Capacity": {"num_experts": EXPERTS, "K": PER_TOKEN},
        "PlainFfn": {"D": WIDTH, "F": FFN_WIDTH},
        "Combine": {"D": WIDTH, "K": PER_TOKEN},
        "Mix": {"D": WIDTH},
        "Gate": {"runs": WIDTH, "width": 1},
        "LayerNorm": {"D": WIDTH},
        "SoftCap": {"M": WIDTH},
        "ScaleByPosition": {"M": WIDTH, "C": CONTEXT},
        "StoreBlockKeys": {"W": WIDTH // 2, "C": CONTEXT, "R": 2, "S": 1, "P": PAGES, "ring": 31, "N": PAGES, "B": 2},
        "ReadStreams": {"D": WIDTH // 2, "count": 2},
        "WriteStreams": {"count": 2, "D": WIDTH // 2},
        "GateByAgreement": {"D": WIDTH // 2, "count": 2},
        "PairProducts": {"count": WIDTH, "inner": 1, "height": 1, "width": 1},
        "SlotLogits": {"D": WIDTH, "S": 6},
    }
    seen = set()
    asked = [
        ex.Capacity(layer.chosen, layer.weights, EXPERTS, 3),
        ex.LeastWeight(layer.weights, 0.2),
        ex.Fetch(layer.chosen, layer.weights, 0.5),
        ex.Prefetch(layer.chosen),
    ]
    mix = op.Mix(layer.residual, layer.residual, 0.5, None, None, None, layer.residual)
    keys = bo.StoreBlockKeys(
        *(layer.residual[:, : WIDTH // 2], np.ones(WIDTH // 2, np.float32), 1e-6),
        *[np.ones((CONTEXT, 1), np.float32)] * 2,
        32,
        *layer.places,
        np.zeros((1, 31, WIDTH // 2), np.float32),
        np.zeros((PAGES, 1, 2, WIDTH // 2), np.float32),
    )
    in_place = (
        op.Gate(layer.residual, layer.residual, "sigmoid"),
        op.LayerNorm(layer.residual, np.ones(WIDTH, np.float32), 1e-5, layer.residual),
        op.SoftCap(layer.residual, 30.0),
        replace(Trees(WIDTH, 2, 0, 1, 0).operation, input=layer.residual, output=layer.residual.copy()),
        ex.LevelRoute(
            layer.residual[:, :10], (ex.Level(2, 1), ex.Level(4, PER_TOKEN)), True, 1.0, layer.chosen, layer.weights
        ),
        op.ScaleByPosition(layer.residual, layer.places.positions, np.ones(CONTEXT, np.float32)),
        sm.ReadStreams(layer.residual, layer.residual, layer.residual[:, : WIDTH // 2]),
        sm.WriteStreams(layer.residual[:, :2], layer.residual[:, : WIDTH // 2], layer.residual),
        keys,
        sm.GateByAgreement(*[layer.residual] * 2, layer.residual[:, : WIDTH // 2], 1e-6, layer.residual),
        mx.Entmax(layer.weights),
        mx.BatchNorm(layer.residual, *[np.ones(WIDTH, np.float32)] * 2, 1e-5),
        mx.PairProducts(*[layer.residual] * 2, WIDTH, 1, floats(40, WIDTH)),
    )
    neurons = (
        retrieval(floats(40, 6), floats(40, 6), 2, 3, "softmax"),
        made_neurons(40, WIDTH, 6, 9, "f16", np.random.default_rng(0)),
    )
    for operation in [*layer.operations, *asked, mix, *in_place, *neurons, *soft_moe(40, 2, 3, WIDTH, 0)]:
        sizes, without = operation.measure(), planned(operation).measure()
        assert sizes == without
        assert sizes.rows == 40 or isinstance(operation, mx.SlotFfn)
        name = type(operation).__name__
        seen.add(name)
        over_latents = getattr(operation, "value_cache", ()) is None
        of_mixer = name == "Gate" and operation not in in_place
        if name in expected and sizes.letters.get("heads") != 4 and not over_latents and not of_mixer:
            assert sizes.letters == expected[name]
    assert seen == {kind.__name__ for kind in NATIVE_OPERATIONS}


def test_each_part_of_a_linear_layer_has_its_own_rows() -> None:
    parts = tuple(op.LinearPart(Matrix.planned(FORMATS["q4"], n, 8), None, floats(5 + n, n)) for n in (3, 7))
    sizes = op.Linear(floats(6, 8), parts).measure()
    assert sizes.letters == {"M": 8}
    assert [part["N"] for part in sizes.parts["parts"]] == [3, 7]
    assert sizes.rows == 6


def faults() -> list[tuple[op.Operation, str, str]]:
    """Operations with one field that does not fit: the field, and what the error says of it."""
    random = np.random.default_rng(0)
    keys, query = floats(3, 2, 64, 20), floats(TOKENS, 40)
    where = places(TOKENS)
    gate_up, down = random_ffn("q4", 40, 24, random)
    up = random_matrix("q4", 24, 40, random)
    slots = np.arange(2, dtype=np.int32)
    arena, layouts = pack_experts([random_ffn("q4", 40, 24, random) for _ in slots], slots)
    chosen = np.zeros((TOKENS, 1), np.int32)
    experts = ex.Experts(query, chosen, slots, arena, *layouts, floats(TOKENS, 1, 40))
    (layout,) = layouts.layouts

    def with_layout(**changes: Any) -> ex.Experts:
        return replace(experts, layouts=(layout, replace(layout, **changes)))

    matrix = random_matrix("f32", 6, 40, random)
    route = ex.Route(floats(TOKENS, 6), True, np.zeros((TOKENS, 3), np.int32), floats(TOKENS, 3))
    return [
        (op.Embed(slots, matrix, 1.0, floats(2, 41)), "output", "shape (T, 40), found shape (2, 41)"),
        (op.Embed(chosen, matrix, 1.0, query), "ids", "shape (T,), found shape (3, 1)"),
        (op.RmsNorm(query, floats(13), 1e-5, query, 3), "input", "shape (T, 3*W), found shape (3, 40)"),
        (op.RmsNorm(query, floats(13), 1e-5, query, 2), "weight", "shape (20,), found shape (13,)"),
        (op.RmsNorm(query, floats(13), 1e-5, query, 0), "heads", "an integer of at least 1, found 0"),
        (op.Rope(query, 2, where.positions, floats(9, 11), floats(9, 11)), "cosine", "at most 10 columns"),
        (
            op.Rope(query, 2, where.positions, floats(9, 10), floats(8, 10)),
            "sine",
            "shape (9, 10), found shape (8, 10)",
        ),
        (op.Rope(query, 2, where.pages, floats(9, 10), floats(9, 10)), "positions", "shape (T,), found shape (1, 1)"),
        (
            so.StoreKv(query, floats(TOKENS, 39), *where, keys, keys.copy()),
            "values",
            "shape (T, 2*Wv), found shape (3, 39)",
        ),
        (so.StoreKv(query, query, *where, keys[:, :, :60], keys), "key_cache", "shape (N, G, 64, W)"),
        (so.StoreKv(query, query, *where[:2], where.positions, keys, keys.copy()), "pages", "shape (S, P)"),
        (so.Attention(query, *where, keys, keys[:, :1], 1.0, query.copy()), "value_cache", "shape (3, 2, 64, Wv)"),
        (so.Attention(query, *where, keys, keys[:1], 1.0, query.copy()), "value_cache", "shape (3, 2, 64, Wv)"),
        (
            so.Attention(floats(TOKENS, 60), *where, keys, keys.copy(), 1.0, floats(TOKENS, 60)),
            "query",
            "found 3 heads",
        ),
        (so.Attention(query, *where, keys, keys.astype(np.float16), 1.0, query.copy()), "value_cache", "found float16"),
        (
            so.Attention(query, *where, keys, empty_cache("q8", (3, 2, 64, 20)), 1.0, query.copy()),
            "value_cache",
            "found int8",
        ),
        (ex.Route(floats(TOKENS, 3), True, chosen, floats(TOKENS, 2)), "weights", "shape (T, 1)"),
        (replace(route, score="tanh"), "score", "softmax or sigmoid or sparsemixer or sqrt_softplus, found tanh"),  # type: ignore[arg-type]
        (replace(route, choice_bias=floats(5)), "choice_bias", "shape (6,), found shape (5,)"),
        (replace(route, groups=4), "groups", "equal runs of at least 2 of 6 experts, found 4"),
        (replace(route, groups=6), "groups", "equal runs of at least 2 of 6 experts, found 6"),
        (replace(route, groups=3, kept_groups=4), "kept_groups", "at most 3, found 4"),
        (replace(route, groups=3), "experts", "at most 2 per token, found 3"),
        (replace(route, epsilon=1e-20), "epsilon", "0 for softmax"),
        (replace(route, score="sigmoid", least_sum=0.5), "least_sum", "0 but for softmax that is renormalised"),
        (replace(route, renormalise=False, least_sum=0.5), "least_sum", "0 but for softmax that is renormalised"),
        (op.Clip(query, 0.0), "limit", "a number above 0"),
        (ex.Capacity(chosen, chosen.astype(np.float32), 2, 0), "capacity", "1 or more, found 0"),
        (
            so.Attention(query, *where, keys, keys, 1.0, query.copy(), 3, lengths=np.ones(1, np.int32)),
            "window",
            "0 with lengths, found 3",
        ),
        (
            so.Attention(query, *where, keys, keys, 1.0, query.copy(), lengths=np.ones(2, np.int32)),
            "lengths",
            "shape (1,), found shape (2,)",
        ),
        (
            so.Attention(
                query, *where, keys, keys, 1.0, query.copy(), bias=so.DistanceBias(floats(7), np.zeros(3, np.int32))
            ),
            "bias.table",
            "rows of 2 numbers, found 7",
        ),
        (
            so.Attention(
                query, *where, keys, keys, 1.0, query.copy(), bias=so.DistanceBias(floats(8), np.zeros(4, np.int32))
            ),
            "bias.bucket_of",
            "an odd number, found 4",
        ),
        (op.GatedFfn(query, replace(gate_up, rows=32), down, query.copy()), "gate_up", "shape (64, 40)"),
        (op.GatedFfn(query, gate_up, replace(down, rows=39), query.copy()), "down", "shape (40, F)"),
        (op.GatedFfn(query, None, down, query.copy()), "apart", "gate and up, found None"),
        (
            op.GatedFfn(query, gate_up, down, query.copy(), apart=op.UnlikeMatrices(gate_up, gate_up)),
            "apart.gate",
            "shape (24, 40)",
        ),
        (op.GatedFfn(query, None, down, query.copy(), apart=op.UnlikeMatrices(up, down)), "apart.up", "shape (24, 40)"),
        (op.GatedFfn(query, gate_up, down, query.copy(), op.Activation("clamped_silu")), "activation.limit", "a limit"),
        (
            op.GatedFfn(query, gate_up, down, query.copy(), op.Activation(alpha=2.0)),
            "activation.function",
            "found silu",
        ),
        (replace(experts, activation=op.Activation(limit=7.0)), "activation.limit", "no limit for silu"),
        (
            replace(experts, activation=op.Activation("tanh")),  # type: ignore[arg-type]
            "activation.function",
            "silu or clamped_silu or gelu_tanh or relu or relu2 or capped_silu or gelu, found tanh",
        ),
        (replace(experts, activation=op.RELU), "activation.gated", "expected True, found False"),
        (with_layout(gated=False), "layouts[1].gated", "expected True, found False"),
        (
            op.GatedFfn(query, gate_up, down, query.copy(), op.Activation("gelu_tanh", gated=False)),
            "activation.gated",
            "expected True, found False",
        ),
        (
            op.GatedFfn(query, gate_up, down, query.copy(), biases=op.FfnBiases(None, floats(24), floats(40))),
            "biases.gate",
            "a vector, found none",
        ),
        (op.PlainFfn(query, gate_up, down, query.copy()), "down", "shape (40, 64), found shape (40, 24)"),
        (op.PlainFfn(query, up, down, query.copy(), op.SILU), "activation.gated", "expected False, found True"),
        (
            op.PlainFfn(query, up, down, query.copy(), op.Activation("clamped_silu", 1.0, 7.0, gated=False)),
            "activation.gated",
            "a gate for clamped_silu, found none",
        ),
        (
            op.PlainFfn(query, up, down, query.copy(), biases=op.FfnBiases(floats(24), floats(24), floats(40))),
            "biases.gate",
            "none, found a vector",
        ),
        (
            replace(experts, activation=op.Activation("clamped_silu", limit=-1.0)),
            "activation.limit",
            "a number above 0",
        ),
        (
            op.GatedFfn(query, gate_up, down, query.copy(), biases=op.FfnBiases(floats(24), floats(23), floats(40))),
            "biases.up",
            "shape (24,), found shape (23,)",
        ),
        (with_layout(biases_offset=64), "layouts[1].biases_offset", "0, or a multiple of 64, at least"),
        (with_layout(biases_offset=arena.shape[1]), "arena", "slots of at least"),
        (with_layout(hidden_size=39), "layouts[1].hidden_size", "expected 40, found 39"),
        (with_layout(intermediate_size=40), "layouts[1].intermediate_size", "expected 24, found 40"),
        (with_layout(up_offset=4), "layouts[1].up_offset", "0, or a multiple of 64, at least"),
        (with_layout(up_offset=arena.shape[1]), "layouts[1].down_offset", "a multiple of 64, at least"),
        (with_layout(up_format=FORMATS["q8"]), "layouts[1].gate_format", "expected q8, found q4"),
        (with_layout(down_offset=4), "layouts[1].down_offset", "a multiple of 64"),
        (with_layout(down_offset=arena.shape[1]), "arena", "slots of at least"),
        (replace(experts, layouts=()), "layouts", "1 to 16, found 0"),
        (replace(experts, layouts=layouts.layouts * 17), "layouts", "1 to 16, found 17"),
        (replace(experts, layout_of=layouts.layout_of[1:]), "layout_of", "shape"),
        (ex.Combine(query, 1.0, floats(TOKENS, 2, 40), floats(TOKENS, 3), None, None), "weights", "shape (T, 2)"),
        (op.Linear(query, (op.LinearPart(matrix, floats(5), floats(3, 6)),)), "parts[0].bias", "shape (6,)"),
        (op.Linear(query, ()), "parts", "1 to 4, found 0"),
    ]


def test_a_field_that_does_not_fit_is_named(any_backend: Backend) -> None:
    good = op.RmsNorm(floats(TOKENS, 40), floats(40), 1e-5, floats(TOKENS, 40))
    for operation, field, message in faults():
        with pytest.raises(KernelError) as error:
            any_backend.program([good, operation])
        assert error.value.message.startswith(f"operation 1 ({type(operation).__name__}): {field}: expected ")
        assert message in error.value.message
        with pytest.raises(KernelError) as same:
            any_backend.scratch_bytes([good, operation])
        assert same.value.message == error.value.message


def test_a_programs_scratch_is_known_before_its_buffers_are(any_backend: Backend) -> None:
    for format_name in ("f32", "q8", "q4"):
        operations = TinyLayer(format_name, 40, 0).operations
        assert any_backend.scratch_bytes([planned(o) for o in operations]) == any_backend.scratch_bytes(operations)
        for operation in operations:
            assert any_backend.scratch_bytes([planned(operation)]) == any_backend.scratch_bytes([operation])


def test_bytes_that_a_token_reads() -> None:
    """Every matrix and vector once, one row of the embedding, K experts; and what attention reads of each position."""
    layer = TinyLayer("q4", 4, 0)
    for operation in layer.operations:
        assert planned(operation).weight_bytes() == operation.weight_bytes()
        assert planned(operation).position_bytes() == operation.position_bytes()
    by_name = {type(operation).__name__: operation for operation in layer.operations}
    embed, linear, experts = by_name["Embed"], layer.operations[2], by_name["Experts"]
    assert isinstance(embed, op.Embed)
    assert isinstance(linear, op.Linear)
    assert isinstance(experts, ex.Experts)
    assert embed.weight_bytes() == embed.matrix.data.nbytes // embed.matrix.rows
    in_parts = sum(part.matrix.data.nbytes + part.bias.nbytes for part in linear.parts if part.bias is not None)
    assert linear.weight_bytes() == in_parts
    assert by_name["RmsNorm"].weight_bytes() == 4 * WIDTH
    (layout,) = experts.layouts
    assert experts.weight_bytes() == PER_TOKEN * (layout.gate_up_bytes + layout.down_bytes)
    for name in ("Rope", "StoreKv", "Attention", "Route", "Combine"):
        assert by_name[name].weight_bytes() == 0
    caches = [empty_cache("q8", (3, 2, 64, 40)) for _ in range(2)]
    attention = so.Attention(floats(3, 80), *places(3), *caches, 1.0, floats(3, 80))
    assert attention.position_bytes() == 2 * 2 * (40 + 2 * 2)


@dataclass(frozen=True, eq=False)
class Inner:
    own: Annotated[op.Floats, buffer("N", "D")]


@dataclass(frozen=True, eq=False)
class Outer(op.Operation):
    given: Annotated[int, size("A")]
    input: Annotated[op.Floats, rows("A*D")]
    inner: Annotated[tuple[Inner, ...], up_to(2)]
    maybe: Annotated[op.Integers | None, buffer("D")] = None


def test_annotations_may_be_text_too() -> None:
    """Annotations of this module are text, as in most modules; they mean the same."""
    definition = definition_of(Outer)
    assert [field.shape for field in definition.fields[:2]] == ["()", "(T, A*D)"]
    assert definition.letters == ("D",)
    assert definition.fields[3].optional
    outer = Outer(3, floats(5, 12), (Inner(floats(2, 4)), Inner(floats(9, 4))))
    assert measure(outer).parts == {"inner": [{"A": 3, "D": 4, "N": 2}, {"A": 3, "D": 4, "N": 9}]}
    with pytest.raises(Misfit) as misfit:
        measure(replace(outer, inner=(*outer.inner[:1], Inner(floats(9, 5)))))
    assert misfit.value.args == ("inner[1].own", "shape (N, 4)", "shape (9, 5)")
    with pytest.raises(Misfit) as misfit:
        measure(replace(outer, maybe=np.zeros(5, np.int32)))
    assert misfit.value.field == "maybe"


@dataclass(frozen=True, eq=False)
class Unsolvable(op.Operation):
    input: Annotated[op.Floats, rows("A*B")]


@dataclass(frozen=True, eq=False)
class Unmarked(op.Operation):
    input: op.Floats


def test_definitions_that_say_too_little_are_refused() -> None:
    with pytest.raises(TypeError, match="gives each letter a value"):
        definition_of(Unsolvable)
    with pytest.raises(TypeError, match="needs a mark"):
        definition_of(Unmarked)
