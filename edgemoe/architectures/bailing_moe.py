"""Ling 2 and Ring 2: DeepSeek-V3's router with groups, a norm over each query and key head, rotary positions on a part
of each head, ungated shared experts, leading dense layers. Sarvam-30B is the same with positions on whole heads.

Query, key and value are one tensor of published files. Those of Ling 1, whose `model_type` is the same, are refused.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.glm4_moe import TENSORS as _GLM4_MOE
from edgemoe.architectures.table import layer_rows, rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import GatedFfn
from edgemoe.model.spec import ModelSpec

TENSORS = (
    rows(("embedding", "model.word_embeddings.weight", ("vocabulary", "model")))
    + layer_rows(
        ("query key value", "attention.query_key_value.weight", ("query+key_value+key_value", "model")),
        ("query_bias key_bias value_bias", "attention.query_key_value.bias", ("query+key_value+key_value",)),
        ("output", "attention.dense.weight", ("model", "query")),
        ("query_norm", "attention.query_layernorm.weight", ("head_dim",)),
        ("key_norm", "attention.key_layernorm.weight", ("head_dim",)),
        ("router_choice_bias", "mlp.gate.expert_bias", ("experts",)),
    )
    + _GLM4_MOE
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    family = reader.value("model_type")
    sarvam = family == "sarvam_moe"
    own_code = "SarvamMoEForCausalLM" if sarvam else "BailingMoeV2ForCausalLM"
    if family == "bailing_moe" and own_code not in reader.sequence("architectures"):
        raise unsupported("architectures", reader.value("architectures"), f'"{own_code}" of model_type "{family}"')
    frame = read_frame(reader, family, own_code=own_code)
    if not sarvam and reader.value("partial_rotary_factor") is None and not _rotates_a_part(reader):
        raise SourceError("config.json: partial_rotary_factor is missing; expected a number.", DAMAGED)
    reader.require("use_bias", False)
    reader.require("use_qk_norm", True)
    attention = read_attention(
        reader,
        frame,
        default_theta=8_000_000.0 if sarvam else 10_000.0,
        bias_key="attention_bias" if reader.value("use_qkv_bias") is None else "use_qkv_bias",
        bias_on_output=False,
        kv_heads_required=True,
        partial=1.0,
        qk_norm="head",
        default_head_dim=64 if sarvam else 0,
    )
    router = read_sigmoid_router(reader)
    reader.require("moe_router_enable_expert_bias", True)
    if not sarvam and not router.normalise:
        raise unsupported("norm_topk_prob", False, "true")
    shared_width = read_shared_width(reader, "num_shared_experts")
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=router,
        shared_width=shared_width,
    )
    if not sarvam and moe.top_k == 1:  # one weight is never normalised
        moe = replace(moe, router=replace(router, normalise=False, epsilon=0.0))
    key = "moe_shared_expert_intermediate_size"
    if reader.integer(key, minimum=0, maximum=LARGEST_WIDTH, default=shared_width) != shared_width:
        raise unsupported(key, reader.value(key), f"{shared_width}, the width of all shared experts together")
    for name in ("norm_head", "norm_softmax"):
        reader.require(name, False)
    reader.require("use_rmsnorm", True)
    reader.skip("router_dtype")  # here routers are float32
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", "num_mtp_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    return replace(frame, layers=read_layers(reader, attention, moe, dense, leading_dense_layers))


def _rotates_a_part(reader: ConfigReader) -> bool:
    positions = reader.value("rope_parameters")
    return isinstance(positions, dict) and positions.get("partial_rotary_factor") is not None
