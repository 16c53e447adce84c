"""Granite 4 (Granite-MoE-Hybrid): Granite-MoE-Shared with Mamba-2 in most layers, attention that may have no positions,
and layers that may have the shared FFN alone.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures import granitemoe, granitemoeshared
from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import pair_layers, read_experts, read_layer_count, read_layer_types
from edgemoe.architectures.mamba import LAYER_TYPES, MAMBA_KEYS, newer_type, read_mamba2
from edgemoe.architectures.table import DENSE_FFN, layer_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Body, GatedFfn, Mamba2, Moe, RouterSpec
from edgemoe.model.spec import ModelSpec

_MAMBA_KEYS = ("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand")
"""Keys that models without Mamba layers have too."""
RATE = "mamba.rate"
"""The name of rates in place of `mamba.A_log`, which only GGUF files have."""
TENSORS = (
    granitemoeshared.TENSORS
    + layer_rows(
        ("mamba_norm", "input_layernorm.weight", ("model",)),
        ("mamba_gate mamba_in mamba_step", "mamba.in_proj.weight", ("mamba_inner+mamba_channels+mamba_heads", "model")),
        ("mamba_taps", "mamba.conv1d.weight", ("mamba_channels", "one", "taps")),
        ("mamba_taps_bias", "mamba.conv1d.bias", ("mamba_channels",)),
        ("mamba_step_bias", "mamba.dt_bias", ("mamba_heads",)),
        ("mamba_skip", "mamba.D", ("mamba_heads",)),
        ("mamba_group_norm", "mamba.norm.weight", ("mamba_inner",)),
        ("mamba_out", "mamba.out_proj.weight", ("model", "mamba_inner")),
        ("ffn.gate ffn.up", "shared_mlp.input_linear.weight", ("2*ffn_width", "model")),
        ("ffn.down", "shared_mlp.output_linear.weight", ("model", "ffn_width")),
        ("mamba_rate", RATE, ("mamba_heads",)),
    )
    + DENSE_FFN  # as GGUF files have the shared FFN of models without experts
    + (replace(layer_rows(("mamba_rate", "mamba.A_log", ("mamba_heads",)))[0], change="minus_exp"),)
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame, attention = granitemoe.read_granite_frame(reader, "granitemoehybrid", LAYER_TYPES)
    reader.require("normalization_function", "rmsnorm")
    reader.require("position_embedding_type", "rope", "nope", "none")
    if reader.value("position_embedding_type") != "rope":
        attention = replace(attention, rope=None)
    ffn = _read_ffn(reader)
    types = read_layer_types(reader, read_layer_count(reader, ffn), ["linear_attention"])
    mixers: dict[str, Body] = {"full_attention": attention}
    if any(newer_type(kind) == "linear_attention" for kind in types):
        mixers["linear_attention"] = _read_mamba(reader, frame.hidden_size)
    else:
        reader.skip(*_MAMBA_KEYS, *MAMBA_KEYS)
    return replace(frame, layers=pair_layers([mixers[newer_type(kind)] for kind in types], [ffn] * len(types)))


def _read_ffn(reader: ConfigReader) -> Moe | GatedFfn:
    """Experts with a shared FFN, or with 0 experts that FFN alone."""
    shared = reader.integer("shared_intermediate_size", maximum=LARGEST_WIDTH, default=1024)
    if reader.value("num_local_experts") in (0, None):
        reader.skip("intermediate_size", "num_experts_per_tok")
        return GatedFfn(shared)
    router = RouterSpec(normalise=True)
    return read_experts(reader, width_key="intermediate_size", router=router, shared_width=shared)


def _read_mamba(reader: ConfigReader, hidden_size: int) -> Mamba2:
    heads = reader.integer("mamba_n_heads", maximum=LARGEST_WIDTH, default=128)
    inner = reader.integer("mamba_expand", maximum=LARGEST_WIDTH, default=2) * hidden_size
    found = reader.value("mamba_d_head")
    width = inner // heads if found in (None, "auto") else reader.integer("mamba_d_head", maximum=LARGEST_WIDTH)
    if width * heads != inner:
        raise SourceError(
            f"config.json: {heads} heads of width {width} in a Mamba layer; expected {inner} channels"
            " (mamba_expand times hidden_size).",
            DAMAGED,
        )
    reader.skip("mamba_chunk_size")
    keys = ("mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_conv_bias")
    return read_mamba2(reader, "mamba_n_heads", width, *keys)
