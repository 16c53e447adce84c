"""Latent attention in checkpoints, and what families like DeepSeek-V3 share: keys of configs, places of tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_LAYERS,
    LARGEST_WIDTH,
    ConfigReader,
    checked_number,
    show,
    unsupported,
)
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_experts,
    read_ffn_types,
    read_frame,
    read_layers,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.positions import read_rope
from edgemoe.architectures.table import (
    DENSE_FFN,
    FRAME,
    FUSED_EXPERTS,
    SEPARATE_EXPERTS,
    Row,
    layer_rows,
    shared_rows,
)
from edgemoe.errors import SourceError
from edgemoe.model.blocks import GatedFfn, LatentAttention, RouterSpec
from edgemoe.model.rope import RopeSpec, Temperature
from edgemoe.model.spec import ModelSpec

_LAYER, _SOURCE = "layers.{layer}.", "model.layers.{layer}.self_attn."
_IN_FRAME = ("embedding", "final_norm", "head", "attention_norm", "output", "ffn_norm")
_QUERIES = ((_LAYER + "query", "nope_dim"), (_LAYER + "query_rotary", "rotary_dim"))
_EXPANSION = ((_LAYER + "key_up", "nope_dim"), (_LAYER + "value_up", "head_values"))


_OF_QUERIES = frozenset({"llama_4_scaling_beta", "max_position_embeddings"})
"""Keys of Mistral's objects of positions, of which the second repeats the config's own."""


def _in_blocks(source: str, shape: tuple[str, ...], blocks: tuple[tuple[str, str], ...], turned: str = "") -> Row:
    """A row whose source has the blocks of a head one after another, then those of the next head."""
    return Row(tuple(name for name, _ in blocks), _SOURCE + source, shape, blocks=blocks, turned=turned)


LATENT_ATTENTION: tuple[Row, ...] = (
    *(row for row in FRAME if row.internal[0].removeprefix(_LAYER) in _IN_FRAME),
    _in_blocks("q_proj.weight", ("plain_queries", "model"), _QUERIES),
    _in_blocks("q_b_proj.weight", ("latent_queries", "query_rank"), _QUERIES),
    _in_blocks("kv_b_proj.weight", ("expanded", "latent"), _EXPANSION, turned=_LAYER + "key_up"),
    *layer_rows(
        ("query_latent", "self_attn.q_a_proj.weight", ("query_rank", "model")),
        ("query_latent_norm", "self_attn.q_a_layernorm.weight", ("query_rank",)),
        ("latent key_rotary", "self_attn.kv_a_proj_with_mqa.weight", ("latent+rotary_dim", "model")),
        ("latent_norm", "self_attn.kv_a_layernorm.weight", ("latent",)),
        ("key_up", "self_attn.k_b_proj.weight", ("absorbed", "nope_dim")),
        ("value_up", "self_attn.v_b_proj.weight", ("attended", "latent")),
    ),
)
"""The rows of embedding, head, norms and latent attention. Only GGUF files have the two parts of `kv_b_proj` apart."""

DEEPSEEK: tuple[Row, ...] = (
    LATENT_ATTENTION
    + layer_rows(
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),
    )
    + shared_rows("mlp.shared_experts")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)
"""The rows of DeepSeek's models since V2."""


def read_deepseek(
    reader: ConfigReader,
    family: str,
    *,
    own_code: str,
    default_dense: int | None = None,
    router: RouterSpec | None = None,
    scale: float = 2.5,
    layer_types: Collection[str] = ("full_attention",),
    interleaved: bool | None = None,
    wide_heads: bool = False,
    growing: bool = False,
) -> ModelSpec:
    """A model with latent attention, ungated shared experts and dense layers. Raises SourceError.

    Dense are those that `mlp_layer_types` says, else as many as another key says from the first on, or `default_dense`.
    Without a `router` it is DeepSeek-V3's, which scales weights by `scale` unless the config says otherwise.
    `layer_types`: see `read_frame`; `interleaved`, `wide_heads` and `growing`: `read_latent_attention`.
    """
    frame = read_frame(reader, family, own_code=own_code, layer_types=layer_types)
    attention = read_latent_attention(reader, frame, interleaved=interleaved, wide_heads=wide_heads, growing=growing)
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=router or read_sigmoid_router(reader, scale=scale),
        shared_width=read_shared_width(reader, "n_shared_experts"),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    reader.require("moe_layer_freq", 1, default=1)
    reader.skip("ep_size")  # over how many machines another program spreads the experts
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", "num_mtp_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)

    dense_layers = functools.partial(read_dense_layers, default=default_dense)
    return replace(frame, layers=read_layers(reader, attention, moe, dense, dense_layers))


def read_dense_layers(reader: ConfigReader, count: int, default: int | None = None) -> Collection[int]:
    """The dense layers by `mlp_layer_types`, which says it for each, else the leading ones. Raises SourceError."""
    if reader.sequence("mlp_layer_types"):
        reader.skip("first_k_dense_replace")
        return read_ffn_types(reader, count)
    return leading_dense_layers(reader, count, default=default)


