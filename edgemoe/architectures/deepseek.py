"""DeepSeekMoE, the first (16B): softmax scores that need not sum to one, ungated shared experts, dense layers first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
)
from edgemoe.architectures.glm4_moe import TENSORS as TENSORS
from edgemoe.model.blocks import GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "deepseek", own_code="DeepseekForCausalLM")
    attention = read_attention(reader, frame, bias_key="attention_bias")
    if attention.heads * attention.head_dim != frame.hidden_size:
        raise unsupported("head_dim", attention.head_dim, "hidden_size / num_attention_heads")
    reader.require("scoring_func", "softmax", default="softmax")
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=RouterSpec(normalise=reader.flag("norm_topk_prob", False)),
        shared_width=_shared_width(reader),
    )
    if moe.top_k == 1:  # one weight is never normalised
        moe = replace(moe, router=RouterSpec(normalise=False))
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    return replace(frame, layers=read_layers(reader, attention, moe, dense, _dense_layers))


def _shared_width(reader: ConfigReader) -> int:
    return 0 if reader.value("n_shared_experts") is None else read_shared_width(reader, "n_shared_experts")


def _dense_layers(reader: ConfigReader, count: int) -> Collection[int]:
    """The leading dense layers, and those of the others whose number is no multiple of `moe_layer_freq`."""
    leading = leading_dense_layers(reader, count, default=0)
    step = reader.integer("moe_layer_freq", maximum=LARGEST_LAYERS, default=1)
    return {number for number in range(count) if number in leading or number % step}
