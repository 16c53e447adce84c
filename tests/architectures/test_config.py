"""How config.json is read: every key accounted for, every value that means something else refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.architectures import FAMILIES, Tail, checkpoint_shapes, model_spec, tail_in, unused_tensors
from edgemoe.architectures.config import FIXED, HARMLESS
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import GELU_TANH, RELU2, Activation
from edgemoe.model.blocks import (
    Attention,
    BlockIndexer,
    CompressedAttention,
    GatedDelta,
    GatedFfn,
    LatentAttention,
    Mamba,
    Mamba2,
    Moe,
    NgramTable,
    OutputGate,
    PlainFfn,
    RouterSpec,
    SharedExpert,
    ShortConv,
)
from edgemoe.model.ngrams import NgramRows
from edgemoe.model.rope import (
    LogTemperature,
    RopeSpec,
    Temperature,
    rope_frequencies,
    rope_tables,
    temperature_factors,
)
from edgemoe.model.spec import Block, LayerSpec, ModelSpec
from edgemoe.model.streams import GatedStreams
from tests.architectures.published import (
    ALL_FAMILIES,
    ARCTIC_INSTRUCT,
    AXK1,
    CARRIER_FFF,
    DBRX_INSTRUCT,
    DEEPSEEK_MOE_16B,
    DEEPSEEK_V2,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    DEEPSEEK_V4_FLASH,
    DEEPSEEK_V32,
    DOTS_LLM1,
    ERNIE_45_21B_A3B,
    FLEX_OLMO_7X7B,
    GEMMA4_26B_A4B,
    GLM_5,
    GLM_45_AIR,
    GLM_47_FLASH,
    GPT_OSS_20B,
    GRANITE_1B_A400M,
    GRANITE_4_H_TINY,
    GRANITE_SHARED,
    GROK_2,
    GROVE_MOE_INST,
    HUNYUAN_A13B,
    HY3_PREVIEW,
    JAMBA_V01,
    KIMI_K2,
    KIMI_K25,
    LFM2_8B_A1B,
    LING_MINI_2,
    LLAMA4_MAVERICK,
    LLAMA4_SCOUT,
    LLAMA_31_8B,
    LONGCAT_FLASH,
    MINIMAX_M2,
    MISTRAL_SMALL_4,
    MIXTRAL_8X7B,
    MOONLIGHT_16B_A3B,
    NEMOTRON_3_NANO,
    NEMOTRON_3_SUPER,
    OLMOE_1B_7B,
    PHI35_MOE,
    PUBLISHED,
    QWEN3_30B_A3B,
    QWEN3_NEXT_80B_A3B,
    QWEN15_MOE_A27B,
    QWEN36_35B_A3B,
    QWEN38_FLASH_NEXT,
    SARVAM_30B,
    SARVAM_105B,
    SOLAR_OPEN_100B,
)
from tests.golden.covering import golden_configs
from tests.support.every_case import every_case
from tests.support.examples import examples


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(SourceError) as caught:
        model_spec(config)
    assert caught.value.hint
    return caught.value.message


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


# What published configs mean


@pytest.mark.slow
@every_case("name", PUBLISHED)
def test_published_models_have_their_number_of_parameters(name):
    config, parameters = PUBLISHED[name]
    spec = model_spec(config)
    # An encoder's checkpoint has once what the model has for each layer; rows of trees fill whole panels in the model.
    of_checkpoint = spec.encoder or config.get("ffn") == "fff"
    shapes = checkpoint_shapes(config) if of_checkpoint else spec.tensors()
    assert sum(map(math.prod, shapes.values())) == parameters


@pytest.mark.slow
@every_case("name", PUBLISHED)
def test_published_checkpoints_have_their_number_of_parameters(name):
    config, parameters = PUBLISHED[name]
    assert sum(map(math.prod, checkpoint_shapes(config).values())) == parameters


def attention(layer: LayerSpec) -> Attention:
    return layer.blocks[0].body


def ffn(layer: LayerSpec) -> GatedFfn | Moe:
    return layer.blocks[1].body


def test_every_family_has_a_config_here():
    assert ALL_FAMILIES.keys() == FAMILIES.keys()


def test_mixtral():
    spec = model_spec(MIXTRAL_8X7B)
    assert {ffn(layer) for layer in spec.layers} == {Moe(8, 2, 14336, router=RouterSpec(normalise=True))}
    assert attention(spec.layers[0]).rope == RopeSpec(1e6, 128)
    assert not spec.tied_embeddings


def test_qwen2_moe_has_a_gated_shared_expert_and_biases_by_default():
    layer = model_spec(QWEN15_MOE_A27B).layers[0]
    assert ffn(layer) == Moe(60, 4, 1408, router=RouterSpec(normalise=False), shared=SharedExpert(5632, gate=True))
    assert (attention(layer).qkv_bias, attention(layer).output_bias) == (True, False)
    assert not attention(model_spec(QWEN15_MOE_A27B | {"qkv_bias": False}).layers[0]).qkv_bias


def test_qwen3_moe_norms_each_head():
    heads = attention(model_spec(QWEN3_30B_A3B).layers[0])
    assert (heads.qk_norm, heads.head_dim) == ("head", 128)
    assert heads.scale == pytest.approx(128**-0.5)
    assert attention(model_spec(QWEN3_30B_A3B | {"attention_bias": True}).layers[0]).output_bias


def test_flex_olmo_norms_results_alone():
    layer = model_spec(FLEX_OLMO_7X7B).layers[0]
    assert attention(layer).qk_norm == "full"
    assert [(block.input_norm, block.post_norm) for block in layer.blocks] == [(False, True)] * 2


def test_olmoe_norms_the_whole_projection():
    assert attention(model_spec(OLMOE_1B_7B).layers[0]).qk_norm == "full"


def test_granite_multipliers():
    spec = model_spec(GRANITE_1B_A400M)
    assert (spec.embedding_scale, spec.residual_scale) == (12.0, 0.22)
    assert spec.logit_scale == pytest.approx(1 / 6)
    assert attention(spec.layers[0]).scale == 0.015625
    assert spec.tied_embeddings
    plain = without(
        GRANITE_1B_A400M, "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier"
    )
    bare = model_spec(plain)
    assert (bare.embedding_scale, bare.residual_scale, bare.logit_scale) == (1, 1, 1)
    assert attention(bare.layers[0]).scale == 1


def test_granite_shared_expert_may_be_absent():
    assert ffn(model_spec(GRANITE_SHARED).layers[0]).shared == SharedExpert(1024)
    assert ffn(model_spec(GRANITE_SHARED | {"shared_intermediate_size": 0}).layers[0]).shared is None


def test_llama4_has_chunks_with_positions_and_whole_layers_without():
    spec = model_spec(LLAMA4_SCOUT)
    chunked, whole = attention(spec.layers[0]), attention(spec.layers[3])
    assert [attention(layer).window for layer in spec.layers] == [8192, 8192, 8192, 0] * 12
    assert (chunked.chunked, chunked.qk_norm, chunked.norm_after_rope) == (True, "unweighted", True)
    assert chunked.rope.pairing == "neighbours"
    assert chunked.rope.scaling == "llama3"
    assert chunked.temperature is None
    assert (whole.rope, whole.qk_norm, whole.chunked) == (None, "none", False)
    assert whole.temperature == Temperature(0.1, 8192)
    router = RouterSpec(normalise=False, score="sigmoid", choose_by="logit")
    moe = Moe(16, 1, 8192, router=router, shared=SharedExpert(8192), weigh_inputs=True)
    assert {ffn(layer) for layer in spec.layers} == {moe}
    maverick = model_spec(LLAMA4_MAVERICK)
    assert [layer.routed is not None for layer in maverick.layers] == [False, True] * 24
    assert ffn(maverick.layers[0]) == GatedFfn(16384)
    assert attention(maverick.layers[0]).qk_norm == "none"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_experts_per_tok": 2}, "num_experts_per_tok is 2"),
        ({"attention_chunk_size": None, "layer_types": ["chunked_attention"] * 48}, "attention_chunk_size is missing"),
        ({"layer_types": ["sliding_attention"] * 48}, 'layer_types is "sliding_attention"'),
        ({"layer_types": ["full_attention"]}, "layer_types lists 1 layers; expected 48"),
        ({"no_rope_layers": [0, 1, 2]}, "no_rope_layers lists 3 values; expected 48 of 0 and 1"),
        ({"moe_layers": [48]}, "moe_layers holds 48; expected layers from 0 to 47"),
        ({"attn_temperature_tuning": 3}, "attn_temperature_tuning is 3"),
        ({"floor_scale": 0}, "floor_scale is 0"),
    ],
)
def test_llama4_refuses_what_it_has_not(keys, words):
    assert words in refusal(LLAMA4_SCOUT | {"text_config": LLAMA4_SCOUT["text_config"] | keys})


def test_arctic_has_a_dense_ffn_beside_experts_that_read_before_attention():
    attending, dense, experts = model_spec(ARCTIC_INSTRUCT).layers[0].blocks
    assert (dense.prefix, dense.body, dense.early) == ("dense.", GatedFfn(7168), False)
    assert (experts.body, experts.early, experts.parallel) == (
        Moe(128, 2, 4864, RouterSpec(normalise=True)),
        True,
        True,
    )
    assert attending.body.rope == RopeSpec(10_000.0, 128)
    plain = model_spec(ARCTIC_INSTRUCT | {"parallel_attn_mlp_res": False, "moe_layer_frequency": 2})
    assert [layer.routed is not None for layer in plain.layers[:4]] == [False, True] * 2
    assert [len(layer.blocks) for layer in plain.layers[:4]] == [2] * 4
    assert "own.Arctic2" in refusal(ARCTIC_INSTRUCT | {"auto_map": {"AutoModelForCausalLM": "own.Arctic2"}})


def test_grove_moe_has_an_adjugate_expert_in_each_expert():
    spec = model_spec(GROVE_MOE_INST)
    first = spec.layers[0]
    assert attention(first) == attention(model_spec(QWEN3_30B_A3B).layers[0])
    assert ffn(first) == Moe(128, 8, 768 + 128, RouterSpec(normalise=True))
    dense = model_spec(GROVE_MOE_INST | {"mlp_only_layers": [3]}).layers[3]
    assert ffn(dense) == GatedFfn(6144)
    assert tail_in(GROVE_MOE_INST, "model.layers.7.mlp.experts.5.up_proj.weight") == Tail(
        "model.layers.7.mlp.chunk_experts.2.up_proj.weight"
    )
    assert tail_in(GROVE_MOE_INST, "model.layers.7.mlp.experts.4.down_proj.weight") == Tail(
        "model.layers.7.mlp.chunk_experts.2.down_proj.weight", columns=True, factor=0.05
    )
    assert tail_in(GROVE_MOE_INST, "model.layers.7.mlp.gate.weight") is None
    assert tail_in(QWEN3_30B_A3B, "model.layers.7.mlp.experts.4.down_proj.weight") is None
    names = [f"model.layers.{number}.mlp.expert_bias" for number in range(2)]
    assert unused_tensors(GROVE_MOE_INST, names).keys() == set(names)
    assert not unused_tensors(QWEN3_30B_A3B, names)


@every_case(
    ("keys", "words"),
    [
        ({"num_experts": 127}, "num_experts is 127; edgemoe implements groups of 2 experts only"),
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
        ({"moe_intermediate_size": 1 << 20}, "moe_intermediate_size is 1048576"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Grove"}}, "own.Grove"),
    ],
)
def test_grove_moe_refuses_what_it_has_not(keys, words):
    assert words in refusal(GROVE_MOE_INST | keys)


def test_dbrx_reads_its_two_objects():
    spec = model_spec(DBRX_INSTRUCT)
    heads = attention(spec.layers[0])
    assert (heads.heads, heads.kv_heads, heads.head_dim, heads.clip) == (48, 8, 128, 8.0)
    assert heads.rope == RopeSpec(500_000.0, 128)
    assert ffn(spec.layers[0]) == Moe(16, 4, 10752, router=RouterSpec(normalise=True))
    assert (spec.norm, spec.norm_epsilon, spec.max_positions) == ("layer", 1e-5, 32768)
    bare = model_spec(DBRX_INSTRUCT | {"attn_config": {"kv_n_heads": 8, "rope_theta": 10_000.0}})
    assert attention(bare.layers[0]).clip == 0
    plain = DBRX_INSTRUCT["ffn_config"] | {"moe_normalize_expert_weights": None}
    assert not ffn(model_spec(DBRX_INSTRUCT | {"ffn_config": plain}).layers[0]).router.normalise


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"attn_config": {"kv_n_heads": 7}}, "kv_n_heads 7"),
        ({"attn_config": {"kv_n_heads": 8, "rope_theta": 5e5}, "rope_theta": 1e4}, "but 500000 in attn_config"),
        ({"attn_config": {"kv_n_heads": 8, "window": 5}}, '"window" is 5'),
        ({"ffn_config": {"moe_normalize_expert_weights": 2.0}}, "moe_normalize_expert_weights"),
        ({"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, "ffn_config.ffn_act_fn is an object of 1"),
        ({"ffn_config": {"moe_top_k": 5}}, "moe_top_k is 5; expected at most the number of experts, 4"),
        ({"ffn_config": {"hidden_size": 5}}, "hidden_size is 5"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"auto_map": {"AutoModelForCausalLM": "own.OtherForCausalLM"}}, "code of DbrxForCausalLM"),
    ],
)
def test_dbrx_refuses_what_it_has_not(keys, words):
    assert words in refusal(DBRX_INSTRUCT | keys)


def test_grok_2_grows_scores_behind_their_cap_and_has_a_dense_ffn_beside_its_experts():
    spec = model_spec(GROK_2)
    assert (spec.logit_scale, spec.logit_cap, spec.tied_embeddings) == (0.5, 50, False)
    (layer,) = set(spec.layers)
    own, gelu = attention(layer), GELU_TANH
    assert (own.scale, own.score_cap, own.score_temperature) == (128**-0.5, 30, LogTemperature(1024))
    assert (own.temperature, own.rope) == (None, RopeSpec(208533496.0, 128))
    router = RouterSpec(normalise=False, logit_cap=30.0)
    shared = SharedExpert(32768, activation=gelu)
    assert ffn(layer) == Moe(8, 2, 16384, router, shared, gelu, scale=math.sqrt(0.5))
    assert all(block.input_norm and block.post_norm for block in layer.blocks)
    for off in (-1, None):
        assert attention(model_spec(GROK_2 | {"attn_temperature_len": off}).layers[0]).score_temperature is None
    alone = ffn(model_spec(GROK_2 | {"residual_moe": False}).layers[0])
    assert (alone.shared, alone.scale) == (None, 1.0)


def test_factors_of_scores_begin_beyond_their_length():
    found = temperature_factors(LogTemperature(1024), 1 << 20)
    assert found.dtype == np.float32
    assert (found[:1025] == 1).all()
    assert found[1025] > 1
    np.testing.assert_allclose(found[[2048, 32768, (1 << 20) - 1]], [1.1, 1.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"architectures": ["GitForCausalLM"]},
            'architectures is "GitForCausalLM"; edgemoe implements "Grok1ForCausalLM"',
        ),
        ({"architectures": None}, "architectures is null"),
        ({"rope_type": "yarn"}, 'rope_type is "yarn"'),
        ({"rope_rotate_half_dims": True}, "rope_rotate_half_dims is true"),
        ({"sliding_window_size": 4096}, "sliding_window_size is 4096"),
        ({"global_attn_every_n": 2}, "global_attn_every_n is 2"),
        ({"attn_temperature_len": 1}, "attn_temperature_len is 1"),
        ({"attn_logit_softcapping_method": "clip"}, 'attn_logit_softcapping_method is "clip"'),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"output_multiplier_scale": None}, "output_multiplier_scale is missing"),
    ],
)
def test_grok_2_refuses_what_it_has_not(keys, words):
    assert words in refusal(GROK_2 | keys)


def test_parts_of_grok_2s_experts_follow_by_rank():
    name = "model.layers.7.block_sparse_moe.experts.3.w1.weight"
    assert tail_in(GROK_2, name) == Tail(f"{name}-TP-001")
    down = name.replace("w1", "w2")
    assert tail_in(GROK_2, f"{down}-TP-006") == Tail(f"{down}-TP-007", columns=True)
    assert tail_in(GROK_2, "model.layers.7.mlp.up_proj.weight") is None


def test_phimoe_has_biases_of_norms_and_sparsemixer():
    spec = model_spec(PHI35_MOE)
    assert (spec.norm, spec.norm_bias, spec.head_bias) == ("layer", True, True)
    assert ffn(spec.layers[0]) == Moe(16, 2, 6400, router=RouterSpec(normalise=False, score="sparsemixer", jitter=0.01))
    heads = attention(spec.layers[0])
    assert (heads.qkv_bias, heads.output_bias) == (True, True)
    assert heads.rope.longest_short == 4096
    assert spec.tensors()["layers.3.ffn_norm_bias"] == (4096,)
    assert ffn(model_spec(PHI35_MOE | {"router_jitter_noise": 0}).layers[0]).router.jitter == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_experts_per_tok": 3}, "num_experts_per_tok is 3"),
        ({"original_max_position_embeddings": 8192}, "is 8192, but 4096 in rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_type is "linear"'),
        ({"router_jitter_noise": -1}, "router_jitter_noise is -1"),
    ],
)
def test_phimoe_refuses_what_it_has_not(keys, words):
    assert words in refusal(PHI35_MOE | keys)


def test_glm4_moe():
    spec = model_spec(GLM_45_AIR)
    first, last = spec.layers[0], spec.layers[-1]
    assert ffn(first) == GatedFfn(10944)
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20)
    assert {ffn(layer) for layer in spec.layers[1:]} == {Moe(128, 8, 1408, router, SharedExpert(1408))}
    assert attention(last).rope == RopeSpec(1e6, 64)
    assert (attention(last).qkv_bias, attention(last).output_bias, attention(last).qk_norm) == (True, False, "none")
    larger = GLM_45_AIR | {
        "n_group": 8,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "n_shared_experts": 2,
    }
    moe = ffn(model_spec(larger).layers[-1])
    assert (moe.router.groups, moe.router.kept_groups, moe.router.scale) == (8, 2, 2.5)
    assert moe.shared == SharedExpert(2816)
    assert attention(model_spec(larger).layers[0]).qk_norm == "head"
    assert ffn(model_spec(GLM_45_AIR | {"norm_topk_prob": False}).layers[-1]).router.epsilon == 0
    assert ffn(model_spec(GLM_45_AIR | {"n_shared_experts": 0}).layers[-1]).shared is None


def test_glm4_moe_is_read_under_the_names_of_transformers_4_and_5():
    old = ("n_routed_experts", "num_nextn_predict_layers", "partial_rotary_factor", "rope_theta", "rope_scaling")
    new = without(GLM_45_AIR, *old) | {
        "num_local_experts": 128,
        "num_mtp_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    }
    assert model_spec(new) == model_spec(GLM_45_AIR)
    assert model_spec(without(GLM_45_AIR, "partial_rotary_factor")) == model_spec(GLM_45_AIR)


SIGMOID = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20)


def test_minimax_m2():
    spec = model_spec(MINIMAX_M2)
    (layer,) = set(spec.layers)
    heads = attention(layer)
    assert (heads.qk_norm, heads.rope, heads.head_dim) == ("full", RopeSpec(5e6, 64), 128)
    assert ffn(layer) == Moe(256, 8, 1536, replace(SIGMOID, epsilon=0.0))
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}}
    assert model_spec(without(MINIMAX_M2, "rotary_dim", "rope_theta") | new) == spec
    assert model_spec(MINIMAX_M2 | new) == spec
    assert attention(model_spec(without(MINIMAX_M2, "rotary_dim")).layers[0]).rope == RopeSpec(5e6, 128)


def test_dots1():
    spec = model_spec(DOTS_LLM1)
    assert ffn(spec.layers[0]) == GatedFfn(10944)
    moe = Moe(128, 6, 1408, replace(SIGMOID, scale=2.5), SharedExpert(2816))
    assert {ffn(layer) for layer in spec.layers[1:]} == {moe}
    assert (attention(spec.layers[0]).qk_norm, attention(spec.layers[0]).rope) == ("head", RopeSpec(1e7, 128))
    windowed = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 60}
    windows = [attention(layer).window for layer in model_spec(DOTS_LLM1 | windowed).layers]
    assert windows == [0] * 60 + [4096] * 2
    listed = model_spec(DOTS_LLM1 | windowed | {"layer_types": ["sliding_attention", "full_attention"] * 31})
    assert [attention(layer).window for layer in listed.layers] == [4096, 0] * 31
    assert not ffn(model_spec(without(DOTS_LLM1, "norm_topk_prob")).layers[-1]).router.normalise


def test_solar_open_rotates_whole_heads():
    (layer,) = set(model_spec(SOLAR_OPEN_100B).layers)
    assert (attention(layer).rope.rotated, attention(layer).rope.scaling, attention(layer).qk_norm) == (
        128,
        "yarn",
        "none",
    )
    assert ffn(layer) == Moe(128, 8, 1280, SIGMOID, SharedExpert(1280))
    assert model_spec(without(SOLAR_OPEN_100B, "partial_rotary_factor", "rope_theta", "head_dim")) == model_spec(
        SOLAR_OPEN_100B
    )


def test_hy_v3():
    spec = model_spec(HY3_PREVIEW)
    assert ffn(spec.layers[0]) == GatedFfn(13312)
    moe = Moe(192, 8, 1536, replace(SIGMOID, scale=2.826), SharedExpert(1536))
    assert {ffn(layer) for layer in spec.layers[1:]} == {moe}
    assert attention(spec.layers[1]).rope == RopeSpec(11_158_840.0, 128)
    old = (
        "expert_hidden_dim",
        "first_k_dense_replace",
        "route_norm",
        "qk_norm",
        "num_shared_experts",
        "rope_parameters",
    )
    assert model_spec(without(HY3_PREVIEW, *old, "router_scaling_factor")) == spec
    assert model_spec(HY3_PREVIEW | {"mlp_layer_types": ["dense"] + ["sparse"] * 79}) == spec
    among = model_spec(HY3_PREVIEW | {"mlp_layer_types": ["sparse", "dense"] * 40})
    assert [layer.routed is None for layer in among.layers[:4]] == [False, True, False, True]


def test_hunyuan_v1_moe():
    (layer,) = set(model_spec(HUNYUAN_A13B).layers)
    heads = attention(layer)
    assert (heads.qk_norm, heads.norm_after_rope) == ("head", True)
    assert heads.rope == RopeSpec(pytest.approx(11_158_839.925, rel=1e-9), 128)
    assert ffn(layer) == Moe(64, 8, 3072, RouterSpec(True), SharedExpert(3072))
    assert model_spec(HUNYUAN_A13B | {"moe_topk": 8, "moe_intermediate_size": 3072}).layers == (layer,) * 32
    unlike = model_spec(HUNYUAN_A13B | {"moe_topk": [8] * 31 + [4]})
    assert [ffn(each).top_k for each in unlike.layers] == [8] * 31 + [4]


def test_ernie4_5_moe():
    spec = model_spec(ERNIE_45_21B_A3B)
    assert ffn(spec.layers[0]) == GatedFfn(12288)
    router = RouterSpec(True, choice_bias=True, least_sum=1e-12)
    assert {ffn(layer) for layer in spec.layers[1:]} == {Moe(64, 6, 1536, router, SharedExpert(3072))}
    assert attention(spec.layers[0]).rope == RopeSpec(5e5, 128, pairing="neighbours")
    some = {"num_hidden_layers": 8, "moe_layer_start_index": 2, "moe_layer_end_index": 5, "moe_layer_interval": 2}
    layers = model_spec(ERNIE_45_21B_A3B | some).layers
    assert [n for n, layer in enumerate(layers) if layer.routed] == [3, 5]
    assert model_spec(without(ERNIE_45_21B_A3B, "moe_layer_end_index")) == spec
    assert ffn(model_spec(ERNIE_45_21B_A3B | {"moe_norm_min": 0.5}).layers[1]).router.least_sum == 0.5


def test_ling_and_sarvam():
    spec = model_spec(LING_MINI_2)
    router = replace(SIGMOID, groups=8, kept_groups=4, scale=2.5)
    assert {ffn(layer) for layer in spec.layers[1:]} == {Moe(256, 8, 512, router, SharedExpert(512))}
    assert (attention(spec.layers[0]).rope, attention(spec.layers[0]).qk_norm) == (RopeSpec(6e5, 64), "head")
    assert not ffn(model_spec(LING_MINI_2 | {"num_experts_per_tok": 1}).layers[1]).router.normalise
    sarvam = model_spec(SARVAM_30B)
    moe = Moe(128, 6, 1024, replace(SIGMOID, scale=2.5), SharedExpert(1024))
    assert {ffn(layer) for layer in sarvam.layers[1:]} == {moe}
    assert attention(sarvam.layers[0]).rope == RopeSpec(8e6, 64)
    renamed = without(SARVAM_30B, "num_experts", "num_shared_experts", "use_qkv_bias", "rope_theta") | {
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "attention_bias": False,
        "num_mtp_layers": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 8e6, "partial_rotary_factor": 1.0},
    }
    assert model_spec(renamed) == sarvam


def test_deepseek():
    spec = model_spec(DEEPSEEK_MOE_16B)
    assert ffn(spec.layers[0]) == GatedFfn(10944)
    assert {ffn(layer) for layer in spec.layers[1:]} == {Moe(64, 6, 1408, RouterSpec(False), SharedExpert(2816))}
    layers = model_spec(DEEPSEEK_MOE_16B | {"moe_layer_freq": 3, "num_hidden_layers": 8}).layers
    assert [n for n, layer in enumerate(layers) if layer.routed] == [3, 6]
    one = DEEPSEEK_MOE_16B | {"num_experts_per_tok": 1, "norm_topk_prob": True}
    assert not ffn(model_spec(one).layers[-1]).router.normalise
    assert ffn(model_spec(DEEPSEEK_MOE_16B | {"n_shared_experts": None}).layers[-1]).shared is None


def latent(spec):
    """The latent attention of a model, whose layers all have the same."""
    (own,) = {layer.blocks[0].body for layer in spec.layers}
    assert isinstance(own, LatentAttention)
    return own


def test_deepseek_v2():
    spec = model_spec(DEEPSEEK_V2_LITE)
    own = latent(spec)
    assert (own.heads, own.latent_dim, own.nope_dim, own.rotary_dim, own.value_dim) == (16, 512, 128, 64, 128)
    assert (own.query_rank, own.latent_epsilon, own.rope.pairing) == (0, 1e-6, "neighbours")
    gain = 0.1 * 0.707 * math.log(40) + 1
    assert own.scale == pytest.approx(192**-0.5 * gain**2, rel=1e-12)
    assert (own.rope.scaling, own.rope.parameters["attention_factor"]) == ("yarn", 1)
    assert ffn(spec.layers[0]) == GatedFfn(10944)
    assert {ffn(layer) for layer in spec.layers[1:]} == {Moe(64, 6, 1408, RouterSpec(False), SharedExpert(2816))}
    large = model_spec(DEEPSEEK_V2)
    assert latent(large).query_rank == 1536
    router = RouterSpec(False, groups=8, kept_groups=3, scale=16.0, group_best=1)
    assert ffn(large.layers[-1]).router == router
    assert model_spec(DEEPSEEK_V2 | {"norm_topk_prob": True}) == large
    assert ffn(model_spec(DEEPSEEK_V2 | {"topk_group": 8}).layers[-1]).router == RouterSpec(False, scale=16.0)
    other = DEEPSEEK_V2_LITE["rope_scaling"] | {"mscale": 1.0}
    positions = latent(model_spec(DEEPSEEK_V2_LITE | {"rope_scaling": other}))
    assert positions.rope.parameters["attention_factor"] == pytest.approx((0.1 * math.log(40) + 1) / gain)
    assert positions.scale == own.scale


def test_deepseek_v3():
    spec = model_spec(DEEPSEEK_V3)
    assert latent(spec).scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2, rel=1e-12)
    router = RouterSpec(True, "sigmoid", choice_bias=True, groups=8, kept_groups=4, epsilon=1e-20, scale=2.5)
    assert ffn(spec.layers[3]) == Moe(256, 8, 2048, router, SharedExpert(2048))
    assert {ffn(layer) for layer in spec.layers[:3]} == {GatedFfn(18432)}
    assert latent(model_spec(DEEPSEEK_V3 | {"rope_interleave": False})).rope.pairing == "halves"
    plain = latent(model_spec(MOONLIGHT_16B_A3B))
    # The norms of the latents have an epsilon of their own, whatever that of the others.
    assert (plain.scale, plain.query_rank, plain.latent_epsilon) == (192**-0.5, 0, 1e-6)
    kimi = model_spec(KIMI_K2)
    assert (kimi.family, ffn(kimi.layers[1]).router.groups) == ("kimi_k2", 1)
    assert replace(kimi, family="deepseek_v3") == model_spec(KIMI_K2 | {"model_type": "deepseek_v3"})
    newer = without(DEEPSEEK_V3, "rope_scaling", "rope_theta", "auto_map", "num_nextn_predict_layers") | {
        "rope_parameters": DEEPSEEK_V3["rope_scaling"] | {"rope_theta": 10000.0},
        "head_dim": 64,
        "qk_head_dim": 192,
        "num_mtp_layers": 1,
    }
    assert model_spec(newer) == spec


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (DEEPSEEK_V2, {"topk_method": "noaux_tc"}, 'topk_method is "noaux_tc"'),
        (DEEPSEEK_V2, {"scoring_func": "sigmoid"}, 'scoring_func is "sigmoid"'),
        (DEEPSEEK_V2, {"n_group": None}, "n_group is missing"),
        (DEEPSEEK_V2, {"n_group": 7}, "groups: expected equal runs of at least 2 of 160 experts, found 7"),
        (DEEPSEEK_V2, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        (DEEPSEEK_V2, {"num_key_value_heads": 8}, "num_key_value_heads is 8; edgemoe implements 128 only"),
        (DEEPSEEK_V2, {"kv_lora_rank": None}, "kv_lora_rank is missing"),
        (DEEPSEEK_V2, {"q_lora_rank": -1}, "q_lora_rank is -1"),
        (DEEPSEEK_V2, {"attention_bias": True}, "attention_bias is true"),
        (DEEPSEEK_V2, {"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; expected an even width"),
        (DEEPSEEK_V2, {"head_dim": 128}, "head_dim is 128; edgemoe implements 64 only"),
        (DEEPSEEK_V2, {"kv_lora_rank": 1 << 19}, "128 heads make"),
        (DEEPSEEK_V3, {"scoring_func": "softmax"}, 'scoring_func is "softmax"'),
        (DEEPSEEK_V3, {"rope_interleave": "yes"}, 'rope_interleave is "yes"'),
        (DEEPSEEK_V3, {"rope_scaling": {"type": "yarn", "factor": 40, "mscale_all_dim": -1}}, "mscale_all_dim is -1"),
        (KIMI_K25, {"tie_word_embeddings": True}, "tie_word_embeddings is true, but false in text_config"),
        (KIMI_K25, {"text_config": {}}, "max_position_embeddings is missing"),
        (KIMI_K25, {"auto_map": {"AutoModelForCausalLM": "modeling.KimiK3"}}, 'auto_map is "modeling.KimiK3"'),
        (AXK1, {"topk_method": "sometimes"}, 'topk_method is "sometimes"'),
        (GLM_47_FLASH, {"mlp_layer_types": ["dense"]}, "mlp_layer_types lists 1 layers; expected 47"),
        (SARVAM_105B, {"head_dim": 192}, "head_dim is 192; edgemoe implements 64 or 576 only"),
        (GLM_5, {"index_topk": 0}, "index_topk is 0"),
        (GLM_5, {"layer_types": ["full_attention"] * 78}, 'layer_types is "full_attention"'),
        (KIMI_K2, {"auto_map": {"AutoModelForCausalLM": "modeling_kimi.KimiK3"}}, 'auto_map is "modeling_kimi.KimiK3"'),
    ],
)
def test_latent_attention_that_cannot_be_run_is_refused_by_name(config, changes, words):
    assert words in refusal(config | changes)


def test_families_like_deepseek_v3():
    flash = model_spec(GLM_47_FLASH)
    own = latent(flash)
    assert (own.heads, own.query_rank, own.nope_dim, own.value_dim) == (20, 768, 192, 256)
    assert (flash.norm_epsilon, own.latent_epsilon) == (1e-5, 1e-6)
    assert [layer.routed is None for layer in flash.layers] == [True] + [False] * 46
    listed = without(GLM_47_FLASH, "first_k_dense_replace") | {"mlp_layer_types": ["dense"] + ["sparse"] * 46}
    assert model_spec(listed) == flash == model_spec(without(GLM_47_FLASH, "first_k_dense_replace"))
    kimi = model_spec(KIMI_K25)
    assert replace(kimi, family="kimi_k2", max_positions=131072) == model_spec(KIMI_K2)
    sarvam = latent(model_spec(SARVAM_105B))
    assert (sarvam.rope.scaling, sarvam.query_rank) == ("yarn", 0)
    newer = without(SARVAM_105B, "num_experts", "num_shared_experts", "head_dim", "rope_scaling", "rope_theta") | {
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "rope_parameters": SARVAM_105B["rope_scaling"] | {"type": "yarn", "rope_theta": 10000.0},
    }
    assert model_spec(newer) == model_spec(SARVAM_105B)


def test_mistral_small_4():
    spec = model_spec(MISTRAL_SMALL_4)
    own = latent(spec)
    assert (own.query_rank, own.latent_dim, own.rope.rotated) == (1024, 256, 64)
    assert own.temperature == Temperature(0.1, 8192, first=0)
    assert own.scale == 128**-0.5 * (0.1 * math.log(128) + 1) ** 2
    text = MISTRAL_SMALL_4["text_config"]
    assert replace(model_spec(text), family="mistral3") == spec
    still = text["rope_parameters"] | {"llama_4_scaling_beta": None}
    assert latent(model_spec(text | {"rope_parameters": still})).temperature is None
    grouped = ffn(model_spec(text | {"n_group": 8, "topk_group": 4}).layers[0]).router
    assert (grouped.groups, grouped.kept_groups, grouped.group_best, grouped.score) == (8, 4, 2, "softmax")


@every_case(
    ("changes", "words"),
    [
        ({"rope_parameters": None}, "rope_parameters is null"),
        ({"rope_parameters": {"rope_type": "default"}}, 'edgemoe implements an object with rope_type "yarn" only'),
        ({"partial_rotary_factor": 0.25}, "but 0.5 in rope_parameters"),
        ({"head_dim": 64}, "head_dim is 64; edgemoe implements 128 only"),
        ({"model_type": "mistral"}, 'text_config.model_type is "mistral"'),
        ({"n_group": 3, "topk_group": 2}, "groups: expected equal runs of at least 2 of 128 experts, found 3"),
    ],
)
def test_mistral_models_that_cannot_be_run_are_refused_by_name(changes, words):
    text = MISTRAL_SMALL_4["text_config"] | changes
    assert words in refusal(MISTRAL_SMALL_4 | {"text_config": text})


def test_axk1_has_a_norm_after_the_sum_of_experts():
    spec = model_spec(AXK1)
    assert [layer.blocks[1].post_norm for layer in spec.layers] == [False] + [True] * 60
    assert not ffn(spec.layers[1]).router.choice_bias
    assert ffn(model_spec(AXK1 | {"topk_method": "noaux_tc"}).layers[1]).router.choice_bias
    assert ffn(model_spec(AXK1 | {"topk_method": None}).layers[1]).router.choice_bias


@pytest.mark.parametrize("config", [DEEPSEEK_V32, GLM_5], ids=["deepseek_v32", "glm_moe_dsa"])
def test_models_with_an_indexer_have_as_many_positions_as_it_chooses(config):
    spec = model_spec(config)
    assert (spec.max_positions, spec.positions_limit) == (2048, "indexer")
    assert model_spec(config | {"index_topk": 1 << 20}).max_positions == config["max_position_embeddings"]
    if config is DEEPSEEK_V32:
        plain = replace(spec, family="deepseek_v3", max_positions=163840, positions_limit="none")
        assert plain == model_spec(DEEPSEEK_V3)  # whose positions follow from the config's own number


def test_deepseek_v4_means_the_same_by_numbers_and_by_words():
    """Older keys, which published configs have, and those that transformers saves."""
    spec = model_spec(DEEPSEEK_V4_FLASH)
    words = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    partial = {"partial_rotary_factor": 64 / 512}
    scaling = {key: value for key, value in DEEPSEEK_V4_FLASH["rope_scaling"].items() if key != "type"}
    compress = scaling | {"rope_type": "yarn", "rope_theta": 160000, "attention_factor": 1.0}
    main = {"rope_type": "default", "rope_theta": 10000}
    older = ("compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling")
    newer = {key: value for key, value in DEEPSEEK_V4_FLASH.items() if key not in older} | partial
    newer |= {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "layer_types": [words[ratio] for ratio in DEEPSEEK_V4_FLASH["compress_ratios"][:43]],
        "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 40,
        "rope_parameters": {"main": main | partial, "compress": compress | partial},
    }
    assert model_spec(newer) == spec
    flat = newer | {"rope_parameters": scaling | {"rope_type": "yarn", "rope_theta": 10000}}
    assert model_spec(flat) == spec
    assert "rope_theta is 160000, but 1000 in rope_parameters" in refusal(
        newer | {"rope_parameters": {"main": main, "compress": compress | {"rope_theta": 1000}}}
    )
    assert [layer.routed.by_token for layer in spec.layers if layer.routed] == [True] * 3 + [False] * 40
    assert spec.layers[0].with_top_k(2) == spec.layers[0]  # a table names as many experts as it does
    nothing = {"compress_ratios": None, "num_hash_layers": None}
    types = [attention.rate for layer in model_spec(DEEPSEEK_V4_FLASH | nothing).layers for attention in [mixer(layer)]]
    assert types == [128, 128, *[128, 4] * 20, 128]


def mixer(layer: LayerSpec) -> CompressedAttention:
    body = layer.blocks[0].body
    assert isinstance(body, CompressedAttention)
    return body


@every_case(
    ("changes", "words"),
    [
        ({"compress_ratios": [8] * 43}, "compress_ratios is 8; edgemoe implements 0, 4, 128 only"),
        ({"compress_ratios": [[4]] * 43}, "compress_ratios is a list of 1; edgemoe implements 0, 4, 128 only"),
        ({"compress_ratios": [4] * 42}, "compress_ratios lists 42 layers; expected 43"),
        ({"layer_types": ["full_attention"] * 43}, 'layer_types is "full_attention"'),
        ({"compress_rates": {"heavily_compressed_attention": 96}}, "compress_rates.heavily_compressed_attention is 96"),
        ({"compress_rates": {"compressed_sparse_attention": 1}}, "compress_rates.compressed_sparse_attention is 1"),
        ({"compress_rates": {"other": 4}}, '"other" is 4; edgemoe does not know this key'),
        ({"mlp_layer_types": ["dense"] * 43}, 'mlp_layer_types is "dense"'),
        ({"mlp_layer_types": ["moe"]}, "mlp_layer_types lists 1 layers; expected 43"),
        ({"scoring_func": "sigmoid"}, 'scoring_func is "sigmoid"'),
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
        ({"n_group": 8}, "n_group is 8"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"hc_mult": 1}, "hc_mult is 1; expected a whole number from 2 to 16"),
        ({"o_groups": 5}, "num_attention_heads is 64, each 512 wide; expected a multiple of o_groups, which is 5"),
        ({"partial_rotary_factor": 0.25}, "qk_rope_head_dim is 64, but partial_rotary_factor means 128 channels"),
        ({"index_head_dim": 32}, "index_head_dim is 32; expected 64 channels at least"),
        ({"swiglu_limit": 0}, "swiglu_limit is 0"),
    ],
)
def test_deepseek_v4_refuses_what_it_does_not_have(changes, words):
    assert words in refusal(DEEPSEEK_V4_FLASH | changes)


def test_olmoe_may_limit_query_key_and_value():
    assert attention(model_spec(OLMOE_1B_7B | {"clip_qkv": 8.0}).layers[0]).clip == 8.0


@every_case(
    ("config", "changes", "words"),
    [
        (MINIMAX_M2, {"rotary_dim": 32, "partial_rotary_factor": 0.5}, "rotary_dim is 32, but 64 channels of a head"),
        (MINIMAX_M2, {"attn_type_list": [1, 0] * 31}, "attn_type_list is a list of 62 of several kinds"),
        (MINIMAX_M2, {"shared_intermediate_size": 8}, "shared_intermediate_size is 8"),
        (MINIMAX_M2, {"qk_norm_type": "per_head"}, 'qk_norm_type is "per_head"'),
        (MINIMAX_M2, {"use_routing_bias": False}, "use_routing_bias is false"),
        (DOTS_LLM1, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        (DOTS_LLM1, {"layer_types": ["sliding_attention"] * 62}, "sliding_window is missing"),
        (SOLAR_OPEN_100B, {"first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
        (SOLAR_OPEN_100B, {"use_qk_norm": True}, "use_qk_norm is true"),
        (HY3_PREVIEW, {"expert_hidden_dim": 768}, "moe_intermediate_size is 1536 and expert_hidden_dim is 768"),
        (HY3_PREVIEW, {"mlp_layer_types": ["dense"]}, "mlp_layer_types lists 1 layers; expected 80"),
        (HY3_PREVIEW, {"mlp_layer_types": ["moe"] * 80}, 'mlp_layer_types is "moe"'),
        (HY3_PREVIEW, {"moe_router_use_sigmoid": False}, "moe_router_use_sigmoid is false"),
        (HUNYUAN_A13B, {"moe_topk": [8] * 31}, "moe_topk lists 31 layers; expected 32"),
        (HUNYUAN_A13B, {"moe_topk": [8] * 31 + [65]}, "moe_topk is 65; expected a whole number from 1 to"),
        (HUNYUAN_A13B, {"moe_topk": None}, "num_experts_per_tok is missing"),
        (HUNYUAN_A13B, {"moe_intermediate_size": [3072] * 31 + [1024]}, "moe_intermediate_size is a list of 32"),
        (HUNYUAN_A13B, {"num_shared_expert": 2}, "num_shared_expert is 2"),
        (HUNYUAN_A13B, {"use_cla": True}, "use_cla is true"),
        (HUNYUAN_A13B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_type is "dynamic"'),
        (HUNYUAN_A13B, {"rope_scaling": {"type": "dynamic", "alpha": -1}}, "rope_scaling.alpha is -1"),
        (HUNYUAN_A13B, {"head_dim": 2, "attention_head_dim": 2}, "head_dim is 2; edgemoe implements rope_type"),
        (HUNYUAN_A13B, {"attention_head_dim": 64}, "attention_head_dim is 64"),
        (ERNIE_45_21B_A3B, {"use_bias": True}, "use_bias is true"),
        (ERNIE_45_21B_A3B, {"moe_k": 65}, "moe_k is 65; expected at most the number of experts, 64"),
        (ERNIE_45_21B_A3B, {"moe_gate_act": "sigmoid"}, 'moe_gate_act is "sigmoid"'),
        (ERNIE_45_21B_A3B, {"moe_num_experts": [64, 64]}, "moe_num_experts is a list of 2"),
        (LING_MINI_2, {"architectures": ["BailingMoeForCausalLM"]}, "architectures is a list of 1"),
        (LING_MINI_2, {"partial_rotary_factor": None}, "partial_rotary_factor is missing"),
        (LING_MINI_2, {"norm_topk_prob": False}, "norm_topk_prob is false"),
        (LING_MINI_2, {"use_bias": True}, "use_bias is true"),
        (LING_MINI_2, {"norm_head": True}, "norm_head is true"),
        (LING_MINI_2, {"moe_shared_expert_intermediate_size": 256}, "moe_shared_expert_intermediate_size is 256"),
        (LING_MINI_2, {"score_function": "softmax"}, 'score_function is "softmax"'),
        (DEEPSEEK_MOE_16B, {"scoring_func": "sigmoid"}, 'scoring_func is "sigmoid"'),
        (DEEPSEEK_MOE_16B, {"head_dim": 64}, "head_dim is 64"),
        (DEEPSEEK_MOE_16B, {"auto_map": {"AutoModel": "other.Model"}}, "auto_map is an object of 1"),
        (OLMOE_1B_7B, {"clip_qkv": 0}, "clip_qkv is 0"),
        (LLAMA_31_8B, {"rope_scaling": {"type": "dynamic", "alpha": 1000.0}}, 'rope_type is "dynamic"'),
    ],
)
def test_what_these_families_cannot_run_is_refused_by_name(config, changes, words):
    assert words in refusal(config | changes)


def test_gpt_oss():
    spec = model_spec(GPT_OSS_20B)
    first, second = spec.layers[:2]
    assert spec.layers == (first, second) * 12
    assert (attention(first).window, attention(second).window) == (128, 0)
    assert attention(first) == replace(attention(second), window=128)
    heads = attention(first)
    assert (heads.head_dim, heads.sinks, heads.qkv_bias, heads.output_bias) == (64, True, True, True)
    assert (heads.rope.scaling, heads.rope.parameters["truncate"]) == ("yarn", 0)
    assert heads.rope.parameters["attention_factor"] == pytest.approx(0.1 * np.log(32) + 1)
    activation = Activation("clamped_silu", alpha=1.702, limit=7.0, offset=1.0)
    router = RouterSpec(normalise=True, logit_bias=True)
    assert ffn(first) == Moe(32, 4, 2880, router, activation=activation, bias=True)
    assert model_spec(without(GPT_OSS_20B, "layer_types", "swiglu_limit", "initial_context_length")) == spec
    assert model_spec(GPT_OSS_20B | {"layer_types": ["full_attention"] * 24, "sliding_window": None})
    assert attention(model_spec(GPT_OSS_20B | {"attention_bias": False}).layers[0]).output_bias is False


@every_case(
    ("changes", "words"),
    [
        ({"head_dim": None}, "head_dim is missing"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"rope_scaling": None}, "rope_parameters is missing"),
        ({"sliding_window": None}, "sliding_window is missing"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"layer_types": ["full_attention"] * 23}, "layer_types lists 23 layers; expected 24"),
        ({"layer_types": ["chunked_attention"] * 24}, 'layer_types is "chunked_attention"'),
        ({"layer_types": [["full_attention"]] * 24}, "layer_types is a list of 1"),
        ({"experts_per_token": 8}, "num_experts_per_tok is 4 and experts_per_token is 8"),
        ({"initial_context_length": 8192}, "initial_context_length is 8192, but original_max_position_embeddings 4096"),
        ({"swiglu_limit": 0}, "swiglu_limit is 0"),
        ({"swiglu_alpha": -1}, "swiglu_alpha is -1"),
        ({"num_experts_per_tok": 40, "experts_per_token": 40}, "at most the number of experts, 32"),
    ],
)
def test_gpt_oss_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(GPT_OSS_20B | changes)


@every_case(
    ("changes", "words"),
    [
        ({"n_group": 5}, "router: groups: expected equal runs of at least 2 of 128 experts, found 5"),
        ({"n_group": 4, "topk_group": 5}, "router: kept_groups: expected at most 4, found 5"),
        ({"n_group": 64, "topk_group": 2}, "router: experts: expected at most 4 per token, found 8"),
        ({"scoring_func": "softmax"}, 'scoring_func is "softmax"'),
        ({"topk_method": "greedy"}, 'topk_method is "greedy"'),
        ({"first_k_dense_replace": None}, "first_k_dense_replace is missing"),
        ({"first_k_dense_replace": 47}, "first_k_dense_replace is 47; expected at most the number of layers, 46"),
        ({"partial_rotary_factor": 0.01}, "rotates 1 of 128 channels of a head"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "is 0.5, but 0.25 in rope_parameters"),
        ({"num_mtp_layers": 2}, "num_nextn_predict_layers is 1 and num_mtp_layers is 2"),
    ],
)
def test_glm4_moe_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(GLM_45_AIR | changes)


def test_qwen3_next():
    spec = model_spec(QWEN3_NEXT_80B_A3B)
    mixers = [layer.blocks[0].body for layer in spec.layers]
    assert [n for n, mixer in enumerate(mixers) if isinstance(mixer, Attention)] == list(range(3, 48, 4))
    assert {mixer for mixer in mixers if not isinstance(mixer, Attention)} == {GatedDelta(16, 32, 128, 128, 4)}
    attention = mixers[3]
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.qk_norm) == (16, 2, 256, "head")
    assert (attention.rope, attention.output_gate) == (RopeSpec(1e7, 64), OutputGate("channel"))
    assert {ffn(layer) for layer in spec.layers} == {Moe(512, 10, 512, RouterSpec(True), SharedExpert(512, gate=True))}
    other = model_spec(QWEN3_NEXT_80B_A3B | {"mlp_only_layers": [5], "full_attention_interval": 3})
    assert ffn(other.layers[5]) == GatedFfn(5120)
    assert [isinstance(layer.blocks[0].body, Attention) for layer in other.layers[:6]] == [False, False, True] * 2


def test_qwen3_5_moe_is_the_text_part_of_its_config():
    spec = model_spec(QWEN36_35B_A3B)
    text = QWEN36_35B_A3B["text_config"]
    assert model_spec(text) == spec
    assert model_spec({"model_type": "qwen3_5_moe", **{k: v for k, v in text.items() if k != "model_type"}}) == spec
    assert spec.layers[0].blocks[0].body == GatedDelta(16, 32, 128, 128, 4)
    assert spec.layers[3].blocks[0].body.rope == RopeSpec(1e7, 64)
    assert ffn(spec.layers[0]) == Moe(256, 8, 512, RouterSpec(True), SharedExpert(512, gate=True))
    listed = {key: value for key, value in text.items() if key != "layer_types"}
    assert model_spec(QWEN36_35B_A3B | {"text_config": listed}) == spec


def test_qwen4_exp_has_streams_a_table_and_chosen_blocks():
    spec = model_spec(QWEN38_FLASH_NEXT)
    text = QWEN38_FLASH_NEXT["text_config"]
    assert model_spec(text) == spec
    assert (spec.streams, spec.max_positions, spec.positions_limit) == (GatedStreams(4, 320), 262144, "none")
    rule = NgramRows(3, 8, 20_000_000, 128, 0, 1234, 248320, 248044)
    assert [len(layer.blocks) for layer in spec.layers] == [2, 3] + [2] * 46
    assert spec.layers[1].blocks[0] == Block(NgramTable(rule, 2560, 128, 4, 4, 3), input_norm=False)
    assert spec.layers[0].blocks[0].body == GatedDelta(16, 48, 128, 128, 4, gating="sigmoid")
    assert spec.layers[3].blocks[0].body.indexer == BlockIndexer(4, 128, 4, 512)
    assert ffn(spec.layers[0]) == Moe(512, 10, 640, RouterSpec(True), SharedExpert(640, gate=True))
    named = [kind.replace("full", "indexed") for kind in text["layer_types"]]
    assert model_spec(text | {"layer_types": named}) == spec
    assert model_spec(text | {"eos_token_id": [248044, 7], "ple_layer_ids": [2, 2]}) == spec
    two = model_spec(text | {"ple_layer_ids": [6, 2]})
    assert [layer.blocks[0].body.rule.number for layer in two.layers if len(layer.blocks) == 3] == [0, 1]


@every_case(
    ("changes", "words"),
    [
        ({"hc_count": 1}, "hc_count is 1; expected a whole number from 2 to 16"),
        ({"output_gate_type": "gelu"}, 'output_gate_type is "gelu"; edgemoe implements "silu" or "sigmoid" only'),
        ({"ple_layer_ids": [4]}, "ple_layer_ids is 4; edgemoe implements tables before linear attention only"),
        ({"ple_layer_ids": [0]}, "ple_layer_ids holds 0; expected layers from 1 to 48"),
        ({"ple_embed_dim": 2561}, "ple_embed_dim is 2561 for 1 tables with 16 rows for a token"),
        ({"eos_token_id": None}, "eos_token_id is null; expected an id below 248320"),
        ({"ngram_size": 1}, "ngram_size is 1"),
        ({"indexer_budget": None}, "indexer_budget is missing"),
        ({"indexer_budget": 2049}, "indexer_budget is 2049; expected a multiple of indexer_compress_ratio, which is 4"),
        ({"indexer_compress_ratio": 3}, "indexer_compress_ratio is 3; edgemoe implements divisors of 64 above 1 only"),
        ({"indexer_kv_heads": 2}, "indexer_kv_heads is 2; edgemoe implements 1 only"),
        ({"indexer_head_dim": 62}, "indexer_head_dim is 62; expected at least the 64 channels that positions rotate"),
        ({"split_ngram_parts": 0}, "split_ngram_parts is 0"),
    ],
)
def test_qwen4_exp_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(QWEN38_FLASH_NEXT | {"text_config": QWEN38_FLASH_NEXT["text_config"] | changes})


def test_gemma4_is_the_text_part_of_its_config():
    spec = model_spec(GEMMA4_26B_A4B)
    text = GEMMA4_26B_A4B["text_config"]
    assert model_spec(text) == spec
    assert (spec.logit_cap, spec.tied_embeddings) == (30.0, True)
    assert spec.embedding_scale == pytest.approx(2816**0.5)
    windowed, whole = attention(spec.layers[0]), attention(spec.layers[5])
    assert (windowed.window, windowed.kv_heads, windowed.head_dim, windowed.rope) == (1024, 8, 256, RopeSpec(1e4, 256))
    turning = RopeSpec(1e6, 512, "proportional", {"factor": 1.0, "pairs": 64})
    assert (whole.window, whole.kv_heads, whole.head_dim, whole.rope) == (0, 2, 512, turning)
    assert (windowed.values_from_keys, whole.values_from_keys) == (False, True)
    assert {(a.scale, a.value_norm, a.qk_norm) for a in map(attention, spec.layers)} == {(1.0, True, "head")}
    moe, dense = (block.body for block in spec.layers[0].blocks[1:])
    assert moe.router == RouterSpec(True, norm=True, logit_scale=2816**-0.5, expert_scales=True)
    assert (moe.activation, moe.experts_norm, dense) == (Activation("gelu_tanh"), True, GatedFfn(2112, moe.activation))
    frequencies = rope_frequencies(turning)
    assert (frequencies > 0).sum() == 64
    np.testing.assert_array_equal(frequencies[:64], rope_frequencies(RopeSpec(1e6, 512))[:64])


def test_gemma4_says_the_heads_of_its_layers_in_two_ways():
    """`per_layer_config` is how transformers writes what published files say by keys of their own."""
    text = GEMMA4_26B_A4B["text_config"]
    own = {key: value for key, value in text.items() if "global" not in key}
    heads = {"head_dim": 512, "num_key_value_heads": 2}
    for number in ("{}", "{:02}"):  # transformers writes as many digits as the last layer's number has
        listed = {number.format(5 + 6 * n): heads for n in range(5)}
        assert model_spec(own | {"per_layer_config": listed}) == model_spec(text)
    unlisted = {key: value for key, value in text.items() if key != "layer_types"}
    assert model_spec(unlisted) == model_spec(text)
    assert attention(model_spec(text | {"attention_k_eq_v": False}).layers[5]).kv_heads == 8


@every_case(
    ("changes", "words"),
    [
        ({"attn_output_gate": False}, "attn_output_gate is false; edgemoe implements true only"),
        ({"mamba_ssm_dtype": "bfloat16"}, 'mamba_ssm_dtype is "bfloat16"'),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"linear_num_value_heads": 24}, "linear_num_value_heads is 24; expected a multiple of linear_num_key_heads"),
        ({"linear_key_head_dim": 512}, "linear_key_head_dim is 512; expected a whole number from 1 to 256"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim is 1; expected a whole number from 2 to 64"),
        ({"linear_value_head_dim": 1 << 19}, "channels of queries, keys and values in a linear layer"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types lists 3 layers; expected 40"),
        ({"layer_types": ["sliding_attention"] * 40}, 'layer_types is "sliding_attention"'),
        ({"full_attention_interval": 0}, "full_attention_interval is 0"),
        ({"n_group": 4}, '"n_group" is 4; edgemoe does not know this key'),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is false, but true in text_config"),
    ],
)
def test_qwen3_5_moe_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(QWEN36_35B_A3B | {"text_config": QWEN36_35B_A3B["text_config"] | changes})


def test_a_text_config_that_is_no_object_is_refused():
    assert "text_config is 7; expected an object" in refusal(QWEN36_35B_A3B | {"text_config": 7})


def test_a_text_config_of_another_family_is_refused():
    parts = [config for config in golden_configs().values() if "text_config" in config]
    for config in [*parts, KIMI_K25, MISTRAL_SMALL_4]:
        assert model_spec(config).family == config["model_type"]
        text = config["text_config"] | {"model_type": "gpt2"}
        assert 'text_config.model_type is "gpt2"; edgemoe implements' in refusal(config | {"text_config": text})


@every_case(
    ("changes", "words"),
    [
        ({"enable_moe_block": False}, "enable_moe_block is false; edgemoe implements true only"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input is 256; edgemoe implements 0 only"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2; edgemoe implements 0 only"),
        ({"use_bidirectional_attention": "all"}, 'use_bidirectional_attention is "all"'),
        ({"hidden_activation": "silu"}, 'hidden_activation is "silu"; edgemoe implements "gelu_pytorch_tanh" only'),
        ({"per_layer_config": {"4": {"head_dim": 512}}}, "per_layer_config is an object of 1; edgemoe implements"),
        ({"per_layer_config": {"5": 7}}, "per_layer_config is an object of 1"),
        ({"per_layer_config": {"5": {"head_dim": 512}, "05": {"head_dim": 512}}}, "has a layer twice"),
        ({"per_layer_config": {"9" * 5000: {}}}, "per_layer_config is an object of 1"),
        ({"per_layer_config": []}, "per_layer_config is an empty list"),
        ({"num_global_key_value_heads": 3}, "layers of full_attention have 16 query heads and 3 key heads"),
        ({"global_head_dim": 1 << 18}, "16 heads of width 262144"),
        ({"top_k_experts": 129}, "top_k_experts is 129; expected at most the number of experts, 128"),
        ({"rope_parameters": None}, "rope_parameters is missing"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings differs from that in text_config, false"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0"),
        ({"attn_logit_softcapping": 50.0}, '"attn_logit_softcapping" is 50.0; edgemoe does not know this key'),
    ],
)
def test_gemma4_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(GEMMA4_26B_A4B | {"text_config": GEMMA4_26B_A4B["text_config"] | changes})


def test_lfm2_moe():
    spec = model_spec(LFM2_8B_A1B)
    mixers = [layer.blocks[0].body for layer in spec.layers]
    assert {n for n, mixer in enumerate(mixers) if isinstance(mixer, Attention)} == {2, 6, 10, 14, 18, 21}
    assert {mixer for mixer in mixers if not isinstance(mixer, Attention)} == {ShortConv(3)}
    assert (mixers[2].qk_norm, mixers[2].rope, mixers[2].head_dim) == ("head", RopeSpec(1e6, 64), 64)
    assert [ffn(layer) for layer in spec.layers[:2]] == [GatedFfn(7168)] * 2
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-6)
    assert {ffn(layer) for layer in spec.layers[2:]} == {Moe(32, 4, 1792, router)}
    assert (spec.norm_epsilon, spec.tied_embeddings) == (1e-5, True)
    other = model_spec(
        LFM2_8B_A1B
        | {
            "conv_bias": True,
            "conv_L_cache": 4,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.0,
            "num_dense_layers": 0,
            "tie_embedding": False,
        }
    )
    assert other.layers[0].blocks[0].body == ShortConv(4, bias=True)
    assert ffn(other.layers[0]).router == RouterSpec(False, score="sigmoid", scale=2.0)
    assert not other.tied_embeddings


@every_case(
    ("changes", "words"),
    [
        ({"layer_types": None}, "layer_types is missing; expected the kinds of 24 layers"),
        ({"layer_types": ["conv"] * 23}, "layer_types lists 23 layers; expected 24"),
        ({"layer_types": ["mamba"] * 24}, 'edgemoe implements "conv" or "full_attention" only'),
        ({"conv_L_cache": 1}, "conv_L_cache is 1; expected a whole number from 2 to 64"),
        ({"num_dense_layers": -1}, "num_dense_layers is -1"),
        ({"num_dense_layers": 25}, "num_dense_layers is 25; expected at most the number of layers, 24"),
        ({"norm_eps": 1e-13}, "norm_eps is 1e-13; expected a number of at least 1e-12 and at most 1"),
        ({"norm_eps": None}, "norm_eps is missing"),
    ],
)
def test_lfm2_moe_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(LFM2_8B_A1B | changes)


def test_nemotron_h():
    spec = model_spec(NEMOTRON_3_NANO)
    assert all(len(layer.blocks) == 1 for layer in spec.layers)
    bodies = [layer.blocks[0].body for layer in spec.layers]
    pattern = NEMOTRON_3_NANO["hybrid_override_pattern"]
    assert [{Mamba2: "M", Moe: "E", Attention: "*"}[type(body)] for body in bodies] == list(pattern)
    assert bodies[0] == Mamba2(64, 64, 8, 128, 4)
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20, scale=2.5)
    assert bodies[1] == Moe(128, 6, 1856, router, SharedExpert(3712, activation=RELU2), RELU2)
    assert (bodies[5].rope, bodies[5].heads, bodies[5].kv_heads, bodies[5].scale) == (None, 32, 2, 128**-0.5)
    assert ffn_of_one(model_spec(NEMOTRON_3_SUPER).layers[1]).latent == 1024
    newer = {"M": "linear_attention", "E": "moe", "*": "full_attention"}
    older = {"M": "mamba", "E": "moe", "*": "attention"}
    for words in (newer, older):
        listed = without(NEMOTRON_3_NANO, "hybrid_override_pattern", "num_hidden_layers")
        assert model_spec(listed | {"layers_block_type": [words[letter] for letter in pattern]}) == spec
    dense = model_spec(NEMOTRON_3_NANO | {"hybrid_override_pattern": "M-*-", "num_hidden_layers": 4})
    assert dense.layers[1] == LayerSpec.of(PlainFfn(1856, RELU2))
    assert not dense.routed


def ffn_of_one(layer: LayerSpec) -> Moe:
    return layer.blocks[0].body


@every_case(
    ("changes", "words"),
    [
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern is missing; expected the kinds of layers"),
        ({"hybrid_override_pattern": "ME"}, "hybrid_override_pattern lists 2 layers; expected 52"),
        ({"hybrid_override_pattern": "X" * 52}, "hybrid_override_pattern has 1 kinds of layers that edgemoe does not"),
        ({"layers_block_type": ["moe"] * 52}, "layers_block_type and hybrid_override_pattern list other layers"),
        ({"layers_block_type": [7] * 52}, "layers_block_type has 1 kinds of layers"),
        ({"time_step_limit": [0.001, float("inf")]}, "time_step_limit is a list of 2; edgemoe implements steps from 0"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit is a list of 2"),
        ({"mlp_hidden_act": "silu"}, 'mlp_hidden_act is "silu"; edgemoe implements "relu2" only'),
        ({"mamba_hidden_act": "gelu"}, 'mamba_hidden_act is "gelu"'),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is true; edgemoe implements false only"),
        ({"use_bias": True}, "use_bias is true"),
        ({"n_groups": 7}, "mamba_num_heads is 64; expected a multiple of n_groups, which is 7"),
        ({"mamba_head_dim": 1 << 18}, "channels of a Mamba layer; expected at most"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2; edgemoe implements 1 only"),
        ({"auto_map": {"AutoModelForCausalLM": "other.Other"}}, "edgemoe implements code of NemotronHForCausalLM only"),
    ],
)
def test_nemotron_h_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(NEMOTRON_3_NANO | changes)


def test_steps_without_limits_are_spelled_in_three_ways():
    for infinity in (float("inf"), None, {"__float__": "Infinity"}):
        assert model_spec(NEMOTRON_3_NANO | {"time_step_limit": [0.0, infinity]}) == model_spec(NEMOTRON_3_NANO)


def test_longcat_flash():
    spec = model_spec(LONGCAT_FLASH)
    assert spec.layers == (spec.layers[0],) * 28
    first, dense, experts, second, other = spec.layers[0].blocks
    assert (first.prefix, dense.prefix, second.prefix, other.prefix) == ("first.", "first.", "second.", "second.")
    assert (first.body, dense.body) == (second.body, other.body) == (first.body, GatedFfn(12288))
    router = RouterSpec(normalise=False, choice_bias=True, scale=6.0)
    assert experts.body == Moe(512, 12, 2048, router, passing=256)
    assert (experts.input_norm, experts.parallel, experts.late, experts.prefix) == (False, True, True, "")
    attention = first.body
    assert (attention.query_scale, attention.latent_scale, attention.latent_epsilon) == (2, 12**0.5, 1e-6)
    assert (attention.scale, attention.rope) == (192**-0.5, RopeSpec(1e7, 64, pairing="neighbours"))
    assert experts.body.routed.mean_top_k == 8
    assert model_spec(without(LONGCAT_FLASH, "rope_theta", "routed_scaling_factor", "mla_scale_q_lora")) == spec
    assert model_spec(LONGCAT_FLASH | {"zero_expert_num": None}).layers[0].blocks[2].body.passing == 0
    for count in (28, 56):
        assert model_spec(LONGCAT_FLASH | {"num_hidden_layers": count}) == spec


@every_case(
    ("changes", "words"),
    [
        ({"zero_expert_type": "copy"}, 'zero_expert_type is "copy"; edgemoe implements "identity" only'),
        ({"attention_method": "GQA"}, 'attention_method is "GQA"; edgemoe implements "MLA" only'),
        ({"mla_scale_q_lora": False}, "mla_scale_q_lora is false; edgemoe implements true only"),
        ({"mla_scale_kv_lora": False}, "mla_scale_kv_lora is false; edgemoe implements true only"),
        ({"router_bias": True}, "router_bias is true; edgemoe implements false only"),
        ({"norm_topk_prob": True}, "norm_topk_prob is true; edgemoe implements false only"),
        ({"q_lora_rank": None}, "q_lora_rank is missing; expected a whole number"),
        ({"moe_topk": 513}, "moe_topk is 513; expected at most the number of experts, 512"),
        ({"num_layers": 129}, "129 layers of 512 experts; expected at most 65536 experts in all"),
        ({"num_hidden_layers": 27}, "num_hidden_layers is 27; edgemoe implements 28 or 56 only"),
        ({"zero_expert_num": -1}, "zero_expert_num is -1; expected a whole number from 0"),
    ],
)
def test_longcat_flash_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(LONGCAT_FLASH | changes)


def test_longcat_flash_says_how_many_choices_are_of_no_expert():
    assert "zero_expert_num is missing" in refusal(without(LONGCAT_FLASH, "zero_expert_num"))


def test_jamba():
    spec = model_spec(JAMBA_V01)
    mixers = [layer.blocks[0].body for layer in spec.layers]
    assert {n for n, mixer in enumerate(mixers) if isinstance(mixer, Attention)} == {4, 12, 20, 28}
    assert {mixer for mixer in mixers if not isinstance(mixer, Attention)} == {Mamba(8192, 16, 256, 4)}
    assert (mixers[4].rope, mixers[4].heads, mixers[4].kv_heads, mixers[4].scale) == (None, 32, 8, 128**-0.5)
    experts = Moe(16, 2, 14336, RouterSpec(normalise=False))
    assert [ffn(layer) for layer in spec.layers] == [GatedFfn(14336), experts] * 16
    assert model_spec(JAMBA_V01 | {"mamba_dt_rank": "auto"}) == spec
    assert model_spec(without(JAMBA_V01, "mamba_dt_rank", "attn_layer_offset", "expert_layer_period")) == spec
    dense = model_spec(JAMBA_V01 | {"num_experts": 1, "num_experts_per_tok": 1})
    assert {ffn(layer) for layer in dense.layers} == {GatedFfn(14336)}


@every_case(
    ("changes", "words"),
    [
        ({"attn_layer_offset": 8}, "attn_layer_offset is 8; expected less than attn_layer_period, which is 8"),
        ({"expert_layer_period": 0}, "expert_layer_period is 0; expected a whole number from 1"),
        ({"mamba_dt_rank": "half"}, 'mamba_dt_rank is "half"; expected a whole number'),
        ({"mamba_d_conv": 1}, "mamba_d_conv is 1; expected a whole number from 2 to 64"),
        ({"mamba_d_state": 257}, "mamba_d_state is 257; expected a whole number from 1 to 256"),
        ({"mamba_expand": 257}, "1052672 channels of a Mamba layer; expected at most 1048576"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is true; edgemoe implements false only"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"layers_block_type": ["mamba"] * 32}, 'layers_block_type" is a list of 32; edgemoe does not know this key'),
    ],
)
def test_jamba_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(JAMBA_V01 | changes)


def test_granite_4():
    spec = model_spec(GRANITE_4_H_TINY)
    mixers = [layer.blocks[0].body for layer in spec.layers]
    assert {n for n, mixer in enumerate(mixers) if isinstance(mixer, Attention)} == {5, 15, 25, 35}
    assert {mixer for mixer in mixers if not isinstance(mixer, Attention)} == {Mamba2(48, 64, 1, 128, 4)}
    assert (mixers[5].rope, mixers[5].scale) == (None, 0.0078125)
    assert {ffn(layer) for layer in spec.layers} == {Moe(64, 6, 512, RouterSpec(True), SharedExpert(1024))}
    assert (spec.embedding_scale, spec.residual_scale, spec.logit_scale) == (12, 0.22, 1 / 6)
    other = model_spec(
        without(GRANITE_4_H_TINY, "mamba_d_head")
        | {"position_embedding_type": "rope", "num_local_experts": 0, "num_experts_per_tok": 0}
    )
    assert other.layers[5].blocks[0].body.rope == RopeSpec(1e4, 128)
    assert other.layers[0] == LayerSpec.of(Mamba2(48, 64, 1, 128, 4), GatedFfn(1024))


@every_case(
    ("changes", "words"),
    [
        ({"mamba_d_head": 32}, "48 heads of width 32 in a Mamba layer; expected 3072 channels"),
        ({"position_embedding_type": "alibi"}, 'position_embedding_type is "alibi"; edgemoe implements'),
        ({"normalization_function": "layernorm"}, 'normalization_function is "layernorm"'),
        ({"layer_types": ["conv"] * 40}, 'layer_types is "conv"; edgemoe implements'),
    ],
)
def test_granite_4_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(GRANITE_4_H_TINY | changes)


@every_case(
    ("changes", "dense"),
    [
        ({"num_hidden_layers": 6}, []),
        ({"num_hidden_layers": 6, "mlp_only_layers": [0, 4]}, [0, 4]),
        ({"num_hidden_layers": 6, "decoder_sparse_step": 2}, [0, 2, 4]),
        ({"num_hidden_layers": 6, "decoder_sparse_step": 3, "mlp_only_layers": [2]}, [0, 1, 2, 3, 4]),
    ],
)
@every_case("config", [QWEN15_MOE_A27B, QWEN3_30B_A3B], ids=["qwen2_moe", "qwen3_moe"])
def test_dense_layers_among_sparse_ones(config, changes, dense):
    layers = model_spec(config | changes).layers
    assert [n for n, layer in enumerate(layers) if layer.routed is None] == dense
    assert all(ffn(layers[n]) == GatedFfn(config["intermediate_size"]) for n in dense)


def test_the_newer_name_of_a_key_means_the_same():
    renamed = without(QWEN3_30B_A3B, "num_experts") | {"num_local_experts": 128}
    assert model_spec(renamed) == model_spec(QWEN3_30B_A3B)
    assert "num_local_experts is 64" in refusal(QWEN3_30B_A3B | {"num_local_experts": 64})


@every_case("config", [MIXTRAL_8X7B, QWEN3_30B_A3B, DEEPSEEK_V3, GLM_45_AIR, MINIMAX_M2, LING_MINI_2, JAMBA_V01])
def test_the_number_of_experts_has_three_names(config):
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    (own,) = (name for name in names if name in config)
    for name in names:
        renamed = without(config, own) | {name: config[own]}
        assert model_spec(renamed) == model_spec(config | renamed) == model_spec(config)
        if name != own:
            assert "they are names of one thing and must agree" in refusal(config | {name: config[own] + 1})


@every_case("config", ALL_FAMILIES.values(), ids=ALL_FAMILIES.keys())
def test_null_means_absent(config):
    optional = ["attention_bias", "tie_word_embeddings", "rope_scaling", "rope_theta", "hidden_act"]
    width = config.get("hidden_size")
    if width is not None and (config["model_type"] == "dbrx" or width % config["num_attention_heads"] == 0):
        optional.append("head_dim")
    if config["model_type"] == "gpt_oss":  # its files always have both
        optional = [name for name in optional if name not in ("head_dim", "rope_scaling")]
    assert model_spec(config | dict.fromkeys(optional)) == model_spec(without(config, *optional))


# Positions


def rope(**keys: Any) -> RopeSpec:
    return attention(model_spec(without(LLAMA_31_8B, "rope_scaling", "rope_theta") | keys).layers[0]).rope


LLAMA3_NUMBERS = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192.0,
}


LONGROPE_64 = {
    "type": "longrope",
    "short_factor": [1.0] * 64,
    "long_factor": [2.0] * 64,
    "original_max_position_embeddings": 4096,
}


def test_longrope_has_factors_by_the_length_of_the_context():
    spec = rope(rope_theta=1e4, max_position_embeddings=131_072, rope_scaling=LONGROPE_64)
    gain = math.sqrt(1 + math.log(32) / math.log(4096))
    assert spec.parameters == {
        "original_max_position_embeddings": 4096,
        "short_gain": pytest.approx(gain),
        "long_gain": pytest.approx(gain),
    }
    assert spec.longest_short == 4096
    plain = rope_frequencies(RopeSpec(1e4, 128))
    np.testing.assert_array_equal(rope_frequencies(spec), plain)
    np.testing.assert_allclose(rope_frequencies(spec, long=True), plain / 2, rtol=1e-6)
    given = LONGROPE_64 | {"short_mscale": 1.5, "long_mscale": 2.5}
    mixed = rope(rope_theta=1e4, max_position_embeddings=131_072, rope_scaling=given)
    for positions, gain in ((4096, 1.5), (4097, 2.5)):
        cosine, sine = rope_tables(mixed, positions)
        assert cosine[0, 0] == np.float32(gain)
        assert sine[1, 0] == pytest.approx(gain * math.sin(1.5 / gain if gain == 1.5 else 0.5), rel=1e-6)


def test_old_and_new_keys_of_positions_mean_the_same():
    assert rope() == RopeSpec(10_000.0, 128)
    assert (
        rope(rope_theta=5e5) == rope(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}) == RopeSpec(5e5, 128)
    )
    old = rope(rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3_NUMBERS})
    new = rope(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_NUMBERS})
    assert old == new == RopeSpec(5e5, 128, "llama3", LLAMA3_NUMBERS)
    assert rope(rope_scaling={"type": "linear", "factor": 2}) == RopeSpec(1e4, 128, "linear", {"factor": 2.0})


YARN_4 = {"factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR_2 = {"rope_type": "linear", "factor": 2.0}


@every_case(
    ("keys", "frequencies", "gain"),
    [
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "yarn", **YARN_4},
                "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000, **YARN_4},
            },
            [1.0, 0.17782793939113617, 0.03162277862429619, 0.004217559937387705],
            1.138629436111989,
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "attention_factor": None, **YARN_4},
                "rope_parameters": {"rope_type": "yarn", "beta_fast": 32, "rope_theta": 10000, **YARN_4},
            },
            [1.0, 0.3162277638912201, 0.10000000149011612, 0.03162277862429619],
            1.138629436111989,
        ),
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "default"},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            [1.0, 0.17782793939113617, 0.03162277862429619, 0.005623413249850273],
            1.0,
        ),
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "linear", "factor": 1.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            [1.0, 0.17782793939113617, 0.03162277862429619, 0.005623413249850273],
            1.0,
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "factor": 1.0}},
            [1.0, 0.17782793939113617, 0.03162277862429619, 0.005623413249850273],
            1.0,
        ),
    ],
)
def test_two_descriptions_of_the_same_positions_are_one(keys, frequencies, gain):
    """The numbers are `inv_freq` and `attention_scaling` of transformers 5.24.0's LlamaRotaryEmbedding, heads of 16."""
    spec = rope(**keys)
    spec = replace(spec, rotated=16)
    assert rope_frequencies(spec)[:4] == pytest.approx(frequencies, rel=1e-6)
    assert spec.parameters.get("attention_factor", 1.0) == pytest.approx(gain)


