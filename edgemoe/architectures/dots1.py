"""dots.llm1: DeepSeek-V3's router and shared experts on attention with a norm over each query and key head; its last
layers may see a window only.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
    read_sigmoid_router,
    read_windows,
)
from edgemoe.architectures.glm4_moe import TENSORS as TENSORS
from edgemoe.model.blocks import Attention, GatedFfn
from edgemoe.model.spec import LayerSpec, ModelSpec

_KINDS = ("full_attention", "sliding_attention")


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "dots1", layer_types=_KINDS, windows=True, own_code="Dots1ForCausalLM")
    attention = read_attention(reader, frame, bias_key="attention_bias", qk_norm="head")
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=read_sigmoid_router(reader, normalise=False),
        shared_width=read_shared_width(reader, "n_shared_experts"),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    reader.require("moe_layer_freq", 1)
    layers = read_layers(reader, attention, moe, dense, partial(leading_dense_layers, default=0))
    windows = _windows(reader, len(layers))
    made = {(layer, window): _within(layer, window) for layer, window in set(zip(layers, windows, strict=True))}
    return replace(frame, layers=tuple(made[pair] for pair in zip(layers, windows, strict=True)))


def _windows(reader: ConfigReader, count: int) -> tuple[int, ...]:
    """The window of each layer: `layer_types` lists which have it, or they are those from `max_window_layers` on."""
    first = reader.integer("max_window_layers", minimum=0, maximum=LARGEST_LAYERS, default=62)
    switched_on = reader.flag("use_sliding_window", True) and reader.value("sliding_window") is not None
    return read_windows(reader, count, [_KINDS[switched_on and number >= first] for number in range(count)])


def _within(layer: LayerSpec, window: int) -> LayerSpec:
    attention, ffn = (block.body for block in layer.blocks)
    assert isinstance(attention, Attention)
    return LayerSpec.of(replace(attention, window=window), ffn) if window else layer
