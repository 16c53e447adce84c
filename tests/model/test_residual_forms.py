"""Norms before and after a block, parallel blocks, and the ways in which a result joins the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.blocks import Attention, GatedFfn
from edgemoe.model.build import build_graph
from edgemoe.model.graph import STAGES, Value, values_of
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import Block, LayerSpec, ModelSpec, Residual
from tests.architectures.published import GEMMA4_26B_A4B, MIXTRAL_8X7B, SMALLTHINKER_21B
from tests.model.test_attention_block import D, G, H, V, W, formula, rms, run
from tests.support.every_case import every_case

BODY = Attention(H, G, W, 0.3, RopeSpec(1e4, W), window=7)
Weights = dict[str, np.ndarray]
SCALE = 0.4


def body(w: Weights, rows: np.ndarray, prefix: str = "") -> np.ndarray:
    return formula(BODY, {name.removeprefix(prefix): array for name, array in w.items()}, rows)


def in_turn(w: Weights, x: np.ndarray) -> np.ndarray:
    x = x + SCALE * body(w, rms(x, w["a.attention_norm"]), "a.")
    return x + SCALE * body(w, rms(x, w["b.attention_norm"]), "b.")


def post_norm(w: Weights, x: np.ndarray) -> np.ndarray:
    return x + SCALE * rms(body(w, x), w["post_attention_norm"])


def sandwich(w: Weights, x: np.ndarray) -> np.ndarray:
    return x + SCALE * rms(body(w, rms(x, w["attention_norm"])), w["post_attention_norm"])


def one_norm_for_both(w: Weights, x: np.ndarray) -> np.ndarray:
    normed = rms(x, w["a.attention_norm"])
    return x + SCALE * body(w, normed, "a.") + SCALE * body(w, normed, "b.")


def norms_of_their_own(w: Weights, x: np.ndarray) -> np.ndarray:
    first = rms(body(w, rms(x, w["a.attention_norm"]), "a."), w["a.post_attention_norm"])
    return x + SCALE * first + SCALE * body(w, rms(x, w["b.attention_norm"]), "b.")


def gated(w: Weights, x: np.ndarray) -> np.ndarray:
    result = body(w, rms(x, w["attention_norm"]))
    return w["attention_keep"] * x + w["attention_share"] * SCALE * result + w["attention_shift"]


def from_normed(w: Weights, x: np.ndarray) -> np.ndarray:
    normed = rms(x, w["attention_norm"])
    return normed * w["attention_keep"] + SCALE * body(w, normed)


def summed(w: Weights, x: np.ndarray) -> np.ndarray:
    """The first block reads the stream as it is; both results, each normalised, are normalised as one sum."""
    first = rms(body(w, x, "a."), w["a.post_attention_norm"])
    second = rms(body(w, rms(x, w["b.attention_norm"]), "b."), w["b.post_attention_norm"])
    return w["b.attention_factor"] * (x + SCALE * rms(first + second, w["b.attention_sum_norm"]))


FORMS: dict[Callable[[Weights, np.ndarray], np.ndarray], tuple[Block, ...]] = {
    in_turn: (Block(BODY, "a."), Block(BODY, "b.")),
    post_norm: (Block(BODY, input_norm=False, post_norm=True),),
    sandwich: (Block(BODY, post_norm=True),),
    one_norm_for_both: (Block(BODY, "a."), Block(BODY, "b.", input_norm=False, parallel=True)),
    norms_of_their_own: (Block(BODY, "a.", post_norm=True), Block(BODY, "b.", parallel=True)),
    gated: (Block(BODY, residual=Residual(keep=True, share=True, shift=True)),),
    summed: (
        Block(BODY, "a.", input_norm=False, post_norm=True),
        Block(BODY, "b.", post_norm=True, parallel=True, sum_norm=True, residual=Residual(factor=True)),
    ),
    from_normed: (Block(BODY, residual=Residual("normed", keep=True)),),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_layer_is_its_formula(form: Callable[[Weights, np.ndarray], np.ndarray]) -> None:
    spec = ModelSpec("test", V, D, (LayerSpec(FORMS[form]),), 1e-5, 128, tied_embeddings=True, residual_scale=SCALE)
    assert ModelSpec.from_json(spec.to_json()) == spec
    stream, after, weights = run(spec, np.random.default_rng(5))
    np.testing.assert_allclose(after, form(weights, stream), rtol=0, atol=2e-5)


def test_parallel_ffns_take_turns_at_each_stage() -> None:
    """The routing of the experts is known, and their reads begin, before the dense FFN is computed (Gemma 4)."""
    spec = model_spec(MIXTRAL_8X7B)
    attention, moe = (block.body for block in spec.layers[0].blocks)
    blocks = (
        Block(attention),
        Block(GatedFfn(96), "dense.", post_norm=True),
        Block(moe, post_norm=True, parallel=True),
    )
    layer = build_graph(replace(spec, layers=(LayerSpec(blocks),) * 2)).layers[0]
    stages = [step.stage for step in layer.steps]
    assert stages == sorted(stages, key=STAGES.index)
    kinds = [type(step.operation) for step in layer.steps]
    assert kinds.index(ex.Fetch) < kinds.index(op.GatedFfn) < kinds.index(ex.Experts)
    for value, (first, last) in layer.lives().items():
        uses = [number for number, step in enumerate(layer.steps) if value in set(values_of(step.operation))]
        assert (first, last) == (uses[0], uses[-1])
    joined = [step.operation for step in layer.steps if isinstance(step.operation, op.Mix)]
    assert len(joined) == 2
    assert len({id(mix.result) for mix in joined}) == 2
    assert all(isinstance(mix.output, Value) and mix.output.name == "residual" for mix in joined)


def test_experts_that_are_known_as_a_layer_begins_are_read_while_attention_is_computed() -> None:
    graph = build_graph(model_spec(SMALLTHINKER_21B))
    for layer in graph.layers[:2]:
        kinds = [type(step.operation) for step in layer.steps]
        order = [kinds.index(kind) for kind in (ex.Route, ex.Fetch, ex.Prefetch, so.Attention, ex.Experts)]
        assert order == sorted(order)
        router, guess = (step.operation for step in layer.steps[:-1] if type(step.operation) is ex.Route)
        products = [step.operation for step in layer.steps if isinstance(step.operation, op.Linear)]
        # Both read the stream as it is, under no norm.
        assert [product.input is graph.residual for product in products[:2]] == [True, True]
        assert (products[0].parts[0].output, products[1].parts[0].output) == (router.logits, guess.logits)
        for value, (first, last) in layer.lives().items():
            uses = [number for number, step in enumerate(layer.steps) if value in set(values_of(step.operation))]
            assert (first, last) == (uses[0], uses[-1])


def test_experts_that_read_the_stream_itself_are_summed_with_the_dense_ffn_beside_them() -> None:
    spec = model_spec(GEMMA4_26B_A4B)
    graph = build_graph(spec)
    for layer in (graph.layers[0], graph.layers[5]):
        stages = [step.stage for step in layer.steps]
        assert stages == sorted(stages, key=STAGES.index)
        kinds = [type(step.operation) for step in layer.steps]
        assert kinds.index(ex.Route) < kinds.index(ex.Fetch) < kinds.index(op.GatedFfn) < kinds.index(ex.Experts)
        joined = [step.operation for step in layer.steps if isinstance(step.operation, op.Mix)]
        assert [mix.output is graph.residual for mix in joined] == [True, False, True]
        assert [mix.factor is not None for mix in joined] == [False, False, True]
        router = next(step.operation for step in layer.steps if isinstance(step.operation, ex.Route))
        assert router.expert_scales is not None
    guess = [step.operation for step in graph.layers[0].steps if step.stage == "guess"]
    assert [type(operation) for operation in guess] == [op.RmsNorm, op.Linear, ex.Route, ex.Prefetch]
    assert guess[0].input is graph.residual
    assert [type(step.operation) for step in graph.head.steps] == [op.RmsNorm, op.Linear, op.SoftCap]


@every_case(
    ("blocks", "message"),
    [
        ((Block(BODY, parallel=True),), "the first block is parallel to none"),
        (
            (Block(BODY, "a.", input_norm=False), Block(BODY, "b.", parallel=True)),
            "blocks that are parallel to one without an input norm",
        ),
        ((Block(BODY, sum_norm=True),), "a sum of the results of one block"),
        (
            (Block(BODY, "a."), Block(BODY, "b.", parallel=True, sum_norm=True), Block(BODY, "c.", parallel=True)),
            "a sum of results before the last of the blocks",
        ),
        (
            (Block(BODY, "a.", residual=Residual(factor=True)), Block(BODY, "b.", parallel=True, sum_norm=True)),
            "a residual of a block whose result joins a sum",
        ),
        (
            (Block(BODY, "a.", input_norm=False), Block(BODY, "b.", False, parallel=True, sum_norm=True)),
            "blocks that are parallel to one without an input norm",
        ),
        (
            (Block(BODY, input_norm=False, residual=Residual("normed")),),
            "a residual of normalised rows without an input norm",
        ),
        (
            (model_spec(MIXTRAL_8X7B).layers[0].blocks[1], Block(GatedFfn(8), "b.")),
            "a block after the one with routed experts that is not parallel to it",
        ),
    ],
)
def test_blocks_that_contradict_one_another_are_refused(blocks: tuple[Block, ...], message: str) -> None:
    plain = ModelSpec("test", V, D, (LayerSpec(blocks),), 1e-5, 128, tied_embeddings=True).to_json()
    with pytest.raises(ValueError, match=rf"model\.layers\[0\]: .*{message}"):
        ModelSpec.from_json(plain)
