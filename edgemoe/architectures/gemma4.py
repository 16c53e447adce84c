"""Gemma 4 with experts: a dense FFN beside them with norms of its own, a router that reads the stream itself, layers
that see all tokens with wider and fewer heads whose values are keys before their norm, logits within a limit.

The text part of a model for images too: its config stands in `text_config`, its tensors under `model.language_model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, show, unsupported
from edgemoe.architectures.frame import (
    read_attention,
    read_experts,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_overrides,
)
from edgemoe.architectures.positions import read_rope
from edgemoe.architectures.table import DENSE_FFN, FRAME, HEAD_NORMS, Row, layer_rows
from edgemoe.architectures.windows import WINDOWED, read_windowed_layers
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import GELU_TANH
from edgemoe.model.blocks import Attention, GatedFfn, Moe, RouterSpec
from edgemoe.model.spec import Block, LayerSpec, ModelSpec, Residual

_DENSE = "dense."


def _dense(row: Row) -> Row:
    return replace(row, internal=tuple(name.replace("}.", "}." + _DENSE, 1) for name in row.internal))


_ROWS = (
    tuple(row for row in FRAME if not row.internal[0].endswith("ffn_norm"))
    + HEAD_NORMS
    + tuple(map(_dense, DENSE_FFN))
    + layer_rows(
        ("post_attention_norm", "post_attention_layernorm.weight", ("model",)),
        ("dense.ffn_norm", "pre_feedforward_layernorm.weight", ("model",)),
        ("dense.post_ffn_norm", "post_feedforward_layernorm_1.weight", ("model",)),
        ("experts_norm", "pre_feedforward_layernorm_2.weight", ("model",)),
        ("post_ffn_norm", "post_feedforward_layernorm_2.weight", ("model",)),
        ("dense.ffn_sum_norm", "post_feedforward_layernorm.weight", ("model",)),
        ("dense.ffn_factor", "layer_scalar", ("one",)),
        ("router", "router.proj.weight", ("experts", "model")),
        ("router_norm", "router.scale", ("model",)),
        ("router_expert_scales", "router.per_expert_scale", ("experts",)),
        ("experts.{expert}.gate experts.{expert}.up", "experts.gate_up_proj", ("experts", "2*expert_width", "model")),
        ("experts.{expert}.down", "experts.down_proj", ("experts", "model", "expert_width")),
    )
)
_INNER_ROWS = tuple(replace(row, source=row.source.replace("model.", "model.language_model.", 1)) for row in _ROWS)
TENSORS = tuple(dict.fromkeys(_INNER_ROWS + _ROWS))
"""A text model alone has no `language_model` in its names; the head's name is the same in both."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    text = reader.text_config("gemma4_text") or reader
    frame = read_frame(text, "gemma4", tied=True, layer_types=WINDOWED, windows=True)
    _read_left_out(reader, text, frame)
    text.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    text.require("enable_moe_block", True, default=False)
    text.require("hidden_size_per_layer_input", 0, default=256)
    text.require("num_kv_shared_layers", 0, default=0)
    text.require("use_bidirectional_attention", "vision")
    router = RouterSpec(normalise=True, norm=True, logit_scale=frame.hidden_size**-0.5, expert_scales=True)
    moe = read_experts(text, width_key="moe_intermediate_size", router=router, top_k_key="top_k_experts")
    dense = GatedFfn(text.integer("intermediate_size", maximum=LARGEST_WIDTH), GELU_TANH)
    types = read_layer_types(text, read_layer_count(text, moe), ("sliding_attention",) * 5 + ("full_attention",))
    types = [*types[:-1], "full_attention"]  # the last layer sees all tokens, whatever is listed
    if text.value("rope_parameters") is None:
        raise SourceError("config.json: rope_parameters is missing; expected an object.", DAMAGED)
    layers = read_windowed_layers(text, types, lambda kind: _attention(text, frame, kind, types), moe)
    cap = text.value("final_logit_softcapping")
    return replace(
        frame,
        layers=_around(layers, replace(moe, activation=GELU_TANH, experts_norm=True), dense),
        embedding_scale=frame.hidden_size**0.5,
        logit_cap=0.0 if cap is None else text.number("final_logit_softcapping"),
    )


