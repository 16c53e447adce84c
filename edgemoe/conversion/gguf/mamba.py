"""Configs of GGUF architectures with layers of Mamba: what files say, and what llama.cpp assumes where they do not.

Each function gives the keys of a checkpoint's config that its architecture has beyond those that all have. Sources:
src/models/granite-hybrid.cpp and nemotron-h.cpp in llama.cpp (2026). Those with Mamba-1 are in `jamba.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.jamba import jamba_config
from edgemoe.conversion.gguf.keys import SIGMOID, Metadata


def _granite(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Granite 4: layers without key heads are of Mamba-2; rotary positions where the file does not say otherwise."""
    kv_heads = by_layer(metadata, "attention.head_count_kv", config["num_hidden_layers"])
    heads, width = metadata.count("ssm.time_step_rank"), config["hidden_size"]
    inner = metadata.count("ssm.inner_size")
    if inner % heads or inner % width:
        raise metadata.wrong("ssm.inner_size", f"a multiple of {heads} heads and of the width, {width}", inner)
    experts = metadata.count("expert_count", 0, minimum=0)
    ffn_width = metadata.count("feed_forward_length")
    shared = metadata.count("expert_shared_feed_forward_length", 0, minimum=0) if experts else ffn_width
    return {
        "attention_bias": any(name.endswith(".attn_q.bias") for name in tensors),
        "attention_multiplier": metadata.value("attention.scale") or config["head_dim"] ** -0.5,
        "embedding_multiplier": metadata.value("embedding_scale") or 1.0,
        "intermediate_size": ffn_width,
        "layer_types": ["full_attention" if count else "linear_attention" for count in kv_heads],
        "logits_scaling": metadata.value("logit_scale") or 1.0,
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in tensors),
        "mamba_d_conv": metadata.count("ssm.conv_kernel"),
        "mamba_d_head": inner // heads,
        "mamba_d_state": metadata.count("ssm.state_size"),
        "mamba_expand": inner // width,
        "mamba_n_groups": metadata.count("ssm.group_count"),
        "mamba_n_heads": heads,
        "num_experts_per_tok": metadata.count("expert_used_count", 0, minimum=0),
        "num_key_value_heads": max(kv_heads) or None,
        "num_local_experts": experts,
        "position_embedding_type": "rope" if metadata.value("rope.scaling.finetuned", True) else "nope",
        "residual_multiplier": metadata.value("residual_scale") or 1.0,
        "shared_intermediate_size": shared,
    }


def _nemotron(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Nemotron-H with experts: a layer with key heads is attention, one with a width of FFNs has experts."""
    layers = config["num_hidden_layers"]
    kv_heads = by_layer(metadata, "attention.head_count_kv", layers)
    widths = by_layer(metadata, "feed_forward_length", layers)
    metadata.value("attention.layer_norm_epsilon")  # some loaders insist on it, though no norm uses it
    heads, inner = metadata.count("ssm.time_step_rank"), metadata.count("ssm.inner_size")
    if inner % heads:
        raise metadata.wrong("ssm.inner_size", f"a multiple of {heads}, the number of heads", inner)
    if metadata.value("expert_gating_func", SIGMOID) not in (0, SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{SIGMOID} (sigmoid)", metadata.value("expert_gating_func"))
    return {
        "conv_kernel": metadata.count("ssm.conv_kernel"),
        "intermediate_size": None,
        "layer_norm_epsilon": config["rms_norm_eps"],
        "layers_block_type": [
            "moe" if width else "full_attention" if count else "linear_attention"
            for width, count in zip(widths, kv_heads, strict=True)
        ],
        "mamba_head_dim": inner // heads,
        "mamba_num_heads": heads,
        "moe_intermediate_size": metadata.count("expert_feed_forward_length", max(widths) or None),
        "moe_latent_size": metadata.value("moe_latent_size") or None,
        "moe_shared_expert_intermediate_size": metadata.count("expert_shared_feed_forward_length"),
        "n_group": metadata.count("expert_group_count", 0, minimum=0) or 1,
        "n_groups": metadata.count("ssm.group_count"),
        "n_routed_experts": metadata.count("expert_count"),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "num_key_value_heads": max(kv_heads) or None,
        "rms_norm_eps": None,
        "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "ssm_state_size": metadata.count("ssm.state_size"),
        "topk_group": metadata.count("expert_group_used_count", 0, minimum=0) or 1,
        "use_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in tensors),
    }


def _jamba(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Jamba: layers without key heads are of Mamba-1."""
    kv_heads = by_layer(metadata, "attention.head_count_kv", config["num_hidden_layers"])
    return jamba_config(metadata, tensors, config, kv_heads)


def by_layer(metadata: Metadata, key: str, layers: int) -> list[int]:
    """A number for each layer, 0 in some. Raises SourceError."""
    found = metadata.value(key)
    counts = found if isinstance(found, list) else [found] * layers
    if len(counts) < layers or not all(type(count) is int and count >= 0 for count in counts):
        raise metadata.wrong(key, f"a whole number for each of {layers} layers", found)
    several = {count for count in counts[:layers] if count}
    if len(several) > 1:
        raise metadata.wrong(key, "one number, or 0, for every layer", found)
    return counts[:layers]


MAMBA: dict[str, Callable[[Metadata, Mapping[str, GgufTensor], Mapping[str, Any]], dict[str, Any]]] = {
    "granitehybrid": _granite,
    "jamba": _jamba,
    "nemotron_h_moe": _nemotron,
}
"""By the name of the architecture; the last argument is the config as far as it is the same for all."""
