"""Qwen3.5-MoE and Qwen3.6: layers as those of Qwen3-Next, the weights of a token's experts always normalised.

The text part of a model for images and videos too: its config stands in `text_config`, and its tensors under
`model.language_model`. What belongs to the vision tower is left out.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures import qwen3_next
from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, ConfigReader, show
from edgemoe.architectures.frame import pair_layers, read_frame
from edgemoe.architectures.table import Row
from edgemoe.errors import SourceError
from edgemoe.model.spec import ModelSpec


def _under(prefix: str, row: Row) -> Row:
    return replace(row, source=row.source.replace("model.", prefix, 1)) if row.source.startswith("model.") else row


TENSORS = qwen3_next.TENSORS + tuple(
    _under("model.language_model.", row) for row in qwen3_next.TENSORS if row.source.startswith("model.")
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    text = reader.inner("text_config") or reader
    outer_tied = reader.flag("tie_word_embeddings", False)
    frame = read_frame(text, "qwen3_5_moe", tied=outer_tied, layer_types=qwen3_next.MIXERS)
    if frame.tied_embeddings != outer_tied and reader.value("tie_word_embeddings") is not None:
        raise SourceError(
            f"config.json: tie_word_embeddings is {show(outer_tied)}, but {show(frame.tied_embeddings)} in text_config;"
            " expected one value.",
            DAMAGED,
        )
    moe = qwen3_next.read_moe(text, normalise=True)
    mixers = qwen3_next.read_mixers(text, frame, moe, 10_000.0)
    _read_left_out(reader, text)
    return replace(frame, layers=pair_layers(mixers, [moe] * len(mixers)))


def _read_left_out(reader: ConfigReader, text: ConfigReader) -> None:
    """Read what the config says of parts that are left out: the vision tower, and the layer for further tokens."""
    reader.value("vision_config")
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        reader.value(name)
    reader.value("language_model_only")
    text.integer("mtp_num_hidden_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    text.flag("mtp_use_dedicated_embeddings", False)
