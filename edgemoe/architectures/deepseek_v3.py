"""DeepSeek-V3, R1, Kimi-K2 and Moonlight: latent attention, a sigmoid router with a bias for the choice and groups,
ungated shared experts, leading dense layers. Sarvam-105B is the same, and so is the text part of Kimi-K2.5, whose
config stands in `text_config`.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.frame import check_own_code
from edgemoe.architectures.latent import DEEPSEEK, read_deepseek, read_left_out
from edgemoe.model.spec import ModelSpec

TENSORS = (
    DEEPSEEK
    + tuple(replace(row, source=f"language_model.{row.source}") for row in DEEPSEEK)
    + tuple(
        replace(row, source=row.source.replace("model.", "model.language_model.", 1))
        for row in DEEPSEEK
        if row.source.startswith("model.")
    )
)
"""Kimi-K2.5's have `language_model` before or within their names."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    family = reader.value("model_type")
    text = reader.text_config("kimi_k2", "deepseek_v3") if family == "kimi_k25" else None
    sarvam = family == "sarvam_mla"
    own_code = "SarvamMLAForCausalLM" if sarvam else "DeepseekV3ForCausalLM"
    spec = read_deepseek(
        text or reader, family, own_code=own_code, wide_heads=sarvam, default_dense=1 if sarvam else None
    )
    if text is not None:
        check_own_code(reader, "KimiK25ForConditionalGeneration")
        reader.skip("projection_hidden_size", "projection_layer_norm_eps", "ignore_index", "use_unified_vision_chunk")
        reader.skip("video_placeholder", "media_placeholder_token_id")
        read_left_out(reader, spec)
    return spec
