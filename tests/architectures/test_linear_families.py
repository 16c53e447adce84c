"""Configs of families with Kimi Delta Attention or lightning attention: what they mean, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgemoe.architectures import FURTHER_TOKENS, model_spec, unused_tensors
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import SILU, Activation
from edgemoe.model.blocks import (
    Attention,
    GatedDelta,
    GatedFfn,
    LatentAttention,
    Lightning,
    Moe,
    OutputGate,
    RouterSpec,
    SharedExpert,
)
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import Residual
from tests.architectures.published import (
    KIMI_LINEAR_48B_A3B,
    LING_3_FLASH,
    LING_3_TINY,
    MINIMAX_M1,
    MINIMAX_TEXT_01,
    MINIMAX_TEXT_01_NEWER,
)
from tests.support.every_case import every_case

_LISTS = KIMI_LINEAR_48B_A3B["linear_attn_config"]


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(SourceError) as caught:
        model_spec(config)
    assert caught.value.hint
    return caught.value.message


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def mixer(spec, number):
    return spec.layers[number].blocks[0].body


def ffn(spec, number):
    return spec.layers[number].blocks[1].body


def test_kimi_linear():
    spec = model_spec(KIMI_LINEAR_48B_A3B)
    attends = [n for n in range(27) if isinstance(mixer(spec, n), LatentAttention)]
    assert attends == [3, 7, 11, 15, 19, 23, 26]  # published files count from 1
    of_channels = {"apart": True, "decay_per": "channel", "gating": "sigmoid"}
    assert mixer(spec, 0) == GatedDelta(32, 32, 128, 128, 4, decay_rank=128, gate_rank=128, **of_channels)
    assert mixer(spec, 3) == LatentAttention(32, 512, 128, 64, 128, 192**-0.5, None)
    router = RouterSpec(True, score="sigmoid", choice_bias=True, epsilon=1e-20, scale=2.446)
    assert (ffn(spec, 0), ffn(spec, 1)) == (GatedFfn(9216), Moe(256, 8, 1024, router, SharedExpert(1024)))
    assert (spec.norm_epsilon, spec.max_positions) == (1e-5, 1048576)
    # transformers writes other keys, and both at once.
    types = ["full_attention" if n in attends else "linear_attention" for n in range(27)]
    newer = {
        "layer_types": types,
        "linear_conv_kernel_dim": 4,
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "mlp_layer_types": ["dense"] + ["sparse"] * 26,
    }
    renamed = {"max_position_embeddings": 1048576, "n_group": 1, "norm_topk_prob": True, "num_experts_per_tok": 8}
    older = ("model_max_length", "num_expert_group", "moe_renormalize", "num_experts_per_token", "linear_attn_config")
    assert model_spec(KIMI_LINEAR_48B_A3B | newer) == spec
    assert model_spec(without(KIMI_LINEAR_48B_A3B, *older) | newer | renamed) == spec


@every_case(
    ("changes", "words"),
    [
        ({"mla_use_nope": False}, "mla_use_nope is false; edgemoe implements true only"),
        ({"linear_attn_config": None}, "linear_attn_config is missing; expected the kinds of 27 layers"),
        ({"linear_attn_config": 4}, "linear_attn_config is 4; expected an object"),
        (
            {"linear_attn_config": _LISTS | {"kda_layers": [1]}},
            "list 8 layers; expected each of the layers 1 to 27 once",
        ),
        ({"linear_attn_config": _LISTS | {"kda_layers": [*range(20)]}}, "expected each of the layers 1 to 27 once"),
        (
            {"linear_attn_config": _LISTS | {"gate_lower_bound": -5.0}},
            '"gate_lower_bound" is -5.0; edgemoe does not know',
        ),
        ({"linear_attn_config": _LISTS | {"head_dim": 512}}, "head_dim is 512; expected a whole number from 1 to 256"),
        ({"linear_num_heads": 16}, "linear_num_heads is 16, but num_heads of linear_attn_config is 32"),
        ({"layer_types": ["linear_attention"] * 26}, "layer_types lists 26 layers; expected 27"),
        ({"layer_types": ["linear_attention"] * 27}, "layer_types and linear_attn_config list other layers"),
        ({"layer_types": ["mamba"] * 27}, 'edgemoe implements "linear_attention" or "full_attention" only'),
        ({"moe_router_activation_func": "softmax"}, 'moe_router_activation_func is "softmax"'),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2; edgemoe implements 1 only"),
        ({"hidden_act": "situ"}, 'hidden_act is "situ"'),
        ({"norm_topk_prob": False}, "norm_topk_prob is false and moe_renormalize is true; they are names of one thing"),
        (
            {"auto_map": {"AutoModelForCausalLM": "modeling_kimi.KimiK3"}},
            "edgemoe implements code of KimiLinearForCausalLM",
        ),
    ],
)
def test_kimi_linear_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(KIMI_LINEAR_48B_A3B | changes)


def test_ling_3():
    spec = model_spec(LING_3_FLASH)
    assert [n for n in range(42) if isinstance(mixer(spec, n), LatentAttention)] == list(range(5, 42, 6))
    of_channels = {"apart": True, "decay_per": "channel", "gating": "sigmoid"}
    assert mixer(spec, 0) == GatedDelta(32, 32, 128, 128, 4, decay_bound=5.0, **of_channels)
    rope = RopeSpec(6e6, 64, pairing="neighbours")
    gate = OutputGate("head")
    assert mixer(spec, 5) == LatentAttention(32, 512, 128, 64, 128, 192**-0.5, rope, output_gate=gate)
    assert [ffn(spec, n) for n in (0, 1)] == [GatedFfn(6144)] * 2
    router = RouterSpec(True, score="sigmoid", choice_bias=True, groups=8, kept_groups=4, epsilon=1e-20, scale=2.5)
    plain = Moe(512, 8, 768, router, SharedExpert(768))
    assert {ffn(spec, n) for n in range(2, 34)} == {plain}
    limits = [(ffn(spec, n).activation.limit, ffn(spec, n).shared.activation.limit) for n in range(34, 42)]
    assert limits == [(None, 5.0), *[(4.0, 5.0)] * 5, *[(4.0, 7.0)] * 2]
    assert (ffn(spec, 34).activation, ffn(spec, 35).activation) == (SILU, Activation("capped_silu", limit=4.0))
    # The lists may go on with the layer that predicts further tokens; limits may be null.
    longer = LING_3_FLASH["expert_swiglu_limit_list"] + [4.0]
    assert model_spec(LING_3_FLASH | {"expert_swiglu_limit_list": longer}) == spec
    nulls = [limit or None for limit in LING_3_FLASH["expert_swiglu_limit_list"]]
    assert model_spec(LING_3_FLASH | {"expert_swiglu_limit_list": nulls}) == spec
    assert mixer(model_spec(LING_3_FLASH | {"kda_safe_gate": False}), 0).decay_bound == 0
    assert model_spec(without(LING_3_FLASH, "kda_lower_bound", "kda_safe_gate")) == spec
    tiny = model_spec(LING_3_TINY)
    assert (mixer(tiny, 3).query_rank, mixer(tiny, 0).heads, ffn(tiny, 23).activation) == (256, 16, SILU)


def test_the_layer_of_ling_3_that_predicts_further_tokens_is_left_out():
    names = [f"model.layers.42.{name}.weight" for name in ("eh_proj", "enorm", "attention.dense", "mlp.gate")]
    assert unused_tensors(LING_3_FLASH, names) == dict.fromkeys(names, FURTHER_TOKENS)


@every_case(
    ("changes", "words"),
    [
        ({"architectures": ["BailingMoeV2_5ForCausalLM"]}, 'architectures is "BailingMoeV2_5ForCausalLM"'),
        ({"no_kda_lora": False}, "no_kda_lora is false; edgemoe implements true only"),
        ({"use_mla_nope": True}, "use_mla_nope is true; edgemoe implements false only"),
        ({"gated_attention_proj_granularity_type": "element_wise"}, 'edgemoe implements "head_wise" only'),
        ({"rotary_dim": 32}, "rotary_dim is 32; edgemoe implements 64 only"),
        ({"rope_interleave": False}, "rope_interleave is false; edgemoe implements true only"),
        (
            {"num_hidden_layers": 41, "expert_swiglu_limit_list": None, "share_expert_swiglu_limit_list": None},
            "num_hidden_layers is 41; expected whole groups of layer_group_size, which is 6",
        ),
        ({"num_hidden_layers": 40}, "expert_swiglu_limit_list lists 42 layers; expected 40"),
        ({"kda_lower_bound": None}, "kda_lower_bound is null; edgemoe implements a number below 0 only"),
        ({"kda_lower_bound": 2.0}, "kda_lower_bound (without its sign) is -2.0; expected a number of at least"),
        ({"head_dim": 512}, "head_dim is 512; expected at most 256"),
        ({"short_conv_kernel_size": 1}, "short_conv_kernel_size is 1; expected a whole number from 2 to 64"),
        ({"expert_swiglu_limit_list": [4.0] * 41}, "expert_swiglu_limit_list lists 41 layers; expected 42"),
        ({"expert_swiglu_limit_list": [-1.0] * 42}, "expert_swiglu_limit_list is -1.0; expected a number of at least"),
        ({"share_expert_swiglu_limit_list": [5.0] * 42}, "is 5.0; edgemoe implements no limit of a dense layer only"),
        ({"moe_shared_expert_intermediate_size": 512}, "edgemoe implements 768, the width of all shared experts"),
    ],
)
def test_ling_3_that_cannot_be_run_is_refused(changes, words):
    assert words in refusal(LING_3_FLASH | changes)


def test_minimax_text_01():
    spec = model_spec(MINIMAX_TEXT_01)
    others = [replace(model_spec(config), family=spec.family) for config in (MINIMAX_TEXT_01_NEWER, MINIMAX_M1)]
    assert others == [spec, spec]
    assert [n for n in range(80) if isinstance(mixer(spec, n), Attention)] == list(range(7, 80, 8))
    assert mixer(spec, 7) == Attention(64, 8, 128, 128**-0.5, RopeSpec(1e7, 64))
    assert (mixer(spec, 0).heads, mixer(spec, 0).head_dim) == (64, 128)
    slopes = [mixer(spec, n).slope for n in (0, 40, 78)]
    assert slopes == pytest.approx([1 + 1e-5, 1 - 40 / 79 + 1e-5, 1 - 78 / 79 + 1e-5], abs=1e-6)
    assert isinstance(mixer(spec, 0), Lightning)
    residual = Residual("normed", base_scale=3.5565588200778455)
    assert {block.residual for layer in spec.layers for block in layer.blocks} == {residual}
    assert ffn(spec, 0) == Moe(32, 2, 9216, RouterSpec(True))
    alternate = model_spec(without(MINIMAX_TEXT_01_NEWER, "layer_types"))
    assert [isinstance(mixer(alternate, n), Attention) for n in range(4)] == [True, False] * 2


@every_case(
    ("config", "changes", "words"),
    [
        (MINIMAX_TEXT_01, {"postnorm": False}, "postnorm is false; edgemoe implements true only"),
        (MINIMAX_TEXT_01, {"postnorm": None}, "postnorm is false; edgemoe implements true only"),
        (MINIMAX_TEXT_01, {"shared_intermediate_size": 8}, "shared_intermediate_size is 8; edgemoe implements 0 only"),
        (MINIMAX_TEXT_01, {"attn_type_list": None}, "attn_type_list is missing; expected the kinds of 80 layers"),
        (MINIMAX_TEXT_01, {"attn_type_list": [0, 1]}, "attn_type_list lists 2 layers; expected 80"),
        (MINIMAX_TEXT_01, {"attn_type_list": [2] * 80}, "edgemoe implements 0 (lightning attention) or 1"),
        (MINIMAX_TEXT_01, {"layer_types": ["full_attention"] * 80}, "layer_types and attn_type_list list other layers"),
        (MINIMAX_TEXT_01, {"mlp_alpha_factor": 2.0}, "mlp_alpha_factor is 2 and layernorm_mlp_alpha is 3.55656"),
        (MINIMAX_TEXT_01, {"layernorm_mlp_beta": -1.0}, "layernorm_mlp_beta is -1.0; expected a number of at least"),
        (MINIMAX_TEXT_01, {"rotary_dim": 65}, "rotates 65 of 128 channels of a head; expected an even"),
        (MINIMAX_TEXT_01, {"head_dim": 1 << 13}, "expected 1048576 at most"),
        (MINIMAX_M1, {"auto_map": {"AutoModelForCausalLM": "other.Other"}}, "edgemoe implements code of MiniMaxM1For"),
        (MINIMAX_TEXT_01_NEWER, {"sliding_window": 4096}, "sliding_window is 4096"),
    ],
)
def test_minimax_that_cannot_be_run_is_refused(config, changes, words):
    assert words in refusal(config | changes)
