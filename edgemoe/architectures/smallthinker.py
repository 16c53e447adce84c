"""SmallThinker: a layer's experts are chosen by the stream as the layer begins, and have a gate with ReLU.

Experts read what comes after attention, so they are read from disk while that is computed. Layers with a window have
rotary positions, the others none.

Source: `modeling_smallthinker.py` of PowerInfer/SmallThinker-4BA0.6B-Instruct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_POSITIONS, ConfigReader, show, unsupported
from edgemoe.architectures.frame import pair_layers, read_attention, read_experts, read_frame, read_layer_count
from edgemoe.architectures.table import FRAME, layer_rows
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import Activation
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = FRAME + layer_rows(
    ("router", "block_sparse_moe.primary_router.weight", ("experts", "model")),
    ("experts.{expert}.gate", "block_sparse_moe.experts.{expert}.gate.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "block_sparse_moe.experts.{expert}.up.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "block_sparse_moe.experts.{expert}.down.weight", ("model", "expert_width")),
)
_OF_DENSE_LAYERS = ("dense_ffn_hidden_size", "moe_secondary_expert_size")
"""Keys that act only where the model has what other keys, which are refused, say."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "smallthinker", tied=True, windows=True, own_code="SmallThinkerForCausalLM")
    reader.skip("model_name", *_OF_DENSE_LAYERS)
    reader.require("norm_topk_prob", True, default=True)
    reader.require("moe_enable_early_router", True, default=True)
    for name in ("moe_enable_secondary_experts", "use_qk_norm"):
        reader.require(name, False)
    for name in ("moe_num_secondary_experts", "moe_shared_primary_experts"):
        reader.require(name, 0)
    softmax = reader.flag("moe_primary_router_apply_softmax", False)
    router = RouterSpec(True, early=True)  # softmax among the chosen
    router = router if softmax else replace(router, score="sigmoid", choose_by="logit")
    moe = read_experts(
        reader,
        width_key="moe_ffn_hidden_size",
        count_key="moe_num_primary_experts",
        top_k_key="moe_num_active_primary_experts",
        router=router,
    )
    moe = replace(moe, activation=Activation("relu"))
    count = read_layer_count(reader, moe)
    if not all(_layout(reader, "moe_layer_layout", count, default=1)):
        raise unsupported("moe_layer_layout", 0, "layers with experts (1)")
    windowed = _layout(reader, "sliding_window_layout", count, default=0)
    if _layout(reader, "sliding_window_pattern", count, default=0) not in (windowed, [0] * count):
        raise SourceError(
            "config.json: sliding_window_pattern differs from sliding_window_layout; expected the same lists.", DAMAGED
        )
    window = reader.integer("sliding_window_size", "sliding_window", maximum=LARGEST_POSITIONS, default=4096)
    attention = read_attention(reader, frame, default_theta=1_000_000.0, kv_heads_required=True, default_head_dim=128)
    mixers = [
        replace(attention, rope=attention.rope if rotated else None, window=window if own else 0)
        for rotated, own in zip(_layout(reader, "rope_layout", count, default=1), windowed, strict=True)
    ]
    return replace(frame, layers=pair_layers(mixers, [moe] * count))


def _layout(reader: ConfigReader, name: str, count: int, *, default: int) -> Sequence[int]:
    """Whether each layer has something, by a list of 0 and 1."""
    listed = list(reader.sequence(name)) or [default] * count
    if len(listed) != count:
        raise SourceError(f"config.json: {name} lists {len(listed)} layers; expected {count}.", DAMAGED)
    for found in listed:
        if type(found) is not int or found not in (0, 1):
            raise SourceError(f"config.json: {name} holds {show(found)}; expected 0 or 1 for each layer.", DAMAGED)
    return listed
