"""AFMoE (Trinity): a gate for each channel of attention, norms around every block, rotary positions only within
windows, a sigmoid router with a bias for the choice, ungated shared experts, leading dense layers.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    normed_around,
    read_attention,
    read_experts,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_shared_width,
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
from edgemoe.model.blocks import GatedFfn, OutputGate, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    tuple(row for row in FRAME if row.internal != ("layers.{layer}.ffn_norm",))
    + layer_rows(
        ("output_gate", "self_attn.gate_proj.weight", ("output_gate", "model")),
        ("post_attention_norm", "post_attention_layernorm.weight", ("model",)),
        ("ffn_norm", "pre_mlp_layernorm.weight", ("model",)),
        ("post_ffn_norm", "post_mlp_layernorm.weight", ("model",)),
        ("router", "mlp.router.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.expert_bias", ("experts",)),
    )
    + HEAD_NORMS
    + shared_rows("mlp.shared_experts")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "afmoe", layer_types=WINDOWED, windows=True)
    attention = replace(
        read_attention(reader, frame, bias_key="attention_bias", qk_norm="head", default_head_dim=128),
        output_gate=OutputGate("channel"),
    )
    for name, only in (("score_func", "sigmoid"), ("route_norm", True)):
        reader.require(name, only, default=only)
    for name in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        reader.require(name, 1)
    for name in ("load_balance_coeff", "use_grouped_mm"):  # of training, and of another program
        reader.skip(name)
    router = RouterSpec(
        normalise=True,
        score="sigmoid",
        choice_bias=True,
        epsilon=1e-20,
        scale=reader.number("route_scale", 1.0),
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=router,
        shared_width=read_shared_width(reader, "num_shared_experts", 2),
    )
    count = read_layer_count(reader, moe)
    every = reader.integer("global_attn_every_n_layers", maximum=LARGEST_LAYERS, default=4)
    types = read_layer_types(reader, count, ["sliding_attention"] * (every - 1) + ["full_attention"])
    layers = read_windowed_layers(
        reader,
        types,
        lambda kind: attention if kind == "sliding_attention" else replace(attention, rope=None),
        moe,
        GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH)),
        leading_dense_layers(reader, count, key="num_dense_layers", default=1),
    )
    scale = frame.hidden_size**0.5 if reader.flag("mup_enabled", False) else 1.0
    return replace(frame, layers=normed_around(layers), embedding_scale=scale)
