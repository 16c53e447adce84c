"""Mellum 2: windows in some layers, with rotary positions of their own; a softmax router without shared experts."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    read_attention,
    read_experts,
    read_ffn_types,
    read_frame,
    read_layer_count,
    read_layer_types,
)
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, HEAD_NORMS, SEPARATE_EXPERTS, layer_rows
from edgemoe.architectures.windows import WINDOWED, read_windowed_layers
from edgemoe.model.blocks import Attention, GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + HEAD_NORMS
    + layer_rows(("router", "mlp.gate.weight", ("experts", "model")))
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)
_THETAS = {"full_attention": 500_000.0, "sliding_attention": 10_000.0}
"""The positions of a config that does not give any."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "mellum", layer_types=WINDOWED, windows=True)
    router = RouterSpec(normalise=reader.flag("norm_topk_prob", True))
    moe = read_experts(reader, width_key="moe_intermediate_size", router=router)
    count = read_layer_count(reader, moe)

    def of_type(kind: str) -> Attention:
        return read_attention(
            reader,
            frame,
            default_theta=_THETAS[kind],
            bias_key="attention_bias",
            qk_norm="head",
            default_head_dim=128,
            layer_type=kind,
        )

    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    types = read_layer_types(reader, count, ("full_attention",))
    reader.require("use_sliding_window", True)
    layers = read_windowed_layers(reader, types, of_type, moe, dense, read_ffn_types(reader, count))
    # The layers that predict further tokens are left out (`table.unused_tensors`), and what the config says of them.
    reader.integer("num_nextn_predict_layers", "num_mtp_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    for name in ("mtp_layer_types", "mtp_mlp_layer_types"):
        reader.sequence(name)
    return replace(frame, layers=layers)
