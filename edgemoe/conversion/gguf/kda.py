"""Kimi Delta Attention beside latent attention in GGUF files: llama.cpp's kimi-linear and bailingmoe3 (Ling 3).

A layer without key heads is of Kimi Delta Attention. Ling's rates have no sign in files. Sources: llama.cpp,
src/models/kimi-linear.cpp and bailingmoe3.cpp, conversion/kimi_linear.py (2026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgemoe.conversion.gguf.family_config import expert_width
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import SIGMOID, Metadata
from edgemoe.conversion.gguf.latent import LARGEST_DIFFERENCE, latent_of
from edgemoe.conversion.gguf.mamba import by_layer
from edgemoe.conversion.gguf.package import ExpertGatingFuncType, GGUFWriter
from edgemoe.conversion.gguf.windowed_metadata import write_frame, write_rope
from edgemoe.kernels.operations import SILU
from edgemoe.model.blocks import GatedDelta, GatedFfn, LatentAttention, Moe
from edgemoe.model.spec import LayerSpec, ModelSpec

KIMI, LING = "kimi-linear", "bailingmoe3"
_LIMITS = {"expert_swiglu_limit_list": "swiglu_clamp_exp", "share_expert_swiglu_limit_list": "swiglu_clamp_shexp"}
"""Lists of a config with a limit for each layer, and the keys that have them."""


def _both(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys that both architectures have."""
    layers = config["num_hidden_layers"]
    kv_heads = by_layer(metadata, "attention.head_count_kv", layers)
    rotated = metadata.count("rope.dimension_count")
    key_length = metadata.count("attention.key_length_mla")
    if key_length <= rotated:
        raise metadata.wrong("attention.key_length_mla", f"more than {rotated}, the rotated channels", key_length)
    if metadata.value("expert_gating_func", SIGMOID) not in (0, SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{SIGMOID} (sigmoid)", metadata.value("expert_gating_func"))
    metadata.value("expert_shared_feed_forward_length")  # as wide as all shared experts together
    metadata.value("attention.value_length")  # that of a row of latents
    return {
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, minimum=0),
        "intermediate_size": metadata.count("feed_forward_length"),
        "kv_lora_rank": metadata.count("attention.kv_lora_rank"),
        "layer_types": ["full_attention" if count else "linear_attention" for count in kv_heads],
        "linear_conv_kernel_dim": metadata.count("ssm.conv_kernel"),
        "linear_head_dim": metadata.count("kda.head_dim"),
        "linear_num_heads": config["num_attention_heads"],
        "head_dim": None,
        "moe_intermediate_size": expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "n_group": metadata.count("expert_group_count", 0, minimum=0) or 1,
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "num_key_value_heads": None,
        "num_shared_experts": metadata.count("expert_shared_count", 1),
        "partial_rotary_factor": None,
        "q_lora_rank": metadata.count("attention.q_lora_rank", 0, minimum=0) or None,
        "qk_nope_head_dim": key_length - rotated,
        "qk_rope_head_dim": rotated,
        "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "topk_group": metadata.count("expert_group_used_count", 0, minimum=0) or 1,
        "v_head_dim": metadata.count("attention.value_length_mla"),
    }


