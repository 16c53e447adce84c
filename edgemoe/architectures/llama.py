"""Llama: dense SwiGLU layers, optional biases on the attention projections."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import read_attention, read_frame, read_layers
from edgemoe.architectures.table import DENSE_FFN, FRAME
from edgemoe.model.blocks import GatedFfn
from edgemoe.model.spec import ModelSpec

TENSORS = FRAME + DENSE_FFN


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "llama")
    attention = read_attention(reader, frame, bias_key="attention_bias")
    ffn = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    return replace(frame, layers=read_layers(reader, attention, ffn))
