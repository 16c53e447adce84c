"""Granite-MoE: multipliers on embedding, attention, residual and logits; the experts of a layer in two tensors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import FRAME, layer_rows
from edgemoe.model.blocks import Attention, RouterSpec
from edgemoe.model.spec import ModelSpec

_GATE_AND_UP = "experts.{expert}.gate experts.{expert}.up"

TENSORS = FRAME + layer_rows(
    ("router", "block_sparse_moe.router.layer.weight", ("experts", "model")),
    (_GATE_AND_UP, "block_sparse_moe.input_linear.weight", ("experts", "2*expert_width", "model")),
    ("experts.{expert}.down", "block_sparse_moe.output_linear.weight", ("experts", "model", "expert_width")),
    # The names that newer programs use in memory.
    ("router", "block_sparse_moe.router.weight", ("experts", "model")),
    (_GATE_AND_UP, "block_sparse_moe.experts.gate_up_proj", ("experts", "2*expert_width", "model")),
    ("experts.{expert}.down", "block_sparse_moe.experts.down_proj", ("experts", "model", "expert_width")),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    return read_granite(reader, "granitemoe", shared_width=0)


def read_granite(
    reader: ConfigReader,
    family: str,
    shared_width: int,
    layer_types: Collection[str] = ("full_attention",),
    windows: bool = False,
) -> ModelSpec:
    """A Granite model with a shared expert of width `shared_width` (0: no shared expert). Raises SourceError.

    The last two are those of `read_frame`.
    """
    frame, attention = read_granite_frame(reader, family, layer_types, windows)
    moe = read_experts(
        reader, width_key="intermediate_size", router=RouterSpec(normalise=True), shared_width=shared_width
    )
    return replace(frame, layers=read_layers(reader, attention, moe))


def read_granite_frame(
    reader: ConfigReader, family: str, layer_types: Collection[str], windows: bool = False
) -> tuple[ModelSpec, Attention]:
    """A Granite model without its layers, and the attention of these. Raises SourceError."""
    frame = read_frame(reader, family, layer_types=layer_types, windows=windows)
    attention = read_attention(
        reader,
        frame,
        bias_key="attention_bias",
        scale=reader.number("attention_multiplier", 1.0, maximum=LARGEST_WIDTH),
    )
    frame = replace(
        frame,
        embedding_scale=reader.number("embedding_multiplier", 1.0, maximum=LARGEST_WIDTH),
        residual_scale=reader.number("residual_multiplier", 1.0, maximum=LARGEST_WIDTH),
        logit_scale=1 / reader.number("logits_scaling", 1.0, above=1e-6, maximum=LARGEST_WIDTH),
    )
    return frame, attention
