"""Laguna: a softplus gate of attention, numbers of heads and positions by layer, a sigmoid router whose logits may be
capped, an ungated shared expert, dense layers listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, show, unsupported
from edgemoe.architectures.frame import (
    pair_layers,
    read_attention,
    read_experts,
    read_ffn_types,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_window,
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
from edgemoe.architectures.windows import WINDOWED
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, Body, GatedFfn, OutputGate, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + HEAD_NORMS
    + layer_rows(
        ("output_gate", "self_attn.g_proj.weight", ("output_gate", "model")),
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.experts.e_score_correction_bias", ("experts",)),
        ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),  # in newer programs
    )
    + shared_rows("mlp.shared_expert", "mlp.shared_experts")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)
_CAP = "moe_router_logit_softcapping"
_POSITIONS = {"full_attention": (500_000.0, 0.5), "sliding_attention": (10_000.0, 1.0)}
"""Theta and the rotated part of each head, for a config without positions."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "laguna", layer_types=WINDOWED, windows=True)
    reader.require("moe_apply_router_weight_on_input", False)
    router = RouterSpec(
        normalise=True,
        score="sigmoid",
        choice_bias=True,
        scale=reader.number("moe_routed_scaling_factor", 1.0),
        logit_cap=0.0 if reader.value(_CAP) in (None, 0) else reader.number(_CAP),
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=router,
        shared_width=reader.integer("shared_expert_intermediate_size", maximum=LARGEST_WIDTH, default=512),
    )
    count = read_layer_count(reader, moe)
    types = read_layer_types(reader, count, ("full_attention",))
    window = read_window(reader, types)
    of_type = {kind: _attention(reader, frame, kind) for kind in sorted(set(types))}
    if "sliding_attention" in of_type:
        of_type["sliding_attention"] = replace(of_type["sliding_attention"], window=window)
    heads = _heads(reader, count)
    mixers = [replace(of_type[kind], heads=own) for kind, own in zip(types, heads, strict=True)]
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    dense_layers = read_ffn_types(reader, count, default_leading=1)
    ffns: list[Body] = [dense if number in dense_layers else moe for number in range(count)]
    return replace(frame, layers=pair_layers(mixers, ffns))


def _attention(reader: ConfigReader, frame: ModelSpec, kind: str) -> Attention:
    """The attention of one type of layer, with the heads that most layers have."""
    theta, partial = _POSITIONS[kind]
    given = reader.value("rope_parameters") is not None or reader.value("rope_scaling") is not None
    attention = read_attention(
        reader,
        frame,
        default_theta=theta,
        bias_key="attention_bias",
        kv_heads_required=True,
        partial=1.0 if given else partial,
        qk_norm="head",
        default_head_dim=128,
        layer_type=kind,
    )
    gating = reader.value("gating")
    if gating not in (None, True, "per-head", "per-element"):
        raise unsupported("gating", gating, 'true, "per-head" or "per-element"')
    gate = OutputGate("channel" if gating == "per-element" else "head", "softplus")
    return replace(attention, output_gate=gate)


def _heads(reader: ConfigReader, count: int) -> Sequence[int]:
    """The query heads of each layer."""
    most = reader.integer("num_attention_heads", maximum=LARGEST_WIDTH)
    kv_heads = reader.integer("num_key_value_heads", maximum=LARGEST_WIDTH)
    head_dim = reader.integer("head_dim", maximum=LARGEST_WIDTH, default=128)
    listed = reader.sequence("num_attention_heads_per_layer") or [most] * count
    if len(listed) != count:
        raise SourceError(
            f"config.json: num_attention_heads_per_layer lists {len(listed)} layers; expected {count}.", DAMAGED
        )
    for heads in listed:
        whole = isinstance(heads, int) and not isinstance(heads, bool)
        if not whole or heads <= 0 or heads % kv_heads or heads * head_dim > LARGEST_WIDTH:
            raise SourceError(
                f"config.json: num_attention_heads_per_layer holds {show(heads)}; expected multiples of "
                f"num_key_value_heads, which is {kv_heads}.",
                DAMAGED,
            )
    return listed
