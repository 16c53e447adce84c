"""A.X-K1: DeepSeek-V3 with a norm after the sum of routed and shared experts.

Published files have no bias for the choice, but such a norm in dense layers too, where the model does not use it
(`table.unused_tensors`).
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.frame import read_sigmoid_router
from edgemoe.architectures.latent import DEEPSEEK, read_deepseek
from edgemoe.architectures.table import layer_rows
from edgemoe.model.spec import LayerSpec, ModelSpec

TENSORS = DEEPSEEK + layer_rows(
    ("post_ffn_norm", "post_mlp_layernorm.weight", ("model",)),
    ("post_ffn_norm", "mlp.post_mlp_layernorm.weight", ("model",)),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    router = read_sigmoid_router(reader, scale=2.5, other_methods=("none", "greedy", "group_limited_greedy"))
    spec = read_deepseek(reader, "axk1", own_code="AXK1ForCausalLM", default_dense=1, router=router)
    made = {layer: _normed(layer) for layer in dict.fromkeys(spec.layers)}
    return replace(spec, layers=tuple(made[layer] for layer in spec.layers))


def _normed(layer: LayerSpec) -> LayerSpec:
    attention, ffn = layer.blocks
    return LayerSpec((attention, replace(ffn, post_norm=True))) if ffn.body.routed else layer
