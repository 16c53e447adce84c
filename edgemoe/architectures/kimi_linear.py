"""Kimi-Linear: Kimi Delta Attention in most layers and latent attention without positions in the others, DeepSeek-V3's
router, ungated shared experts, leading dense layers. Experts' matrices are called w1 (gate), w3 (up) and w2 (down).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    pair_layers,
    read_experts,
    read_frame,
    read_layer_count,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.kda import checked_kda, kda_rows
from edgemoe.architectures.latent import DEEPSEEK, read_dense_layers, read_latent_attention
from edgemoe.architectures.table import layer_rows, shared_rows
from edgemoe.errors import SourceError
from edgemoe.kernels.state_operations import MOST_TAPS, WIDEST_KEYS
from edgemoe.model.blocks import GatedDelta, GatedFfn
from edgemoe.model.spec import ModelSpec

_MIXERS = ("linear_attention", "full_attention")
_LISTS = {"kda_layers": "linear_attention", "full_attn_layers": "full_attention"}

TENSORS = (
    kda_rows("self_attn", rates=("one", "one", "delta_heads", "one"))
    + layer_rows(
        ("delta_decays_latent", "self_attn.f_a_proj.weight", ("delta_decay_rank", "model")),
        ("delta_decays", "self_attn.f_b_proj.weight", ("delta_decays", "delta_decay_rank")),
        ("delta_gate_latent", "self_attn.g_a_proj.weight", ("delta_gate_rank", "model")),
        ("delta_gate", "self_attn.g_b_proj.weight", ("delta_values", "delta_gate_rank")),
        ("ffn.gate", "block_sparse_moe.gate_proj.weight", ("ffn_width", "model")),
        ("ffn.up", "block_sparse_moe.up_proj.weight", ("ffn_width", "model")),
        ("ffn.down", "block_sparse_moe.down_proj.weight", ("model", "ffn_width")),
        ("router", "block_sparse_moe.gate.weight", ("experts", "model")),
        ("router_choice_bias", "block_sparse_moe.gate.e_score_correction_bias", ("experts",)),
        ("experts.{expert}.gate", "block_sparse_moe.experts.{expert}.w1.weight", ("expert_width", "model")),
        ("experts.{expert}.up", "block_sparse_moe.experts.{expert}.w3.weight", ("expert_width", "model")),
        ("experts.{expert}.down", "block_sparse_moe.experts.{expert}.w2.weight", ("model", "expert_width")),
    )
    + shared_rows("block_sparse_moe.shared_experts")
    + DEEPSEEK
)
"""Transformers 5 writes dense layers under the name that published files have for experts alone."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "kimi_linear", own_code="KimiLinearForCausalLM", layer_types=_MIXERS)
    reader.require("mla_use_nope", True, default=True)
    reader.skip("head_dim")  # of no layer: each kind has a key of its own
    attention = read_latent_attention(reader, frame, rotated=False, own_heads=True)
    reader.skip("use_grouped_topk")  # groups say it themselves
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=read_sigmoid_router(reader, scale=2.446),
        shared_width=read_shared_width(reader, "num_shared_experts"),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    reader.require("moe_layer_freq", 1, default=1)
    reader.integer("num_nextn_predict_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    count = read_layer_count(reader, moe)
    delta, types = _read_linear(reader, count)
    dense_at = read_dense_layers(reader, count, default=1)
    mixers = [delta if kind == "linear_attention" else attention for kind in types]
    ffns = [dense if number in dense_at else moe for number in range(count)]
    return replace(frame, layers=pair_layers(mixers, ffns))


def _read_linear(reader: ConfigReader, count: int) -> tuple[GatedDelta, Sequence[str]]:
    """The linear mixer, and the type of each layer: by newer keys, or by an object in published files."""
    own = reader.inner("linear_attn_config") or ConfigReader({})
    widths = []
    for older, newer, most, default in (
        ("num_heads", "linear_num_heads", LARGEST_WIDTH, 32),
        ("head_dim", "linear_head_dim", WIDEST_KEYS, 128),
        ("short_conv_kernel_size", "linear_conv_kernel_dim", MOST_TAPS, 4),
    ):
        width = own.integer(older, maximum=most, default=reader.integer(newer, maximum=most, default=default))
        if reader.integer(newer, maximum=most, default=width) != width:
            raise SourceError(
                f"config.json: {newer} is {reader.value(newer)}, but {older} of linear_attn_config is {width}; they are"
                " names of one thing and must agree.",
                DAMAGED,
            )
        widths.append(width)
    heads, width, length = widths
    delta = checked_kda(heads, width, length, rank=width)
    types, listed = reader.sequence("layer_types"), _listed_types(own, count)
    if types and len(types) != count:
        raise SourceError(f"config.json: layer_types lists {len(types)} layers; expected {count}.", DAMAGED)
    if types and listed and list(types) != listed:
        raise SourceError(
            "config.json: layer_types and linear_attn_config list other layers; they must agree.", DAMAGED
        )
    if not (types or listed):
        raise SourceError(f"config.json: linear_attn_config is missing; expected the kinds of {count} layers.", DAMAGED)
    return delta, types or listed


def _listed_types(own: ConfigReader, count: int) -> list[str]:
    """The type of each layer by two lists of their numbers, which begin at 1; none without such lists."""
    numbers = {name: own.sequence(name) for name in _LISTS}
    if not any(numbers.values()):
        return []
    kinds = {number: kind for name, kind in _LISTS.items() for number in numbers[name] if type(number) is int}
    listed = sum(map(len, numbers.values()))
    if sorted(kinds) != list(range(1, count + 1)) or listed != count:
        raise SourceError(
            f"config.json: kda_layers and full_attn_layers list {listed} layers; expected each of the layers 1 to"
            f" {count} once.",
            DAMAGED,
        )
    return [kinds[number] for number in range(1, count + 1)]
