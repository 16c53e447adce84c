"""Grok-1: norms before and after each block, scores of attention within limits, multipliers on embedding and logits.

Experts have GELU, and their weights are shares among all experts, as they stand.

Source: `model.py` of xai-org/grok-1. The names are those of its conversion to safetensors (hpcai-tech/grok-1).
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.frame import normed_around, read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import HEAD, layer_rows, rows
from edgemoe.kernels.operations import GELU_TANH
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = rows(
    ("embedding", "model.embed_tokens.weight", ("vocabulary", "model")),
    ("final_norm", "model.norm.scale", ("model",)),
    ("head", HEAD, ("vocabulary", "model")),
) + layer_rows(
    ("attention_norm", "pre_attn_norm.scale", ("model",)),
    ("post_attention_norm", "post_attn_norm.scale", ("model",)),
    ("ffn_norm", "pre_moe_norm.scale", ("model",)),
    ("post_ffn_norm", "post_moe_norm.scale", ("model",)),
    ("query", "attn.q_proj.weight", ("query", "model")),
    ("key", "attn.k_proj.weight", ("key_value", "model")),
    ("value", "attn.v_proj.weight", ("value", "model")),
    ("output", "attn.o_proj.weight", ("model", "attended")),
    ("router", "moe_block.gate.weight", ("experts", "model")),
    ("experts.{expert}.gate", "moe_block.experts.{expert}.linear.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "moe_block.experts.{expert}.linear_v.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "moe_block.experts.{expert}.linear_1.weight", ("model", "expert_width")),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "grok-1", tied=True, own_code="Grok1ModelForCausalLM")
    attention = replace(
        read_attention(reader, frame, scale=reader.number("attn_output_multiplier", 1.0)),
        score_cap=reader.number("max_attn_value", 30.0),
    )
    moe = read_experts(reader, width_key="intermediate_size", router=RouterSpec(normalise=False))
    layers = normed_around(read_layers(reader, attention, replace(moe, activation=GELU_TANH)))
    return replace(
        frame,
        layers=layers,
        embedding_scale=reader.number("embedding_multiplier_scale", 1.0),
        logit_scale=reader.number("output_multiplier_scale", 1.0),
    )
