"""Mistral Small 4: latent attention whose queries grow with their position, a softmax router with groups of experts,
ungated shared experts. In published files the config stands in `text_config`, beside that of a part for images.
"""

from __future__ import annotations

from edgemoe.architectures.config import ConfigReader, unsupported
from edgemoe.architectures.deepseek_v3 import TENSORS
from edgemoe.architectures.frame import read_groups
from edgemoe.architectures.latent import read_deepseek, read_left_out
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.spec import ModelSpec

__all__ = ["TENSORS", "read"]


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    family = reader.value("model_type")
    inner = reader.text_config("mistral4") if family == "mistral3" else None
    if inner is not None and inner.value("model_type") is None:  # which means an older family
        raise unsupported("text_config.model_type", None, '"mistral4"')
    text = inner or reader
    groups, kept_groups = read_groups(text)
    router = RouterSpec(
        normalise=text.flag("norm_topk_prob", True),
        scale=text.number("routed_scaling_factor", 1.0),
        groups=groups,
        kept_groups=kept_groups,
    )
    spec = read_deepseek(text, family, own_code="Mistral4ForCausalLM", default_dense=0, router=router, growing=True)
    if inner is not None:
        reader.skip("image_token_index", "multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size")
        reader.skip("vision_feature_layer")
        read_left_out(reader, spec)
    return spec
