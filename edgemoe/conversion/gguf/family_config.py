"""Configs of GGUF architectures without windows by layer: what files say, and what llama.cpp assumes where they do not.

Each function gives the keys of a checkpoint's config that its architecture has beyond those that all have; those of
architectures with windows are in `windowed.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from edgemoe.architectures.dbrx import NORM_EPSILON as DBRX_EPSILON
from edgemoe.architectures.qwen3_5_moe import IN_TURN
from edgemoe.conversion.gguf.families import FAMILIES
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.gated import gated_config
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE as GATED
from edgemoe.conversion.gguf.grok import grok_1_config, grok_2_config
from edgemoe.conversion.gguf.keys import SIGMOID, Metadata
from edgemoe.conversion.gguf.names import MERGED_GATE_UP
from edgemoe.conversion.gguf.phimoe import phimoe_config
from edgemoe.kernels.row_types import block_columns


def family_config(metadata: Metadata, tensors: Mapping[str, GgufTensor], head_dim: int) -> dict[str, Any]:
    """Give the keys of the config that the family of this model has beyond those that all have. Raises SourceError."""
    has_bias = "blk.0.attn_q.bias" in tensors
    if metadata.architecture == "llama":
        metadata.value("expert_count")
        metadata.value("expert_used_count")
        return {"attention_bias": has_bias}
    used: dict[str, Any] = {"num_experts_per_tok": metadata.count("expert_used_count")}
    experts = metadata.count("expert_count")
    if metadata.architecture == "llama with experts":
        return used | {"num_local_experts": experts}
    if metadata.architecture in _OF_ARCHITECTURE:
        return used | {"attention_bias": has_bias} | _OF_ARCHITECTURE[metadata.architecture](metadata, tensors)
    if metadata.architecture == "lfm2moe":
        return used | {"num_experts": experts} | _lfm2_config(metadata, tensors)
    if FAMILIES[metadata.architecture].linear_layers:
        config = used | {"num_experts": experts} | _linear_config(metadata, tensors)
        return config | gated_config(metadata, tensors, config) if metadata.architecture == GATED else config
    if metadata.architecture == "gpt-oss":
        return used | {"num_local_experts": experts, "attention_bias": has_bias} | _gpt_oss_config(metadata)
    if metadata.architecture == "granitemoe":
        return used | {"num_local_experts": experts} | _granite_config(metadata, tensors, head_dim, has_bias)
    renormalises = FAMILIES[metadata.architecture].routing.normalise
    config = used | {
        "num_experts": experts,
        "norm_topk_prob": metadata.flag("expert_weights_norm", renormalises),
    }
    if metadata.architecture == "olmoe":
        # The width of an expert; some files have it under two keys.
        metadata.value("expert_feed_forward_length")
        return config | {"attention_bias": has_bias}
    config["moe_intermediate_size"] = expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
    if metadata.architecture == "qwen2moe":
        shared = expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
        return config | {"shared_expert_intermediate_size": shared, "qkv_bias": has_bias}
    return config | {"attention_bias": has_bias}


def _sigmoid_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of DeepSeek-V3's router. Files without a gating function mean sigmoid, as llama.cpp reads them."""
    if metadata.value("expert_gating_func", 0) not in (0, SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{SIGMOID} (sigmoid)", metadata.value("expert_gating_func"))
    return {
        "moe_intermediate_size": expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "n_group": metadata.count("expert_group_count", 0, minimum=0) or 1,
        "topk_group": metadata.count("expert_group_used_count", 0, minimum=0) or 1,
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, minimum=0),
    }


def _dots_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of dots.llm1."""
    return _sigmoid_config(metadata, tensors) | {
        "n_routed_experts": metadata.count("expert_count"),
        "n_shared_experts": metadata.count("expert_shared_count", 0, minimum=0),
    }


def _glm_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of GLM-4.5, and of Solar-Open under its name."""
    return _dots_config(metadata, tensors) | {"use_qk_norm": "blk.0.attn_q_norm.weight" in tensors}


