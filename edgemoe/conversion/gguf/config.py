"""Translates a GGUF's metadata to the `config` of a checkpoint.

A metadata key of the model that is not read here is refused by name, unless its value leaves the computation unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.architectures import model_spec
from edgemoe.architectures.config import LARGEST_LAYERS, UNSUPPORTED
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.names import FAMILIES, MERGED_GATE_UP, ROPE_FACTORS, TAKE_ANOTHER
from edgemoe.conversion.gguf.windowed import WINDOWED, part_of
from edgemoe.errors import SourceError

_NO_EFFECT = frozenset({"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "expert_shared_count"})
"""Keys that repeat what the tensors determine, or that describe how the model was trained."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "moe_every_n_layers": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "use_parallel_residual": (False,),
}
"""Keys that change what a model computes, each with the values that leave the computation unchanged."""

_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
    "rope_theta": "rope.freq_base",
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "n_shared_experts": "expert_shared_count",
    "num_shared_experts": "expert_shared_count",
    "moe_num_shared_experts": "expert_shared_count",
    "moe_num_experts": "expert_count",
    "moe_k": "expert_used_count",
    "moe_topk": "expert_used_count",
    "moe_layer_start_index": "leading_dense_block_count",
    "moe_layer_interval": "interleave_moe_layer_step",
    "router_scaling_factor": "expert_weights_scale",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "routed_scaling_factor": "expert_weights_scale",
    "first_k_dense_replace": "leading_dense_block_count",
    "num_dense_layers": "leading_dense_block_count",
    "layer_types": "attention.head_count_kv",
    "conv_L_cache": "shortconv.l_cache",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "linear_value_head_dim": "ssm.inner_size",
    "full_attention_interval": "full_attention_interval",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "partial_rotary_factor": "rope.dimension_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "shared_intermediate_size": "expert_shared_feed_forward_length",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
"""The GGUF key that each config key comes from."""
_SIGMOID = 2
"""The gating function by which each expert is weighed by itself."""
_CONFIG_KEY = re.compile(r"(?<![\w.])(?:rope_(?:scaling|parameters)\.)?(" + "|".join(_KEYS) + r")\b")


class Metadata:
    """The metadata of one model, with a record of which keys have been read. Every method raises SourceError."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path, self._values = path, values
        self._seen: set[str] = set()
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise SourceError(f"{path}: general.architecture is missing; expected a language model.", TAKE_ANOTHER)
        self._prefix = architecture + "."
        self.architecture = architecture
        if architecture == "llama" and self.value("expert_count"):
            self.architecture = "llama with experts"
        if self.architecture not in FAMILIES:
            known = ", ".join(dict.fromkeys(name.partition(" ")[0] for name in FAMILIES))
            raise SourceError(
                f"{path}: general.architecture: expected one of {known}, found {architecture:.80}.",
                "edgemoe runs no other kinds of models: choose one of these.",
            )

    def value(self, key: str, default: Any = None) -> Any:
        """Value of a model key such as `block_count`. A list of equal numbers, one per layer, becomes one number."""
        self._seen.add(key)
        value = self._values.get(self._prefix + key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            return value[0]
        return value

    def count(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least `minimum`."""
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.wrong(key, "a whole number above 0" if minimum else "a whole number", value)
        return value

    def most(self, key: str, default: int | None = None) -> int:
        """A whole number, or the largest of a list with one for each layer."""
        value = self.value(key)
        if not isinstance(value, list):
            return self.count(key, default)
        if not all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in value):
            raise self.wrong(key, "whole numbers above 0", value)
        largest: int = max(value)
        return largest

    def wrong(self, key: str, expected: str, found: Any) -> SourceError:
        return SourceError(
            f"{self._path}: {self._prefix}{key}: expected {expected}, found {found!r:.80}.", TAKE_ANOTHER
        )

    def translated(self, error: SourceError) -> SourceError:
        """Rephrase an error about a config key in terms of the GGUF key that it was made from."""
        message = _CONFIG_KEY.sub(lambda match: self._prefix + _KEYS[match[1]], error.message)
        hint = error.hint if error.hint == UNSUPPORTED else TAKE_ANOTHER
        return SourceError(f"{self._path}: {message.removeprefix('config.json: ')}", hint)

    def finish(self) -> None:
        """Refuse every model key that was not read, unless its value leaves the computation unchanged."""
        for name, value in self._values.items():
            key = name.removeprefix(self._prefix)
            if key == name or key in self._seen or key in _NO_EFFECT:
                continue
            if value not in _NEUTRAL.get(key, ()):
                wanted = " or ".join(map(str, _NEUTRAL[key])) if key in _NEUTRAL else "no such key"
                raise self.wrong(key, wanted, value)


