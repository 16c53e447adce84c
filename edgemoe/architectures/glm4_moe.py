"""GLM-4.5: a sigmoid router with a bias for the choice and groups, ungated shared experts, leading dense layers, rotary
positions on half of each head. Solar-Open is the same without dense layers, with positions on whole heads.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.model.blocks import GatedFfn
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + layer_rows(
        ("query_norm", "self_attn.q_norm.weight", ("head_dim",)),
        ("key_norm", "self_attn.k_norm.weight", ("head_dim",)),
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),
        ("shared.gate", "mlp.shared_experts.gate_proj.weight", ("shared_width", "model")),
        ("shared.up", "mlp.shared_experts.up_proj.weight", ("shared_width", "model")),
        ("shared.down", "mlp.shared_experts.down_proj.weight", ("model", "shared_width")),
    )
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    solar = reader.value("model_type") == "solar_open"
    if solar:
        frame = read_frame(reader, "solar_open", own_code="SolarOpenForCausalLM")
        reader.require("use_qk_norm", False)
    else:
        frame = read_frame(reader, "glm4_moe")
    attention = read_attention(
        reader,
        frame,
        default_theta=1_000_000.0 if solar else 10_000.0,
        bias_key="attention_bias",
        bias_on_output=False,
        kv_heads_required=True,
        partial=1.0 if solar else 0.5,
        qk_norm="head" if reader.flag("use_qk_norm", False) else "none",
        default_head_dim=128 if solar else 0,
    )
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=read_sigmoid_router(reader),
        shared_width=read_shared_width(reader, "n_shared_experts"),
    )
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", "num_mtp_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    if solar:
        reader.require("first_k_dense_replace", 0)
        reader.skip("intermediate_size")  # the width of dense layers, of which it has none
        return replace(frame, layers=read_layers(reader, attention, moe))
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    return replace(frame, layers=read_layers(reader, attention, moe, dense, leading_dense_layers))
