"""Mixtral: softmax over the chosen experts, no biases; the matrices are called w1 (gate), w3 (up) and w2 (down)."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import FRAME, FUSED_EXPERTS, layer_rows
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + layer_rows(
        ("router", "block_sparse_moe.gate.weight", ("experts", "model")),
        ("experts.{expert}.gate", "block_sparse_moe.experts.{expert}.w1.weight", ("expert_width", "model")),
        ("experts.{expert}.up", "block_sparse_moe.experts.{expert}.w3.weight", ("expert_width", "model")),
        ("experts.{expert}.down", "block_sparse_moe.experts.{expert}.w2.weight", ("model", "expert_width")),
        ("router", "mlp.gate.weight", ("experts", "model")),
    )
    + FUSED_EXPERTS
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "mixtral")
    attention = read_attention(reader, frame, default_theta=1_000_000.0, kv_heads_required=True)
    moe = read_experts(reader, width_key="intermediate_size", router=RouterSpec(normalise=True))
    return replace(frame, layers=read_layers(reader, attention, moe))
