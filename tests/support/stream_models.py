"""Small models with several residual streams that llama.cpp can run."""

from __future__ import annotations

from typing import Any

SMALL_STREAMS: dict[str, dict[str, Any]] = {
    "deepseek_v4": {
        "model_type": "deepseek_v4",
        "compress_ratios": [128, 4, 0, 4, 0],
        "compress_rope_theta": 5_000.0,
        "hc_eps": 1e-4,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 3,
        "head_dim": 64,
        "hidden_size": 64,
        "index_head_dim": 64,
        "index_n_heads": 2,
        "index_topk": 20,
        "max_position_embeddings": 512,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hash_layers": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1,
        "o_groups": 2,
        "o_lora_rank": 32,
        "q_lora_rank": 96,
        "qk_rope_head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        "rope_theta": 10_000.0,
        "routed_scaling_factor": 1.3,
        "sliding_window": 37,
        "swiglu_limit": 0.5,
        "tie_word_embeddings": False,
        "vocab_size": 128,
    },
}
