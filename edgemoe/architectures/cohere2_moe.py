"""Command A+: attention and experts read the same norm (by default a layer norm) and join the stream together; rotary
positions of neighbouring channels within windows only; ungated shared experts, whose sum with the routed may be halved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgemoe.architectures.config import LARGEST_EXPERTS, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    leading_dense_layers,
    read_attention,
    read_experts,
    read_ffn_types,
    read_frame,
    read_layer_count,
    read_layer_types,
    read_window,
)
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, SEPARATE_EXPERTS, layer_rows, shared_rows
from edgemoe.architectures.windows import WINDOWED
from edgemoe.kernels.expert_operations import Score
from edgemoe.model.blocks import Attention, Body, GatedFfn, Moe, RouterSpec
from edgemoe.model.spec import Block, LayerSpec, ModelSpec

TENSORS = (
    tuple(row for row in FRAME if row.internal != ("layers.{layer}.ffn_norm",))
    + layer_rows(("router", "mlp.gate.weight", ("experts", "model")))
    + shared_rows("mlp.shared_experts")
    + SEPARATE_EXPERTS
    + FUSED_EXPERTS
    + DENSE_FFN
)

_ONLY = {
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
}
"""Keys of older files, each with the value that the family always has."""
_OF_OTHER_PROGRAMS = (
    "cache_implementation",
    "layer_switch",
    "order_of_interleaved_layers",
    "use_embedding_sharing",
    "use_parallel_embedding",
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    rms = reader.value("rms_norm_eps") is not None
    reader.skip("layer_norm_eps")
    frame = read_frame(
        reader,
        "cohere2_moe",
        epsilon_key="rms_norm_eps" if rms else "layer_norm_eps",
        default_epsilon=1e-5,
        tied=True,
        layer_types=WINDOWED,
        windows=True,
    )
    for name, only in _ONLY.items():
        reader.require(name, only)
    for name in _OF_OTHER_PROGRAMS:
        reader.skip(name)
    parameters = reader.value("rope_parameters")
    if isinstance(parameters, Mapping) and parameters.get("rope_theta") is not None:
        reader.skip("rope_theta")  # the class of transformers saves its default here, and reads the other
        theta_key = ""
    else:
        theta_key = "rope_theta"
    attention = read_attention(reader, frame, bias_key="attention_bias", default_head_dim=128, theta_key=theta_key)
    assert attention.rope is not None
    attention = replace(attention, rope=replace(attention.rope, pairing="neighbours"))
    moe = _experts(reader)
    count = read_layer_count(reader, moe)
    leading = leading_dense_layers(reader, count, default=0)
    types = read_layer_types(reader, count, _default_types(reader, count, len(leading)))
    window = read_window(reader, types, 4096)
    width = reader.integer("intermediate_size", maximum=LARGEST_WIDTH)
    dense = GatedFfn(reader.integer("prefix_dense_intermediate_size", maximum=LARGEST_WIDTH, default=width))
    dense_layers = read_ffn_types(reader, count, default_leading=len(leading))
    rotated_dense = reader.integer("prefix_dense_sliding_window_pattern", maximum=LARGEST_LAYERS, default=1) == 1
    made: dict[tuple[str, bool], LayerSpec] = {}
    for number, kind in enumerate(types):
        is_dense = number in dense_layers
        sliding = kind == "sliding_attention"
        rope = attention.rope if sliding or (is_dense and rotated_dense) else None
        mixer = replace(attention, rope=rope, window=window if sliding else 0)
        made.setdefault((kind, is_dense), _parallel(mixer, dense if is_dense else moe))
    return replace(
        frame,
        layers=tuple(made[kind, number in dense_layers] for number, kind in enumerate(types)),
        norm="rms" if rms else "layer",
        logit_scale=reader.number("logit_scale", 0.0625, above=1e-6, maximum=LARGEST_WIDTH),
    )


def _parallel(mixer: Attention, ffn: Body) -> LayerSpec:
    return LayerSpec((Block(mixer), Block(ffn, input_norm=False, parallel=True)))


def _default_types(reader: ConfigReader, count: int, leading: int) -> Sequence[str]:
    """The types of layers, for a config that does not list them: every fourth sees the whole context."""
    every = reader.integer("sliding_window_pattern", maximum=LARGEST_LAYERS, default=4)
    every_dense = reader.integer("prefix_dense_sliding_window_pattern", maximum=LARGEST_LAYERS, default=1)
    before = [(number + 1) % every_dense == 0 for number in range(leading)]
    return [WINDOWED[whole] for whole in (*before, *((number + 1) % every == 0 for number in range(count - leading)))]


def _experts(reader: ConfigReader) -> Moe:
    """The routed and the shared experts."""
    reader.require("expert_selection_fn", "softmax", "sigmoid")
    score: Score = "sigmoid" if reader.value("expert_selection_fn") == "sigmoid" else "softmax"
    normalise = reader.flag("norm_topk_prob", True) or score == "softmax"  # softmax is taken of the chosen
    width = reader.integer("intermediate_size", maximum=LARGEST_WIDTH)
    shared = reader.integer("num_shared_experts", minimum=0, maximum=LARGEST_EXPERTS, default=0)
    reader.require("shared_expert_combination_strategy", "average", "sum")
    summed = reader.value("shared_expert_combination_strategy") == "sum"
    moe = read_experts(
        reader,
        width_key="intermediate_size",
        router=RouterSpec(normalise=normalise, score=score),
        shared_width=min(shared * width, LARGEST_WIDTH),
    )
    return replace(moe, scale=0.5) if shared and not summed else moe
