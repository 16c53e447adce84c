"""DeepSeek-V2 and its Coder: latent attention, a softmax router that may keep the best groups of experts and whose
weights are scaled, never normalised; ungated shared experts, leading dense layers.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_EXPERTS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
)
from edgemoe.architectures.latent import DEEPSEEK as TENSORS
from edgemoe.architectures.latent import read_latent_attention
from edgemoe.model.blocks import GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec

__all__ = ["TENSORS", "read"]


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "deepseek_v2", own_code="DeepseekV2ForCausalLM")
    attention = read_latent_attention(reader, frame, interleaved=True)
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=_router(reader),
        shared_width=read_shared_width(reader, "n_shared_experts", default=2),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    reader.require("moe_layer_freq", 1, default=1)
    reader.skip("ep_size")  # over how many machines another program spreads the experts
    return replace(frame, layers=read_layers(reader, attention, moe, dense, leading_dense_layers))


def _router(reader: ConfigReader) -> RouterSpec:
    reader.require("scoring_func", "softmax", default="softmax")
    reader.skip("norm_topk_prob")  # published files have both values, and the model the same weights with both
    grouped = reader.value("topk_method") == "group_limited_greedy"
    reader.require("topk_method", "greedy", "group_limited_greedy", default="greedy")
    router = RouterSpec(normalise=False, scale=reader.number("routed_scaling_factor", 1.0))
    groups = reader.integer("n_group", maximum=LARGEST_EXPERTS, default=None if grouped else 1)
    kept = reader.integer("topk_group", maximum=LARGEST_EXPERTS, default=None if grouped else 1)
    if not grouped or groups == kept:
        return router
    return replace(router, groups=groups, kept_groups=kept, group_best=1)
