"""K-EXAONE: rotary positions only within windows, if there are windows; a sigmoid router with a bias for the choice,
ungated shared experts, dense layers listed or leading.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_ffn_types,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_shared_width,
    read_sigmoid_router,
)
from edgemoe.architectures.table import (
    DENSE_FFN,
    FRAME,
    FUSED_EXPERTS,
    HEAD_NORMS,
    SEPARATE_EXPERTS,
    layer_rows,
    shared_rows,
)
from edgemoe.architectures.windows import WINDOWED, read_windowed_layers
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, GatedFfn
from edgemoe.model.spec import ModelSpec

TENSORS = (
    FRAME
    + HEAD_NORMS
    + layer_rows(
        ("router", "mlp.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mlp.e_score_correction_bias", ("experts",)),
        ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),  # of newer programs, in memory
    )
    + shared_rows("mlp.shared_experts")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "exaone_moe", layer_types=WINDOWED, windows=True)
    attention = read_attention(reader, frame, qk_norm="head")
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=read_sigmoid_router(reader, scale=2.5),
        shared_width=read_shared_width(reader, "num_shared_experts"),
    )
    count = read_layer_count(reader, moe)
    windowed = reader.value("sliding_window") is not None

    def of_type(kind: str) -> Attention:
        return replace(attention, rope=None) if windowed and kind == "full_attention" else attention

    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    types = read_layer_types(reader, count, _default_types(reader, windowed))
    layers = read_windowed_layers(reader, types, of_type, moe, dense, _dense_layers(reader, count))
    # The layers that predict further tokens are left out (`table.unused_tensors`), and what the config says of them.
    for name in ("num_nextn_predict_layers", "num_mtp_layers", "mtp_loss_scaling_factor", "mtp_share_layers"):
        reader.skip(name)
    return replace(frame, layers=layers)


def _default_types(reader: ConfigReader, windowed: bool) -> Sequence[str]:
    """The types of layers in turn, for a config that does not list them: the last of each turn sees all tokens."""
    if reader.sequence("layer_types") or not windowed:
        reader.skip("sliding_window_pattern")
        return ("full_attention",)
    every = reader.integer("sliding_window_pattern", maximum=LARGEST_LAYERS, default=4)
    return ["sliding_attention"] * (every - 1) + ["full_attention"]


def _dense_layers(reader: ConfigReader, count: int) -> Collection[int]:
    """The dense layers: by `mlp_layer_types`, by `is_moe_layer` of older files, else the leading ones."""
    flags = reader.sequence("is_moe_layer")
    if reader.sequence("mlp_layer_types"):
        reader.skip("first_k_dense_replace")
        return read_ffn_types(reader, count)
    if not flags:
        return leading_dense_layers(reader, count, default=1)
    if len(flags) != count or not all(isinstance(flag, bool) for flag in flags):
        raise SourceError(f"config.json: is_moe_layer lists {len(flags)} values; expected {count} flags.", DAMAGED)
    reader.skip("first_k_dense_replace")
    return {number for number, flag in enumerate(flags) if not flag}
