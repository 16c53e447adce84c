"""FlexOlmo: experts that were trained apart; norms follow attention and experts, and none precedes them."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.spec import LayerSpec, ModelSpec

TENSORS = (
    tuple(row for row in FRAME if not row.source.endswith("layernorm.weight"))
    + layer_rows(
        ("query_norm", "self_attn.q_norm.weight", ("query",)),
        ("key_norm", "self_attn.k_norm.weight", ("key_value",)),
        ("post_attention_norm", "post_attention_layernorm.weight", ("model",)),
        ("post_ffn_norm", "post_feedforward_layernorm.weight", ("model",)),
        ("router", "mlp.gate.weight", ("experts", "model")),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "flex_olmo")
    attention = read_attention(reader, frame, default_theta=500_000.0, bias_key="attention_bias", qk_norm="full")
    router = RouterSpec(normalise=reader.flag("norm_topk_prob", False))
    moe = read_experts(reader, width_key="intermediate_size", router=router)
    return replace(frame, layers=tuple(map(_normed_after, read_layers(reader, attention, moe))))


def _normed_after(layer: LayerSpec) -> LayerSpec:
    return LayerSpec(tuple(replace(block, input_norm=False, post_norm=True) for block in layer.blocks))
