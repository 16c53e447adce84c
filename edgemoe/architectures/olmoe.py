"""OLMoE: a norm over the whole query and key projections, before they are cut into heads."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import ConfigReader, unsupported
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + layer_rows(
        ("query_norm", "self_attn.q_norm.weight", ("query",)),
        ("key_norm", "self_attn.k_norm.weight", ("key_value",)),
        ("router", "mlp.gate.weight", ("experts", "model")),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "olmoe")
    attention = read_attention(reader, frame, bias_key="attention_bias", qk_norm="full")
    if attention.heads * attention.head_dim != frame.hidden_size:
        raise unsupported("head_dim", attention.head_dim, "hidden_size / num_attention_heads")
    if reader.value("clip_qkv") is not None:
        attention = replace(attention, clip=reader.number("clip_qkv"))
    router = RouterSpec(normalise=reader.flag("norm_topk_prob", False))
    moe = read_experts(reader, width_key="intermediate_size", router=router)
    return replace(frame, layers=read_layers(reader, attention, moe))
