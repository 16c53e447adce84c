"""LongCat-Flash: layers of two latent attentions and two dense FFNs, beside which experts are computed.

Experts read what the first FFN reads, and their sum joins the stream at the layer's end. Some of the router's choices
are of no expert: they pass on what experts read. Latents are multiplied by roots of what they are narrower than the
model.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_EXPERTS,
    LARGEST_LAYERS,
    LARGEST_TOTAL_EXPERTS,
    LARGEST_WIDTH,
    ConfigReader,
)
from edgemoe.architectures.frame import read_experts, read_frame
from edgemoe.architectures.latent import LATENT_ATTENTION, read_latent_attention
from edgemoe.architectures.table import DENSE_FFN, SEPARATE_EXPERTS, Row, layer_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import GatedFfn, LatentAttention, RouterSpec
from edgemoe.model.spec import Block, LayerSpec, ModelSpec

_LAYER = "layers.{layer}."
_TWICE = ("self_attn", "input_layernorm", "post_attention_layernorm", "mlps")
"""Modules of a layer of which there are two, `self_attn.0` and `self_attn.1`."""


def _twice(row: Row) -> tuple[Row, ...]:
    """The rows of the first and the second module like that of a row; a row of none stays as it is."""
    source = row.source.replace(".mlp.", ".mlps.")
    module = next((name for name in _TWICE if f".{name}." in source), None)
    if module is None:
        return (row,)

    def named(row: Row, number: int, prefix: str) -> Row:
        def own(name: str) -> str:
            return name.replace(_LAYER, f"{_LAYER}{prefix}")

        return replace(
            row,
            internal=tuple(map(own, row.internal)),
            source=source.replace(f".{module}.", f".{module}.{number}."),
            blocks=tuple((own(name), symbol) for name, symbol in row.blocks),
            turned=own(row.turned),
        )

    return named(row, 0, "first."), named(row, 1, "second.")


TENSORS = (
    tuple(twin for row in (*LATENT_ATTENTION, *DENSE_FFN) for twin in _twice(row))
    + layer_rows(
        ("router", "mlp.router.classifier.weight", ("choices", "model")),
        ("router_choice_bias", "mlp.router.e_score_correction_bias", ("choices",)),
    )
    + SEPARATE_EXPERTS
    + layer_rows(
        (
            "experts.{expert}.gate experts.{expert}.up",
            "mlp.experts.gate_up_proj",
            ("choices", "2*expert_width", "model"),
        ),
        ("experts.{expert}.down", "mlp.experts.down_proj", ("experts", "model", "expert_width")),
    )
)
"""A program that has all experts of a layer in two tensors has gate and up of those without any too."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "longcat_flash", own_code="LongcatFlashForCausalLM")
    reader.require("attention_method", "MLA", default="MLA")
    attention = _read_attention(reader, frame)
    reader.require("norm_topk_prob", False)
    reader.require("router_bias", False)  # transformers has such a bias and does not add it
    router = RouterSpec(
        normalise=False,
        choice_bias=True,
        scale=reader.number("routed_scaling_factor", 6.0),
    )
    reader.require("zero_expert_type", "identity", default="identity")
    # Null says that there are none; an absent key says nothing.
    none = 0 if reader.has("zero_expert_num") else None
    moe = replace(
        read_experts(
            reader,
            width_key="expert_ffn_hidden_size",
            count_key="n_routed_experts",
            top_k_key="moe_topk",
            router=router,
        ),
        passing=reader.integer("zero_expert_num", minimum=0, maximum=LARGEST_EXPERTS, default=none),
    )
    dense = GatedFfn(reader.integer("ffn_hidden_size", maximum=LARGEST_WIDTH))
    count = reader.integer("num_layers", maximum=LARGEST_LAYERS)
    reader.require("num_hidden_layers", count, 2 * count, default=count)
    if count * moe.num_experts > LARGEST_TOTAL_EXPERTS:
        raise SourceError(
            f"config.json: {count} layers of {moe.num_experts} experts; expected at most {LARGEST_TOTAL_EXPERTS}"
            " experts in all.",
            DAMAGED,
        )
    layer = LayerSpec(
        (
            Block(attention, "first."),
            Block(dense, "first."),
            Block(moe, input_norm=False, parallel=True, late=True),
            Block(attention, "second."),
            Block(dense, "second."),
        )
    )
    return replace(frame, layers=(layer,) * count)


def _read_attention(reader: ConfigReader, frame: ModelSpec) -> LatentAttention:
    attention = read_latent_attention(reader, frame, interleaved=True, default_theta=10_000_000.0)
    if not attention.query_rank:
        raise SourceError("config.json: q_lora_rank is missing; expected a whole number.", DAMAGED)
    reader.require("mla_scale_q_lora", True, default=True)
    reader.require("mla_scale_kv_lora", True, default=True)
    return replace(
        attention,
        query_scale=math.sqrt(frame.hidden_size / attention.query_rank),
        latent_scale=math.sqrt(frame.hidden_size / attention.latent_dim),
    )
