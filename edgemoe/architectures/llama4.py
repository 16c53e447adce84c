"""Llama 4: chunks with rotary positions and norms without weights, every fourth layer without positions and with
queries that grow, one expert for each token whose weight multiplies what it reads, a shared expert beside it.

The text part of a model for images too: its config stands in `text_config`, its tensors under `language_model`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_LAYERS,
    LARGEST_POSITIONS,
    LARGEST_WIDTH,
    ConfigReader,
    show,
    unsupported,
)
from edgemoe.architectures.frame import pair_layers, read_attention, read_experts, read_frame, read_layer_count
from edgemoe.architectures.table import DENSE_FFN, FRAME, Row, layer_rows, shared_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, Body, GatedFfn, RouterSpec
from edgemoe.model.rope import Temperature
from edgemoe.model.spec import ModelSpec

_SEPARATE = layer_rows(
    ("experts.{expert}.gate", "feed_forward.experts.{expert}.gate_proj.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "feed_forward.experts.{expert}.up_proj.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "feed_forward.experts.{expert}.down_proj.weight", ("model", "expert_width")),
)
_TRANSPOSED = layer_rows(
    (
        "experts.{expert}.gate experts.{expert}.up",
        "feed_forward.experts.gate_up_proj",
        ("experts", "model", "2*expert_width"),
    ),
    ("experts.{expert}.down", "feed_forward.experts.down_proj", ("experts", "expert_width", "model")),
)
_ROWS = (
    FRAME
    + layer_rows(("router", "feed_forward.router.weight", ("experts", "model")))
    + shared_rows("feed_forward.shared_expert")
    + _SEPARATE
    + tuple(replace(row, transposed=True) for row in _TRANSPOSED)
    + tuple(replace(row, source=row.source.replace("mlp.", "feed_forward.")) for row in DENSE_FFN)
)


def _within_model(row: Row) -> Row:
    return replace(row, source=f"language_model.{row.source}")


TENSORS = tuple(map(_within_model, _ROWS)) + _ROWS
"""A text model alone has no `language_model` in its names."""
_CHUNKED, _FULL = "chunked_attention", "full_attention"


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    text = reader.text_config("llama4_text")
    if text is not None:
        _read_left_out(reader)
    text = text or reader
    frame = read_frame(text, "llama4", layer_types=(_CHUNKED, _FULL))
    text.skip("for_llm_compressor")  # of another program
    text.require("num_experts_per_tok", 1)
    width = text.integer("intermediate_size", maximum=LARGEST_WIDTH)
    moe = read_experts(
        text,
        width_key="intermediate_size",
        router=RouterSpec(normalise=False, score="sigmoid", choose_by="logit"),
        count_key="num_local_experts",
        shared_width=width,
    )
    count = read_layer_count(text, moe)
    moe_layers = _moe_layers(text, count)
    dense = GatedFfn(text.integer("intermediate_size_mlp", maximum=LARGEST_WIDTH, default=16_384))
    routed = replace(moe, weigh_inputs=True)
    ffns: list[Body] = [routed if number in moe_layers else dense for number in range(count)]
    return replace(frame, layers=pair_layers(_mixers(text, frame, count), ffns))


def _mixers(text: ConfigReader, frame: ModelSpec, count: int) -> list[Attention]:
    """The attention of each layer: with positions or without, in chunks or not."""
    base = read_attention(text, frame, default_theta=500_000.0, bias_key="attention_bias", default_head_dim=128)
    assert base.rope is not None
    rotated = replace(base, rope=replace(base.rope, pairing="neighbours"))
    if text.flag("use_qk_norm", True):
        rotated = replace(rotated, qk_norm="unweighted", norm_after_rope=True)
    still = replace(base, rope=None, temperature=_temperature(text))
    whole = text.has("attention_chunk_size") and text.value("attention_chunk_size") is None
    chunk = 0 if whole else text.integer("attention_chunk_size", maximum=LARGEST_POSITIONS, default=8192)
    rotates = _rotates(text, count)
    listed: Sequence[Any] = text.sequence("layer_types")
    types = listed or [_CHUNKED if flag and chunk else _FULL for flag in rotates]
    if len(types) != count:
        raise SourceError(f"config.json: layer_types lists {len(types)} layers; expected {count}.", DAMAGED)
    if _CHUNKED in types and not chunk:
        raise SourceError("config.json: attention_chunk_size is missing; expected a whole number.", DAMAGED)
    mixers = [rotated if flag else still for flag in rotates]
    return [
        replace(mixer, window=chunk, chunked=True) if kind == _CHUNKED else mixer
        for mixer, kind in zip(mixers, types, strict=True)
    ]


def _temperature(text: ConfigReader) -> Temperature | None:
    """How queries of layers without positions grow; older files say with a number that they do."""
    tuned = text.value("attn_temperature_tuning")
    if tuned not in (None, True, False, 4):
        raise unsupported("attn_temperature_tuning", tuned, "true or false")
    period = text.integer("floor_scale", maximum=LARGEST_POSITIONS, default=8192)
    scale = text.number("attn_scale", 0.1)
    return Temperature(scale, period) if tuned is None or tuned else None


def _rotates(text: ConfigReader, count: int) -> list[bool]:
    """Whether each layer has positions: by a list of a 0 for those that have none, or all but every fourth."""
    interval = text.integer("no_rope_layer_interval", maximum=LARGEST_LAYERS, default=4)
    flags = text.sequence("no_rope_layers") or [int((number + 1) % interval > 0) for number in range(count)]
    if len(flags) != count or any(flag not in (0, 1) for flag in flags):
        raise SourceError(
            f"config.json: no_rope_layers lists {len(flags)} values; expected {count} of 0 and 1.", DAMAGED
        )
    return [bool(flag) for flag in flags]


def _moe_layers(text: ConfigReader, count: int) -> Collection[int]:
    """The layers with routed experts: listed, or the last of every so many."""
    step = text.integer("interleave_moe_layer_step", maximum=LARGEST_LAYERS, default=1)
    if text.value("moe_layers") is None:
        return range(step - 1, count, step)
    listed = text.sequence("moe_layers")
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise SourceError(
                f"config.json: moe_layers holds {show(number)}; expected layers from 0 to {count - 1}.", DAMAGED
            )
    return frozenset(listed)


def _read_left_out(reader: ConfigReader) -> None:
    """Read what the config says of the vision tower, which is left out, and of the head."""
    reader.value("vision_config")
    for name in ("boi", "eoi", "image"):
        for kind in ("token_index", "token_id"):
            reader.value(f"{name}_{kind}")
    reader.require("tie_word_embeddings", False)
