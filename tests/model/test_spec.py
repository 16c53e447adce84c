"""Specifications: plain data and back, what cannot be run, and the form that stores of edgemoe 0.1 carry."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edgemoe.architectures import model_spec
from edgemoe.kernels.expert_operations import Level
from edgemoe.kernels.operations import RELU, RELU2, SILU, Activation
from edgemoe.model.blocks import (
    Attention,
    BlockIndex,
    BlockIndexer,
    CompressedAttention,
    FastFeedforward,
    GatedDelta,
    GatedFfn,
    LatentAttention,
    Mamba,
    Mamba2,
    Moe,
    Multilinear,
    OutputGate,
    Peer,
    PlainFfn,
    RouterSpec,
    SharedExpert,
    ShortConv,
    SoftMoe,
)
from edgemoe.model.first_form import current_form
from edgemoe.model.rope import LogTemperature, RopeSpec
from edgemoe.model.sinkhorn_streams import SinkhornStreams
from edgemoe.model.spec import Block, LayerSpec, ModelSpec, Residual
from tests.architectures.published import ALL_FAMILIES
from tests.support.every_case import every_case

ATTENTION = Attention(4, 2, 16, 0.25, RopeSpec(1e4, 16, "linear", {"factor": 2.0}), qkv_bias=True, qk_norm="head")
COMPRESSED = CompressedAttention(
    4, 16, 24, 2, 12, 32, RopeSpec(1e4, 8, pairing="neighbours"), rate=4, overlap=True, index=BlockIndex(2, 8, 5)
)
LATENT = LatentAttention(2, 32, 16, 8, 16, 0.2, RopeSpec(1e4, 8))
MOE = Moe(8, 2, 48, RouterSpec(True), SharedExpert(32, gate=True))
SPEC = ModelSpec(
    "test", 101, 64, (LayerSpec.of(ATTENTION, GatedFfn(80)), LayerSpec.of(ATTENTION, MOE)), 1e-5, 256, False
)
FIRST_FORM = {
    "family": "test",
    "vocabulary": 101,
    "model_width": 64,
    "norm_epsilon": 1e-5,
    "rope": {"theta": 1e4, "scaling": "linear", "parameters": {"factor": 2.0}},
    "max_positions": 256,
    "tied_embeddings": False,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "layers": [
        {
            "attention": {
                "query_heads": 4,
                "kv_heads": 2,
                "head_width": 16,
                "scale": 0.25,
                "qkv_bias": True,
                "output_bias": False,
                "qk_norm": "head",
            },
            "ffn": ffn,
        }
        for ffn in (
            {"kind": "dense", "width": 80},
            {
                "kind": "moe",
                "experts": 8,
                "experts_per_token": 2,
                "width": 48,
                "renormalise": True,
                "shared_width": 32,
                "shared_gate": True,
            },
        )
    ],
}
"""`SPEC` as edgemoe 0.1 wrote it."""


@every_case("config", ALL_FAMILIES.values(), ids=ALL_FAMILIES)
def test_plain_json_and_back(config: dict[str, Any]) -> None:
    spec = model_spec(config)
    named = {"git": "grok-2"}  # its checkpoint has the name of another model
    assert spec.family == named.get(config["model_type"], config["model_type"].removesuffix("_text"))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_first_form_is_read() -> None:
    assert ModelSpec.from_json(current_form(FIRST_FORM)) == SPEC
    assert current_form(SPEC.to_json()) == SPEC.to_json()


def routed(normalise: bool, top_k: int = 2, **options: Any) -> LayerSpec:
    return LayerSpec.of(Moe(8, top_k, 48, RouterSpec(normalise, **options)))


@every_case(
    ("layer", "message"),
    [
        (LayerSpec(()), "no blocks"),
        (LayerSpec.of(MOE, MOE), "two blocks with routed experts"),
        (LayerSpec.of(GatedFfn(8), GatedFfn(8)), "tensors have the same names"),
        (LayerSpec.of(Attention(4, 3, 16, 0.25, RopeSpec(1e4, 16))), "4 query heads and 3 key heads"),
        (LayerSpec.of(Attention(4, 2, 16, 0.25, RopeSpec(1e4, 18))), "18 of 16 channels"),
        (
            LayerSpec.of(replace(ATTENTION, values_from_keys=True)),
            "values from the projection of keys that have another width, or no norm of their own",
        ),
        (
            LayerSpec.of(replace(ATTENTION, rope=RopeSpec(1e4, 16, "proportional", {"factor": 1.0, "pairs": 9}))),
            "9 of 8 pairs turn",
        ),
        (LayerSpec.of(GatedFfn(8, Activation("gelu_tanh", 2.0))), "activation: function: expected clamped_silu"),
        (LayerSpec.of(GatedFfn(8, RELU2)), "a gated FFN needs the activation of one"),
        (routed(True, levels=(Level(2, 1), Level(5, 2))), "router: levels of 2 x 5: expected them to make 8 experts"),
        (routed(True, levels=(Level(2, 1), Level(4, 1))), "router: 1 x 1 choices: expected them to make 2 for a token"),
        (routed(True, levels=(Level(1, 2), Level(8, 1))), r"router: levels\[0\].top_k: expected 1 to 1, found 2"),
        (routed(True, levels=(Level(2, 1), Level(4, 2)), groups=2), "router: levels with settings of another router"),
        (LayerSpec.of(FastFeedforward(25)), "a tree of 25 levels: expected at most 24"),
        (LayerSpec.of(FastFeedforward(3, output_bias=True)), "biases of what leaves add, and no leaves"),
        (LayerSpec.of(FastFeedforward(3, 4, activation=SILU)), "trees of neurons without a gate need an activation"),
        (LayerSpec.of(PlainFfn(8, SILU)), "an FFN without a gate needs an activation that takes none"),
        (
            LayerSpec.of(replace(MOE, activation=Activation("clamped_silu", 1.0, 7.0, gated=False))),
            "activation: gated: expected a gate for clamped_silu, found none",
        ),
        (LayerSpec.of(replace(COMPRESSED, groups=3)), "4 heads in 3 groups"),
        (LayerSpec.of(replace(COMPRESSED, rate=24)), "blocks of 24 tokens: expected a divisor or a multiple of 64"),
        (LayerSpec.of(replace(COMPRESSED, rate=1024)), "rows of 2048 tokens: expected at most 1024"),
        (LayerSpec.of(replace(COMPRESSED, rate=0)), "blocks that overlap or are chosen, of no tokens"),
        (LayerSpec.of(replace(COMPRESSED, rate=1)), "a choice among blocks of 1 token"),
        (LayerSpec.of(replace(COMPRESSED, index=BlockIndex(2, 6, 5))), "8 of 6 channels are rotated"),
        (
            LayerSpec.of(replace(ATTENTION, indexer=BlockIndexer(2, 16, 24, 5))),
            "blocks of 24 tokens: expected a divisor of 64",
        ),
        (
            LayerSpec.of(replace(ATTENTION, indexer=BlockIndexer(2, 12, 4, 5))),
            "heads of width 12 that choose blocks: expected 16 to 1024",
        ),
        (
            LayerSpec.of(replace(ATTENTION, indexer=BlockIndexer(2, 1028, 4, 5))),
            "heads of width 1028 that choose blocks: expected 16 to 1024",
        ),
        (routed(True, score="sqrt_softplus", choice_bias=True, table=9), "router: a table of experts with weights"),
        (LayerSpec.of(Peer(12, 2, 1, 8)), "product keys of 12 experts: expected a square"),
        (LayerSpec.of(Peer(16, 2, 5, 8)), "a head that retrieves 5 experts: expected at most 4"),
        (LayerSpec.of(Peer(16, 2, 2, 8, activation=SILU)), "experts of one neuron need an activation without a gate"),
        (LayerSpec.of(ShortConv(1)), "a convolution over 1 tokens: expected 2 to 64"),
        (LayerSpec.of(ShortConv(65)), "a convolution over 65 tokens: expected 2 to 64"),
        (
            LayerSpec.of(LatentAttention(2, 32, 16, 8, 16, 0.2, RopeSpec(1e4, 4))),
            "4 of 8 channels with positions are rotated",
        ),
        (LayerSpec.of(LatentAttention(2, 32, 16, 8, 16, 0.2, RopeSpec(1e4, 12))), "12 of 8 channels"),
        (routed(True, groups=2, group_best=3), "router: group_best: expected 1 or 2, found 3"),
        (LayerSpec.of(GatedDelta(2, 3, 16, 16, 4)), "3 heads that share 2 heads of keys"),
        (LayerSpec.of(GatedDelta(1, 1, 257, 16, 4)), "keys of 257 channels: expected at most 256"),
        (LayerSpec.of(GatedDelta(1, 1, 16, 16, 1)), "a convolution over 1 tokens: expected 2 to 64"),
        (LayerSpec.of(Mamba(32, 257, 2, 4)), "257 numbers of each channel: expected at most 256"),
        (LayerSpec.of(Mamba(32, 16, 2, 1)), "a convolution over 1 tokens: expected 2 to 64"),
        (
            LayerSpec.of(LatentAttention(4, 32, 16, 8, 16, 0.2, None, output_gate=OutputGate("channel"))),
            "a gate of latent attention that is not one of its heads",
        ),
        (
            LayerSpec((Block(GatedFfn(8), residual=Residual(keep=True, base_scale=2.0)),)),
            "a residual with two factors of its base",
        ),
        (
            LayerSpec.of(GatedFfn(8, Activation("capped_silu"))),
            "activation: limit: expected a limit for capped_silu",
        ),
        (LayerSpec.of(Mamba2(3, 16, 2, 16, 4)), "3 heads in 2 groups"),
        (LayerSpec.of(Mamba2(2, 16, 2, 16, 65)), "a convolution over 65 tokens: expected 2 to 64"),
        (
            LayerSpec.of(replace(MOE, latent=8, shared=SharedExpert(8, gate=True))),
            "a gate of the shared expert beside experts on latent rows",
        ),
        (LayerSpec.of(replace(MOE, shared=None, latent=8, experts_norm=True)), "a norm before experts on latent rows"),
        (LayerSpec.of(GatedFfn(8, Activation(limit=7.0))), "activation: limit: expected no limit for silu, found 7"),
        (LayerSpec.of(replace(MOE, activation=Activation("clamped_silu"))), "activation: limit: expected a limit"),
        (
            LayerSpec.of(replace(MOE, shared=SharedExpert(8, activation=Activation(alpha=2.0)))),
            "activation: function: expected clamped_silu, found silu",
        ),
        (routed(True, groups=3), "router: groups: expected equal runs of at least 2 of 8 experts, found 3"),
        (routed(True, groups=8), "router: groups: expected equal runs of at least 2 of 8 experts, found 8"),
        (routed(True, groups=2, kept_groups=3), "router: kept_groups: expected at most 2, found 3"),
        (routed(True, groups=4, top_k=3), "router: experts: expected at most 2 per token, found 3"),
        (routed(True, top_k=9), "router: experts: expected at most 8 per token, found 9"),
        (LayerSpec((Block(MOE, input_norm=False, early=True),)), "reads the stream early without an input norm"),
        (LayerSpec((Block(MOE, late=True), Block(ATTENTION))), "a late block but of experts that are parallel"),
        (LayerSpec((Block(ATTENTION), Block(GatedFfn(8), parallel=True, late=True))), "a late block but of experts"),
        (
            LayerSpec((Block(ATTENTION), Block(MOE, parallel=True, post_norm=True, late=True))),
            "that are parallel to another one and plainly added",
        ),
        (LayerSpec.of(replace(MOE, passing=2, capacity=3)), "choices of no expert beside a capacity or weights of"),
        (LayerSpec.of(replace(MOE, capacity_factor=1.25)), "the rule of a capacity without one"),
        (LayerSpec.of(replace(MOE, capacity_by_rank=True)), "the rule of a capacity without one"),
        (
            LayerSpec.of(replace(MOE, capacity=1, capacity_factor=2000.0)),
            "a capacity of 2000 even shares of the tokens",
        ),
        (LayerSpec.of(SoftMoe(4, 2, 8, SILU)), "experts of slots with a gate"),
        (LayerSpec.of(SoftMoe(1 << 10, 1 << 7, 8)), "131072 slots: expected at most 65536"),
        (LayerSpec.of(Multilinear(4, "ring", (3,))), "1 ranks of factors in the form ring: expected 3"),
        (LayerSpec.of(Multilinear(4, "ring", (300, 2, 300))), "rows of 90000 factors: expected at most 16384"),
        (LayerSpec.of(replace(LATENT, query_scale=2.0)), "a factor of queries that are made of the stream itself"),
        (LayerSpec.of(replace(ATTENTION, chunked=True, window=0)), "chunks of no width"),
        (
            LayerSpec.of(replace(ATTENTION, score_temperature=LogTemperature(1))),
            "temperature: a length of 1",
        ),
        (LayerSpec.of(replace(MOE, weigh_inputs=True)), "weights of the inputs of 2 experts for each token"),
        (
            LayerSpec.of(
                replace(
                    ATTENTION,
                    rope=RopeSpec(
                        1e4,
                        16,
                        "longrope",
                        {"original_max_position_embeddings": 9.0, "short_gain": 1.0, "long_gain": 1.0},
                        short_factors=(1.0,) * 8,
                    ),
                )
            ),
            "8 short and 0 long factors where 8 of each are expected",
        ),
        (routed(True, score="sparsemixer"), "router: score: expected no renormalisation"),
        (routed(False, jitter=0.1), "router: jitter: expected 0 but for sparsemixer"),
        (routed(True, epsilon=1e-20), "router: epsilon: expected 0 for softmax"),
        (routed(False, score="sigmoid", epsilon=1e-20), "an epsilon of 1e-20 and no sum"),
        (routed(True, score="sigmoid", least_sum=0.5), "router: least_sum: expected 0 but for softmax"),
        (
            LayerSpec.of(replace(ATTENTION, norm_after_rope=True, qk_norm="none")),
            "norms after the rotation, and no norms",
        ),
    ],
)
def test_layers_that_cannot_be_run_are_refused(layer: LayerSpec, message: str) -> None:
    plain = ModelSpec("test", 101, 64, (layer,), 1e-5, 256, False).to_json()
    with pytest.raises(ValueError, match=rf"model\.layers\[0\]: .*{message}"):
        ModelSpec.from_json(plain)


def test_every_setting_of_a_router_survives_json() -> None:
    layer = routed(True, 2, score="sigmoid", choice_bias=True, groups=4, kept_groups=2, epsilon=1e-20, scale=2.5)
    spec = ModelSpec("test", 101, 64, (layer, routed(True, choice_bias=True, least_sum=1e-12)), 1e-5, 256, False)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.tensors()["layers.0.router_choice_bias"] == (8,)
    plain = spec.to_json()
    plain["layers"][0]["blocks"][0]["body"]["router"]["score"] = "tanh"
    with pytest.raises(ValueError, match=r"router\.score is 'tanh'"):
        ModelSpec.from_json(plain)


def test_settings_of_attention_survive_json() -> None:
    rope = RopeSpec(1e4, 16, pairing="neighbours")
    attention = replace(ATTENTION, rope=rope, qk_norm="head", norm_after_rope=True, clip=8.0)
    spec = ModelSpec("test", 101, 64, (LayerSpec.of(attention, MOE),), 1e-5, 256, False)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    plain = spec.to_json()
    plain["layers"][0]["blocks"][0]["body"]["rope"]["pairing"] = "thirds"
    with pytest.raises(ValueError, match=r"rope\.pairing is 'thirds'"):
        ModelSpec.from_json(plain)


def test_activations_and_biases_survive_json_and_name_their_tensors() -> None:
    clamped = Activation("clamped_silu", 1.702, 7.0, 1.0)
    shared = SharedExpert(24, activation=Activation("clamped_silu", limit=10.0), bias=True)
    moe = Moe(8, 2, 48, RouterSpec(True), shared, clamped, bias=True)
    layers = (LayerSpec.of(ATTENTION, GatedFfn(80, clamped, bias=True)), LayerSpec.of(ATTENTION, moe))
    spec = ModelSpec("test", 101, 64, layers, 1e-5, 256, False)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    names = spec.tensors()
    for prefix, width in (("layers.0.ffn", 80), ("layers.1.shared", 24), ("layers.1.experts.7", 48)):
        assert names[f"{prefix}.gate_bias"] == names[f"{prefix}.up_bias"] == (width,)
        assert names[f"{prefix}.down_bias"] == (64,)


def test_ffns_without_a_gate_have_two_matrices() -> None:
    moe = Moe(8, 2, 48, RouterSpec(True), SharedExpert(24, activation=RELU2, bias=True), RELU2, bias=True)
    spec = ModelSpec("test", 101, 64, (LayerSpec.of(PlainFfn(80, RELU)), LayerSpec.of(moe)), 1e-5, 256, False)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    shapes = spec.tensors()
    assert not [name for name in shapes if "gate" in name]
    assert (shapes["layers.0.ffn.up"], shapes["layers.0.ffn.down"]) == ((80, 64), (64, 80))
    for prefix, width in (("layers.1.shared", 24), ("layers.1.experts.7", 48)):
        assert shapes[f"{prefix}.up"] == shapes[f"{prefix}.down"][::-1] == (width, 64)
        assert shapes[f"{prefix}.up_bias"] == (width,)


def test_a_layer_may_have_any_blocks() -> None:
    layer = LayerSpec(
        (Block(ATTENTION), Block(GatedFfn(80)), Block(ATTENTION, "second."), Block(ShortConv(3)), Block(MOE, "moe."))
    )
    spec = ModelSpec("test", 101, 64, (layer,), 1e-5, 256, False)
    assert ModelSpec.from_json(spec.to_json()) == spec
    names = spec.tensors()
    assert names["layers.0.second.query"] == names["layers.0.query"] == (64, 64)
    assert "layers.0.moe.experts.7.down" in names
    assert names["layers.0.conv_taps"] == (3 * 64,)
    assert spec.routed[0].num_experts == 8


def test_several_streams_survive_json_and_name_their_tensors() -> None:
    table = RouterSpec(True, score="sqrt_softplus", epsilon=1e-20, scale=1.5, table=101)
    layer = LayerSpec.of(COMPRESSED, Moe(8, 2, 48, table))
    spec = ModelSpec("test", 101, 64, (layer,), 1e-5, 256, False, streams=SinkhornStreams(4, 20, 1e-6))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    names = spec.tensors()
    assert names["layers.0.attention_balance_shares"] == (20, 256)
    assert names["layers.0.ffn_norm"] == names["final_norm"] == (64,)
    assert names["layers.0.router_table"] == (202,)
    assert "final_balance_shares" not in names
    scaled = replace(spec, residual_scale=0.5)
    other = replace(spec, layers=(LayerSpec((Block(COMPRESSED, residual=Residual(keep=True)),)),))
    alone = replace(spec, streams=SinkhornStreams(1, 20, 1e-6))
    for wrong, message in (
        (scaled, "several residual streams with an encoder"),
        (other, "a block that joins one in a way of its own"),
        (alone, "1 residual streams: expected 2 to 16"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelSpec.from_json(wrong.to_json())


def test_only_layer_norms_have_biases() -> None:
    plain = ModelSpec("test", 101, 64, (LayerSpec.of(MOE),), 1e-5, 256, False, norm_bias=True).to_json()
    with pytest.raises(ValueError, match="biases of norms that are not LayerNorm"):
        ModelSpec.from_json(plain)
