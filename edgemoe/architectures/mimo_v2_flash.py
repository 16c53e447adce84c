"""MiMo-V2-Flash: values narrower than keys and scaled, windows with sinks, more key heads and a theta of their own, a
third of each head rotated, a sigmoid router with a bias for the choice and no shared expert.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, LARGEST_POSITIONS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    pair_layers,
    read_attention,
    read_experts,
    read_ffn_types,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_sigmoid_router,
)
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.architectures.windows import WINDOWED
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, Body, GatedFfn
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + layer_rows(
        ("sinks", "self_attn.attention_sink_bias", ("heads",)),
        ("sinks", "self_attn.sinks", ("heads",)),  # in newer programs
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    epsilon_key = "rms_norm_eps" if reader.value("layernorm_epsilon") is None else "layernorm_epsilon"
    frame = read_frame(reader, "mimo_v2_flash", epsilon_key=epsilon_key, layer_types=WINDOWED, windows=True)
    reader.number("layernorm_epsilon", None, "rms_norm_eps", maximum=1.0)  # newer programs write both
    reader.require("n_shared_experts", 0)
    moe = read_experts(
        reader, width_key="moe_intermediate_size", count_key="n_routed_experts", router=read_sigmoid_router(reader)
    )
    count = read_layer_count(reader, moe)
    of_type = {"full_attention": _attention(reader, frame), "sliding_attention": _windowed(reader, frame)}
    sliding = _flags(reader, "hybrid_layer_pattern", count)
    # Without a list the first layer sees the whole context, as does every sixth.
    default = [WINDOWED[number == 0 or number % 6 == 5] for number in range(count)]
    types = read_layer_types(reader, count, [WINDOWED[not flag] for flag in sliding] or default)
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    dense_layers = _dense_layers(reader, count)
    ffns: list[Body] = [dense if number in dense_layers else moe for number in range(count)]
    for name in ("attention_chunk_size", "hybrid_block_size"):  # nothing reads them
        reader.skip(name)
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    return replace(frame, layers=pair_layers([of_type[kind] for kind in types], ffns))


def _attention(reader: ConfigReader, frame: ModelSpec) -> Attention:
    """The attention of layers that see the whole context."""
    attention = read_attention(
        reader,
        frame,
        default_theta=5_000_000.0,
        bias_key="attention_bias",
        bias_on_output=False,
        kv_heads_required=True,
        partial=0.334,
        default_head_dim=192,
        layer_type="full_attention",
    )
    return replace(
        attention,
        value_dim=reader.integer("v_head_dim", maximum=LARGEST_WIDTH, default=128),
        output_scale=reader.number("attention_value_scale", 1.0),
        sinks=reader.flag("add_full_attention_sink_bias", False),
    )


def _windowed(reader: ConfigReader, frame: ModelSpec) -> Attention:
    """The attention of layers with a window."""
    whole = _attention(reader, frame)
    attention = read_attention(
        reader,
        frame,
        default_theta=10_000.0,
        bias_key="attention_bias",
        bias_on_output=False,
        partial=0.334,
        default_head_dim=192,
        layer_type="sliding_attention",
        theta_key="swa_rope_theta",
    )
    reader.require("swa_num_attention_heads", whole.heads)
    reader.require("swa_head_dim", whole.head_dim)
    reader.require("swa_v_head_dim", whole.value_dim)
    kv_heads = reader.integer("swa_num_key_value_heads", maximum=LARGEST_WIDTH, default=2 * whole.kv_heads)
    if whole.heads % kv_heads:
        raise SourceError(
            f"config.json: num_attention_heads is {whole.heads}; expected a multiple of the number of key heads of "
            f"layers with a window, which is {kv_heads}.",
            DAMAGED,
        )
    return replace(
        whole,
        rope=attention.rope,
        kv_heads=kv_heads,
        window=_window(reader),
        sinks=reader.flag("add_swa_attention_sink_bias", True),
    )


def _window(reader: ConfigReader) -> int:
    """The tokens that a token sees, itself included, which `sliding_window_size` does not count."""
    before = reader.integer("sliding_window_size", maximum=LARGEST_POSITIONS - 1, default=0)
    window = reader.integer("sliding_window", maximum=LARGEST_POSITIONS, default=before + 1 if before else 129)
    if before and window not in (before, before + 1):
        raise SourceError(
            f"config.json: sliding_window is {window}, but sliding_window_size {before}; expected the same, or one"
            " more.",
            DAMAGED,
        )
    return before + 1 if before else window


def _dense_layers(reader: ConfigReader, count: int) -> Collection[int]:
    """The dense layers: by `mlp_layer_types`, by `moe_layer_freq` of older files, else the first."""
    routed = _flags(reader, "moe_layer_freq", count)
    if routed and not reader.sequence("mlp_layer_types"):
        return {number for number, flag in enumerate(routed) if not flag}
    return read_ffn_types(reader, count, default_leading=1)


def _flags(reader: ConfigReader, name: str, count: int) -> Sequence[int]:
    """A list of a 0 or 1 for each layer; empty without it."""
    flags = reader.sequence(name)
    if flags and (len(flags) != count or any(flag not in (0, 1) for flag in flags)):
        raise SourceError(f"config.json: {name} lists {len(flags)} values; expected {count} of 0 and 1.", DAMAGED)
    return flags
