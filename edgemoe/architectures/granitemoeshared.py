"""Granite-MoE-Shared: Granite-MoE with a shared expert that every token goes through, ungated."""

from __future__ import annotations

from edgemoe.architectures import granitemoe
from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.table import layer_rows
from edgemoe.model.spec import ModelSpec

TENSORS = granitemoe.TENSORS + layer_rows(
    ("shared.gate shared.up", "shared_mlp.input_linear.weight", ("2*shared_width", "model")),
    ("shared.down", "shared_mlp.output_linear.weight", ("model", "shared_width")),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    shared_width = reader.integer("shared_intermediate_size", minimum=0, maximum=LARGEST_WIDTH, default=0)
    return granitemoe.read_granite(reader, "granitemoeshared", shared_width)
