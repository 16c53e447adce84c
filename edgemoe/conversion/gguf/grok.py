"""Configs of Grok's GGUF files. llama.cpp has one architecture for Grok-1 and Grok-2, and runs other models for both.

It divides the weights of a token's experts by their sum, and reads the cap of router logits and the length beyond which
scores grow, but follows neither. Its converter writes yarn for Grok-2's positions, which are plain ones in the model
that xAI's checkpoint is run with (`architectures/grok_2.py`). The models that are read here are xAI's.

Source: `grok.cpp` and the converter of llama.cpp (2026).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import Metadata

_ATTENTION_SCALE, _EMBEDDING_SCALE, _LOGIT_SCALE = 0.08838834764831845, 78.38367176906169, 0.5773502691896257
"""The numbers of Grok-1, which files of before Grok-2 do not have."""


def grok_1_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Grok-1, whose router has no cap, whatever the file says."""
    metadata.value("router_logit_softcapping")
    return {
        "attn_output_multiplier": metadata.value("attention.output_scale", _ATTENTION_SCALE),
        "embedding_multiplier_scale": metadata.value("embedding_scale", _EMBEDDING_SCALE),
        "max_attn_value": metadata.value("attn_logit_softcapping", 30.0),
        "num_experts": metadata.count("expert_count"),
        "output_multiplier_scale": metadata.value("logit_scale", _LOGIT_SCALE),
    }


def grok_2_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Grok-2."""
    rule, width = metadata.value("rope.scaling.type", "none"), metadata.count("embedding_length")
    head_dim = metadata.count("attention.key_length", width // metadata.count("attention.head_count"))
    if rule not in ("none", "yarn"):
        raise metadata.wrong("rope.scaling.type", "yarn, or no such key", rule)
    scale = metadata.value("attention.output_scale", head_dim**-0.5)
    if not isinstance(scale, float) or not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise metadata.wrong("attention.output_scale", f"{head_dim**-0.5:g}", scale)
    return {
        "architectures": ["Grok1ForCausalLM"],
        "attn_logit_softcapping": metadata.value("attn_logit_softcapping", 30.0),
        "attn_temperature_len": metadata.value("attention.temperature_length"),
        "embedding_multiplier_scale": metadata.value("embedding_scale"),
        "final_logit_softcapping": metadata.value("final_logit_softcapping"),
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "num_local_experts": metadata.count("expert_count"),
        "output_multiplier_scale": metadata.value("logit_scale"),
        "residual_moe": "blk.0.ffn_gate.weight" in tensors,
        "rope_scaling": None,
        "rope_type": "original",
        "router_logit_softcapping": metadata.value("router_logit_softcapping", 30.0),
    }
