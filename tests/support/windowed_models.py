"""Small models of the families with windows that llama.cpp has, in patterns of layers that it knows."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "sliding_window": 37,
    "vocab_size": 128,
}
_LAST_WHOLE = [*["sliding_attention"] * 3, "full_attention"]
_YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 128}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}

SMALL_WINDOWED: dict[str, dict[str, Any]] = {
    "afmoe": _COMMON
    | {
        "head_dim": 32,
        "layer_types": _LAST_WHOLE,
        "mup_enabled": True,
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_shared_experts": 2,
        "rope_theta": 1e4,
        "route_scale": 2.0,
    },
    "cohere2_moe": _COMMON
    | {
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "layer_norm_eps": 1e-3,
        "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
        "logit_scale": 0.25,
        "moe_intermediate_size": None,
        "num_experts": 8,
        "num_shared_experts": 2,
        "prefix_dense_intermediate_size": 160,
        "rms_norm_eps": None,
        "rope_theta": 1e4,
    },
    "exaone_moe": _COMMON
    | {
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "layer_types": _LAST_WHOLE,
        "num_experts": 8,
        "num_shared_experts": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "routed_scaling_factor": 2.5,
    },
    "gemma4": _COMMON
    | {
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "final_logit_softcapping": 5.0,
        "global_head_dim": 64,
        "head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "layer_types": _LAST_WHOLE,
        "num_experts": 8,
        "num_experts_per_tok": None,
        "num_global_key_value_heads": 1,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            "sliding_attention": _PLAIN,
        },
        "tie_word_embeddings": True,
        "top_k_experts": 3,
    },
    "laguna": _COMMON
    | {
        "head_dim": 32,
        "layer_types": ["full_attention", *["sliding_attention"] * 3],
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "moe_routed_scaling_factor": 2.0,
        "num_attention_heads_per_layer": [4, 6, 6, 6],
        "num_experts": 8,
        "rope_parameters": {
            "full_attention": _YARN | {"partial_rotary_factor": 0.5},
            "sliding_attention": _PLAIN | {"partial_rotary_factor": 1.0},
        },
        "shared_expert_intermediate_size": 64,
    },
    "llama4": _COMMON
    | {
        "head_dim": 32,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 64,
        "intermediate_size_mlp": 96,
        "moe_intermediate_size": None,
        "num_experts_per_tok": 1,
        "num_local_experts": 8,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "sliding_window": None,
    },
    "mellum": _COMMON
    | {
        "head_dim": 32,
        "layer_types": _LAST_WHOLE,
        "num_local_experts": 8,
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": _PLAIN | {"rope_theta": 5e5}},
    },
    "mimo_v2_flash": _COMMON
    | {
        "attention_value_scale": 0.707,
        "head_dim": 48,
        "layer_types": ["full_attention", *["sliding_attention"] * 3],
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "n_routed_experts": 8,
        "num_key_value_heads": 1,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.334}
            for kind, theta in (("full_attention", 5e6), ("sliding_attention", 1e4))
        },
        "v_head_dim": 32,
    },
    "step3p5": {
        key: value for key, value in _COMMON.items() if key not in ("num_experts_per_tok", "num_key_value_heads")
    }
    | {
        "attention_other_setting": {"num_attention_groups": 2, "num_attention_heads": 6},
        "head_dim": 32,
        "layer_types": ["full_attention", *["sliding_attention"] * 3],
        "moe_layers_enum": "1,2,3",
        "moe_num_experts": 8,
        "moe_router_scaling_factor": 3.0,
        "moe_top_k": 3,
        "num_attention_groups": 2,
        "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
            "original_max_position_embeddings": 131072,
        },
        "rope_theta": [5e6, 1e4, 1e4, 1e4],
        "share_expert_dim": 64,
        "swiglu_limits": [0.0, 0.0, 0.5, 0.25],
        "swiglu_limits_shared": [0.5, 0.0, 0.0, 0.25],
        "yarn_only_types": ["full_attention"],
    },
}
for _name, _config in SMALL_WINDOWED.items():
    _config["model_type"] = _name

_SMALLTHINKER: dict[str, Any] = {
    "head_dim": 32,
    "hidden_size": 64,
    "max_position_embeddings": 512,
    "model_type": "smallthinker",
    "moe_ffn_hidden_size": 96,
    "moe_num_active_primary_experts": 3,
    "moe_num_primary_experts": 8,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_layout": [0, 1, 1, 1, 0],
    "rope_theta": 1.5e6,
    "sliding_window_layout": [0, 1, 1, 1, 0],
    "sliding_window_size": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 128,
}

SMALL_MODELS: dict[str, dict[str, Any]] = SMALL_WINDOWED | {
    "arctic": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "model_type": "arctic",
        "moe_layer_frequency": 1,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "parallel_attn_mlp_res": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "vocab_size": 128,
    },
    "cohere2_moe by sigmoids": SMALL_WINDOWED["cohere2_moe"]
    | {
        "expert_selection_fn": "sigmoid",
        "first_k_dense_replace": 0,
        "layer_norm_eps": None,
        "logit_scale": 0.75,
        "norm_topk_prob": False,
        "num_shared_experts": 0,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": False,
    },
    "smallthinker": _SMALLTHINKER,
    "smallthinker without windows": _SMALLTHINKER
    | {
        "moe_primary_router_apply_softmax": True,
        "rope_layout": None,
        "sliding_window_layout": None,
        "tie_word_embeddings": True,
    },
    "dbrx": {
        "attn_config": {"clip_qkv": 2.0, "kv_n_heads": 2, "rope_theta": 5e5},
        "d_model": 64,
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 3},
        "max_seq_len": 512,
        "model_type": "dbrx",
        "n_heads": 4,
        "n_layers": 3,
        "vocab_size": 128,
    },
}
"""All of those, and models without windows whose configs are like no others."""
