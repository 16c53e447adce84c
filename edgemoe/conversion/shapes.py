"""The shapes that `edgemoe synth` makes models of: configs of published checkpoints, and a tiny one for tests.

They hold what decides the shape and the arithmetic. No ids of special tokens: a model of random weights has no
tokenizer, and no token that ends an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_OLMOE: dict[str, Any] = {
    "model_type": "olmoe",
    "hidden_act": "silu",
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": _OLMOE
        | {
            "hidden_size": 256,
            "intermediate_size": 128,
            "max_position_embeddings": 1024,
            "num_attention_heads": 4,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "vocab_size": 512,
        },
        "olmoe-1b-7b": _OLMOE
        | {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "max_position_embeddings": 4096,
            "num_attention_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "vocab_size": 50304,
        },
        "qwen3-30b-a3b": {
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "vocab_size": 151936,
        },
        "glm-4.5-air": {
            "model_type": "glm4_moe",
            "attention_bias": True,
            "first_k_dense_replace": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "max_position_embeddings": 131072,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 96,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 46,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "use_qk_norm": False,
            "vocab_size": 151552,
        },
        "mixtral-8x7b": {
            "model_type": "mixtral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        "granite-3b-a800m": {
            "model_type": "granitemoe",
            "attention_bias": False,
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "intermediate_size": 512,
            "logits_scaling": 6.0,
            "max_position_embeddings": 4096,
            "num_attention_heads": 24,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 40,
            "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "vocab_size": 49155,
        },
    }
)
"""By name. Published: allenai/OLMoE-1B-7B-0924, Qwen/Qwen3-30B-A3B, zai-org/GLM-4.5-Air,
mistralai/Mixtral-8x7B-v0.1 and ibm-granite/granite-3.0-3b-a800m-instruct."""
