"""The meaning of configs of families with windows, and the values that are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgemoe.architectures import model_spec
from edgemoe.kernels.operations import Activation
from edgemoe.model.blocks import Attention, GatedFfn, Moe, OutputGate, RouterSpec, SharedExpert
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec
from tests.architectures import published
from tests.architectures.published import (
    COMMAND_A_PLUS,
    FLINT,
    GRANITE_SWA,
    K_EXAONE_236B,
    KOLIBRI_1,
    LAGUNA_XS2,
    MELLUM2_12B_A25B,
    MIMO_V2_FLASH,
    SMALLTHINKER_4B,
    SMALLTHINKER_21B,
    STEP_35_FLASH,
    TRINITY_MINI,
)
from tests.architectures.test_config import attention, ffn, refusal, without
from tests.support.every_case import every_case


def layers_at(config: dict[str, Any], *numbers: int) -> list[LayerSpec]:
    layers = model_spec(config).layers
    return [layers[number] for number in numbers]


def test_afmoe_gates_attention_and_norms_around():
    spec = model_spec(TRINITY_MINI)
    first, fourth = layers_at(TRINITY_MINI, 2, 3)
    assert attention(first).output_gate == OutputGate("channel", "sigmoid")
    assert (attention(first).window, attention(first).rope) == (2048, RopeSpec(10_000.0, 128))
    assert attention(fourth) == replace(attention(first), window=0, rope=None)
    assert [(block.input_norm, block.post_norm) for block in first.blocks] == [(True, True)] * 2
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20, scale=2.826)
    assert ffn(first) == Moe(128, 8, 1024, router, SharedExpert(1024))
    assert ffn(spec.layers[1]) == GatedFfn(6144)
    assert spec.embedding_scale == pytest.approx(2048**0.5)
    assert model_spec(without(TRINITY_MINI, "layer_types")) == spec
    assert model_spec(TRINITY_MINI | {"mup_enabled": False}).embedding_scale == 1


def test_cohere2_moe_is_parallel():
    spec = model_spec(COMMAND_A_PLUS)
    first, fourth = layers_at(COMMAND_A_PLUS, 0, 3)
    assert (spec.norm, spec.logit_scale, spec.tied_embeddings) == ("layer", 0.0625, True)
    assert [(block.input_norm, block.parallel) for block in first.blocks] == [(True, False), (False, True)]
    assert attention(first).rope == RopeSpec(1e4, 128, pairing="neighbours")
    assert attention(fourth) == replace(attention(first), window=0, rope=None)
    assert ffn(first) == Moe(8, 2, 22528, RouterSpec(True, score="sigmoid"), SharedExpert(22528), scale=0.5)
    assert model_spec(without(COMMAND_A_PLUS, "layer_types")) == spec
    dense = without(COMMAND_A_PLUS, "layer_types") | {"first_k_dense_replace": 1, "prefix_dense_intermediate_size": 96}
    before, second, fifth = layers_at(dense, 0, 1, 4)
    assert ffn(before) == GatedFfn(96)
    assert (attention(before).window, attention(before).rope) == (0, attention(first).rope)
    assert (attention(second), attention(fifth)) == (attention(first), attention(fourth))
    other = COMMAND_A_PLUS | {"rms_norm_eps": 1e-5, "shared_expert_combination_strategy": "sum"}
    assert model_spec(other).norm == "rms"
    assert ffn(model_spec(other).layers[0]).scale == 1
    saved = COMMAND_A_PLUS | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}
    assert attention(model_spec(saved).layers[0]).rope.theta == 5e4
    softmax = model_spec(COMMAND_A_PLUS | {"expert_selection_fn": None, "norm_topk_prob": False})
    assert ffn(softmax.layers[0]).router == RouterSpec(True)


def test_exaone_moe_rotates_within_windows():
    first, second, fourth = layers_at(K_EXAONE_236B, 0, 1, 3)
    assert ffn(first) == GatedFfn(18432)
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20, scale=2.5)
    assert ffn(second) == Moe(128, 8, 2048, router, SharedExpert(2048))
    assert (attention(second).window, attention(second).rope, attention(second).qk_norm) == (
        128,
        RopeSpec(1e6, 128),
        "head",
    )
    assert attention(fourth) == replace(attention(second), window=0, rope=None)
    newer = without(K_EXAONE_236B, "is_moe_layer") | {"mlp_layer_types": ["dense", *["sparse"] * 47]}
    assert model_spec(newer) == model_spec(K_EXAONE_236B)
    assert model_spec(without(K_EXAONE_236B, "is_moe_layer")) == model_spec(K_EXAONE_236B)
    by_pattern = without(K_EXAONE_236B, "layer_types") | {"sliding_window_pattern": 4}
    assert model_spec(by_pattern) == model_spec(K_EXAONE_236B)
    whole = without(K_EXAONE_236B, "layer_types", "sliding_window")
    assert {attention(layer) for layer in model_spec(whole).layers} == {replace(attention(second), window=0)}


def test_mellum_has_positions_for_each_type_of_layer():
    first, fourth = layers_at(MELLUM2_12B_A25B, 0, 3)
    assert (attention(first).window, attention(first).rope) == (1024, RopeSpec(10_000.0, 128))
    assert (attention(fourth).window, attention(fourth).rope.scaling, attention(fourth).rope.theta) == (0, "yarn", 5e5)
    assert ffn(first) == Moe(64, 8, 896, RouterSpec(normalise=True))
    plain = model_spec(without(MELLUM2_12B_A25B, "rope_parameters")).layers
    assert [attention(plain[number]).rope.theta for number in (0, 3)] == [10_000.0, 500_000.0]


def test_granite_with_windows():
    first, second = layers_at(GRANITE_SWA, 0, 1)
    assert (attention(first).window, attention(first).rope, attention(first).sinks) == (0, None, True)
    assert (attention(second).window, attention(second).rope) == (128, RopeSpec(10_000.0, 64))
    assert ffn(first).shared == SharedExpert(1024)
    bare = model_spec(without(GRANITE_SWA, "layer_types", "layer_rope_theta", "sliding_window"))
    assert attention(bare.layers[0]) == replace(attention(first), rope=attention(second).rope)
    assert attention(bare.layers[1]) == attention(second)
    nulls = GRANITE_SWA | {"layer_rope_theta": [None, 10000, 10000, 10000] * 6}
    assert model_spec(nulls) == model_spec(GRANITE_SWA)


def test_smallthinker_chooses_experts_before_attention():
    first, second = layers_at(SMALLTHINKER_21B, 0, 1)
    assert (attention(first).window, attention(first).rope) == (0, None)
    assert attention(second) == replace(attention(first), window=4096, rope=RopeSpec(1.5e6, 128))
    router = RouterSpec(True, score="sigmoid", choose_by="logit", early=True)
    assert ffn(first) == Moe(64, 6, 768, router, activation=Activation("relu"))
    small = model_spec(SMALLTHINKER_4B)
    assert small.tied_embeddings
    assert {attention(layer) for layer in small.layers} == {replace(attention(second), heads=12, kv_heads=2, window=0)}
    assert model_spec(without(SMALLTHINKER_4B, "rope_layout", "sliding_window_layout")) == small
    saved = SMALLTHINKER_21B | {"sliding_window": 4096, "sliding_window_pattern": [0, 1, 1, 1] * 13}
    assert model_spec(saved) == model_spec(SMALLTHINKER_21B)  # what its class adds
    softmax = model_spec(SMALLTHINKER_4B | {"moe_primary_router_apply_softmax": True})
    assert ffn(softmax.layers[0]).router == RouterSpec(True, early=True)


@every_case(
    ("keys", "words"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
        ({"moe_enable_early_router": False}, "moe_enable_early_router is false"),
        ({"moe_enable_secondary_experts": True}, "moe_enable_secondary_experts is true"),
        ({"use_qk_norm": True}, "use_qk_norm is true"),
        ({"moe_shared_primary_experts": 1}, "moe_shared_primary_experts is 1"),
        ({"moe_layer_layout": [0, 1] * 26}, "moe_layer_layout is 0; edgemoe implements layers with experts (1) only"),
        ({"rope_layout": [0, 1]}, "rope_layout lists 2 layers; expected 52"),
        ({"rope_layout": [0, 2] * 26}, "rope_layout holds 2; expected 0 or 1"),
        ({"sliding_window_pattern": [1] * 52}, "sliding_window_pattern differs from sliding_window_layout"),
        ({"sliding_window": 1024}, "sliding_window_size is 4096 and sliding_window is 1024"),
        ({"moe_num_active_primary_experts": 65}, "moe_num_active_primary_experts is 65"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Thinker"}}, "own.Thinker"),
    ],
)
def test_smallthinker_refuses_what_it_has_not(keys, words):
    assert words in refusal(SMALLTHINKER_21B | keys)


def test_step_has_heads_and_positions_by_the_type_of_layer():
    spec = model_spec(STEP_35_FLASH)
    first, second, fourth, last = (spec.layers[number] for number in (0, 1, 3, 44))
    assert len(spec.layers) == 45
    scaled = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 32.0}
    rope = RopeSpec(5e6, 64, "llama3", scaled | {"original_max_position_embeddings": 131072.0})
    assert attention(first) == Attention(
        64, 8, 128, 128**-0.5, rope, qk_norm="head", output_gate=OutputGate("head", "sigmoid")
    )
    assert attention(second) == replace(attention(first), heads=96, window=512, rope=RopeSpec(1e4, 128))
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20, scale=3.0)
    assert (ffn(first), ffn(fourth)) == (GatedFfn(11264), Moe(288, 8, 1280, router, SharedExpert(1280)))
    held, shared = Activation("capped_silu", limit=7.0), Activation("capped_silu", limit=16.0)
    assert ffn(last) == Moe(288, 8, 1280, router, SharedExpert(1280, activation=shared), held)
    images = {"model_type": "step3p7", "text_config": STEP_35_FLASH, "vision_config": {"width": 1536}}
    assert model_spec(images) == replace(spec, family="step3p7")
    listed = STEP_35_FLASH | {"moe_layers_enum": list(range(3, 45))}
    assert model_spec(listed) == spec
    typed = without(STEP_35_FLASH, "moe_layers_enum") | {"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 42}
    assert model_spec(typed) == spec
    again = {f"{n:02}": {"num_attention_heads": 96} for n in range(45) if n % 4}  # transformers writes them
    assert model_spec(STEP_35_FLASH | {"per_layer_config": again}) == spec
    further = STEP_35_FLASH | {"rope_theta": [*STEP_35_FLASH["rope_theta"][:45], 1.5, 2.5, 3.5]}
    assert model_spec(further) == spec  # only layers that run must be alike
    dense = model_spec(STEP_35_FLASH | {"swiglu_limits_shared": [16] * 48}).layers[0]
    assert ffn(dense) == GatedFfn(11264, shared)


@every_case(
    ("keys", "words"),
    [
        ({"moe_layers_enum": None}, "moe_layers_enum is missing; expected the numbers of layers"),
        ({"moe_layers_enum": "3,x"}, 'moe_layers_enum is "3,x"'),
        ({"moe_layers_enum": "9" * 5000}, 'moe_layers_enum is "9999'),
        ({"mlp_layer_types": ["hash"] * 45}, 'mlp_layer_types is "hash"'),
        ({"layer_types": ["full_attention"] * 44}, "layer_types lists 44 layers; expected 45 or 48"),
        ({"rope_theta": [5e6, *[1e4] * 47]}, "rope_theta is a list of 48; edgemoe implements one value for all layers"),
        ({"partial_rotary_factors": [1.0]}, "partial_rotary_factors lists 1 layers"),
        ({"yarn_only_types": ["sliding_attention"]}, "yarn_only_types is a list of 1"),
        ({"use_rope_layers": [True, False]}, "use_rope_layers is false"),
        ({"use_head_wise_attn_gate": False}, "use_head_wise_attn_gate is false"),
        ({"moe_router_activation": "softmax"}, 'moe_router_activation is "softmax"'),
        ({"norm_expert_weight": False}, "norm_expert_weight is false"),
        ({"sink": True}, "sink is true"),
        ({"att_impl_type": "MFA"}, 'att_impl_type is "MFA"'),
        ({"swiglu_limits": [-1.0] * 48}, "swiglu_limits is -1.0"),
        ({"attention_other_setting": {"head_dim": 64}}, "head_dim is 64; edgemoe implements 128 only"),
        ({"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config is an object of 1"),
        ({"num_key_value_heads": 4}, "num_attention_groups is 8 and num_key_value_heads is 4"),
        ({"moe_top_k": 289}, "moe_top_k is 289"),
    ],
)
def test_step_refuses_what_it_has_not(keys, words):
    assert words in refusal(STEP_35_FLASH | keys)


def test_mimo_has_narrow_values_and_more_key_heads_within_windows():
    first, second = layers_at(MIMO_V2_FLASH, 0, 1)
    assert (attention(first).kv_heads, attention(first).window, attention(first).sinks) == (4, 0, False)
    assert (attention(first).head_dim, attention(first).value_dim, attention(first).output_scale) == (192, 128, 0.707)
    assert attention(first).rope == RopeSpec(5e6, 64)
    within = replace(attention(first), kv_heads=8, window=129, sinks=True, rope=RopeSpec(1e4, 64))
    assert attention(second) == within
    assert (ffn(first), ffn(second).shared) == (GatedFfn(16384), None)
    names = ("hybrid_layer_pattern", "moe_layer_freq", "sliding_window_size", "swa_rope_theta", "rope_theta")
    newer = without(MIMO_V2_FLASH, *names, "swa_num_key_value_heads", "partial_rotary_factor", "layernorm_epsilon") | {
        "layer_types": ["full_attention" if n == 0 or n % 6 == 5 else "sliding_attention" for n in range(48)],
        "mlp_layer_types": ["dense", *["sparse"] * 47],
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.334}
            for kind, theta in (("full_attention", 5e6), ("sliding_attention", 1e4))
        },
        "sliding_window": 129,
    }
    assert model_spec(newer) == model_spec(MIMO_V2_FLASH)
    assert model_spec(without(newer, "layer_types", "mlp_layer_types", "sliding_window")) == model_spec(MIMO_V2_FLASH)
    assert model_spec(MIMO_V2_FLASH | {"rms_norm_eps": 1e-5}) == model_spec(MIMO_V2_FLASH)
    words = "layernorm_epsilon is 1e-05 and rms_norm_eps is 1e-06; they are names of one thing and must agree"
    assert words in refusal(MIMO_V2_FLASH | {"rms_norm_eps": 1e-6})


@every_case("config", ["TRINITY_MINI", "MELLUM2_12B_A25B", "FLINT", "KOLIBRI_1", "LAGUNA_XS2"])
def test_heads_have_the_width_of_the_family_unless_a_config_says_otherwise(config):
    whole = getattr(published, config)
    assert model_spec(without(whole, "head_dim")) == model_spec(whole)


def test_flint_has_a_pattern_of_its_own():
    spec = model_spec(FLINT)
    whole = [number for number, layer in enumerate(spec.layers) if not attention(layer).window]
    assert whole == [0, 1, *range(5, 48, 4), 48]
    assert all(attention(layer).sinks for layer in spec.layers)
    assert (attention(spec.layers[2]).window, attention(spec.layers[2]).rope) == (513, RopeSpec(10_000.0, 128))
    assert attention(spec.layers[5]).rope is None
    assert ffn(spec.layers[1]) == GatedFfn(6144)
    assert ffn(spec.layers[2]) == Moe(256, 6, 512, RouterSpec(True, score="sigmoid"), SharedExpert(1024))


def test_kolibri1_chooses_by_logits():
    first, fifth = layers_at(KOLIBRI_1, 0, 4)
    router = RouterSpec(False, score="sigmoid", choice_bias=True, choose_by="logit")
    assert ffn(first) == Moe(384, 6, 512, router, SharedExpert(512))
    assert [block.post_norm for block in first.blocks] == [True, True]
    assert (attention(first).window, attention(fifth).window, attention(fifth).rope) == (513, 0, None)


def test_laguna_has_heads_and_positions_by_layer():
    first, second = layers_at(LAGUNA_XS2, 0, 1)
    assert (attention(first).heads, attention(second).heads, attention(second).window) == (48, 64, 512)
    assert attention(first).output_gate == OutputGate("head", "softplus")
    assert (attention(first).rope.scaling, attention(first).rope.rotated) == ("yarn", 64)
    assert attention(second).rope == RopeSpec(10_000.0, 128)
    assert ffn(first) == GatedFfn(8192)
    assert ffn(second) == Moe(256, 8, 512, RouterSpec(True, "sigmoid", True, scale=2.5), SharedExpert(512))
    capped = model_spec(LAGUNA_XS2 | {"moe_router_logit_softcapping": 2.0, "gating": "per-element"}).layers[1]
    assert ffn(capped).router.logit_cap == 2
    assert attention(capped).output_gate == OutputGate("channel", "softplus")
    plain = model_spec(without(LAGUNA_XS2, "rope_parameters", "gating", "mlp_layer_types"))
    assert attention(plain.layers[0]).rope == RopeSpec(500_000.0, 64)
    assert attention(plain.layers[1]) == attention(second)


@every_case(
    ("config", "changes", "words"),
    [
        ("TRINITY_MINI", {"score_func": "softmax"}, "score_func"),
        ("TRINITY_MINI", {"n_group": 2}, "n_group"),
        ("TRINITY_MINI", {"route_norm": False}, "route_norm"),
        ("TRINITY_MINI", {"sliding_window": None}, "sliding_window is missing"),
        ("TRINITY_MINI", {"layer_types": ["full_attention"] * 3}, "layer_types lists 3 layers; expected 32"),
        ("K_EXAONE_236B", {"is_moe_layer": [True] * 3}, "is_moe_layer lists 3 values; expected 48 flags"),
        ("K_EXAONE_236B", {"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types lists 3 layers; expected 48"),
        ("K_EXAONE_236B", {"layer_types": None}, 'sliding_window_pattern is "LLLG"'),
        ("MELLUM2_12B_A25B", {"mlp_layer_types": ["mixed"] * 28}, 'mlp_layer_types is "mixed"'),
        ("MELLUM2_12B_A25B", {"use_sliding_window": False}, "use_sliding_window"),
        ("MELLUM2_12B_A25B", {"rope_parameters": {"full_attention": {}}}, "rope_parameters.sliding_attention is null"),
        (
            "MELLUM2_12B_A25B",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {}, "factor": 2}},
            'rope_parameters."factor"',
        ),
        ("GRANITE_SWA", {"layer_rope_theta": [0]}, "layer_rope_theta lists 1 layers; expected 24"),
        ("GRANITE_SWA", {"layer_rope_theta": [False] * 24}, "layer_rope_theta is false"),
        ("MIMO_V2_FLASH", {"swa_head_dim": 128}, "swa_head_dim"),
        ("MIMO_V2_FLASH", {"swa_num_key_value_heads": 7}, "num_attention_heads is 64; expected a multiple"),
        ("MIMO_V2_FLASH", {"sliding_window": 100}, "sliding_window is 100, but sliding_window_size 128"),
        ("MIMO_V2_FLASH", {"n_shared_experts": 1}, "n_shared_experts"),
        ("MIMO_V2_FLASH", {"hybrid_layer_pattern": [2] * 48}, "hybrid_layer_pattern lists 48 values; expected 48 of 0"),
        ("COMMAND_A_PLUS", {"expert_selection_fn": "tanh"}, "expert_selection_fn"),
        ("COMMAND_A_PLUS", {"shared_expert_combination_strategy": "max"}, "shared_expert_combination_strategy"),
        ("FLINT", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("LAGUNA_XS2", {"gating": False}, "gating is false"),
        ("LAGUNA_XS2", {"moe_apply_router_weight_on_input": True}, "moe_apply_router_weight_on_input"),
        ("LAGUNA_XS2", {"num_attention_heads_per_layer": [48]}, "num_attention_heads_per_layer lists 1 layers"),
        ("LAGUNA_XS2", {"num_attention_heads_per_layer": [47] * 40}, "num_attention_heads_per_layer holds 47"),
        ("LAGUNA_XS2", {"moe_router_logit_softcapping": -1.0}, "moe_router_logit_softcapping"),
    ],
    ids=str,
)
def test_what_families_with_windows_do_not_implement_is_refused_by_name(config, changes, words):
    assert words in refusal(getattr(published, config) | changes)
