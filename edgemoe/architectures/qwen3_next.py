"""Qwen3-Next: Gated DeltaNet in most layers and attention with an output gate in the others, norms whose weights are
distances from 1, a shared expert behind a sigmoid gate, dense layers where the config lists some.

Projections of a DeltaNet layer are fused: rows of query, key, value and gate of one key head follow one another, then
those of the next. Qwen3.5 has them one by one, as GGUF files of both have all but strength and decay. There vectors
have the form that the model takes: norms with 1 added, rates in the place of logarithms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import listed_dense_layers, read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import (
    DENSE_FFN,
    FUSED_EXPERTS,
    HEAD,
    SEPARATE_EXPERTS,
    Row,
    layer_rows,
    rows,
    shared_rows,
    sums_with_one,
)
from edgemoe.errors import SourceError
from edgemoe.kernels.state_operations import MOST_TAPS, WIDEST_KEYS
from edgemoe.model.blocks import GatedDelta, GatedFfn, OutputGate, RouterSpec
from edgemoe.model.spec import LayerSpec, ModelSpec

_LAYER = "layers.{layer}."
MIXERS = ("linear_attention", "full_attention")


def _in_blocks(source: str, shape: tuple[str, ...], *blocks: tuple[str, str]) -> Row:
    """A row of the table whose source repeats a pattern of blocks."""
    named = tuple((_LAYER + name, symbol) for name, symbol in blocks)
    return Row(tuple(dict.fromkeys(name for name, _ in named)), f"model.layers.{{layer}}.{source}", shape, blocks=named)


_FUSED = (
    _in_blocks("self_attn.q_proj.weight", ("2*query", "model"), ("query", "head_dim"), ("output_gate", "head_dim")),
    _in_blocks(
        "linear_attn.in_proj_qkvz.weight",
        ("delta_all", "model"),
        ("delta_in", "delta_key_dim"),
        ("delta_in", "delta_key_dim"),
        ("delta_in", "delta_group_values"),
        ("delta_gate", "delta_group_values"),
    ),
    _in_blocks(
        "linear_attn.in_proj_ba.weight",
        ("2*delta_heads", "model"),
        ("delta_strength", "delta_group"),
        ("delta_decay", "delta_group"),
    ),
)
_MIXER_ROWS = layer_rows(
    ("key", "self_attn.k_proj.weight", ("key_value", "model")),
    ("value", "self_attn.v_proj.weight", ("value", "model")),
    ("output", "self_attn.o_proj.weight", ("model", "attended")),
    ("delta_in", "linear_attn.in_proj_qkv.weight", ("delta_channels", "model")),
    ("delta_gate", "linear_attn.in_proj_z.weight", ("delta_values", "model")),
    ("delta_strength", "linear_attn.in_proj_b.weight", ("delta_heads", "model")),
    ("delta_decay", "linear_attn.in_proj_a.weight", ("delta_heads", "model")),
    ("delta_decay_bias", "linear_attn.dt_bias", ("delta_heads",)),
    ("delta_taps", "linear_attn.conv1d.weight", ("delta_channels", "one", "taps")),
    ("delta_head_norm", "linear_attn.norm.weight", ("delta_value_dim",)),
    ("delta_out", "linear_attn.out_proj.weight", ("model", "delta_values")),
    ("router", "mlp.gate.weight", ("experts", "model")),
    ("shared_gate", "mlp.shared_expert_gate.weight", ("one", "model")),
)
NORMS = {
    "model.norm": ("final_norm",),
    "model.layers.{layer}.input_layernorm": (_LAYER + "attention_norm", _LAYER + "delta_norm"),
    "model.layers.{layer}.post_attention_layernorm": (_LAYER + "ffn_norm",),
    "model.layers.{layer}.self_attn.q_norm": (_LAYER + "query_norm",),
    "model.layers.{layer}.self_attn.k_norm": (_LAYER + "key_norm",),
}
"""The norms whose weights are distances from 1, by their names in checkpoints."""
RATE = "linear_attn.rate"
"""The name of rates in place of `linear_attn.A_log`; only GGUF files have it."""


def _norm_rows() -> tuple[Row, ...]:
    named = ((source, name) for source, names in NORMS.items() for name in names)
    return sums_with_one(
        Row((name,), f"{source}.weight", ("head_dim" if name.endswith(("query_norm", "key_norm")) else "model",))
        for source, name in named
    )


TENSORS = (
    rows(
        ("embedding", "model.embed_tokens.weight", ("vocabulary", "model")),
        ("head", HEAD, ("vocabulary", "model")),
    )
    + _norm_rows()
    + _FUSED
    + _MIXER_ROWS
    + (replace(layer_rows(("delta_rate", "linear_attn.A_log", ("delta_heads",)))[0], change="minus_exp"),)
    + layer_rows(("delta_rate", RATE, ("delta_heads",)))
    + shared_rows("mlp.shared_expert")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "qwen3_next", layer_types=MIXERS)
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH, default=5632))
    return replace(frame, layers=read_linear_layers(reader, frame, reader.flag("norm_topk_prob", True), dense))


def read_linear_layers(
    reader: ConfigReader,
    frame: ModelSpec,
    normalise: bool,
    dense: GatedFfn | None = None,
    gating: Literal["silu", "sigmoid"] = "silu",
    in_turn: bool = False,
) -> tuple[LayerSpec, ...]:
    """The layers: attention in those that `layer_types` says, or in every `full_attention_interval`-th; `dense` in the
    place of the experts where the config lists some. `gating` and `in_turn` are those of linear layers. Raises
    SourceError.
    """
    attention = replace(
        read_attention(reader, frame, kv_heads_required=True, partial=0.25, qk_norm="head"),
        output_gate=OutputGate("channel"),
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=RouterSpec(normalise=normalise),
        shared_width=reader.integer("shared_expert_intermediate_size", maximum=LARGEST_WIDTH),
        shared_gate=True,
    )
    reader.require("attn_output_gate", True)
    reader.require("mamba_ssm_dtype", "float32")
    interval = reader.integer("full_attention_interval", maximum=LARGEST_LAYERS, default=4)
    usual = ["linear_attention"] * (interval - 1) + ["full_attention"]
    others = {"linear_attention": replace(_read_delta(reader), gating=gating, in_turn=in_turn)}
    if dense is None:
        return read_layers(reader, attention, moe, others=others, default_types=usual)
    return read_layers(reader, attention, moe, dense, listed_dense_layers, others, usual)


def _read_delta(reader: ConfigReader) -> GatedDelta:
    def width(name: str, default: int, maximum: int = LARGEST_WIDTH) -> int:
        return reader.integer(name, maximum=maximum, default=default)

    delta = GatedDelta(
        key_heads=width("linear_num_key_heads", 16),
        heads=width("linear_num_value_heads", 32),
        key_dim=width("linear_key_head_dim", 128, WIDEST_KEYS),
        value_dim=width("linear_value_head_dim", 128),
        length=reader.integer("linear_conv_kernel_dim", minimum=2, maximum=MOST_TAPS, default=4),
    )
    if delta.heads % delta.key_heads:
        raise SourceError(
            f"config.json: linear_num_value_heads is {delta.heads}; expected a multiple of linear_num_key_heads, which "
            f"is {delta.key_heads}.",
            DAMAGED,
        )
    if delta.channels > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {delta.channels} channels of queries, keys and values in a linear layer; expected at most "
            f"{LARGEST_WIDTH}.",
            DAMAGED,
        )
    return delta
