"""Qwen2-MoE: biases on query, key and value, a shared expert behind a sigmoid gate, dense layers among sparse ones."""

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
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("shared.gate", "mlp.shared_expert.gate_proj.weight", ("shared_width", "model")),
        ("shared.up", "mlp.shared_expert.up_proj.weight", ("shared_width", "model")),
        ("shared.down", "mlp.shared_expert.down_proj.weight", ("model", "shared_width")),
        ("shared_gate", "mlp.shared_expert_gate.weight", ("one", "model")),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "qwen2_moe")
    attention = read_attention(
        reader,
        frame,
        bias_key="qkv_bias",
        bias_default=True,
        bias_on_output=False,
        kv_heads_required=True,
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=RouterSpec(normalise=reader.flag("norm_topk_prob", False)),
        shared_width=reader.integer("shared_expert_intermediate_size", maximum=LARGEST_WIDTH),
        shared_gate=True,
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    return replace(frame, layers=read_layers(reader, attention, moe, dense, listed_dense_layers))
