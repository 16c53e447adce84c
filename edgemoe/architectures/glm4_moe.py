"""GLM-4.5: a sigmoid router with a bias for the choice and groups, ungated shared experts, leading dense layers, rotary
positions on half of each head.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_EXPERTS, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import leading_dense_layers, read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows
from edgemoe.model.blocks import GatedFfn, RouterSpec
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
    frame = read_frame(reader, "glm4_moe")
    attention = read_attention(
        reader,
        frame,
        bias_key="attention_bias",
        bias_on_output=False,
        kv_heads_required=True,
        partial=0.5,
        qk_norm="head" if reader.flag("use_qk_norm", False) else "none",
    )
    normalise = reader.flag("norm_topk_prob", True)
    groups = reader.integer("n_group", maximum=LARGEST_EXPERTS, default=1)
    kept_groups = reader.integer("topk_group", maximum=LARGEST_EXPERTS, default=1)
    if kept_groups == groups:  # all are kept, as without groups
        groups = kept_groups = 1
    router = RouterSpec(
        normalise=normalise,
        score="sigmoid",
        choice_bias=True,
        groups=groups,
        kept_groups=kept_groups,
        epsilon=1e-20 if normalise else 0.0,
        scale=reader.number("routed_scaling_factor", 1.0),
    )
    reader.require("scoring_func", "sigmoid", default="sigmoid")
    reader.require("topk_method", "noaux_tc", default="noaux_tc")
    width = reader.integer("moe_intermediate_size", maximum=LARGEST_WIDTH)
    shared = reader.integer("n_shared_experts", minimum=0, maximum=LARGEST_EXPERTS, default=1)
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=router,
        shared_width=min(shared * width, LARGEST_WIDTH),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", "num_mtp_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    return replace(frame, layers=read_layers(reader, attention, moe, dense, leading_dense_layers))