def checkpoint_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """Build the config of this model's checkpoint from the metadata and the tensors present."""
    windowed = metadata.architecture in WINDOWED
    count_heads = metadata.most if windowed else metadata.count
    heads = count_heads("attention.head_count")
    width = metadata.count("embedding_length")
    head_dim = metadata.count("attention.key_length", width // heads or None)
    family = FAMILIES[metadata.architecture]
    rotated = metadata.count("rope.dimension_count", head_dim)
    whole = {} if family.value_width else {"attention.value_length": metadata.count("attention.value_length", head_dim)}
    for key, found in (whole if family.partial_rotation else whole | {"rope.dimension_count": rotated}).items():
        if found != head_dim:
            raise metadata.wrong(key, f"{head_dim}, the width of a head", found)
    further = metadata.count("nextn_predict_layers", 0, minimum=0)
    layers = metadata.count("block_count")
    if layers > LARGEST_LAYERS:  # before anything is listed layer by layer
        raise metadata.wrong("block_count", f"at most {LARGEST_LAYERS}", layers)
    if further >= layers:
        raise metadata.wrong("nextn_predict_layers", f"fewer than all {layers} layers", further)
    embedding = tensors.get("token_embd.weight")
    config = {
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0] if embedding else metadata.count("vocab_size"),
        "hidden_size": width,
        "intermediate_size": metadata.count("feed_forward_length", 1 if family.linear_layers else None),
        "num_hidden_layers": layers - further,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if family.convolutions else count_heads("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.count("context_length"),
        "rms_norm_eps": metadata.value("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.value("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if family.partial_rotation:
        config["partial_rotary_factor"] = part_of(rotated, head_dim)
    factors = None if family.proportional else tensors.get(ROPE_FACTORS)
    scaling = _rope_scaling(metadata, rotated, config["rope_theta"], factors)
    window = metadata.value("attention.sliding_window", 0)
    if metadata.architecture == "gpt-oss":
        scaling = scaling or {"rope_type": "default"}  # its configs always say
    config |= {"rope_scaling": scaling} if scaling else {}
    config |= {"sliding_window": window} if window else {}
    if windowed:
        config |= WINDOWED[metadata.architecture](metadata, tensors, config)
    else:
        config |= _family_config(metadata, tensors, head_dim)
    metadata.finish()
    try:
        model_spec(config)
    except SourceError as error:
        raise metadata.translated(error) from None
    return config


def _family_config(metadata: Metadata, tensors: Mapping[str, GgufTensor], head_dim: int) -> dict[str, Any]:
    has_bias = "blk.0.attn_q.bias" in tensors
    if metadata.architecture == "llama":
        metadata.value("expert_count")
        metadata.value("expert_used_count")
        return {"attention_bias": has_bias}
    used = {"num_experts_per_tok": metadata.count("expert_used_count")}
    experts = metadata.count("expert_count")
    if metadata.architecture == "llama with experts":
        return used | {"num_local_experts": experts}
    if metadata.architecture in _OF_ARCHITECTURE:
        return used | {"attention_bias": has_bias} | _OF_ARCHITECTURE[metadata.architecture](metadata, tensors)
    if metadata.architecture == "lfm2moe":
        return used | {"num_experts": experts} | _lfm2_config(metadata, tensors)
    if FAMILIES[metadata.architecture].linear_layers:
        return used | {"num_experts": experts} | _linear_config(metadata, tensors)
    if metadata.architecture == "gpt-oss":
        return used | {"num_local_experts": experts, "attention_bias": has_bias} | _gpt_oss_config(metadata)
    if metadata.architecture == "granitemoe":
        return used | {"num_local_experts": experts} | _granite_config(metadata, tensors, head_dim, has_bias)
    renormalises = metadata.architecture == "qwen3moe"
    config: dict[str, Any] = used | {
        "num_experts": experts,
        "norm_topk_prob": bool(metadata.value("expert_weights_norm", renormalises)),
    }
    if metadata.architecture == "olmoe":
        # The width of an expert; some files have it under two keys.
        metadata.value("expert_feed_forward_length")
        return config | {"attention_bias": has_bias}
    config["moe_intermediate_size"] = _expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
    if metadata.architecture == "qwen2moe":
        shared = _expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
        return config | {"shared_expert_intermediate_size": shared, "qkv_bias": has_bias}
    return config | {"attention_bias": has_bias}


def _sigmoid_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of DeepSeek-V3's router. Files without a gating function mean sigmoid, as llama.cpp reads them."""
    if metadata.value("expert_gating_func", 0) not in (0, _SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{_SIGMOID} (sigmoid)", metadata.value("expert_gating_func"))
    return {
        "moe_intermediate_size": _expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "n_group": metadata.count("expert_group_count", 0, minimum=0) or 1,
        "topk_group": metadata.count("expert_group_used_count", 0, minimum=0) or 1,
        "norm_topk_prob": bool(metadata.value("expert_weights_norm", False)),
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
    width = _expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
    shared = _expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
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
    width = _expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
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
        "moe_intermediate_size": _expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "n_routed_experts": metadata.count("expert_count"),
        "n_shared_experts": metadata.count("expert_shared_count", 0, minimum=0),
        "norm_topk_prob": False,
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, minimum=0),
        "head_dim": metadata.count("embedding_length") // metadata.count("attention.head_count"),
    }


_OF_ARCHITECTURE: dict[str, Callable[[Metadata, Mapping[str, GgufTensor]], dict[str, Any]]] = {
    "bailingmoe2": _ling_config,
    "deepseek": _deepseek_config,
    "dots1": _dots_config,
    "ernie4_5-moe": _ernie_config,
    "glm4moe": _glm_config,
    "hunyuan-moe": _hunyuan_config,
    "hy_v3": _hy3_config,
    "minimax-m2": _minimax_config,
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
    if metadata.value("expert_gating_func") != _SIGMOID:
        raise metadata.wrong("expert_gating_func", f"{_SIGMOID} (sigmoid)", metadata.value("expert_gating_func"))
    if metadata.value("expert_weights_norm", True) is not True:
        raise metadata.wrong("expert_weights_norm", "true, or no such key", False)
    return {
        "rms_norm_eps": None,
        "norm_eps": metadata.value("attention.layer_norm_rms_epsilon"),
        "num_key_value_heads": max(kv_heads),
        "layer_types": ["full_attention" if count else "conv" for count in kv_heads],
        "moe_intermediate_size": _expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "num_dense_layers": dense,
        "use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in tensors),
        "conv_L_cache": metadata.count("shortconv.l_cache"),
    }


def _linear_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Qwen3-Next and Qwen3.5. llama.cpp always normalises weights."""
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
    config: dict[str, Any] = {
        "layer_types": ["linear_attention" if one else "full_attention" for one in linear[:layers]],
        "linear_conv_kernel_dim": metadata.count("ssm.conv_kernel"),
        "linear_key_head_dim": metadata.count("ssm.state_size"),
        "linear_num_key_heads": metadata.count("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": inner // heads,
        "moe_intermediate_size": _expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "shared_expert_intermediate_size": _expert_width(
            metadata, tensors, "expert_shared_feed_forward_length", "shexp"
        ),
    }
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
        width = _expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
        config |= {"model_type": "granitemoeshared", "shared_intermediate_size": width}
    return config


def _expert_width(metadata: Metadata, tensors: Mapping[str, GgufTensor], key: str, kind: str) -> int:
    """The expert width from the key, or from the rows of a gate in files older than the key."""
    suffixes = {f".ffn_gate_{kind}.weight": 1} | ({f".{MERGED_GATE_UP}": 2} if kind == "exps" else {})
    for name, tensor in tensors.items():
        matrices = next((number for suffix, number in suffixes.items() if name.endswith(suffix)), None)
        if matrices and len(tensor.shape) > 1:
            return metadata.count(key, tensor.shape[-2] // matrices or None)
    return metadata.count(key)


def _rope_scaling(metadata: Metadata, rotated: int, theta: Any, factors: GgufTensor | None) -> dict[str, Any] | None:
    kind = metadata.value("rope.scaling.type", "none")
    factor = metadata.value("rope.scaling.factor")
    original = metadata.value("rope.scaling.original_context_length")
    if kind == "linear" and not factors:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and not factors:
        betas = {
            name: value
            for name in ("beta_fast", "beta_slow")
            if (value := metadata.value(f"rope.scaling.yarn_{name}")) is not None
        }
        # Files do not say whether the ends of the ramp are rounded; those of gpt-oss never are.
        rounded = {"truncate": False} if metadata.architecture == "gpt-oss" else {}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas, **rounded}
    if kind != "none":
        raise metadata.wrong("rope.scaling.type", "none, linear or yarn", kind)
    if factors is None:
        return None
    return _llama3_scaling(metadata, rotated, theta, factors)


def _llama3_scaling(metadata: Metadata, rotated: int, theta: Any, factors: GgufTensor) -> dict[str, Any] | None:
    """Reconstruct the `llama3` rule from its effect, the only form in which the file stores it.

    The file divides each frequency by a factor: 1 for short wavelengths, `factor` for long ones, a blend in between.
    The bounds of the blend must be those of every published model (1, 4 and 8192); any others are refused.
    """
    if factors.shape != (rotated // 2,) or factors.type_name != "F32":
        raise SourceError(
            f"{factors.path}: {ROPE_FACTORS}: expected {rotated // 2} F32 values, "
            f"found {factors.shape} of {factors.type_name}.",
            TAKE_ANOTHER,
        )
    found = factors.read(0, 1).view("<f4")[0].astype(np.float64)
    factor = float(found.max())
    if factor == 1.0 and found.min() == 1.0:
        return None
    low, high, original = 1.0, 4.0, 8192
    if not isinstance(theta, float):
        raise metadata.wrong("rope.freq_base", "a number", theta)
    with np.errstate(all="ignore"):
        wavelengths = 2 * np.pi * theta ** (np.arange(0, rotated, 2) / rotated)
        blend = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
        expected = 1 / ((1 - blend) / factor + blend)
    if not np.allclose(found, expected, rtol=1e-4):
        raise SourceError(
            f"{factors.path}: {ROPE_FACTORS}: expected the factors of the llama3 rule (1, 4, 8192), found others.",
            TAKE_ANOTHER,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
