"""Hy3: DeepSeek-V3's router without groups, a norm over each query and key head, ungated shared experts, dense layers.

Published files and those that newer programs keep differ in the names of router, bias and shared experts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
)
from edgemoe.architectures.glm4_moe import TENSORS as _GLM4_MOE
from edgemoe.architectures.table import layer_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    layer_rows(
        ("router", "mlp.router.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.expert_bias", ("experts",)),
        ("router_choice_bias", "mlp.e_score_correction_bias", ("experts",)),
        ("shared.gate", "mlp.shared_mlp.gate_proj.weight", ("shared_width", "model")),
        ("shared.up", "mlp.shared_mlp.up_proj.weight", ("shared_width", "model")),
        ("shared.down", "mlp.shared_mlp.down_proj.weight", ("model", "shared_width")),
    )
    + _GLM4_MOE
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "hy_v3", own_code="HYV3ForCausalLM")
    attention = read_attention(
        reader,
        frame,
        default_theta=11_158_840.0,
        bias_key="attention_bias",
        kv_heads_required=True,
        qk_norm="head",
        default_head_dim=128,
    )
    for name in ("moe_router_enable_expert_bias", "moe_router_use_sigmoid", "qk_norm", "route_norm"):
        reader.require(name, True)
    # In which precision steps are computed; here it is float32.
    reader.skip("enable_attention_fp32_softmax", "enable_lm_head_fp32", "enable_moe_fp32_combine", "use_grouped_mm")
    scale = reader.number("router_scaling_factor", 2.826)
    router = RouterSpec(normalise=True, score="sigmoid", choice_bias=True, epsilon=1e-20, scale=scale)
    reader.integer("moe_intermediate_size", "expert_hidden_dim", maximum=LARGEST_WIDTH)  # two names of one thing
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=router,
        shared_width=read_shared_width(reader, "num_shared_experts"),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    return replace(frame, layers=read_layers(reader, attention, moe, dense, _dense_layers))


def _dense_layers(reader: ConfigReader, count: int) -> Collection[int]:
    """The dense layers: those that `mlp_layer_types` lists as such, or as many as another key says, else the first."""
    kinds = reader.sequence("mlp_layer_types")
    if not kinds:
        return leading_dense_layers(reader, count, default=1)
    reader.skip("first_k_dense_replace")
    if len(kinds) != count:
        raise SourceError(f"config.json: mlp_layer_types lists {len(kinds)} layers; expected {count}.", DAMAGED)
    for kind in kinds:
        if kind not in ("dense", "sparse"):
            raise unsupported("mlp_layer_types", kind, '"dense" or "sparse"')
    return [number for number, kind in enumerate(kinds) if kind == "dense"]
