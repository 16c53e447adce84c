"""Flint: sinks in every layer, rotary positions only within windows, a sigmoid router without biases, and an ungated
shared expert; the first two layers are dense, and the layers that see the whole context have a pattern of their own.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    listed_dense_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layer_count,
    read_layer_types,
)
from edgemoe.architectures.table import (
    DENSE_FFN,
    FRAME,
    FUSED_EXPERTS,
    HEAD_NORMS,
    SEPARATE_EXPERTS,
    layer_rows,
    shared_rows,
)
from edgemoe.architectures.windows import WINDOWED, read_windowed_layers
from edgemoe.model.blocks import Attention, GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + HEAD_NORMS
    + layer_rows(
        ("sinks", "self_attn.softmax_offset", ("heads",)),
        ("sinks", "self_attn.sinks", ("heads",)),  # in newer programs
        ("router", "mlp.gate.weight", ("experts", "model")),
    )
    + shared_rows("mlp.shared_expert")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "flint", layer_types=WINDOWED, windows=True)
    attention = replace(
        read_attention(reader, frame, bias_key="attention_bias", qk_norm="head", default_head_dim=128), sinks=True
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=RouterSpec(normalise=reader.flag("norm_topk_prob", True), score="sigmoid"),
        shared_width=reader.integer("shared_expert_intermediate_size", maximum=LARGEST_WIDTH, default=1024),
    )
    count = read_layer_count(reader, moe)

    def of_type(kind: str) -> Attention:
        return replace(attention, rope=None) if kind == "full_attention" else attention

    # Without a list the first two layers see the whole context, as do every fourth of the others and the last.
    whole = [number < 2 or number % 4 == 1 or number == count - 1 for number in range(count)]
    types = read_layer_types(reader, count, [WINDOWED[flag] for flag in whole])
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    dense_layers = (
        range(min(2, count)) if reader.value("mlp_only_layers") is None else listed_dense_layers(reader, count)
    )
    reader.require("decoder_sparse_step", 1)
    layers = read_windowed_layers(reader, types, of_type, moe, dense, dense_layers, default_window=513)
    return replace(frame, layers=layers)
