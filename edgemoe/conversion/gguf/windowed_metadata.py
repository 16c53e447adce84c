"""Writes the metadata of the architectures of `windowed.py`.

Whether llama.cpp would run the same model is not asked here, key by key: the exporter reads what was written as
`windowed.py` does, which knows what llama.cpp assumes, and refuses the model if another one comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgemoe.conversion.gguf.layers import attention_of
from edgemoe.conversion.gguf.package import ExpertGatingFuncType, GGUFWriter, RopeScalingType
from edgemoe.model.blocks import Attention, GatedFfn, Moe, SharedExpert
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import ModelSpec

_ARCTIC, _COHERE, _GEMMA, _LLAMA4 = "arctic", "cohere2moe", "gemma4", "llama4"
_SMALLTHINKER, _STEP = "smallthinker", "step35"
_LISTED = frozenset({_COHERE, "exaone-moe", _GEMMA, "mellum", "mimo2", _STEP})
"""Architectures whose files list the layers with a window; in the others every fourth layer has none."""


def write_windowed(writer: GGUFWriter, architecture: str, spec: ModelSpec) -> None:
    """Write all keys of the model itself."""
    attention = attention_of(spec)
    ffns = [block.body for layer in spec.layers for block in layer.blocks if not isinstance(block.body, Attention)]
    moe = next(ffn for ffn in ffns if isinstance(ffn, Moe))
    dense = next(
        (ffn.intermediate_size for ffn in ffns if isinstance(ffn, GatedFfn)), moe.top_k * moe.intermediate_size
    )
    write_frame(writer, spec)
    writer.add_head_count(_one_or_all([own.heads for own in attention]))
    writer.add_head_count_kv(_one_or_all([own.kv_heads for own in attention]))
    widest = max(attention, key=lambda own: own.window == 0)  # of the layers without a window, where there are some
    writer.add_key_length(widest.head_dim)
    writer.add_value_length(widest.value_dim or widest.head_dim)
    if architecture == _GEMMA:
        _write_gemma(writer, spec)
    if architecture == _LLAMA4:
        _write_llama4(writer, spec)
    elif window := max(own.window for own in attention):
        writer.add_sliding_window(window)
        if architecture in _LISTED:
            writer.add_sliding_window_pattern([own.window > 0 for own in attention])
    if attention[0].output_scale != 1:
        writer.add_float32(f"{architecture}.attention.value_scale", attention[0].output_scale)
    of_experts = architecture in (_ARCTIC, _SMALLTHINKER)
    writer.add_feed_forward_length(moe.intermediate_size if of_experts else dense)
    leading = next(number for number, ffn in enumerate(ffns) if isinstance(ffn, Moe))
    if architecture == _COHERE or (leading and architecture not in (_ARCTIC, _LLAMA4)):
        writer.add_leading_dense_block_count(leading)
    if architecture == _COHERE:
        writer.add_logit_scale(spec.logit_scale)
    _write_experts(writer, moe)
    if architecture == _STEP:
        _write_limits(writer, spec)
        # The loader halves the rotated width of layers without a window.
        attention = [replace(own, rope=own.rope and replace(own.rope, rotated=own.head_dim)) for own in attention]
    _write_positions(writer, attention)


def _write_gemma(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write what only Gemma 4 has: heads within windows, the limit of the logits, and parts that it has none of."""
    windowed = next((own for own in attention_of(spec) if own.window), attention_of(spec)[0])
    writer.add_key_length_swa(windowed.head_dim)
    writer.add_value_length_swa(windowed.head_dim)
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(0)
    if spec.logit_cap:
        writer.add_final_logit_softcapping(spec.logit_cap)


def _write_llama4(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write what only Llama 4 has: which layers have experts, and whether they see chunks."""
    steps = [number for number, layer in enumerate(spec.layers, 1) if layer.routed]
    writer.add_interleave_moe_layer_step(steps[0])
    if not any(own.window for own in attention_of(spec)):
        writer.add_sliding_window(0)


def _write_limits(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write the limit of SwiGLU of each layer's experts, and of its shared expert or dense FFN; 0: none."""
    ffns = [layer.blocks[-1].body for layer in spec.layers]
    shared = (ffn.shared if isinstance(ffn, Moe) else ffn for ffn in ffns)
    bounds = ((own.activation.limit or 0.0) if isinstance(own, Moe) else 0.0 for own in ffns)
    writer.add_swiglu_clamp_exp(list(bounds))
    writer.add_swiglu_clamp_shexp(
        [(own.activation.limit or 0.0) if isinstance(own, (GatedFfn, SharedExpert)) else 0.0 for own in shared]
    )


def _one_or_all(counts: Sequence[int]) -> int | list[int]:
    return counts[0] if len(set(counts)) == 1 else list(counts)


def _write_experts(writer: GGUFWriter, moe: Moe) -> None:
    router, sigmoid = moe.router, moe.router.score == "sigmoid"
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID if sigmoid else ExpertGatingFuncType.SOFTMAX)
    writer.add_expert_weights_norm(router.normalise)
    writer.add_expert_weights_scale(router.scale)
    if router.groups > 1:
        writer.add_expert_group_count(router.groups)
        writer.add_expert_group_used_count(router.kept_groups)
    if moe.shared is not None:
        writer.add_expert_shared_count(max(moe.shared.intermediate_size // moe.intermediate_size, 1))
        writer.add_expert_shared_feed_forward_length(moe.shared.intermediate_size)


def _write_positions(writer: GGUFWriter, attention: Sequence[Attention]) -> None:
    """Write the positions of layers that see the whole context, if these have some, and those within windows."""
    by_window = {own.window > 0: own.rope for own in attention if own.rope is not None}
    whole, within = by_window.get(False), by_window.get(True)
    rope = whole or within
    assert rope is not None  # `check_expressible` has seen to it
    write_rope(writer, rope)
    if whole is not None and within is not None and within != replace(whole, scaling="none", parameters={}):
        writer.add_rope_freq_base_swa(within.theta)
        if within.rotated != whole.rotated:
            writer.add_uint32(f"{writer.arch}.rope.dimension_count_swa", within.rotated)


def write_frame(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write the keys that every architecture has."""
    writer.add_block_count(len(spec.layers))
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_vocab_size(spec.vocab_size)
    if spec.norm == "layer":
        writer.add_layer_norm_eps(spec.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(spec.norm_epsilon)


def write_rope(writer: GGUFWriter, rope: RopeSpec) -> None:
    """Write the keys of one rule of positions."""
    writer.add_rope_dimension_count(rope.rotated)
    writer.add_rope_freq_base(rope.theta)
    if rope.scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope.scaling))
        writer.add_rope_scaling_factor(rope.parameters["factor"])
    if rope.scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(round(rope.parameters["original_max_position_embeddings"]))
