"""Phi-3.5-MoE: layer norms with biases, a head with a bias, a router whose weights are shares among the experts near
the best (SparseMixer), and LongRoPE; the matrices are called w1 (gate), w3 (up) and w2 (down).
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_POSITIONS, ConfigReader, unsupported
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.mixtral import TENSORS as _MIXTRAL
from edgemoe.architectures.table import layer_rows, rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import ModelSpec

TENSORS = (
    _MIXTRAL
    + rows(
        ("final_norm_bias", "model.norm.bias", ("model",)),
        ("head_bias", "lm_head.bias", ("vocabulary",)),
    )
    + layer_rows(
        ("attention_norm_bias", "input_layernorm.bias", ("model",)),
        ("ffn_norm_bias", "post_attention_layernorm.bias", ("model",)),
        ("router", "mlp.router.weight", ("experts", "model")),  # in newer programs
    )
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "phimoe", own_code="PhiMoEForCausalLM")
    for name in ("input_jitter_noise", "attention_probs_dropout_prob"):  # act in training only
        reader.skip(name)
    reader.require("num_experts_per_tok", 2)
    attention = read_attention(reader, frame, default_theta=1_000_000.0, bias_key="attention_bias")
    assert attention.rope is not None
    _check_positions(reader, attention.rope)
    noise = reader.value("router_jitter_noise")
    router = RouterSpec(
        normalise=False,
        score="sparsemixer",
        jitter=0.0 if noise == 0 else reader.number("router_jitter_noise", 0.01, maximum=1e3),
    )
    moe = read_experts(reader, width_key="intermediate_size", count_key="num_local_experts", router=router)
    return replace(
        frame,
        layers=read_layers(reader, attention, moe),
        norm="layer",
        norm_bias=True,
        head_bias=reader.flag("lm_head_bias", False),
    )


def _check_positions(reader: ConfigReader, rope: RopeSpec) -> None:
    """Refuse rules that the family does not have, and an original length that contradicts that of the rule."""
    if rope.scaling not in ("none", "longrope"):
        raise unsupported("rope_type", rope.scaling, '"default" or "longrope"')
    found = reader.integer("original_max_position_embeddings", maximum=LARGEST_POSITIONS, default=0)
    if found and rope.longest_short not in (None, found):
        raise SourceError(
            f"config.json: original_max_position_embeddings is {found}, but {rope.longest_short} in rope_scaling;"
            " expected one value.",
            DAMAGED,
        )
