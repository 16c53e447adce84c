"""The metadata of a GGUF's model by key: checked values, errors that name the key, and which keys were read.

A metadata key of the model that is not read is refused by name, unless its value leaves the computation unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemoe.architectures.config import UNSUPPORTED
from edgemoe.conversion.gguf.families import FAMILIES
from edgemoe.conversion.gguf.names import TAKE_ANOTHER
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
    "d_model": "embedding_length",
    "n_heads": "attention.head_count",
    "kv_n_heads": "attention.head_count_kv",
    "n_layers": "block_count",
    "max_seq_len": "context_length",
    "clip_qkv": "attention.clamp_kqv",
    "ffn_hidden_size": "feed_forward_length",
    "moe_top_k": "expert_used_count",
    "intermediate_size_mlp": "feed_forward_length",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "n_shared_experts": "expert_shared_count",
    "num_shared_experts": "expert_shared_count",
    "moe_num_shared_experts": "expert_shared_count",
    "moe_num_experts": "expert_count",
    "moe_k": "expert_used_count",
    "moe_topk": "expert_used_count",
    "moe_ffn_hidden_size": "expert_feed_forward_length",
    "moe_router_scaling_factor": "expert_weights_scale",
    "num_attention_groups": "attention.head_count_kv",
    "share_expert_dim": "expert_shared_feed_forward_length",
    "swiglu_limits": "swiglu_clamp_exp",
    "swiglu_limits_shared": "swiglu_clamp_shexp",
    "moe_num_active_primary_experts": "expert_used_count",
    "moe_num_primary_experts": "expert_count",
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
    "conv_kernel": "ssm.conv_kernel",
    "mamba_d_conv": "ssm.conv_kernel",
    "mamba_d_head": "ssm.inner_size",
    "mamba_d_state": "ssm.state_size",
    "mamba_dt_rank": "ssm.time_step_rank",
    "mamba_expand": "ssm.inner_size",
    "mamba_head_dim": "ssm.inner_size",
    "mamba_n_groups": "ssm.group_count",
    "mamba_n_heads": "ssm.time_step_rank",
    "mamba_num_heads": "ssm.time_step_rank",
    "moe_latent_size": "moe_latent_size",
    "moe_shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "n_groups": "ssm.group_count",
    "ssm_state_size": "ssm.state_size",
    "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "prefix_dense_intermediate_size": "feed_forward_length",
    "compress_ratios": "attention.compress_ratios",
    "compress_rope_theta": "attention.compress_rope_freq_base",
    "hc_count": "hyper_connection.count",
    "hc_lowrank": "hyper_connection.low_rank",
    "hc_eps": "hyper_connection.epsilon",
    "hc_mult": "hyper_connection.count",
    "hc_sinkhorn_iters": "hyper_connection.sinkhorn_iterations",
    "index_head_dim": "attention.indexer.key_length",
    "index_n_heads": "attention.indexer.head_count",
    "indexer_budget": "attention.indexer.top_k",
    "indexer_compress_ratio": "attention.compress_ratios",
    "indexer_head_dim": "attention.indexer.key_length",
    "indexer_n_heads": "attention.indexer.head_count",
    "eos_token_id": "ple.eos_token_id",
    "ple_conv_kernel_size": "ple.conv_kernel",
    "ple_layer_ids": "ple.layers",
    "index_topk": "attention.indexer.top_k",
    "num_hash_layers": "hash_layer_count",
    "o_groups": "attention.output_group_count",
    "o_lora_rank": "attention.output_lora_rank",
    "swiglu_limit": "swiglu_clamp_exp",
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
    "qk_nope_head_dim": "attention.key_length_mla",
    "qk_rope_head_dim": "rope.dimension_count",
    "v_head_dim": "attention.value_length_mla",
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
    "attn_output_multiplier": "attention.output_scale",
    "attn_temperature_len": "attention.temperature_length",
    "embedding_multiplier_scale": "embedding_scale",
    "max_attn_value": "attn_logit_softcapping",
    "output_multiplier_scale": "logit_scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
"""The GGUF key that each config key comes from."""
SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4
"""The gating functions: by which experts share, or by which each is weighed by itself."""
_CONFIG_KEY = re.compile(r"(?<![\w.])(?:rope_(?:scaling|parameters)\.)?(" + "|".join(_KEYS) + r")\b")


class Metadata:
    """The metadata of one model, with a record of which keys have been read. Every method raises SourceError."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self._values = path, values
        self._seen: set[str] = set()
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise SourceError(f"{path}: general.architecture is missing; expected a language model.", TAKE_ANOTHER)
        self._prefix = architecture + "."
        self.architecture = architecture
        if architecture == "llama" and self.value("expert_count"):
            self.architecture = "llama with experts"
        elif architecture == "grok" and self.value("expert_feed_forward_length"):
            self.architecture = "grok with a dense FFN"
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

    def number(self, key: str) -> float:
        """A number, whole or not."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def most(self, key: str, default: int | None = None) -> int:
        """A whole number, or the largest of a list with one for each layer."""
        value = self.value(key)
        if not isinstance(value, list):
            return self.count(key, default)
        if not value or not all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in value):
            raise self.wrong(key, "whole numbers above 0", value)
        largest: int = max(value)
        return largest

    def wrong(self, key: str, expected: str, found: Any) -> SourceError:
        shown = "none" if found is None else f"{found!r:.80}"
        return SourceError(f"{self.path}: {self._prefix}{key}: expected {expected}, found {shown}.", TAKE_ANOTHER)

    def translated(self, error: SourceError) -> SourceError:
        """Rephrase an error about a config key in terms of the GGUF key that it was made from."""
        message = _CONFIG_KEY.sub(lambda match: self._prefix + _KEYS[match[1]], error.message)
        hint = error.hint if error.hint == UNSUPPORTED else TAKE_ANOTHER
        return SourceError(f"{self.path}: {message.removeprefix('config.json: ')}", hint)

    def finish(self) -> None:
        """Refuse every model key that was not read, unless its value leaves the computation unchanged."""
        for name, value in self._values.items():
            key = name.removeprefix(self._prefix)
            if key == name or key in self._seen or key in _NO_EFFECT:
                continue
            if value not in _NEUTRAL.get(key, ()):
                wanted = " or ".join(map(str, _NEUTRAL[key])) if key in _NEUTRAL else "no such key"
                raise self.wrong(key, wanted, value)
