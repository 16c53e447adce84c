"""DBRX: query, key and value in one matrix and within limits, layer norms, experts one below the other.

Its config has an object for attention and one for experts. `w2` of an expert is the transpose of `down`.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_EXPERTS,
    LARGEST_LAYERS,
    LARGEST_POSITIONS,
    LARGEST_TOTAL_EXPERTS,
    LARGEST_VOCABULARY,
    LARGEST_WIDTH,
    ConfigReader,
    show,
    unsupported,
)
from edgemoe.architectures.positions import LARGEST_THETA, read_rope
from edgemoe.architectures.table import HEAD, rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, Moe, RouterSpec
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec

_LAYER, _BLOCK = "layers.{layer}.", "transformer.blocks.{layer}."
_ATTENTION = rows(
    ("attention_norm", "norm_1.weight", ("model",)),
    ("ffn_norm", "norm_2.weight", ("model",)),
    ("output", "attn.out_proj.weight", ("model", "attended")),
    internal=_LAYER,
    source=f"{_BLOCK}norm_attn_norm.",
)
_SEPARATE = rows(
    ("experts.{expert}.gate", "ffn.experts.{expert}.gate_proj.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "ffn.experts.{expert}.up_proj.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "ffn.experts.{expert}.down_proj.weight", ("model", "expert_width")),
    internal=_LAYER,
    source=_BLOCK,
)
"""Experts as a GGUF has them."""
_FLAT = rows(
    ("experts.{expert}.gate", "w1", ("experts*expert_width", "model")),
    ("experts.{expert}.up", "v1", ("experts*expert_width", "model")),
    ("experts.{expert}.down", "w2", ("experts*expert_width", "model")),
    internal=_LAYER,
    source=f"{_BLOCK}ffn.experts.mlp.",
)
_FUSED_ATTENTION = tuple(
    replace(row, internal=tuple(_LAYER + name for name in ("query", "key", "value")))
    for row in rows(("", f"{_BLOCK}norm_attn_norm.attn.Wqkv.weight", ("query+key_value+value", "model")))
)

TENSORS = (
    rows(
        ("embedding", "transformer.wte.weight", ("vocabulary", "model")),
        ("final_norm", "transformer.norm_f.weight", ("model",)),
        ("head", HEAD, ("vocabulary", "model")),
    )
    + _ATTENTION
    + _FUSED_ATTENTION
    + rows(("router", "ffn.router.layer.weight", ("experts", "model")), internal=_LAYER, source=_BLOCK)
    + _SEPARATE
    + tuple(replace(row, flat=True, transposed=row.source.endswith("w2")) for row in _FLAT)
)

NORM_EPSILON = 1e-5
"""The default of PyTorch's LayerNorm, which the model's code leaves as it is."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    code = reader.value("auto_map")
    if code and "DbrxForCausalLM" not in str(code):
        raise unsupported("auto_map", code, "code of DbrxForCausalLM")
    for name in ("emb_pdrop", "resid_pdrop"):  # act in training only
        reader.skip(name)
    reader.require("tie_word_embeddings", False)
    width = reader.integer("d_model", maximum=LARGEST_WIDTH)
    count = reader.integer("n_layers", maximum=LARGEST_LAYERS)
    positions = reader.integer("max_seq_len", maximum=LARGEST_POSITIONS)
    moe = _experts(reader, width)
    if count * moe.num_experts > LARGEST_TOTAL_EXPERTS:
        raise SourceError(
            f"config.json: {count} layers of {moe.num_experts} experts; expected at most {LARGEST_TOTAL_EXPERTS}"
            " experts in all.",
            DAMAGED,
        )
    return ModelSpec(
        family="dbrx",
        vocab_size=reader.integer("vocab_size", maximum=LARGEST_VOCABULARY),
        hidden_size=width,
        layers=(LayerSpec.of(_attention(reader, width, positions), moe),) * count,
        norm_epsilon=NORM_EPSILON,
        max_positions=positions,
        tied_embeddings=False,
        norm="layer",
    )


def _attention(reader: ConfigReader, width: int, positions: int) -> Attention:
    own = reader.inner("attn_config") or ConfigReader({})
    own.skip("attn_pdrop")
    heads = reader.integer("n_heads", maximum=LARGEST_WIDTH)
    kv_heads = own.integer("kv_n_heads", maximum=LARGEST_WIDTH, default=1)
    reader.integer("num_key_value_heads", maximum=LARGEST_WIDTH, default=kv_heads)  # a copy, in newer files
    if width % heads or width // heads % 2 or heads % kv_heads:
        raise SourceError(
            f"config.json: n_heads is {heads}, kv_n_heads {kv_heads} and d_model {width}; expected query heads of an"
            " even width in equal groups.",
            DAMAGED,
        )
    head_dim = width // heads
    clipped = own.value("clip_qkv") is not None
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=_rope(reader, own, head_dim, positions),
        clip=own.number("clip_qkv") if clipped else 0.0,
    )


def _rope(reader: ConfigReader, own: ConfigReader, head_dim: int, positions: int) -> RopeSpec:
    """Positions by theta in the object for attention; newer files may repeat it outside."""
    theta = own.number("rope_theta", 10_000.0, above=1.0, maximum=LARGEST_THETA)
    rope = read_rope(reader, head_dim, theta, positions)
    if rope.theta != theta and own.value("rope_theta") is not None:
        raise SourceError(
            f"config.json: rope_theta is {rope.theta:g}, but {theta:g} in attn_config; expected one value.", DAMAGED
        )
    return rope


def _experts(reader: ConfigReader, width: int) -> Moe:
    own = reader.inner("ffn_config") or ConfigReader({})
    own.skip("moe_jitter_eps", "moe_loss_weight")  # act in training only
    own.require("hidden_size", width)
    own.require("uniform_expert_assignment", False)
    function = own.value("ffn_act_fn")
    if function not in (None, {"name": "silu"}):
        raise unsupported("ffn_config.ffn_act_fn", function, 'the name "silu"')
    experts = own.integer("moe_num_experts", maximum=LARGEST_EXPERTS, default=4)
    top_k = own.integer("moe_top_k", maximum=LARGEST_EXPERTS, default=1)
    if top_k > experts:
        raise SourceError(
            f"config.json: moe_top_k is {top_k}; expected at most the number of experts, {experts}.", DAMAGED
        )
    return Moe(
        num_experts=experts,
        top_k=top_k,
        intermediate_size=own.integer("ffn_hidden_size", maximum=LARGEST_WIDTH, default=3584),
        router=RouterSpec(normalise=_normalises(own)),
    )


def _normalises(own: ConfigReader) -> bool:
    """Whether weights of experts are divided by their norm, which is their sum where its exponent is 1."""
    if not own.has("moe_normalize_expert_weights"):
        return True
    exponent = own.value("moe_normalize_expert_weights")
    if exponent is not None and (isinstance(exponent, bool) or exponent != 1):
        raise unsupported("ffn_config.moe_normalize_expert_weights", show(exponent), "1 or null")
    return exponent is not None