def _kimi(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Kimi-Linear: without positions, and of weights that are always normalised."""
    if metadata.value("expert_weights_norm", True) is not True:
        raise metadata.wrong("expert_weights_norm", "true, or no such key", metadata.value("expert_weights_norm"))
    return _both(metadata, tensors, config) | {"rope_theta": None, "rope_scaling": None}


def _ling(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Ling 3: with positions, a bound of decays, and limits by layer where there are some."""
    if metadata.value("kda.safe_gate", True) is not True:
        raise metadata.wrong("kda.safe_gate", "true, or no such key", metadata.value("kda.safe_gate"))
    limits = {}
    for name, key in _LIMITS.items():
        found = metadata.value(key)
        if found is not None:
            limits[name] = found if isinstance(found, list) else [found] * config["num_hidden_layers"]
    return (
        _both(metadata, tensors, config)
        | limits
        | {
            "kda_lower_bound": metadata.value("kda.gate_lower_bound", -5.0),
            "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        }
    )


KDA: dict[str, Callable[[Metadata, Mapping[str, GgufTensor], Mapping[str, Any]], dict[str, Any]]] = {
    KIMI: _kimi,
    LING: _ling,
}
"""By the name of the architecture; the last argument is the config as far as it is the same for all."""


# ---- the way back ------------------------------------------------------------------------------------------------


def kda_problems(architecture: str, spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp has not. The exporter reads the file back too, which finds whatever else is missing."""
    if any(layer != LayerSpec.of(*(block.body for block in layer.blocks)) for layer in spec.layers):
        yield "blocks but with a norm before each, and plainly added"
    mixers = dict.fromkeys(layer.blocks[0].body for layer in spec.layers)
    latents = [mixer for mixer in mixers if isinstance(mixer, LatentAttention)]
    deltas = [mixer for mixer in mixers if isinstance(mixer, GatedDelta)]
    if (len(latents), len(deltas), len(mixers)) != (1, 1, 2):
        yield "models but of one kind of Kimi Delta Attention, and of one of latent attention"
        return
    if architecture == KIMI and latents[0].query_rank:
        yield "queries of latents"
    if latents[0].heads != deltas[0].heads:
        yield f"{deltas[0].heads} linear heads beside {latents[0].heads} of attention"
    if abs(latents[0].latent_epsilon - spec.norm_epsilon) > LARGEST_DIFFERENCE:
        yield f"epsilon of {latents[0].latent_epsilon:g} for norms of latents beside {spec.norm_epsilon:g} for others"
    rope = latents[0].rope
    if rope is not None and (rope.pairing != "neighbours" or rope.scaling != "none"):
        yield f"rotation of {rope.pairing}, or scaled positions"
    if architecture == LING and not deltas[0].decay_bound:
        yield "decays without a bound"
    ffns = dict.fromkeys(layer.blocks[-1].body for layer in spec.layers)
    moes = [ffn for ffn in ffns if isinstance(ffn, Moe)]
    if not moes:
        yield "models without routed experts"
    for moe in moes:
        if moe.shared is None or moe.shared.intermediate_size % moe.intermediate_size:
            yield "shared experts but ungated ones of the width of the routed experts"
        if architecture == KIMI and not moe.router.normalise:
            yield "weights of experts that are not normalised"
    if any(isinstance(ffn, GatedFfn) and ffn.activation != SILU for ffn in ffns):
        yield "dense layers but with SiLU"


def write_kda(writer: GGUFWriter, architecture: str, spec: ModelSpec) -> None:
    """Write all keys of the model itself."""
    own = latent_of(spec)[0]
    delta = next(layer.blocks[0].body for layer in spec.layers if isinstance(layer.blocks[0].body, GatedDelta))
    ffns = [layer.blocks[-1].body for layer in spec.layers]
    moe = next(ffn for ffn in ffns if isinstance(ffn, Moe))
    dense = next((ffn.intermediate_size for ffn in ffns if isinstance(ffn, GatedFfn)), moe.intermediate_size)
    assert moe.shared is not None  # `kda_problems` has seen to it
    write_frame(writer, spec)
    writer.add_head_count(own.heads)
    writer.add_head_count_kv([int(isinstance(layer.blocks[0].body, LatentAttention)) for layer in spec.layers])
    if own.query_rank:
        writer.add_q_lora_rank(own.query_rank)
    writer.add_kv_lora_rank(own.latent_dim)
    writer.add_key_length(own.latent_dim + own.rotary_dim)
    writer.add_value_length(own.latent_dim)
    writer.add_key_length_mla(own.nope_dim + own.rotary_dim)
    writer.add_value_length_mla(own.value_dim)
    writer.add_ssm_conv_kernel(delta.length)
    writer.add_kda_head_dim(delta.key_dim)
    writer.add_feed_forward_length(dense)
    writer.add_leading_dense_block_count(next(n for n, ffn in enumerate(ffns) if isinstance(ffn, Moe)))
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_shared_feed_forward_length(moe.shared.intermediate_size)
    writer.add_expert_shared_count(moe.shared.intermediate_size // moe.intermediate_size)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(moe.router.normalise)
    writer.add_expert_weights_scale(moe.router.scale)
    if moe.router.groups > 1:
        writer.add_expert_group_count(moe.router.groups)
        writer.add_expert_group_used_count(moe.router.kept_groups)
    if own.rope is None:
        writer.add_rope_dimension_count(own.rotary_dim)
        return
    write_rope(writer, own.rope)
    writer.add_bool(f"{architecture}.kda.safe_gate", True)
    writer.add_float32(f"{architecture}.kda.gate_lower_bound", -delta.decay_bound)
    limits = [(ffn.activation.limit or 0.0, _shared_limit(ffn)) if isinstance(ffn, Moe) else (0.0, 0.0) for ffn in ffns]
    if any(map(any, limits)):
        writer.add_swiglu_clamp_exp([limit for limit, _ in limits])
        writer.add_swiglu_clamp_shexp([limit for _, limit in limits])


def _shared_limit(moe: Moe) -> float:
    return moe.shared.activation.limit or 0.0 if moe.shared else 0.0


def kda_remark(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp computes a little differently."""
    own = latent_of(spec)[0].latent_epsilon
    if own != spec.norm_epsilon:
        yield (
            f"llama.cpp takes the epsilon of other norms, {spec.norm_epsilon:g}, for those of latents too, whose own is"
            f" {own:g}: results differ a little, as in every GGUF of it."
        )
    yield (
        "llama.cpp divides queries and keys of Kimi Delta Attention by their lengths, to which the model adds a little"
        " first: results differ a little where these are short, as in every GGUF of it."
    )
