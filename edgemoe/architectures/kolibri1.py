"""Kolibri 1: norms around every block, rotary positions only within windows, a router that chooses by biased logits and
weighs by sigmoids, an ungated shared expert.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    normed_around,
    read_attention,
    read_experts,
    read_frame,
    read_layer_count,
    read_layer_types,
)
from edgemoe.architectures.table import FRAME, FUSED_EXPERTS, HEAD_NORMS, SEPARATE_EXPERTS, layer_rows, shared_rows
from edgemoe.architectures.windows import WINDOWED, read_windowed_layers
from edgemoe.model.blocks import Attention, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + HEAD_NORMS
    + layer_rows(
        ("post_attention_norm", "post_attn_norm.weight", ("model",)),
        ("post_ffn_norm", "post_ffn_norm.weight", ("model",)),
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("router_choice_bias", "moe.router.expert_bias", ("experts",)),
        # The names of newer programs.
        ("post_attention_norm", "post_self_attn_layernorm.weight", ("model",)),
        ("post_ffn_norm", "post_mlp_layernorm.weight", ("model",)),
        ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),
    )
    + shared_rows("mlp.shared_experts")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "kolibri1", layer_types=WINDOWED, windows=True)
    attention = read_attention(reader, frame, qk_norm="head", default_head_dim=128)
    router = RouterSpec(
        normalise=reader.flag("norm_topk_prob", False), score="sigmoid", choice_bias=True, choose_by="logit"
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=router,
        shared_width=reader.integer("shared_expert_intermediate_size", maximum=LARGEST_WIDTH, default=512),
    )
    count = read_layer_count(reader, moe)
    windowed = reader.value("sliding_window") is not None

    def of_type(kind: str) -> Attention:
        return replace(attention, rope=None) if windowed and kind == "full_attention" else attention

    types = read_layer_types(reader, count, [*["sliding_attention"] * 4, "full_attention"])
    return replace(frame, layers=normed_around(read_windowed_layers(reader, types, of_type, moe)))
