"""DeepSeek-V3, R1, Kimi-K2 and Moonlight: latent attention, a sigmoid router with a bias for the choice and groups,
ungated shared experts, leading dense layers. Sarvam-105B is the same, and so is the text part of Kimi-K2.5, whose
config stands in `text_config`.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, ConfigReader, show
from edgemoe.architectures.frame import check_own_code
from edgemoe.architectures.latent import DEEPSEEK, read_deepseek
from edgemoe.errors import SourceError
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
    text = reader.inner("text_config") if family == "kimi_k25" else None
    sarvam = family == "sarvam_mla"
    own_code = "SarvamMLAForCausalLM" if sarvam else "DeepseekV3ForCausalLM"
    spec = read_deepseek(
        text or reader, family, own_code=own_code, wide_heads=sarvam, default_dense=1 if sarvam else None
    )
    if text is not None:
        _read_left_out(reader, spec)
    return spec


def _read_left_out(reader: ConfigReader, spec: ModelSpec) -> None:
    """Read what the config says of the part for images, and of the head, which both of its objects speak of."""
    check_own_code(reader, "KimiK25ForConditionalGeneration")
    reader.skip("vision_config", "projection_hidden_size", "projection_layer_norm_eps", "ignore_index")
    reader.skip("use_unified_vision_chunk", "video_placeholder", "media_placeholder_token_id")
    reader.skip("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    if reader.flag("tie_word_embeddings", spec.tied_embeddings) != spec.tied_embeddings:
        raise SourceError(
            f"config.json: tie_word_embeddings is {show(not spec.tied_embeddings)}, but"
            f" {show(spec.tied_embeddings)} in text_config; expected one value.",
            DAMAGED,
        )
