"""Granite-MoE with windows: Granite-MoE-Shared with sinks, windows in some layers, and positions by layer or none."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures import granitemoe, granitemoeshared
from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, checked_number
from edgemoe.architectures.frame import read_windows
from edgemoe.architectures.positions import LARGEST_THETA
from edgemoe.architectures.table import layer_rows
from edgemoe.architectures.windows import WINDOWED
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention
from edgemoe.model.spec import LayerSpec, ModelSpec

TENSORS = granitemoeshared.TENSORS + layer_rows(("sinks", "self_attn.sinks", ("heads",)))


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    shared_width = reader.integer("shared_intermediate_size", minimum=0, maximum=LARGEST_WIDTH, default=0)
    spec = granitemoe.read_granite(reader, "granitemoe_swa", shared_width, layer_types=WINDOWED, windows=True)
    count = len(spec.layers)
    windows = read_windows(reader, count, ("full_attention", *["sliding_attention"] * 3), default_window=128)
    settings = list(zip(windows, _thetas(reader, count), strict=True))
    layers = {pair: _layer(spec.layers[0], *pair) for pair in settings}
    return replace(spec, layers=tuple(layers[pair] for pair in settings))


def _layer(plain: LayerSpec, window: int, theta: float | None) -> LayerSpec:
    """A layer with this window, and positions of this theta: 0 for none, None for those of the whole model."""
    attention, ffn = (block.body for block in plain.blocks)
    assert isinstance(attention, Attention)
    assert attention.rope is not None
    rope = attention.rope
    if theta is not None:
        rope = replace(rope, theta=theta) if theta else None
    return LayerSpec.of(replace(attention, sinks=True, window=window, rope=rope), ffn)


def _thetas(reader: ConfigReader, count: int) -> list[float | None]:
    """The theta of each layer by `layer_rope_theta`; None for each without such a list."""
    listed = reader.sequence("layer_rope_theta")
    if listed and len(listed) != count:
        raise SourceError(f"config.json: layer_rope_theta lists {len(listed)} layers; expected {count}.", DAMAGED)
    if not listed:
        return [None] * count
    return [
        0.0
        if theta is None or (theta == 0 and not isinstance(theta, bool))
        else checked_number("layer_rope_theta", theta, above=1.0, maximum=LARGEST_THETA)
        for theta in listed
    ]
