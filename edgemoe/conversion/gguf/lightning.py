"""Lightning attention in GGUF files: the keys of llama.cpp's minimax-01.

All factors of residuals' bases are one, and those of results are 1; the rates follow from the number of heads and the
layer. Source: llama.cpp, src/models/minimax-01.cpp and conversion/minimax.py (2026).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.latent import LARGEST_DIFFERENCE
from edgemoe.conversion.gguf.layers import attention_of
from edgemoe.conversion.gguf.package import GGUFWriter
from edgemoe.conversion.gguf.windowed_metadata import write_frame, write_rope
from edgemoe.kernels.operations import SILU
from edgemoe.model.blocks import Attention, Lightning, Moe
from edgemoe.model.blocks.lightning import NORM_EPSILON
from edgemoe.model.spec import ModelSpec, Residual

ARCHITECTURE = "minimax-01"
_INTERVAL = 8
"""The last of as many layers has attention in files that do not list them."""
_LOGITS = 200_032
"""llama.cpp gives no logit to ids from here on, whatever the size of the vocabulary."""


def lightning_config(
    metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the keys of the config that it has beyond those that all have."""
    layers = config["num_hidden_layers"]
    listed = metadata.value("attention.recurrent_layers")
    interval = metadata.count("full_attention_interval", _INTERVAL)
    if listed is None:
        listed = [(number + 1) % interval != 0 for number in range(layers)]
    elif not isinstance(listed, list):
        listed = [listed] * layers
    if len(listed) < layers:
        raise metadata.wrong("attention.recurrent_layers", f"a flag for each of {layers} layers", listed)
    factor = metadata.value("residual_scale")
    if not isinstance(factor, float) or not factor > 0:
        raise metadata.wrong("residual_scale", "a number above 0", factor)
    return {
        "num_local_experts": metadata.count("expert_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_key_value_heads": metadata.count("attention.head_count_kv"),
        "layer_types": ["linear_attention" if recurrent else "full_attention" for recurrent in listed[:layers]],
        **{f"{kind}_alpha_factor": factor for kind in ("full_attn", "linear_attn", "mlp")},
    }


# ---- the way back ------------------------------------------------------------------------------------------------


def lightning_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp has not. The exporter reads the file back too, which finds whatever else is missing."""
    blocks = [block for layer in spec.layers for block in layer.blocks]
    residuals = {block.residual for block in blocks}
    factors = {own.base_scale for own in residuals if own is not None}
    if len(residuals) > 1 or residuals != {Residual("normed", base_scale=factor) for factor in factors}:
        yield "residuals but of normalised rows, with one factor of these and none of results"
    if not all(isinstance(block.body, (Attention, Lightning, Moe)) for block in blocks):
        yield "layers but of lightning attention or attention, then experts"
    for kind, words in ((Lightning, "lightning attention"), (Attention, "softmax attention")):
        if not any(isinstance(block.body, kind) for block in blocks):
            yield f"models without {words}"
    if abs(NORM_EPSILON - spec.norm_epsilon) > LARGEST_DIFFERENCE:
        yield f"epsilon of {NORM_EPSILON:g} for norms of lightning attention beside {spec.norm_epsilon:g} for others"
    if spec.vocab_size > _LOGITS + 32:
        yield f"vocabularies beyond {_LOGITS} ids, whose logits it leaves out"
    for own in attention_of(spec):
        if own.rope is None or own.rope.scaling not in ("none", "linear"):
            yield "attention but with plain rotary positions"
    if any(isinstance(block.body, Moe) and (block.body.activation != SILU or block.body.shared) for block in blocks):
        yield "experts but plain ones, without shared experts"


def write_lightning(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write all keys of the model itself."""
    attention = attention_of(spec)[0]
    moe = next(layer.blocks[1].body for layer in spec.layers if isinstance(layer.blocks[1].body, Moe))
    residual = spec.layers[0].blocks[0].residual
    assert residual is not None  # `lightning_problems` has seen to both
    assert attention.rope is not None
    write_frame(writer, spec)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_feed_forward_length(moe.intermediate_size)
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_residual_scale(residual.base_scale)
    recurrent = [isinstance(layer.blocks[0].body, Lightning) for layer in spec.layers]
    writer.add_array(f"{ARCHITECTURE}.attention.recurrent_layers", recurrent)
    write_rope(writer, attention.rope)
