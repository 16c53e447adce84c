"""Random configs of families that spell most keys in their own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.golden.cases import CASES, LLAMA3, YARN

_THETAS = st.sampled_from([1e4, 5e6])


@st.composite
def smallthinker(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, count = config["num_hidden_layers"], draw(st.integers(2, 12) | st.integers(65, 80))
    layout = _each(st.integers(0, 1), layers)
    return _without(config, "intermediate_size", "rope_parameters") | {
        "moe_ffn_hidden_size": draw(st.integers(1, 40)),
        "moe_num_active_primary_experts": draw(st.integers(1, min(count, 8))),
        "moe_num_primary_experts": count,
        "moe_primary_router_apply_softmax": draw(st.booleans()),
        "rope_layout": draw(layout),
        "rope_theta": draw(_THETAS),
        "sliding_window_layout": draw(layout),
        "sliding_window_size": draw(st.integers(1, 80)),
    }


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@st.composite
def grove_moe(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, count = config["num_hidden_layers"], 2 * draw(st.integers(1, 6) | st.integers(33, 40))
    return _without(config, "rope_parameters") | {
        "decoder_sparse_step": 1,
        "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), max_size=1)),
        "moe_intermediate_size": draw(st.integers(1, 40)),
        "norm_topk_prob": True,
        "num_experts": count,
        "num_experts_per_tok": draw(st.integers(1, min(count, 8))),
        "rope_theta": draw(_THETAS),
    }


@st.composite
def grok_2(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    count = draw(st.integers(2, 12) | st.integers(65, 80))
    return _without(config, "rope_parameters") | {
        "attn_logit_softcapping": draw(st.sampled_from([0.5, 30.0])),
        "attn_temperature_len": draw(st.sampled_from([-1, 2, 9, 1024])),
        "embedding_multiplier_scale": draw(st.sampled_from([1.0, 9.0])),
        "final_logit_softcapping": draw(st.sampled_from([None, 2.0, 50.0])),
        "moe_intermediate_size": draw(st.integers(1, 40)),
        "num_experts_per_tok": draw(st.integers(1, min(count, 8))),
        "num_local_experts": count,
        "output_multiplier_scale": draw(st.sampled_from([0.6, 1.0])),
        "residual_moe": draw(st.booleans()),
        "rope_theta": draw(_THETAS),
        "rope_type": "original",
        "router_logit_softcapping": draw(st.sampled_from([1.0, 30.0])),
    }


@st.composite
def step3p5(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, count = config["num_hidden_layers"], draw(st.integers(2, 12) | st.integers(65, 80))
    further = draw(st.integers(0, 2))
    types = draw(_each(st.sampled_from(["full_attention", "sliding_attention"]), layers + further))
    thetas, parts = ({kind: draw(values) for kind in types} for values in (_THETAS, st.sampled_from([0.5, 0.75, 1.0])))
    rule = draw(st.sampled_from([None, LLAMA3, YARN]))
    limits = _each(st.sampled_from([None, 0.0, 0.2, 1.5]), layers + further)
    within = draw(st.integers(1, 3)) * config["num_key_value_heads"]
    return _without(config, "rope_parameters", "num_key_value_heads") | {
        "attention_other_setting": {
            "num_attention_groups": config["num_key_value_heads"],  # others the class does not have
            "num_attention_heads": within,
        },
        "head_dim": 8 * draw(st.integers(1, 3)),
        "layer_types": types,
        "moe_intermediate_size": draw(st.integers(1, 40)),
        "moe_layers_enum": ",".join(map(str, draw(st.lists(st.integers(0, layers - 1), min_size=1)))),
        "moe_num_experts": count,
        "moe_router_scaling_factor": draw(st.sampled_from([1.0, 3.0])),
        "moe_top_k": draw(st.integers(1, min(count, 8))),
        "num_attention_groups": config["num_key_value_heads"],
        "num_nextn_predict_layers": further,
        "pad_token_id": 0,
        "partial_rotary_factors": [parts[kind] for kind in types],
        "rope_scaling": rule and {key: value for key, value in rule.items() if key != "rope_theta"},
        "rope_theta": [thetas[kind] for kind in types],
        "share_expert_dim": draw(st.integers(1, 40)),
        "sliding_window": draw(st.integers(1, 80)),
        "swiglu_limits": draw(st.none() | limits),
        "swiglu_limits_shared": draw(st.none() | limits),
        "tie_word_embeddings": False,
        "use_moe_router_bias": True,
    }


def step3p7(config: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    whole = CASES["step3p7"].config
    return step3p5(config).map(lambda text: whole | {"text_config": text})


def _each(values: st.SearchStrategy[Any], count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=count, max_size=count)


@st.composite
def carrier(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    config = _without(config, "intermediate_size", "rope_parameters")
    if draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        return config | {
            "ffn": "moe",
            "level_top_k": [draw(st.integers(1, min(size, 2))) for size in sizes],
            "levels": sizes,
            "moe_intermediate_size": draw(st.integers(1, 40)),
            "norm_topk_prob": draw(st.booleans()),
            "rope_theta": draw(_THETAS),
        }
    width = draw(st.integers(0, 40))
    return config | {
        "depth": draw(st.integers(1, 6)),
        "ffn": "fff",
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu", "gelu_pytorch_tanh"])),
        "leaf_output_bias": width > 0 and draw(st.booleans()),
        "leaf_width": width,
        "rope_theta": draw(_THETAS),
        "trees": draw(st.integers(1, 3)),
    }


OWN_CONFIGS: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[dict[str, Any]]]] = {
    "edgemoe_carrier": carrier,
    "git": grok_2,
    "grove_moe": grove_moe,
    "smallthinker": smallthinker,
    "step3p5": step3p5,
    "step3p7": step3p7,
}
"""The config of each of these families, from the keys that those of all families have."""
