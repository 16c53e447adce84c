"""DeepSeek-V4 in GGUF files: the keys of llama.cpp's deepseek4.

Source: llama.cpp, src/models/deepseek4.cpp and conversion/deepseek.py (2026).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import SQRT_SOFTPLUS, Metadata
from edgemoe.conversion.gguf.package import GGUFWriter
from edgemoe.conversion.gguf.windowed_metadata import write_frame, write_rope
from edgemoe.model.blocks import BlockIndex, CompressedAttention, Moe
from edgemoe.model.rope import RopeSpec
from edgemoe.model.sinkhorn_streams import SinkhornStreams
from edgemoe.model.spec import ModelSpec

_STREAMS = 4
"""The one number of residual streams that its graph has."""
_RATES = {0: (False, False), 4: (True, True), 128: (False, False)}
"""Whether rows overlap and are chosen, by the tokens of a block."""
_DEFAULT_INDEX = BlockIndex(heads=64, head_dim=128, most=512)
"""The indexer of files whose layers have none, which the loader asks for all the same."""
_DEFAULT_ROPE = RopeSpec(theta=160_000.0, rotated=0)


def compressed_config(
    metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the keys of the config that it has beyond those that all have."""
    gating = metadata.value("expert_gating_func")
    if gating != SQRT_SOFTPLUS:
        raise metadata.wrong("expert_gating_func", f"{SQRT_SOFTPLUS} (root of softplus)", gating)
    if metadata.value("expert_weights_norm") is not True:
        raise metadata.wrong("expert_weights_norm", "true", metadata.value("expert_weights_norm"))
    limit = metadata.value("swiglu_clamp_exp")
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        found = metadata.value(key, limit)
        if not isinstance(found, float) or found != limit:
            raise metadata.wrong(key, "one number for all layers and experts", found)
    streams, width = metadata.count("hyper_connection.count"), config["hidden_size"]
    if metadata.value("embedding_length_out", streams * width) != streams * width:
        raise metadata.wrong("embedding_length_out", f"{streams * width}", metadata.value("embedding_length_out"))
    layers, ratios = config["num_hidden_layers"], metadata.value("attention.compress_ratios")
    listed = ratios if isinstance(ratios, list) else [ratios] * layers
    if len(listed) < layers or not all(type(ratio) is int for ratio in listed):
        raise metadata.wrong("attention.compress_ratios", f"a number for each of {layers} layers", ratios)
    return {
        "compress_ratios": listed[:layers],
        "compress_rope_theta": metadata.number("attention.compress_rope_freq_base"),
        "hc_eps": metadata.number("hyper_connection.epsilon"),
        "hc_mult": streams,
        "hc_sinkhorn_iters": metadata.count("hyper_connection.sinkhorn_iterations"),
        "index_head_dim": metadata.count("attention.indexer.key_length"),
        "index_n_heads": metadata.count("attention.indexer.head_count"),
        "index_topk": metadata.count("attention.indexer.top_k"),
        "intermediate_size": None,
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "n_routed_experts": metadata.count("expert_count"),
        "n_shared_experts": metadata.count("expert_shared_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "num_hash_layers": metadata.count("hash_layer_count", minimum=0),
        "num_key_value_heads": metadata.count("attention.head_count_kv"),
        "o_groups": metadata.count("attention.output_group_count"),
        "o_lora_rank": metadata.count("attention.output_lora_rank"),
        "q_lora_rank": metadata.count("attention.q_lora_rank"),
        "routed_scaling_factor": metadata.number("expert_weights_scale"),
        "sliding_window": metadata.count("attention.sliding_window"),
        "swiglu_limit": limit,
    }


# ---- the way back ------------------------------------------------------------------------------------------------


def compressed_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp has not. The exporter reads the file back too, which finds whatever else is missing."""
    if not isinstance(spec.streams, SinkhornStreams) or spec.streams.count != _STREAMS:
        yield f"residual streams but {_STREAMS}"
    if spec.tied_embeddings:
        yield "head that is the embedding"
    for own in dict.fromkeys(_attention(spec)):
        if _RATES.get(own.rate) != (own.overlap, own.index is not None):
            yield f"blocks of {own.rate} tokens (it has blocks of 4, which are chosen, and of 128)"
    tables = [moe.router.table > 0 for moe in _experts(spec)]
    if tables != sorted(tables, reverse=True):
        yield "tables of experts after layers without one"


def _attention(spec: ModelSpec) -> list[CompressedAttention]:
    bodies = (layer.blocks[0].body for layer in spec.layers)
    return [body for body in bodies if isinstance(body, CompressedAttention)]


def _experts(spec: ModelSpec) -> list[Moe]:
    return [layer.blocks[-1].body for layer in spec.layers if isinstance(layer.blocks[-1].body, Moe)]


def write_compressed(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write all keys of the model itself."""
    attention, experts = _attention(spec), _experts(spec)
    own, moe, streams = attention[0], experts[0], spec.streams
    assert isinstance(streams, SinkhornStreams)  # `compressed_problems` has seen to it
    index = next((one.index for one in attention if one.index is not None), _DEFAULT_INDEX)
    compressed = next((one.rope for one in attention if one.rate), replace(_DEFAULT_ROPE, rotated=own.rope.rotated))
    plain = next((one.rope for one in attention if not one.rate), own.rope)
    key = f"{ARCHITECTURE}.{{}}".format
    write_frame(writer, spec)
    writer.add_head_count(own.heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(own.head_dim)
    writer.add_value_length(own.head_dim)
    writer.add_q_lora_rank(own.query_rank)
    writer.add_sliding_window(own.window)
    write_rope(writer, replace(compressed, theta=plain.theta))
    writer.add_float32(key("attention.compress_rope_freq_base"), compressed.theta)
    writer.add_array(key("attention.compress_ratios"), [one.rate for one in attention])
    writer.add_indexer_head_count(index.heads)
    writer.add_indexer_key_length(index.head_dim)
    writer.add_indexer_top_k(index.most)
    writer.add_uint32(key("attention.output_group_count"), own.groups)
    writer.add_uint32(key("attention.output_lora_rank"), own.group_rank)
    writer.add_uint32(key("hyper_connection.count"), streams.count)
    writer.add_uint32(key("hyper_connection.sinkhorn_iterations"), streams.iterations)
    writer.add_float32(key("hyper_connection.epsilon"), streams.epsilon)
    writer.add_uint32(key("embedding_length_out"), streams.count * spec.hidden_size)
    writer.add_uint32(key("hash_layer_count"), sum(one.router.table > 0 for one in experts))
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_shared_count(1)
    writer.add_uint32(key("expert_gating_func"), SQRT_SOFTPLUS)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(moe.router.scale)
    writer.add_swiglu_clamp_exp([one.activation.limit or 0.0 for one in experts])
    writer.add_swiglu_clamp_shexp([one.shared.activation.limit or 0.0 for one in experts if one.shared])
