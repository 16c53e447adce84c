"""Ling 3: Kimi Delta Attention whose decays have a bound, latent attention with a gate for each head, DeepSeek-V3's
router with groups, ungated shared experts, leading dense layers, and limits of the late layers' experts.

transformers 5 ignores these limits; the weights were trained with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_LAYERS,
    LARGEST_WIDTH,
    ConfigReader,
    checked_number,
    unsupported,
)
from edgemoe.architectures.frame import (
    pair_layers,
    read_experts,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.kda import checked_kda, kda_rows
from edgemoe.architectures.latent import DEEPSEEK, read_dense_layers, read_latent_attention
from edgemoe.architectures.table import Row, layer_rows, rows
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import SILU, Activation
from edgemoe.kernels.state_operations import MOST_TAPS, WIDEST_KEYS
from edgemoe.model.blocks import GatedDelta, GatedFfn, Moe, OutputGate
from edgemoe.model.spec import ModelSpec

_MIXERS = ("linear_attention", "full_attention")
_CODE = ("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM")
"""The classes of published files and of transformers; Ling 2.5, which has another mixer, has the same `model_type`."""
_RENAMED = {".self_attn.o_proj.": ".attention.dense.", ".self_attn.": ".attention."}


def _renamed(row: Row) -> Row:
    source = row.source
    for name, published in _RENAMED.items():
        source = source.replace(name, published)
    return replace(row, source=source)


TENSORS = (
    rows(("embedding", "model.word_embeddings.weight", ("vocabulary", "model")))
    + kda_rows("attention", rates=("delta_heads",))
    + layer_rows(
        ("delta_out", "attention.dense.weight", ("model", "delta_values")),
        ("delta_decays", "attention.f_proj.weight", ("delta_decays", "model")),
        ("delta_gate", "attention.g_proj.weight", ("delta_values", "model")),
        ("output_gate", "attention.g_proj.weight", ("output_gate", "model")),
        ("router_choice_bias", "mlp.gate.expert_bias", ("experts",)),
    )
    + tuple(map(_renamed, DEEPSEEK))
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    classes = reader.sequence("architectures")
    if classes and not set(_CODE) & {str(name) for name in classes}:
        raise unsupported("architectures", classes[0], " or ".join(f'"{name}"' for name in _CODE))
    frame = read_frame(reader, "bailing_hybrid", own_code=_CODE[0], layer_types=_MIXERS)
    attention = read_latent_attention(reader, frame, interleaved=True, own_heads=True, default_theta=6e6)
    _refuse_others(reader, attention.rotary_dim)
    gated = replace(attention, output_gate=OutputGate("head"))
    shared_width = read_shared_width(reader, "num_shared_experts")
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=read_sigmoid_router(reader, scale=2.5),
        shared_width=shared_width,
    )
    key = "moe_shared_expert_intermediate_size"
    if reader.integer(key, minimum=0, maximum=LARGEST_WIDTH, default=shared_width) != shared_width:
        raise unsupported(key, reader.value(key), f"{shared_width}, the width of all shared experts together")
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    further = reader.integer("num_nextn_predict_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    count = read_layer_count(reader, moe)
    dense_at = read_dense_layers(reader, count, default=2)
    limits = [_read_limits(reader, f"{name}_swiglu_limit_list", count, further) for name in ("expert", "share_expert")]
    for number in dense_at:
        if limits[1][number]:
            raise unsupported("share_expert_swiglu_limit_list", limits[1][number], "no limit of a dense layer")
    types, delta = _read_types(reader, count), _read_delta(reader, attention.heads)
    mixers = [delta if kind == "linear_attention" else gated for kind in types]
    ffns = [
        dense if number in dense_at else _limited(moe, limits[0][number], limits[1][number]) for number in range(count)
    ]
    return replace(frame, layers=pair_layers(mixers, ffns))


def _refuse_others(reader: ConfigReader, rotary_dim: int) -> None:
    """Refuse what other models of this line have in the place of what is read here. Raises SourceError."""
    reader.require("linear_attention", "kda")
    reader.require("gated_attention_proj_granularity_type", "head_wise")
    reader.require("rotary_dim", rotary_dim)
    reader.require("group_norm_size", 1)
    for name in ("no_kda_lora", "linear_silu", "moe_router_enable_expert_bias", "use_qk_norm", "use_rmsnorm"):
        reader.require(name, True)
    for name in ("use_kda_lora", "use_mla_nope", "use_nGPT", "up_proj_norm", "value_norm", "scale_router_input"):
        reader.require(name, False)
    for name in ("use_bias", "use_qkv_bias", "norm_head", "norm_softmax"):
        reader.require(name, False)
    reader.skip(
        "router_dtype", "partial_rotary_factor"
    )  # routers are float32 here; whole rows of positions are rotated


def _read_types(reader: ConfigReader, count: int) -> Sequence[str]:
    """The type of each layer: by a list, or attention in the last layer of each group. Raises SourceError."""
    size = reader.integer("layer_group_size", maximum=LARGEST_LAYERS, default=6)
    if not reader.sequence("layer_types") and count % size:  # programs differ in what the rest of a group is
        raise SourceError(
            f"config.json: num_hidden_layers is {count}; expected whole groups of layer_group_size, which is {size}.",
            DAMAGED,
        )
    return read_layer_types(reader, count, ["linear_attention"] * (size - 1) + ["full_attention"])


def _read_delta(reader: ConfigReader, heads: int) -> GatedDelta:
    # transformers 5 writes the width of linear heads under a name of its own, and that of positions as `head_dim`.
    width = reader.integer("head_dim", maximum=LARGEST_WIDTH, default=128)
    width = reader.integer("linear_head_dim", maximum=WIDEST_KEYS, default=width)
    if width > WIDEST_KEYS:
        raise SourceError(f"config.json: head_dim is {width}; expected at most {WIDEST_KEYS}.", DAMAGED)
    reader.require("linear_num_heads", heads, default=heads)
    length = reader.integer("short_conv_kernel_size", "linear_conv_kernel_dim", minimum=2, maximum=MOST_TAPS, default=4)
    if not reader.flag("kda_safe_gate", True):
        reader.skip("kda_lower_bound")
        return checked_kda(heads, width, length)
    bound = reader.value("kda_lower_bound")
    least = -5.0 if bound is None and not reader.has("kda_lower_bound") else bound
    negative = isinstance(least, (int, float)) and not isinstance(least, bool)
    if not negative:
        raise unsupported("kda_lower_bound", bound, "a number below 0")
    return checked_kda(heads, width, length, bound=checked_number("kda_lower_bound (without its sign)", -least))


def _read_limits(reader: ConfigReader, name: str, count: int, further: int) -> list[float]:
    """The limit of each layer, 0 without one; the list may go on with layers that are left out. Raises SourceError."""
    listed = reader.sequence(name)
    if not listed:
        return [0.0] * count
    if not count <= len(listed) <= count + further:
        raise SourceError(f"config.json: {name} lists {len(listed)} layers; expected {count}.", DAMAGED)
    return [checked_number(name, limit) if limit else 0.0 for limit in listed[:count]]


def _limited(moe: Moe, limit: float, shared_limit: float) -> Moe:
    shared = moe.shared and replace(moe.shared, activation=_activation(shared_limit))
    return replace(moe, activation=_activation(limit), shared=shared)


def _activation(limit: float) -> Activation:
    return Activation("capped_silu", limit=limit) if limit else SILU
