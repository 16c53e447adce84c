"""MiniMax-M2: a sigmoid router with a bias for the choice, norms over the whole query and key, rotary positions on a
part of each head; the matrices are called w1 (gate), w3 (up) and w2 (down).
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, show
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.mixtral import TENSORS as _MIXTRAL
from edgemoe.architectures.table import layer_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, RouterSpec
from edgemoe.model.spec import ModelSpec

TENSORS = _MIXTRAL + layer_rows(
    ("query_norm", "self_attn.q_norm.weight", ("query",)),
    ("key_norm", "self_attn.k_norm.weight", ("key_value",)),
    ("router_choice_bias", "block_sparse_moe.e_score_correction_bias", ("experts",)),
    ("router_choice_bias", "mlp.e_score_correction_bias", ("experts",)),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "minimax_m2", own_code="MiniMaxM2ForCausalLM")
    attention = replace(read_partly_rotated(reader, frame, theta=5e6, head_dim=128), qk_norm="full")
    for name, wanted in (("qk_norm_type", "per_layer"), ("scoring_func", "sigmoid"), ("shared_intermediate_size", 0)):
        reader.require(name, wanted)
    for name in ("use_qk_norm", "use_routing_bias"):
        reader.require(name, True)
    if any(kind != 1 for kind in reader.sequence("attn_type_list")):
        raise SourceError(
            f"config.json: attn_type_list is {show(reader.value('attn_type_list'))} of several kinds; expected 1 (all"
            " earlier tokens) for every layer.",
            "edgemoe runs lightning attention in models of the types minimax, minimax_m1 and minimax_text_01 alone.",
        )
    # Layers that predict further tokens, which are left out; and numbers of an older family, which mean nothing here.
    reader.skip("mtp_transformer_layers", "num_mtp_modules", "use_mtp", "mlp_intermediate_size", "shared_moe_mode")
    router = RouterSpec(normalise=True, score="sigmoid", choice_bias=True)
    moe = read_experts(reader, width_key="intermediate_size", count_key="num_local_experts", router=router)
    return replace(frame, layers=read_layers(reader, attention, moe))


def read_partly_rotated(reader: ConfigReader, frame: ModelSpec, *, theta: float, head_dim: int = 0) -> Attention:
    """Attention of which `rotary_dim` channels of a head are rotated, or all without that key. Raises SourceError.

    `theta` and `head_dim` hold unless the config says otherwise; without a `head_dim` heads share the model's width.
    """
    width = reader.integer("head_dim", maximum=LARGEST_WIDTH, default=head_dim)
    width = width or frame.hidden_size // reader.integer("num_attention_heads", maximum=LARGEST_WIDTH)
    rotated = reader.integer("rotary_dim", maximum=LARGEST_WIDTH, default=0)
    attention = read_attention(
        reader,
        frame,
        default_theta=theta,
        kv_heads_required=True,
        partial=min(rotated / width, 1.0) if rotated and width else 1.0,
        default_head_dim=head_dim,
    )
    if rotated and attention.rope is not None and attention.rope.rotated != rotated:
        raise SourceError(
            f"config.json: rotary_dim is {rotated}, but {attention.rope.rotated} channels of a head are rotated by"
            f" partial_rotary_factor and head_dim, which is {attention.head_dim}; expected one number.",
            DAMAGED,
        )
    return attention
