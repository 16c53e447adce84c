"""Hunyuan-A13B: norms of queries and keys after the rotation, an ungated shared expert as wide as the others, rotary
positions stretched by a fixed factor. Layers may differ in how many experts a token uses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgemoe.architectures.config import DAMAGED, LARGEST_EXPERTS, LARGEST_WIDTH, ConfigReader, show, unsupported
from edgemoe.architectures.frame import COUNT_KEYS, read_attention, read_frame, read_layers
from edgemoe.architectures.table import FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Moe, RouterSpec, SharedExpert
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + layer_rows(
        ("query_norm", "self_attn.query_layernorm.weight", ("head_dim",)),
        ("key_norm", "self_attn.key_layernorm.weight", ("head_dim",)),
        ("router", "mlp.gate.wg.weight", ("experts", "model")),
        ("shared.gate", "mlp.shared_mlp.gate_proj.weight", ("shared_width", "model")),
        ("shared.up", "mlp.shared_mlp.up_proj.weight", ("shared_width", "model")),
        ("shared.down", "mlp.shared_mlp.down_proj.weight", ("model", "shared_width")),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "hunyuan_v1_moe", own_code="HunYuanMoEV1ForCausalLM")
    attention = read_attention(reader, frame, bias_key="attention_bias", qk_norm="head", fixed_alpha=True)
    attention = replace(attention, norm_after_rope=True)
    width = reader.integer("intermediate_size", maximum=LARGEST_WIDTH)
    for name, wanted in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
        if any(number != wanted for number in _of_layers(reader.value(name))):
            raise unsupported(name, reader.value(name), f"{wanted} in every layer")
    if reader.integer("attention_head_dim", maximum=LARGEST_WIDTH, default=attention.head_dim) != attention.head_dim:
        raise unsupported("attention_head_dim", reader.value("attention_head_dim"), f"{attention.head_dim}")
    for name in ("norm_topk_prob", "use_mixed_mlp_moe", "use_qk_norm"):
        reader.require(name, True)
    for name in ("add_classification_head", "moe_drop_tokens", "use_cla", "use_mla"):
        reader.require(name, False)
    reader.require("norm_type", "rms")
    reader.require("moe_layer_num_skipped", 0)
    reader.require("routed_scaling_factor", False, 1.0)
    # Sharing of keys and values that `use_cla` switches off; what happens to tokens that are dropped; other modalities.
    reader.skip(
        "cla_share_factor", "moe_random_routing_dropped_token", "capacity_factor", "org_vocab_size", "pool_type"
    )
    reader.skip("im_start_id", "im_end_id", "im_newline_id", "text_start_id", "text_end_id", "mask_init_id", "pad_id")
    reader.skip("num_media_embeds", "skip_cls_token", "class_num", "eod_id")
    experts = reader.integer(*COUNT_KEYS, maximum=LARGEST_EXPERTS)
    chosen = _of_layers(reader.value("moe_topk")) or [reader.integer("num_experts_per_tok", maximum=LARGEST_EXPERTS)]
    for number in chosen:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= experts:
            raise SourceError(
                f"config.json: moe_topk is {show(number)}; expected a whole number from 1 to the number of experts,"
                f" {experts}.",
                DAMAGED,
            )
    moe = Moe(experts, chosen[0], width, RouterSpec(normalise=True), SharedExpert(width))
    layers = read_layers(reader, attention, moe)
    if len(chosen) not in (1, len(layers)):
        raise SourceError(f"config.json: moe_topk lists {len(chosen)} layers; expected {len(layers)}.", DAMAGED)
    with_top_k = {number: layers[0].with_top_k(number) for number in {*chosen}}
    of_layers = chosen if len(chosen) > 1 else chosen * len(layers)
    return replace(frame, layers=tuple(with_top_k[number] for number in of_layers))


def _of_layers(value: Any) -> list[Any]:
    """The numbers of layers: a list has one for each layer, a number is that of all, an absent key has none."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
