"""The shapes of models on the body of T5, and their first layers.

Switch Transformers (google/switch-base-8, base-128, large-128 and c-2048), and one with each kind of mixture
(`architectures/edgemoe_mixture.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _shape(width: int, ffn_width: int, heads: int, layers: int, step: int, experts: int) -> dict[str, Any]:
    """The config of a model with experts in every `step`-th of the layers of each side."""
    return {
        "model_type": "switch_transformers",
        "d_ff": ffn_width,
        "d_kv": 64,
        "d_model": width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "relu",
        "expert_capacity": 64,
        "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": layers,
        "num_experts": experts,
        "num_heads": heads,
        "num_layers": layers,
        "num_sparse_decoder_layers": layers // step,
        "num_sparse_encoder_layers": layers // step,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "router_bias": False,
        "router_dtype": "float32",
        "tie_word_embeddings": True,
        "vocab_size": 32128,
    }


SWITCH_SHAPES = {
    "switch-base-8": _shape(768, 3072, 12, 12, 2, 8),
    "switch-base-128": _shape(768, 3072, 12, 12, 2, 128),
    "switch-large-128": _shape(1024, 4096, 16, 24, 2, 128),
    "switch-c-2048": _shape(2080, 6144, 32, 15, 1, 2048),
    "edgemoe-mixtures": {
        "model_type": "edgemoe_mixture",
        "is_encoder_decoder": True,
        "d_ff": 512,
        "d_kv": 64,
        "d_model": 256,
        "decoder_ffns": ["gshard", "noisy_topk", "soft_gates", "multilinear"],
        "decoder_start_token_id": 0,
        "encoder_ffns": ["gshard", "soft_moe", "soft_gates", "multilinear"],
        "multilinear": {"form": "cp", "gate_norm": "layer", "ranks": [256]},
        "noisy_topk": {"k": 2},
        "num_decoder_layers": 4,
        "num_experts": 8,
        "num_heads": 4,
        "num_layers": 4,
        "soft_moe": {"normalise": "unit", "num_slots": 4},
        "tie_word_embeddings": True,
        "vocab_size": 32128,
    },
}


def first_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any] | None:
    """The config with the first layers of each side; None unless each side has some with experts among them.

    The layers of a mixture have their kinds in turn, so that it may have any number of them.
    """
    if "encoder_ffns" in config:
        if not 1 <= layers <= config["num_layers"]:
            return None
        return {**config, "num_layers": layers, "num_decoder_layers": layers}
    total, sparse = config["num_layers"], config["num_sparse_encoder_layers"]
    step = total // sparse
    if not step <= layers <= total or layers % step:
        return None
    sides = dict.fromkeys(("num_layers", "num_decoder_layers"), layers)
    return {**config, **sides, **dict.fromkeys(_SPARSE, layers // step)}


_SPARSE = ("num_sparse_encoder_layers", "num_sparse_decoder_layers")
