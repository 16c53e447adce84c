"""Finds in a model's layers what the header of its GGUF says once for all."""

from __future__ import annotations

import math

from edgemoe.conversion.gguf.families import ARCHITECTURES, FAMILY
from edgemoe.model.blocks import Attention, Body, GatedFfn, LatentAttention, Moe, NgramTable
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec


def dense_layers(spec: ModelSpec) -> set[int]:
    """The dense layers of a model with experts that a file of its architecture may have: those that come first, or any
    (Hy3).
    """
    dense = {number for number, layer in enumerate(spec.layers) if not layer.routed}
    family = FAMILY[ARCHITECTURES[spec.family]]
    if len(dense) == len(spec.layers):
        return set()
    if family.dense_anywhere:
        return dense
    if not family.leading_dense:
        return set()
    return {number for number in dense if number < leading_of(dense)}


def leading_of(dense: set[int]) -> int:
    """How many dense layers come before all others."""
    return next(number for number in range(len(dense) + 1) if number not in dense)


def mixer_of(layer: LayerSpec) -> Body:
    """Return the block that mixes tokens in a layer, or its only one: the first that is no table."""
    return next(block.body for block in layer.blocks if not isinstance(block.body, NgramTable))


def mixers(spec: ModelSpec) -> list[Body]:
    """Return the blocks that mix tokens, one of each layer."""
    return [mixer_of(layer) for layer in spec.layers]


def attention_and_ffn(spec: ModelSpec) -> tuple[Attention, GatedFfn | Moe]:
    """The attention of the first layer that has some, and the FFN of the last layer with experts, else of the last."""
    attention = next(mixer for mixer in mixers(spec) if isinstance(mixer, Attention))
    last = next((layer for layer in reversed(spec.layers) if layer.routed), spec.layers[-1])
    *_, ffn = (block.body for block in last.blocks)
    assert isinstance(ffn, (GatedFfn, Moe))
    return attention, ffn


def attention_of(spec: ModelSpec) -> list[Attention]:
    """The attention of every layer."""
    return [block.body for layer in spec.layers for block in layer.blocks if isinstance(block.body, Attention)]


def attention_interval(spec: ModelSpec) -> int:
    """The number of the first layer with attention, counted from 1."""
    return next(n for n, mixer in enumerate(mixers(spec), 1) if isinstance(mixer, Attention))


def has_rope(spec: ModelSpec) -> bool:
    """Whether any attention of the model has rotary positions."""
    return any(own.rope is not None for own in attention_of(spec))


def rope_of(spec: ModelSpec) -> RopeSpec:
    """The rotary positions of a model that a GGUF can hold: of all its attention, or of the layers without a window."""
    for layer in spec.layers:
        own = layer.blocks[0].body.rope if isinstance(layer.blocks[0].body, LatentAttention) else None
        if own is not None:
            return own
    ropes = [own for own in attention_of(spec) if own.rope is not None]
    rope = min(ropes, key=lambda own: own.window > 0).rope
    assert rope is not None  # `check_expressible` has seen to it
    return rope


def plain_scale(attention: Attention) -> bool:
    """Whether products of queries and keys are divided by the root of the width of a head."""
    return math.isclose(attention.scale, attention.head_dim**-0.5, rel_tol=1e-6)
