"""LFM2-MoE: short convolutions in most layers and attention in the others, leading dense layers, a sigmoid router with
a bias for the choice; the matrices of FFNs are called w1 (gate), w3 (up) and w2 (down).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import leading_dense_layers, read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.table import layer_rows, rows
from edgemoe.kernels.state_operations import MOST_TAPS
from edgemoe.model.blocks import GatedFfn, RouterSpec, ShortConv
from edgemoe.model.spec import ModelSpec

TENSORS = rows(
    ("embedding", "model.embed_tokens.weight", ("vocabulary", "model")),
    ("final_norm", "model.embedding_norm.weight", ("model",)),
    ("head", "lm_head.weight", ("vocabulary", "model")),
) + layer_rows(
    ("attention_norm", "operator_norm.weight", ("model",)),
    ("query", "self_attn.q_proj.weight", ("query", "model")),
    ("key", "self_attn.k_proj.weight", ("key_value", "model")),
    ("value", "self_attn.v_proj.weight", ("key_value", "model")),
    ("output", "self_attn.out_proj.weight", ("model", "query")),
    ("query_norm", "self_attn.q_layernorm.weight", ("head_dim",)),
    ("key_norm", "self_attn.k_layernorm.weight", ("head_dim",)),
    ("conv_norm", "operator_norm.weight", ("model",)),
    ("conv_in", "conv.in_proj.weight", ("3*model", "model")),
    ("conv_in_bias", "conv.in_proj.bias", ("3*model",)),
    ("conv_taps", "conv.conv.weight", ("model", "one", "taps")),
    ("conv_taps_bias", "conv.conv.bias", ("model",)),
    ("conv_out", "conv.out_proj.weight", ("model", "model")),
    ("conv_out_bias", "conv.out_proj.bias", ("model",)),
    ("ffn_norm", "ffn_norm.weight", ("model",)),
    ("router", "feed_forward.gate.weight", ("experts", "model")),
    ("router_choice_bias", "feed_forward.expert_bias", ("experts",)),
    ("experts.{expert}.gate", "feed_forward.experts.{expert}.w1.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "feed_forward.experts.{expert}.w3.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "feed_forward.experts.{expert}.w2.weight", ("model", "expert_width")),
    (
        "experts.{expert}.gate experts.{expert}.up",
        "feed_forward.experts.gate_up_proj",
        ("experts", "2*expert_width", "model"),
    ),
    ("experts.{expert}.down", "feed_forward.experts.down_proj", ("experts", "model", "expert_width")),
    ("ffn.gate", "feed_forward.w1.weight", ("ffn_width", "model")),
    ("ffn.up", "feed_forward.w3.weight", ("ffn_width", "model")),
    ("ffn.down", "feed_forward.w2.weight", ("model", "ffn_width")),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "lfm2_moe", epsilon_key="norm_eps", tied=True, layer_types=("conv", "full_attention"))
    frame = replace(frame, tied_embeddings=reader.flag("tie_embedding", frame.tied_embeddings))
    attention = read_attention(reader, frame, default_theta=1_000_000.0, kv_heads_required=True, qk_norm="head")
    normalise = reader.flag("norm_topk_prob", True)
    router = RouterSpec(
        normalise=normalise,
        score="sigmoid",
        choice_bias=reader.flag("use_expert_bias", True),
        epsilon=1e-6 if normalise else 0.0,
        scale=reader.number("routed_scaling_factor", 1.0),
    )
    moe = read_experts(reader, width_key="moe_intermediate_size", router=router)
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    length = reader.integer("conv_L_cache", minimum=2, maximum=MOST_TAPS, default=3)
    convolution = ShortConv(length, reader.flag("conv_bias", False))
    leading = partial(leading_dense_layers, key="num_dense_layers", default=2)
    layers = read_layers(reader, attention, moe, dense, leading, {"conv": convolution})
    return replace(frame, layers=layers)
