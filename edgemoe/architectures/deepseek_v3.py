"""DeepSeek-V3, R1, Kimi-K2 and Moonlight: latent attention, a sigmoid router with a bias for the choice and groups,
ungated shared experts, leading dense layers.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_experts,
    read_frame,
    read_layers,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.latent import DEEPSEEK as TENSORS
from edgemoe.architectures.latent import read_latent_attention
from edgemoe.model.blocks import GatedFfn
from edgemoe.model.spec import ModelSpec

__all__ = ["TENSORS", "read"]


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, reader.value("model_type"), own_code="DeepseekV3ForCausalLM")
    attention = read_latent_attention(reader, frame)
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        count_key="n_routed_experts",
        router=read_sigmoid_router(reader, scale=2.5),
        shared_width=read_shared_width(reader, "n_shared_experts"),
    )
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    reader.require("moe_layer_freq", 1, default=1)
    reader.skip("ep_size")  # over how many machines another program spreads the experts
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", "num_mtp_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    return replace(frame, layers=read_layers(reader, attention, moe, dense, leading_dense_layers))