def _ling_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Ling 2, and of Sarvam under its name. Programs count shared experts in different ways."""
    metadata.value("expert_shared_feed_forward_length")
    config = _sigmoid_config(metadata, tensors)
    return config | {
        "attention_bias": None,
        "use_qkv_bias": "blk.0.attn_qkv.bias" in tensors,
        "num_experts": metadata.count("expert_count"),
        "num_shared_experts": _shared_experts(metadata, tensors, config["moe_intermediate_size"]),
    }


def _hy3_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Hy3, of which any layer without a router is dense."""
    metadata.value("expert_shared_feed_forward_length")
    metadata.value("leading_dense_block_count")
    config = _sigmoid_config(metadata, tensors)
    if metadata.value("expert_weights_norm", True) is not True:
        raise metadata.wrong("expert_weights_norm", "true, or no such key", False)
    layers = metadata.count("block_count") - metadata.count("nextn_predict_layers", 0, minimum=0)
    return {
        "moe_intermediate_size": config["moe_intermediate_size"],
        "mlp_layer_types": [
            "sparse" if f"blk.{number}.ffn_gate_inp.weight" in tensors else "dense" for number in range(layers)
        ],
        "num_experts": metadata.count("expert_count"),
        "num_shared_experts": _shared_experts(metadata, tensors, config["moe_intermediate_size"]),
        "router_scaling_factor": config["routed_scaling_factor"],
    }


def _minimax_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of MiniMax-M2, whose weights are always normalised and not scaled."""
    width = _sigmoid_config(metadata, tensors)["moe_intermediate_size"]
    if metadata.value("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise metadata.wrong("expert_weights_scale", "1, or no such key", metadata.value("expert_weights_scale"))
    return {"num_local_experts": metadata.count("expert_count"), "intermediate_size": width, "attention_bias": None}


def _hunyuan_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Hunyuan-A13B: its shared expert is as wide as the others, and positions are stretched already."""
    width = expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
    shared = expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
    if shared != width:
        raise metadata.wrong("expert_shared_feed_forward_length", f"{width}, the width of an expert", shared)
    return {
        "intermediate_size": width,
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": None,
        "moe_topk": metadata.count("expert_used_count"),
    }


def _ernie_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of ERNIE 4.5. The width of shared experts that converters write is another one by accident."""
    metadata.value("expert_shared_feed_forward_length")
    width = expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
    return {
        "attention_bias": None,
        "moe_intermediate_size": width,
        "moe_num_experts": metadata.count("expert_count"),
        "moe_num_shared_experts": _shared_experts(metadata, tensors, width),
        "moe_k": metadata.count("expert_used_count"),
        "num_experts_per_tok": None,
        "moe_layer_start_index": metadata.count("leading_dense_block_count", 0, minimum=0),
        "moe_layer_interval": metadata.count("interleave_moe_layer_step", 1, minimum=0) or 1,
    }


def _deepseek_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of the first DeepSeekMoE, whose weights llama.cpp never normalises."""
    if metadata.value("expert_weights_norm", False) is not False:
        raise metadata.wrong("expert_weights_norm", "false, or no such key", True)
    return {
        "moe_intermediate_size": expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "n_routed_experts": metadata.count("expert_count"),
        "n_shared_experts": metadata.count("expert_shared_count", 0, minimum=0),
        "norm_topk_prob": False,
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, minimum=0),
        "head_dim": metadata.count("embedding_length") // metadata.count("attention.head_count"),
    }


