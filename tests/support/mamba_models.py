"""Small models with Mamba-2 layers that llama.cpp can run."""

from __future__ import annotations

from typing import Any

SMALL_MAMBA: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "model_type": "granitemoehybrid",
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "hidden_size": 64,
        "intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "logits_scaling": 2.0,
        "mamba_d_conv": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_n_groups": 2,
        "mamba_n_heads": 4,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "residual_multiplier": 0.5,
        "rms_norm_eps": 1e-5,
        "shared_intermediate_size": 96,
        "tie_word_embeddings": True,
        "vocab_size": 128,
    },
    "nemotron_h": {
        "model_type": "nemotron_h",
        "conv_kernel": 4,
        "head_dim": 32,
        "hidden_size": 64,
        "layer_norm_epsilon": 1e-5,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
        "mamba_head_dim": 32,
        "mamba_num_heads": 4,
        "max_position_embeddings": 512,
        "moe_intermediate_size": 32,
        "moe_latent_size": 96,
        "moe_shared_expert_intermediate_size": 64,
        "n_groups": 2,
        "n_routed_experts": 8,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "routed_scaling_factor": 2.5,
        "ssm_state_size": 16,
        "vocab_size": 128,
    },
}
SMALL_MAMBA |= {
    "granitemoehybrid with positions, without experts": SMALL_MAMBA["granitemoehybrid"]
    | {"attention_bias": True, "num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope"},
    "nemotron_h without latent rows": SMALL_MAMBA["nemotron_h"] | {"moe_latent_size": None, "norm_topk_prob": False},
}