def _around(layers: Sequence[LayerSpec], moe: Moe, dense: GatedFfn) -> tuple[LayerSpec, ...]:
    """The attention of each layer, then the experts and the dense FFN beside them, with all of their norms."""
    ffns = (
        Block(moe, input_norm=False, post_norm=True),
        Block(dense, _DENSE, post_norm=True, parallel=True, residual=Residual(factor=True), sum_norm=True),
    )
    made = {layer: LayerSpec((replace(layer.blocks[0], post_norm=True), *ffns)) for layer in dict.fromkeys(layers)}
    return tuple(made[layer] for layer in layers)


def _attention(text: ConfigReader, frame: ModelSpec, kind: str, types: Sequence[str]) -> Attention:
    full = kind == "full_attention"
    # Positions of layers that see all tokens depend on the width of their own heads: they are read below.
    base = read_attention(
        text,
        frame,
        bias_key="attention_bias",
        kv_heads_required=True,
        scale=1.0,
        qk_norm="head",
        default_head_dim=256,
        layer_type="sliding_attention",
    )
    base = replace(base, value_norm=True)
    if not full:
        return base
    same = text.flag("attention_k_eq_v", False)
    width, kv_heads = _full_heads(text, base, types, same)
    rope = read_rope(text, width, 1_000_000.0, frame.max_positions, 1.0, layer_type=kind)
    if rope.scaling != "proportional" and rope.rotated != width:
        raise unsupported("partial_rotary_factor", rope.rotated / width, "rotation of whole heads (1.0)")
    attention = replace(base, head_dim=width, kv_heads=kv_heads, rope=rope, values_from_keys=same)
    try:
        attention.check()
    except ValueError as error:
        raise SourceError(f"config.json: layers of full_attention have {error}.", DAMAGED) from None
    return attention


def _full_heads(text: ConfigReader, base: Attention, types: Sequence[str], same: bool) -> tuple[int, int]:
    """Width and number of the key heads of layers that see all tokens: by keys of their own, or layer by layer."""
    width = text.integer("global_head_dim", maximum=LARGEST_WIDTH, default=512)
    kv_heads = text.integer("num_global_key_value_heads", maximum=LARGEST_WIDTH, default=base.kv_heads)
    by_layer = read_overrides(text)
    if by_layer:
        own = list(by_layer.values())
        listed = {number for number, kind in enumerate(types) if kind == "full_attention"}
        if set(by_layer) != listed or any(one != own[0] for one in own):
            raise unsupported("per_layer_config", by_layer, "the same heads in all layers of full_attention")
        inner = ConfigReader(own[0] if isinstance(own[0], Mapping) else {"": own[0]})
        width = inner.integer("head_dim", maximum=LARGEST_WIDTH, default=base.head_dim)
        kv_heads = inner.integer("num_key_value_heads", maximum=LARGEST_WIDTH, default=base.kv_heads)
        inner.finish()
    elif not same:
        kv_heads = base.kv_heads
    if base.heads * width > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {base.heads} heads of width {width}; expected {LARGEST_WIDTH} values at most.", DAMAGED
        )
    return width, kv_heads


def _read_left_out(reader: ConfigReader, text: ConfigReader, frame: ModelSpec) -> None:
    """Read what the config says of parts that are left out, and of the head, which both of its objects speak of."""
    for part in ("vision", "audio"):
        reader.value(f"{part}_config")
    for name in ("boi", "eoi", "image", "video", "boa", "eoa", "audio"):
        reader.value(f"{name}_token_id")
    for name in ("eoa_token_index", "vision_soft_tokens_per_image"):
        reader.skip(name)
    text.skip("vocab_size_per_layer_input")
    text.skip("use_double_wide_mlp")  # of layers that share keys and values
    if reader.flag("tie_word_embeddings", True) != frame.tied_embeddings:
        raise SourceError(
            f"config.json: tie_word_embeddings differs from that in text_config, {show(frame.tied_embeddings)};"
            " expected one value.",
            DAMAGED,
        )