def _dbrx_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of DBRX, whose config has objects for attention and experts; its norms have one epsilon."""
    epsilon = metadata.value("attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or not math.isclose(epsilon, DBRX_EPSILON, rel_tol=1e-6):
        raise metadata.wrong("attention.layer_norm_epsilon", f"{DBRX_EPSILON:g}", epsilon)
    width = metadata.count("feed_forward_length")
    if metadata.value("expert_feed_forward_length", width) != width:
        raise metadata.wrong("expert_feed_forward_length", f"{width}", metadata.value("expert_feed_forward_length"))
    if metadata.value("expert_weights_norm", True) is not True:
        raise metadata.wrong("expert_weights_norm", "true, or no such key", False)
    heads = metadata.count("attention.head_count")
    names = ("attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings")
    others = ("num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps")
    return dict.fromkeys((*names, *others)) | {
        "attn_config": {
            "clip_qkv": metadata.value("attention.clamp_kqv") or None,
            "kv_n_heads": metadata.count("attention.head_count_kv", heads),
        },
        "d_model": metadata.count("embedding_length"),
        "ffn_config": {
            "ffn_hidden_size": width,
            "moe_num_experts": metadata.count("expert_count"),
            "moe_top_k": metadata.count("expert_used_count"),
        },
        "max_seq_len": metadata.count("context_length"),
        "n_heads": heads,
        "n_layers": metadata.count("block_count"),
    }


_OF_ARCHITECTURE: dict[str, Callable[[Metadata, Mapping[str, GgufTensor]], dict[str, Any]]] = {
    "bailingmoe2": _ling_config,
    "dbrx": _dbrx_config,
    "deepseek": _deepseek_config,
    "dots1": _dots_config,
    "ernie4_5-moe": _ernie_config,
    "glm4moe": _glm_config,
    "grok": grok_1_config,
    "grok with a dense FFN": grok_2_config,
    "hunyuan-moe": _hunyuan_config,
    "hy_v3": _hy3_config,
    "minimax-m2": _minimax_config,
    "phimoe": phimoe_config,
}
"""The keys of a family beside those that all have, by architecture."""


def _shared_experts(metadata: Metadata, tensors: Mapping[str, GgufTensor], width: int) -> int:
    """How many experts of a width the shared FFN is, by its rows; 0 without one."""
    rows = next((t.shape[0] for name, t in tensors.items() if name.endswith(".ffn_gate_shexp.weight")), 0)
    if rows % width:
        raise metadata.wrong("expert_feed_forward_length", f"a part of {rows}, the rows of shared experts", width)
    return rows // width


def _lfm2_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of LFM2-MoE. Layers without key heads are convolutions; llama.cpp always normalises weights."""
    layers, dense = metadata.count("block_count"), metadata.count("leading_dense_block_count", 0, minimum=0)
    found = metadata.value("attention.head_count_kv")
    kv_heads = [found] * layers if isinstance(found, int) else found
    listed = isinstance(kv_heads, list) and len(kv_heads) == layers and all(type(count) is int for count in kv_heads)
    if not listed or len({*kv_heads} - {0}) != 1:
        raise metadata.wrong("attention.head_count_kv", f"one number of heads, or 0, for {layers} layers", found)
    if metadata.value("expert_gating_func") != SIGMOID:
        raise metadata.wrong("expert_gating_func", f"{SIGMOID} (sigmoid)", metadata.value("expert_gating_func"))
    if metadata.value("expert_weights_norm", True) is not True:
        raise metadata.wrong("expert_weights_norm", "true, or no such key", False)
    return {
        "rms_norm_eps": None,
        "norm_eps": metadata.value("attention.layer_norm_rms_epsilon"),
        "num_key_value_heads": max(kv_heads),
        "layer_types": ["full_attention" if count else "conv" for count in kv_heads],
        "moe_intermediate_size": expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "num_dense_layers": dense,
        "use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in tensors),
        "conv_L_cache": metadata.count("shortconv.l_cache"),
    }


