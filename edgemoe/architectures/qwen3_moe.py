"""Qwen3-MoE: a norm over each query and key head, dense layers among sparse ones."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import listed_dense_layers, read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.model.blocks import GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + layer_rows(
        ("query_norm", "self_attn.q_norm.weight", ("head_dim",)),
        ("key_norm", "self_attn.k_norm.weight", ("head_dim",)),
        ("router", "mlp.gate.weight", ("experts", "model")),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    reader.require("use_qk_norm", True)
    frame = read_frame(reader, "qwen3_moe")
    attention = read_attention(reader, frame, bias_key="attention_bias", kv_heads_required=True, qk_norm="head")
    router = RouterSpec(normalise=reader.flag("norm_topk_prob", False))
    moe = read_experts(reader, width_key="moe_intermediate_size", router=router)
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    return replace(frame, layers=read_layers(reader, attention, moe, dense, listed_dense_layers))