def test_a_linear_factor_of_one_is_no_scaling():
    assert rope(rope_scaling={"type": "linear", "factor": 1}) == RopeSpec(10_000.0, 128)


def test_yarn_fills_in_what_is_left_out():
    spec = rope(rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert spec.parameters == {
        "factor": 4.0,
        "original_max_position_embeddings": 131072.0,
        "attention_factor": pytest.approx(0.1 * math.log(4) + 1),
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": 1.0,
    }
    assert rope(rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 32768}).parameters["factor"] == 4
    both = rope(rope_scaling={"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.4})
    expected = (0.07 * math.log(4) + 1) / (0.04 * math.log(4) + 1)
    assert both.parameters["attention_factor"] == pytest.approx(expected)
    given_one = rope(rope_scaling={"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5})
    assert given_one.parameters["attention_factor"] == 1.5
    assert rope(rope_scaling={"rope_type": "yarn", "factor": 0.5}).parameters["attention_factor"] == 1


@every_case(
    ("keys", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_type is "dynamic"'),
        ({"rope_scaling": {"type": "su"}}, 'rope_type is "su"'),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.short_factor is null; expected a list of 64 numbers"),
        ({"rope_scaling": {**LONGROPE_64, "long_factor": [1.0] * 63}}, "rope_scaling.long_factor is 63 numbers"),
        ({"rope_scaling": {**LONGROPE_64, "short_factor": [True] * 64}}, "rope_scaling.short_factor is true"),
        ({"rope_scaling": {**LONGROPE_64, "long_mscale": 0}}, "rope_scaling.long_mscale is 0"),
        (
            {"rope_scaling": {**LONGROPE_64, "original_max_position_embeddings": 4.5}},
            "original_max_position_embeddings is 4.5; expected a whole number",
        ),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_type is a list of 1"),
        ({"rope_scaling": "linear"}, 'rope_scaling is "linear"; expected an object or null'),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"type": "linear"}}, "rope_parameters.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor is 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "short_factor": [1]}}, '"short_factor" is a list of 1'),
        ({"rope_scaling": {"type": "linear", "factor": 2, "rope_type": "yarn"}}, 'type is "linear"'),
        ({"rope_scaling": {"type": "llama3", **LLAMA3_NUMBERS, "high_freq_factor": 0.5}}, "high_freq_factor is 0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}}, "beta_fast is 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "truncate is 1; expected true or false"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, '"full_attention" is an object of 1'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "but 1000000.0 in rope_parameters"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0"),
        ({"rope_theta": True}, "rope_theta is true"),
        ({"rope_scaling": {"type": "default", "factor": 4.0}}, '"factor" is 4.0'),
        ({"rope_scaling": {"type": "default", "factor": True}}, "rope_scaling.factor is true"),
        (
            {"rope_scaling": {"factor": 2.0, "type": "linear"}, "rope_parameters": {"rope_type": "default"}},
            "differ: rope_scaling means linear (rope_theta 10000, factor 2) and rope_parameters means none",
        ),
        # transformers 5.24 reads rope_scaling here, and 10000 as rope_theta: the one in rope_parameters is lost.
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {**LINEAR_2, "rope_theta": 1e6}},
            "differ: rope_scaling means linear (rope_theta 10000, factor 2)",
        ),
    ],
)
def test_positions_that_are_refused(keys, words):
    assert words in refusal(without(LLAMA_31_8B, "rope_scaling", "rope_theta") | keys)


# What is refused


@every_case(
    ("model_type", "nearest"),
    [("Mixtral", "mixtral"), ("qwen3_5", "qwen3_5_moe"), ("gemma4_vision", "gemma4"), (7, None), (["mixtral"], None)],
)
def test_an_unknown_family_is_told_the_nearest(model_type, nearest):
    message = refusal(MIXTRAL_8X7B | {"model_type": model_type})
    _, _, told = message.partition(f"the nearest of the {len(FAMILIES)} that it runs are ")
    families = told.partition(".")[0].split(", ")
    assert len(families) == 5
    assert set(families) <= FAMILIES.keys()
    assert nearest in (None, families[0])


def test_what_is_no_config_at_all():
    assert "model_type is missing" in refusal({})
    assert "a list of 1; expected an object" in refusal([MIXTRAL_8X7B])  # type: ignore[arg-type]


OTHERWISE = [
    ("hidden_act", "gelu"),
    ("mlp_bias", True),
    ("auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
    ("is_encoder_decoder", True),
    ("add_cross_attention", True),
    ("pruned_heads", {"0": [1]}),
    ("per_layer_config", {"0": {}}),
    ("partial_rotary_factor", 1.5),
    ("layer_types", ["sliding_attention"]),
    ("embedding_dropout_of_tomorrow", 0.1),
]


@every_case("config", ALL_FAMILIES.values(), ids=ALL_FAMILIES.keys())
def test_values_that_mean_something_else_are_refused_by_name(config):
    for key, value in OTHERWISE:
        if config.get(key) != value:  # one family has an encoder
            assert key in refusal(config | {key: value})


@every_case(
    ("config", "changes", "word"),
    [
        (MIXTRAL_8X7B, {"attention_bias": True}, "attention_bias"),
        (MIXTRAL_8X7B, {"sliding_window": 4096}, "sliding_window"),
        (MIXTRAL_8X7B, {"sliding_window": 0}, "sliding_window"),
        (MIXTRAL_8X7B, {"qkv_bias": True}, "qkv_bias"),
        (MIXTRAL_8X7B, {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        (QWEN15_MOE_A27B, {"use_sliding_window": True}, "sliding_window"),
        (QWEN15_MOE_A27B, {"attention_bias": True}, "attention_bias"),
        (QWEN15_MOE_A27B, {"mlp_only_layers": [24]}, "mlp_only_layers"),
        (QWEN15_MOE_A27B, {"mlp_only_layers": [True]}, "mlp_only_layers"),
        (QWEN15_MOE_A27B, {"mlp_only_layers": 3}, "mlp_only_layers"),
        (QWEN15_MOE_A27B, {"layer_types": ["full_attention"]}, "layer_types"),
        (QWEN3_30B_A3B, {"use_sliding_window": True, "sliding_window": 1024}, "sliding_window"),
        (QWEN3_30B_A3B, {"use_qk_norm": False}, "use_qk_norm"),
        (QWEN3_30B_A3B, {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        (LLAMA_31_8B, {"rope_interleaved": True}, "rope_interleaved"),
        (OLMOE_1B_7B, {"head_dim": 64}, "head_dim"),
        (LLAMA_31_8B, {"num_experts": 4}, "num_experts"),
        (GRANITE_1B_A400M, {"shared_intermediate_size": 64}, "shared_intermediate_size"),
        (GRANITE_1B_A400M, {"logits_scaling": 0}, "logits_scaling"),
    ],
)
def test_what_a_family_does_not_have_is_refused_by_name(config, changes, word):
    assert word in refusal(config | changes)


def test_a_window_that_hides_nothing_is_accepted():
    assert model_spec(MIXTRAL_8X7B | {"sliding_window": 32768}) == model_spec(MIXTRAL_8X7B)
    switched_on = QWEN15_MOE_A27B | {"use_sliding_window": True}
    assert model_spec(switched_on | {"sliding_window": 8192}) == model_spec(QWEN15_MOE_A27B)


@every_case(
    "key",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_experts", "num_experts_per_tok"],
)
def test_absurd_sizes_are_errors(key):
    for value in (0, -1, 1 << 40, 10**400, 2.5, "64", True, [64], {}, float("nan"), float("inf")):
        message = refusal(QWEN3_30B_A3B | {key: value})
        assert f"{key} is" in message
        assert len(message) < 300


@every_case(
    ("changes", "words"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9; expected at most the number of experts, 8"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 32; expected a multiple of num_key_value_heads"),
        ({"hidden_size": 4100}, "expected a multiple of num_attention_heads"),
        ({"head_dim": 5}, "heads are 5 wide; expected an even width"),
        ({"head_dim": 1 << 18}, "values at most"),
        ({"num_local_experts": 1 << 15, "num_hidden_layers": 3}, "experts in all"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; expected true or false"),
    ],
)
def test_numbers_that_do_not_fit_together(changes, words):
    assert words in refusal(MIXTRAL_8X7B | changes)


def test_each_required_key_is_missed_by_name():
    for key in ("hidden_size", "vocab_size", "num_hidden_layers", "num_key_value_heads", "max_position_embeddings"):
        assert f"{key} is missing" in refusal(without(MIXTRAL_8X7B, key))


def test_no_key_is_both_harmless_and_fixed():
    assert not HARMLESS.keys() & FIXED.keys()


# Whatever the file holds

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.integers()
    | st.sampled_from([10**400, 1 << 30, 4096, 32768, 1e-320])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["silu", "yarn", "llama3", "linear", "longrope", "default", "dynamic", "full_attention"])
)
ROPE_KEYS = [
    *("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("short_factor", "long_factor", "short_mscale", "long_mscale"),
    *("alpha", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "rope_theta"),
]
VALUES = (
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(ROPE_KEYS) | st.text(max_size=3), SCALARS, max_size=6)
)
KEYS = sorted(
    {key for config in ALL_FAMILIES.values() for key in config}
    | FIXED.keys()
    | {"rope_parameters", "head_dim", "mlp_only_layers", "layer_types", "num_local_experts", "qkv_bias"}
    | {"shared_intermediate_size", "partial_rotary_factor"}
)


def spec_or_error(config: dict[str, Any]) -> ModelSpec | SourceError:
    try:
        return model_spec(config)
    except SourceError as error:
        return error


@settings(max_examples=examples(400), deadline=None)
@given(
    config=st.sampled_from(list(golden_configs().values())),  # of all families, and small
    changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), VALUES, max_size=4),
    removed=st.sets(st.sampled_from(KEYS), max_size=2),
)
def test_any_config_is_a_model_or_one_clear_error(config, changes, removed):
    result = spec_or_error(without(config | changes, *removed))
    if isinstance(result, SourceError):
        assert result.hint
        assert 0 < len(result.message) < 400
        return
    assert ModelSpec.from_json(result.to_json()) == result
    mixers = {layer.blocks[0].body for layer in result.layers}
    for mixer in (mixer for mixer in mixers if isinstance(mixer, Attention)):
        assert mixer.heads % mixer.kv_heads == 0
        if mixer.rope is not None:
            cosine, _ = rope_tables(replace(mixer.rope, rotated=min(mixer.rope.rotated, 256)), 3)
            assert np.isfinite(cosine).all()


@every_case(
    ("changes", "words"),
    [
        ({"ffn": "tree"}, 'ffn is "tree"; edgemoe implements "dense" or "fff" or "moe" or "peer" only'),
        ({"ffn": None}, "ffn is null"),
        ({"depth": 25}, "depth is 25; expected a whole number from 1 to 24"),
        ({"depth": 24, "leaf_width": 4096}, "depth is 24; expected fewer than the 68719476736 neurons that it means"),
        (
            {"depth": 6, "intermediate_size": 3072},
            "depth is 6; expected a tree that the 3072 neurons of intermediate_size allow, found 64 leaves of 96",
        ),
        ({"leaf_width": None, "intermediate_size": 31}, "31 neurons of intermediate_size allow, found 63 nodes"),
    ],
)
def test_trees_that_cannot_be_are_refused(changes, words):
    assert words in refusal(CARRIER_FFF | changes)


@every_case(
    ("changes", "words"),
    [
        ({"levels": [4, 8], "level_top_k": [2]}, "level_top_k has 1 numbers; expected one for each of 1 to 8 levels"),
        ({"levels": [4, 8], "level_top_k": [2, 9]}, "level_top_k is 9 at a level of 8; expected at most its size"),
        ({"levels": [4, 8], "level_top_k": [2, 2], "num_experts": 30}, "levels of 4 x 8; expected them to make the 30"),
        (
            {"levels": [4, 8], "level_top_k": [2, 2], "num_experts_per_tok": 2},
            "level_top_k of 2 x 2; expected them to make the 2 of num_experts_per_tok",
        ),
        ({"levels": [4, 0], "level_top_k": [2, 2]}, "levels holds 0; expected whole numbers from 1"),
        ({"levels": [4, 8]}, "level_top_k has 0 numbers"),
    ],
)
def test_levels_that_contradict_the_experts_are_refused(changes, words):
    config = without(CARRIER_FFF, "depth", "leaf_width", "hidden_act") | {"ffn": "moe", "moe_intermediate_size": 20}
    assert words in refusal(config | changes)