def _linear_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Qwen3-Next and Qwen3.5. llama.cpp always normalises weights.

    Heads of values stay in turn where a block of the matrix after them has columns of several heads.
    """
    layers = metadata.count("block_count") - metadata.count("nextn_predict_layers", 0, minimum=0)
    interval = metadata.count("full_attention_interval", 4)
    linear = metadata.value("attention.recurrent_layers", [(number + 1) % interval > 0 for number in range(layers)])
    linear = [linear] * layers if isinstance(linear, bool) else linear
    if not isinstance(linear, list) or len(linear) < layers or not all(type(one) is bool for one in linear):
        raise metadata.wrong("attention.recurrent_layers", f"true or false for each of {layers} layers", linear)
    if metadata.value("expert_weights_norm", True) is not True:
        raise metadata.wrong("expert_weights_norm", "true, or no such key", False)
    metadata.value("rope.dimension_sections")  # of places in images; in text all channels rotate by the position
    heads, inner = metadata.count("ssm.time_step_rank"), metadata.count("ssm.inner_size")
    if inner % heads:
        raise metadata.wrong("ssm.inner_size", f"a multiple of {heads}, the number of heads", inner)
    family, of_out = FAMILIES[metadata.architecture], re.compile(r"blk\.\d+\.ssm_out\.weight")
    blocks = (block_columns(one.type_name) for name, one in tensors.items() if of_out.fullmatch(name))
    in_turn = family.heads_in_turn and any(inner // heads % columns for columns in blocks)
    config: dict[str, Any] = {
        "layer_types": ["linear_attention" if one else "full_attention" for one in linear[:layers]],
        "linear_conv_kernel_dim": metadata.count("ssm.conv_kernel"),
        "linear_key_head_dim": metadata.count("ssm.state_size"),
        "linear_num_key_heads": metadata.count("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": inner // heads,
        "moe_intermediate_size": expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "shared_expert_intermediate_size": expert_width(
            metadata, tensors, "expert_shared_feed_forward_length", "shexp"
        ),
    }
    config |= {IN_TURN: True} if in_turn else {}
    return config | ({"intermediate_size": None} if metadata.architecture == "qwen35moe" else {})


def _gpt_oss_config(metadata: Metadata) -> dict[str, Any]:
    """The keys of gpt-oss. Every second layer has the window, from the first on: llama.cpp, src/models/openai-moe.cpp.

    The limit and the factor of the activation are not in the file: llama.cpp has those of the published models.
    """
    layers = metadata.count("block_count")
    width, expert_width = metadata.count("feed_forward_length"), metadata.value("expert_feed_forward_length")
    if expert_width not in (None, width):
        raise metadata.wrong("feed_forward_length", f"the width of an expert, {expert_width!r:.20}", width)
    return {
        "layer_types": ["full_attention" if number % 2 else "sliding_attention" for number in range(layers)],
        "sliding_window": metadata.count("attention.sliding_window"),
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }


def _granite_config(
    metadata: Metadata, tensors: Mapping[str, GgufTensor], head_dim: int, has_bias: bool
) -> dict[str, Any]:
    if metadata.value("rope.scaling.finetuned", True) is not True:
        raise metadata.wrong("rope.scaling.finetuned", "true (rotary positions)", False)
    config: dict[str, Any] = {
        "attention_bias": has_bias,
        "attention_multiplier": metadata.value("attention.scale") or head_dim**-0.5,
        "embedding_multiplier": metadata.value("embedding_scale") or 1.0,
        "residual_multiplier": metadata.value("residual_scale") or 1.0,
        "logits_scaling": metadata.value("logit_scale") or 1.0,
    }
    if "blk.0.ffn_gate_shexp.weight" in tensors:
        width = expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
        config |= {"model_type": "granitemoeshared", "shared_intermediate_size": width}
    return config


def expert_width(metadata: Metadata, tensors: Mapping[str, GgufTensor], key: str, kind: str) -> int:
    """The expert width from the key, or from the rows of a gate in files older than the key."""
    suffixes = {f".ffn_gate_{kind}.weight": 1} | ({f".{MERGED_GATE_UP}": 2} if kind == "exps" else {})
    for name, tensor in tensors.items():
        matrices = next((number for suffix, number in suffixes.items() if name.endswith(suffix)), None)
        if matrices and len(tensor.shape) > 1:
            return metadata.count(key, tensor.shape[-2] // matrices or None)
    return metadata.count(key)