def read_latent_attention(
    reader: ConfigReader,
    frame: ModelSpec,
    *,
    interleaved: bool | None = None,
    wide_heads: bool = False,
    growing: bool = False,
    rotated: bool = True,
    own_heads: bool = False,
    default_theta: float = 10_000.0,
) -> LatentAttention:
    """Widths, positions and scale. Raises SourceError.

    `interleaved` says whether neighbouring channels are rotated together, where a family has no key for it. With
    `wide_heads` a config may have the width of a latent row for that of a head. With `growing` the object of positions
    says how queries grow with them, and which part of a head of all channels is rotated (Mistral Small 4). Unless
    they are `rotated` queries and keys have no positions. With `own_heads` `head_dim` is another matter.
    """
    heads = reader.integer("num_attention_heads", maximum=LARGEST_WIDTH)
    reader.require("num_key_value_heads", heads, default=heads)
    latent_dim = reader.integer("kv_lora_rank", maximum=LARGEST_WIDTH)
    query_rank = reader.integer("q_lora_rank", minimum=0, maximum=LARGEST_WIDTH, default=0)
    nope_dim = reader.integer("qk_nope_head_dim", maximum=LARGEST_WIDTH)
    rotary_dim = reader.integer("qk_rope_head_dim", maximum=LARGEST_WIDTH)
    value_dim = reader.integer("v_head_dim", maximum=LARGEST_WIDTH)
    for name in ("qk_head_dim", "q_head_dim"):
        reader.require(name, nope_dim + rotary_dim, default=nope_dim + rotary_dim)
    head_dim = nope_dim + rotary_dim if growing else rotary_dim
    if not own_heads:
        reader.require("head_dim", head_dim, *([latent_dim + rotary_dim] * wide_heads), default=head_dim)
    reader.require("attention_bias", False)
    if rotary_dim % 2:
        raise SourceError(
            f"config.json: qk_rope_head_dim is {rotary_dim}; expected an even width, as positions rotate pairs.",
            DAMAGED,
        )
    widest = heads * max(latent_dim + rotary_dim, nope_dim + rotary_dim, nope_dim + value_dim)
    if widest > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {heads} heads make {widest} values; expected {LARGEST_WIDTH} values at most.", DAMAGED
        )
    if interleaved is not None:
        reader.require("rope_interleave", interleaved, default=interleaved)
    neighbours = reader.flag("rope_interleave", True)
    rope: RopeSpec | None
    if not rotated:
        reader.skip("rope_theta", "rope_scaling", "rope_parameters")
        rope = None
    elif growing:
        part = rotary_dim / head_dim
        rope = read_rope(reader, head_dim, 10_000.0, frame.max_positions, default_partial=part, others=_OF_QUERIES)
        if rope.rotated != rotary_dim:
            raise unsupported("partial_rotary_factor", rope.rotated / head_dim, f"{part:g}")
    else:
        rope = read_rope(reader, rotary_dim, default_theta, frame.max_positions)
    if rope is not None and neighbours:
        rope = replace(rope, pairing="neighbours")
    return LatentAttention(
        heads=heads,
        latent_dim=latent_dim,
        nope_dim=nope_dim,
        rotary_dim=rotary_dim,
        value_dim=value_dim,
        scale=(nope_dim + rotary_dim) ** -0.5 * (_yarn_gain(reader, rope) ** 2 if rope is not None else 1.0),
        rope=rope,
        query_rank=query_rank,
        temperature=_temperature(reader, rope) if growing and rope is not None else None,
    )


def _temperature(reader: ConfigReader, rope: RopeSpec) -> Temperature | None:
    """How queries grow, by the object of positions, which the reference insists on. Raises SourceError."""
    parameters = reader.value("rope_parameters") or reader.value("rope_scaling")
    if not isinstance(parameters, Mapping) or rope.scaling != "yarn":
        raise unsupported("rope_parameters", parameters, 'an object with rope_type "yarn"')
    scale = parameters.get("llama_4_scaling_beta")
    original = rope.parameters["original_max_position_embeddings"]
    if not original.is_integer():
        raise unsupported("original_max_position_embeddings", original, "a whole number")
    if not scale:
        return None
    return Temperature(checked_number("llama_4_scaling_beta", scale), int(original), first=0)


def _yarn_gain(reader: ConfigReader, rope: RopeSpec) -> float:
    """The factor of queries and of keys that DeepSeek's YaRN has beside that of the rotation: `mscale_all_dim`'s."""
    parameters = reader.value("rope_parameters") or reader.value("rope_scaling")
    if rope.scaling != "yarn" or not isinstance(parameters, Mapping) or not parameters.get("mscale_all_dim"):
        return 1.0
    weight = checked_number("mscale_all_dim", parameters["mscale_all_dim"])
    factor = rope.parameters["factor"]
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def read_left_out(reader: ConfigReader, spec: ModelSpec) -> None:
    """Read what a config with a `text_config` says of images, and of the head, which both of its objects speak of."""
    reader.skip("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    if reader.flag("tie_word_embeddings", spec.tied_embeddings) != spec.tied_embeddings:
        raise SourceError(
            f"config.json: tie_word_embeddings is {show(not spec.tied_embeddings)}, but"
            f" {show(spec.tied_embeddings)} in text_config; expected one value.",
            DAMAGED,
        )
