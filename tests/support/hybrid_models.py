"""Small models with Kimi Delta Attention or lightning attention that llama.cpp can run."""

from __future__ import annotations

from typing import Any

_KDA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,  # that of the norms of latents, which llama.cpp takes for all
    "routed_scaling_factor": 2.446,
    "v_head_dim": 32,
    "vocab_size": 128,
}
SMALL_HYBRID: dict[str, dict[str, Any]] = {
    "kimi_linear": _KDA
    | {
        "model_type": "kimi_linear",
        "linear_attn_config": {
            "full_attn_layers": [3],
            "head_dim": 32,
            "kda_layers": [1, 2, 4],
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
        "model_max_length": 512,
        "num_hidden_layers": 4,
    },
    "bailing_hybrid": _KDA
    | {
        "model_type": "bailing_hybrid",
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "layer_group_size": 2,
        "max_position_embeddings": 512,
        "n_group": 4,
        "num_hidden_layers": 4,
        "rope_theta": 6e6,
        "topk_group": 2,
    },
    "minimax": {
        "model_type": "minimax",
        "full_attn_alpha_factor": 1.5,
        "head_dim": 32,
        "hidden_size": 64,
        "intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "linear_attn_alpha_factor": 1.5,
        "max_position_embeddings": 512,
        "mlp_alpha_factor": 1.5,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-6,  # that of the norm within lightning attention, which llama.cpp takes for all
        "rope_theta": 10000.0,
        "rotary_dim": 16,
        "vocab_size": 128,
    },
}
SMALL_HYBRID |= {
    "kimi_linear with groups": SMALL_HYBRID["kimi_linear"] | {"n_group": 4, "topk_group": 2},
    "bailing_hybrid with limits": SMALL_HYBRID["bailing_hybrid"]
    | {
        "expert_swiglu_limit_list": [0.0, 0.0, 0.3, 0.2],
        "norm_topk_prob": False,
        "q_lora_rank": 32,
        "share_expert_swiglu_limit_list": [0.0, 0.0, 0.0, 0.25],
    },
}
