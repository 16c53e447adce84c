"""ERNIE 4.5: softmax scores with a bias for the choice alone, weights that are divided by no less than a number, rotary
positions on neighbouring channels, ungated shared experts, dense layers before, between and after the others.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers, read_shared_width
from edgemoe.architectures.glm4_moe import TENSORS as _GLM4_MOE
from edgemoe.architectures.table import Row
from edgemoe.model.blocks import GatedFfn, RouterSpec
from edgemoe.model.spec import ModelSpec

_BIAS = Row(
    ("layers.{layer}.router_choice_bias",),
    "model.layers.{layer}.mlp.moe_statics.e_score_correction_bias",
    ("one", "experts"),
    as_vector=True,
)
TENSORS = (
    _BIAS,
    replace(_BIAS, source="model.layers.{layer}.mlp.gate.moe_statics.e_score_correction_bias"),
    *_GLM4_MOE,
)
"""A GGUF has the bias as a vector, under the name that GLM-4.5 has for it."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "ernie4_5_moe", tied=True, own_code="Ernie4_5_MoeForCausalLM")
    reader.require("use_bias", False)
    attention = read_attention(reader, frame, default_theta=500_000.0)
    assert attention.rope is not None
    attention = replace(attention, rope=replace(attention.rope, pairing="neighbours"))
    least_sum = reader.number("moe_norm_min", 1e-12)
    router = RouterSpec(normalise=True, choice_bias=True, least_sum=least_sum)
    for name, wanted in (("moe_gate", "topk"), ("moe_gate_act", "softmax"), ("moe_use_aux_free", True)):
        reader.require(name, wanted)
    reader.skip("moe_capacity", "multi_token_pred_lambda")  # act in training only
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="moe_num_experts",
        top_k_key="moe_k",
        router=router,
        shared_width=read_shared_width(reader, "moe_num_shared_experts", default=2),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    return replace(frame, layers=read_layers(reader, attention, moe, dense, _dense_layers))


def _dense_layers(reader: ConfigReader, count: int) -> Collection[int]:
    """The dense layers: all but one in each `moe_layer_interval` between the first and the last with experts."""
    first = reader.integer("moe_layer_start_index", minimum=0, maximum=LARGEST_LAYERS, default=1)
    last = reader.integer("moe_layer_end_index", minimum=-1, maximum=LARGEST_LAYERS, default=-1)
    step = reader.integer("moe_layer_interval", maximum=LARGEST_LAYERS, default=1)
    last = count - 1 if last == -1 else last
    return {number for number in range(count) if not first <= number <= last or (number + 1) % step}
