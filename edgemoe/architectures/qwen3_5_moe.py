"""Qwen3.5-MoE and Qwen3.6: layers as those of Qwen3-Next, the weights of a token's experts always normalised.

The text part of a model for images and videos too: its config stands in `text_config`, and its tensors under
`model.language_model`. What belongs to the vision tower is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgemoe.architectures import qwen3_next
from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, ConfigReader, show
from edgemoe.architectures.frame import read_frame
from edgemoe.architectures.table import HEAD, Row
from edgemoe.errors import SourceError
from edgemoe.model.spec import ModelSpec

IN_TURN = "linear_value_heads_in_turn"
"""The key that says that heads of values lie in turn, as in GGUF files; no config of a checkpoint has it."""
ROWS = tuple(row for row in qwen3_next.TENSORS if "in_proj_qkvz" not in row.source and "in_proj_ba" not in row.source)


def with_text_tower(own: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows under the names of a model for images too, and of a text model alone, which have no `language_model`."""
    towers = (replace(row, source=row.source.replace("model.", "model.language_model.", 1)) for row in own)
    return tuple(towers) + tuple(row for row in own if row.source != HEAD)


TENSORS = with_text_tower(ROWS)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    text, frame = read_text(reader, "qwen3_5_moe", qwen3_next.MIXERS)
    return replace(
        frame, layers=qwen3_next.read_linear_layers(text, frame, normalise=True, in_turn=text.flag(IN_TURN, False))
    )


def read_text(reader: ConfigReader, family: str, layer_types: Collection[str]) -> tuple[ConfigReader, ModelSpec]:
    """The config of the text part, and the model without layers. Raises SourceError."""
    text = reader.text_config(f"{family}_text") or reader
    outer_tied = reader.flag("tie_word_embeddings", False)
    frame = read_frame(text, family, tied=outer_tied, layer_types=layer_types)
    if frame.tied_embeddings != outer_tied and reader.value("tie_word_embeddings") is not None:
        raise SourceError(
            f"config.json: tie_word_embeddings is {show(outer_tied)}, but {show(frame.tied_embeddings)} in text_config;"
            " expected one value.",
            DAMAGED,
        )
    _read_left_out(reader, text)
    return text, frame


def _read_left_out(reader: ConfigReader, text: ConfigReader) -> None:
    """Read what the config says of parts that are left out: the vision tower, and the layer for further tokens."""
    reader.skip("vision_config")
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        reader.skip(name)
    reader.skip("language_model_only")
    text.integer("mtp_num_hidden_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    text.flag("mtp_use_dedicated_embeddings", False)
