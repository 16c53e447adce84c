"""GLM-4.7-Flash: DeepSeek-V3 whose FFNs `mlp_layer_types` may list, the first of them dense otherwise."""

from __future__ import annotations

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.latent import DEEPSEEK as TENSORS
from edgemoe.architectures.latent import read_deepseek
from edgemoe.model.spec import ModelSpec

__all__ = ["TENSORS", "read"]


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    return read_deepseek(reader, "glm4_moe_lite", own_code="Glm4MoeLiteForCausalLM", default_dense=1, scale=1.8)
