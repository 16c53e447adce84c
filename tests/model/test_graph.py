"""The symbolic program of a model: what its operations are follows from the specification."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgemoe.architectures import model_spec
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.blocks import GatedFfn, Moe, RouterSpec
from edgemoe.model.build import build_graph
from edgemoe.model.graph import BuildOptions, Section, Weight
from edgemoe.model.listing import distinct_layers, list_layer
from edgemoe.model.spec import LayerSpec, ModelSpec
from tests.architectures.published import GLM_45_AIR, MIXTRAL_8X7B
from tests.support.checkpoints import SMALL_LONGCAT, SMALL_NEMOTRON

SETTINGS = ("renormalise", "score", "groups", "kept_groups", "epsilon", "scale")


def routes(section: Section) -> dict[str, ex.Route]:
    """The routes of a layer, by their stage."""
    return {step.stage: step.operation for step in section.steps if isinstance(step.operation, ex.Route)}


def named(weight: object) -> str | None:
    return weight.name if isinstance(weight, Weight) else None


@pytest.mark.parametrize(
    "config", [MIXTRAL_8X7B, GLM_45_AIR | {"n_group": 8, "topk_group": 3}], ids=["plain", "grouped"]
)
def test_the_guess_at_the_next_layer_is_made_by_its_router(config: dict[str, object]) -> None:
    layers = build_graph(model_spec(config), BuildOptions(cache_aware_routing=0.2)).layers
    guess, own = routes(layers[3])["guess"], routes(layers[4])["attend"]
    assert [getattr(guess, name) for name in SETTINGS] == [getattr(own, name) for name in SETTINGS]
    assert named(guess.choice_bias) == named(own.choice_bias)
    assert (guess.bonus, own.bonus) == (0, 0.2)  # a guess says what the router would choose, not what is cheap


def test_a_bias_of_logits_is_part_of_the_product() -> None:
    spec = model_spec(MIXTRAL_8X7B)
    attention, moe = (block.body for block in spec.layers[0].blocks)
    assert isinstance(moe, Moe)
    biased = replace(moe, router=RouterSpec(True, logit_bias=True))
    graph = build_graph(replace(spec, layers=(LayerSpec.of(attention, biased),)))
    steps = [step.operation for step in graph.layers[0].steps if step.part == "router"]
    (product,) = (operation for operation in steps if isinstance(operation, op.Linear))
    assert named(product.parts[0].bias) == "layers.0.router_bias"
    assert ModelSpec.tensors(graph.spec)["layers.0.router_bias"] == (8,)


def test_activations_and_biases_are_listed() -> None:
    clamped = op.Activation("clamped_silu", 1.702, 7.0, 1.0)
    layers = (LayerSpec.of(GatedFfn(80, clamped, bias=True)), LayerSpec.of(Moe(4, 2, 48, RouterSpec(True), bias=True)))
    graph = build_graph(ModelSpec("test", 101, 64, layers, 1e-5, 256, False))
    dense, routed = ([line.text for line in list_layer(graph, layer)] for layer in (0, 1))
    (ffn,) = (text for text in dense if "GatedFfn" in text)
    assert ffn.startswith(
        "ffn (T, 64) = GatedFfn(normed (T, 64), ffn.gate_up [160, 64], ffn.down [64, 80], clamped_silu"
    )
    assert ffn.endswith("alpha 1.702, limit 7, offset 1, ffn.gate_bias [80], ffn.up_bias [80], ffn.down_bias [64])")
    (experts,) = (text for text in routed if "Experts" in text)
    assert "silu" not in experts  # the usual one is not named
    assert experts.endswith(
        "experts.gate [4, 48, 64], experts.up [4, 48, 64], experts.down [4, 64, 48],"
        " experts.gate_bias [4, 48], experts.up_bias [4, 48], experts.down_bias [4, 64])"
    )


def test_gate_and_up_that_a_store_has_apart_are_listed_so() -> None:
    layers = (LayerSpec.of(GatedFfn(80)),) * 4
    graph = build_graph(
        ModelSpec("test", 101, 64, layers, 1e-5, 256, False), BuildOptions(ffns_apart=frozenset({"layers.1.ffn"}))
    )
    assert distinct_layers(graph) == [("0", 0), ("1", 1), ("2-3", 2)]
    (ffn,) = (line.text for line in list_layer(graph, 1) if "GatedFfn" in line.text)
    assert ffn == "ffn (T, 64) = GatedFfn(normed (T, 64), ffn.down [64, 80], ffn.gate [80, 64], ffn.up [80, 64])"


def test_a_layer_without_experts_guesses_before_it_is_computed() -> None:
    """Where layers have one block each, no layer before one with experts has a routing of its own."""
    graph = build_graph(model_spec(SMALL_NEMOTRON))
    stages = [[step.stage for step in section.steps] for section in graph.layers]
    types = SMALL_NEMOTRON["layers_block_type"]
    followed = [number for number in range(len(types) - 1) if types[number + 1] == "moe"]
    assert followed == [number for number, own in enumerate(stages) if "guess" in own] == [0, 3]
    for number in followed:
        guess = [step for step in graph.layers[number].steps if step.stage == "guess"]
        assert graph.layers[number].steps[: len(guess)] == tuple(guess)
        assert isinstance(guess[-1].operation, ex.Prefetch)
        assert set(stages[number][len(guess) :]) == {"beside"}
        assert named(guess[0].operation.weight) == f"layers.{number + 1}.ffn_norm"


def test_experts_that_are_late_are_read_while_the_blocks_after_them_are_computed() -> None:
    """Their routing is known before the first FFN, whose rows they share, and their sum joins the stream last."""
    steps = build_graph(model_spec(SMALL_LONGCAT)).layers[0].steps
    kinds = [type(step.operation) for step in steps]
    fetch, experts = kinds.index(ex.Fetch), kinds.index(ex.Experts)
    attentions = [number for number, kind in enumerate(kinds) if kind is so.Attention]
    ffns = [number for number, kind in enumerate(kinds) if kind is op.GatedFfn]
    assert attentions[0] < fetch < ffns[0] < attentions[1] < ffns[1] < experts
    assert [step.stage for step in steps[experts:]] == ["experts", "combine"]
    assert {step.stage for step in steps[ffns[0] : experts]} == {"beside"}
    assert steps[experts].operation.input is steps[ffns[0]].operation.input
    guess = [step.operation for step in steps if step.stage == "guess"]
    assert named(guess[0].weight) == "layers.1.first.ffn_norm"
