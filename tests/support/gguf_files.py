"""Writes a checkpoint of ours as a GGUF, as converters to that format do. Names come from the package `gguf`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

from edgemoe.conversion.random_blocks import draw_blocks
from edgemoe.kernels.file_rows import encode_rows
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.row_types import ROW_TYPES
from tests.support.small_tokenizer import small_tokenizer

Tensors = Mapping[str, np.ndarray[Any, Any]]

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "bailing_moe_v2": gguf.MODEL_ARCH.BAILINGMOE2,
    "deepseek": gguf.MODEL_ARCH.DEEPSEEK,
    "git": gguf.MODEL_ARCH.GROK,
    "grok-1": gguf.MODEL_ARCH.GROK,
    "phimoe": gguf.MODEL_ARCH.PHIMOE,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v32": gguf.MODEL_ARCH.GLM_DSA,  # the package does not know it yet; these tensors have the same names
    "glm_moe_dsa": gguf.MODEL_ARCH.GLM_DSA,
    "dots1": gguf.MODEL_ARCH.DOTS1,
    "ernie4_5_moe": gguf.MODEL_ARCH.ERNIE4_5_MOE,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "hunyuan_v1_moe": gguf.MODEL_ARCH.HUNYUAN_MOE,
    "hy_v3": gguf.MODEL_ARCH.DOTS1,  # the package does not know it yet; these tensors have the same names
    "minimax_m2": gguf.MODEL_ARCH.MINIMAXM2,
    "mistral4": gguf.MODEL_ARCH.MISTRAL4,
    "lfm2_moe": gguf.MODEL_ARCH.LFM2MOE,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "granitemoe": gguf.MODEL_ARCH.GRANITE_MOE,
    "granitemoeshared": gguf.MODEL_ARCH.GRANITE_MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_5_moe": gguf.MODEL_ARCH.QWEN35MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT,
}
NAMES = {"deepseek_v32": "deepseek32", "hy_v3": "hy_v3"}
"""Names of architectures that the package does not know."""
LINEAR = {"qwen3_5_moe", "qwen3_next"}
INTERLEAVED = {"deepseek", "llama", "mixtral", "granitemoe", "granitemoeshared"}
_SIGMOID = 2
_BIASES = ("e_score_correction_bias", "expert_bias")
_EXPERT = re.compile(r"(model\.layers\.(\d+)\..*experts)\.(\d+)\.(\w+)\.(weight|bias)")
_MATRICES = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def gguf_tensors(config: Mapping[str, Any], tensors: Tensors, *, stacked: bool = True) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint under their GGUF names, query and key rows in the order of the family.

    Without `stacked` each expert has tensors of its own, as files of 2023 and 2024 have.
    """
    family = config["model_type"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], config["num_hidden_layers"])
    out: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    if family in LINEAR:
        tensors = _with_linear_layers(config, tensors)
    for name, values in tensors.items():
        layer = int(match[1]) if (match := re.search(r"layers\.(\d+)", name)) else None
        if family in INTERLEAVED and re.search(r"self_attn\.[qk]_proj", name):
            heads = config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
            values = np.stack(np.split(values.reshape(heads, -1, *values.shape[1:]), 2, axis=1), axis=2)
            values = values.reshape(-1, *values.shape[3:])
        if match := _EXPERT.fullmatch(name):
            if stacked:
                stack = experts.setdefault(f"blk.{match[2]}.ffn_{_MATRICES[match[4]]}_exps.{match[5]}", {})
                stack[int(match[3])] = values
            else:
                out[f"blk.{match[2]}.ffn_{_MATRICES[match[4]]}.{match[3]}.{match[5]}"] = values
        elif "input_linear" in name:
            kind = "shexp" if "shared" in name else "exps"
            gate, up = np.split(values, 2, axis=-2)
            out[f"blk.{layer}.ffn_gate_{kind}.weight"], out[f"blk.{layer}.ffn_up_{kind}.weight"] = gate, up
        elif "output_linear" in name:
            out[f"blk.{layer}.ffn_down_{'shexp' if 'shared' in name else 'exps'}.weight"] = values
        elif name.endswith("kv_b_proj.weight"):
            out |= expansion_of_heads(config, f"blk.{layer}.", values)
        elif name.startswith("blk."):
            out[name] = values
        elif name.endswith("conv.conv.weight"):
            out[f"blk.{layer}.shortconv.conv.weight"] = values[:, 0]
        elif name.endswith(_BIASES):
            out[f"blk.{layer}.exp_probs_b{'' if family == 'hy_v3' else '.bias'}"] = values.reshape(-1)
        elif name.endswith("mlp.router.gate.weight"):
            out[f"blk.{layer}.ffn_gate_inp.weight"] = values
        elif name.endswith("sinks"):
            out[f"blk.{layer}.attn_sinks.weight"] = values
        elif "shared_expert_gate" in name:
            out[f"blk.{layer}.ffn_gate_inp_shexp.weight"] = values[0]
        else:
            stem, _, suffix = name.rpartition(".")
            out[f"{names.get_name(stem) or stem}.{suffix}"] = values
    out |= {name: np.stack([stack[number] for number in sorted(stack)]) for name, stack in experts.items()}
    return out


def expansion_of_heads(config: Mapping[str, Any], layer: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The two parts of what latents are expanded with, a matrix for each head; that of keys is transposed."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    own = values.reshape(heads, -1, values.shape[1])
    keys, head_values = own[:, :nope], own[:, nope:]
    return {
        f"{layer}attn_k_b.weight": np.ascontiguousarray(keys.swapaxes(1, 2)),
        f"{layer}attn_v_b.weight": np.ascontiguousarray(head_values),
    }


def _with_linear_layers(config: Mapping[str, Any], tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors with norms of 1 + weight, and those of linear layers under their GGUF names and in their order."""
    key_heads, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_dim, value_dim = config["linear_key_head_dim"], config["linear_value_head_dim"]
    in_turn = config["model_type"] == "qwen3_5_moe"

    def turned(values: np.ndarray, width: int) -> np.ndarray:
        """Heads along the first dimension: those of a key head together become the first of each, the second ..."""
        if not in_turn:
            return values
        apart = values.reshape(key_heads, heads // key_heads, width, *values.shape[1:])
        return np.ascontiguousarray(apart.swapaxes(0, 1)).reshape(values.shape)

    def channels(values: np.ndarray) -> np.ndarray:
        first = 2 * key_heads * key_dim
        return np.concatenate([values[:first], turned(values[first:], value_dim)])

    changed: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        name = name.replace("language_model.", "")
        stem, _, part = name.partition(".linear_attn.")
        layer = f"blk.{stem.rpartition('.')[2]}."
        if not part:
            changed[name] = values + np.float32(1) if name.endswith("norm.weight") else values
        elif part == "in_proj_qkvz.weight":
            pattern = np.split(
                values.reshape(key_heads, -1, values.shape[1]),
                np.cumsum([key_dim, key_dim, heads // key_heads * value_dim]),
                axis=1,
            )
            query, key, value, gate = (block.reshape(-1, values.shape[1]) for block in pattern)
            changed[layer + "attn_qkv.weight"] = np.concatenate([query, key, value])
            changed[layer + "attn_gate.weight"] = gate
        elif part == "in_proj_ba.weight":
            changed[layer + "ssm_ba.weight"] = values
        elif part == "in_proj_qkv.weight":
            changed[layer + "attn_qkv.weight"] = channels(values)
        elif part == "in_proj_z.weight":
            changed[layer + "attn_gate.weight"] = turned(values, value_dim)
        elif part in ("in_proj_b.weight", "in_proj_a.weight"):
            changed[layer + f"ssm_{'beta' if '_b.' in part else 'alpha'}.weight"] = turned(values, 1)
        elif part == "conv1d.weight":
            changed[layer + "ssm_conv1d.weight"] = channels(values[:, 0])
        elif part == "A_log":
            changed[layer + "ssm_a"] = turned(-np.exp(values.astype(np.float64)).astype(np.float32), 1)
        elif part == "dt_bias":
            changed[layer + "ssm_dt.bias"] = turned(values, 1)
        elif part == "norm.weight":
            changed[layer + "ssm_norm.weight"] = values
        else:
            assert part == "out_proj.weight"
            changed[layer + "ssm_out.weight"] = np.ascontiguousarray(turned(values.T, value_dim).T)
    return changed


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    kinds: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    stacked: bool = True,
    merged: bool = False,
    files: int = 1,
    beside: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF of a checkpoint. `kinds` gives the type of matrices whose GGUF name matches a pattern, else F32.

    `metadata` adds or replaces keys without their prefix, or removes them where the value is None. With `merged`, gate
    and up of the experts of a layer are one tensor. `beside` are more tensors, by their names in the file. Returns the
    path of the (first) file.
    """
    family = config["model_type"]
    prefix = NAMES.get(family, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]])
    values = {f"{prefix}.{key}": value for key, value in (_metadata(config) | dict(metadata or {})).items()}
    values |= tokenizer_metadata(small_tokenizer(), "gpt-2") if tokenizer is None else dict(tokenizer)
    named = gguf_tensors(config, tensors, stacked=stacked) | dict(beside or {})
    if merged:
        for gate in [name for name in named if name.endswith("ffn_gate_exps.weight")]:
            halves = [named.pop(gate), named.pop(gate.replace("gate", "up"))]
            named[gate.replace("gate", "gate_up")] = np.concatenate(halves, axis=1)
    writer = gguf.GGUFWriter(path, prefix, split_max_tensors=0 if files == 1 else -(-len(named) // files))
    for key, value in values.items():
        _add(writer, key, value)
    for name, array in named.items():
        kind = next((kind for pattern, kind in (kinds or {}).items() if re.search(pattern, name)), "F32")
        plain = array.ndim == 1 or name.endswith(("bias", "exp_probs_b", "shortconv.conv.weight", "ssm_conv1d.weight"))
        kind = "F32" if plain else kind
        data = np.ascontiguousarray(array.astype(np.float32))
        if kind == "F16":
            writer.add_tensor(name, data.astype(np.float16))
        elif kind == "F32":
            writer.add_tensor(name, data)
        else:  # as bytes with a sign: the writer takes others for numbers, whose types it must know
            blocks = blocks_of(name, data, kind)
            number: Any = ROW_TYPES[kind].number if kind in ROW_TYPES else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, blocks.view(np.int8), raw_shape=data.shape, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if files == 1 else sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]


def blocks_of(name: str, values: np.ndarray, kind: str) -> np.ndarray:
    """The blocks of values as bytes; for types that `gguf` does not quantise to, those of random values like them."""
    try:
        return np.asarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]))
    except (KeyError, NotImplementedError):
        columns = values.shape[-1]
        fmt = FORMATS[ROW_TYPES[kind].twin]
        drawn = draw_blocks(name, slice(0, values.size // columns), columns, float(values.std()), fmt)
        return encode_rows(drawn).reshape(*values.shape[:-1], -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    adders = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        adders[type(value)](key, value)


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, width, family = config["num_attention_heads"], config["hidden_size"], config["model_type"]
    experts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    expert_width = config.get("moe_intermediate_size")
    if family in ("minimax_m2", "hunyuan_v1_moe"):
        expert_width = config["intermediate_size"]
    shared = next((config[key] for key in ("num_shared_experts", "moe_num_shared_experts") if key in config), 0)
    head_width = config.get("head_dim") or width // heads
    values: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": width,
        "feed_forward_length": config.get("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": [
            0 if kind == "conv" else config["num_key_value_heads"] for kind in config["layer_types"]
        ]
        if "conv_L_cache" in config
        else config["num_key_value_heads"],
        "attention.key_length": head_width,
        "attention.value_length": head_width,
        "attention.layer_norm_rms_epsilon": float(config.get("norm_eps") or config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": int(head_width * config.get("partial_rotary_factor", 1)),
        "vocab_size": config["vocab_size"],
        "expert_count": next((config[key] for key in experts if key in config), None),
        "expert_shared_count": config.get("n_shared_experts"),
        "expert_group_count": config.get("n_group"),
        "expert_group_used_count": config.get("topk_group"),
        "expert_weights_scale": config.get("routed_scaling_factor", config.get("router_scaling_factor")),
        "expert_weights_norm": True if family in ("bailing_moe_v2", "hy_v3") else None,
        "expert_gating_func": _SIGMOID if family in ("lfm2_moe", "minimax_m2") else None,
        "leading_dense_block_count": next(
            (
                config[key]
                for key in ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
                if key in config
            ),
            None,
        ),
        "interleave_moe_layer_step": config.get("moe_layer_interval"),
        "shortconv.l_cache": config.get("conv_L_cache"),
        "expert_used_count": config.get("num_experts_per_tok", config.get("moe_topk", config.get("moe_k"))),
        "expert_feed_forward_length": expert_width,
        "attention.sliding_window": config.get("sliding_window"),
        "expert_shared_feed_forward_length": config.get(
            "shared_intermediate_size",
            config.get("shared_expert_intermediate_size", shared * (expert_width or 0) or None),
        ),
        "attention.scale": config.get("attention_multiplier"),
        "embedding_scale": config.get("embedding_multiplier"),
        "residual_scale": config.get("residual_multiplier"),
        "logit_scale": config.get("logits_scaling"),
    }
    if config["model_type"] in LINEAR:
        heads = config["linear_num_value_heads"]
        values |= {
            "full_attention_interval": config["full_attention_interval"],
            "ssm.conv_kernel": config["linear_conv_kernel_dim"],
            "ssm.group_count": config["linear_num_key_heads"],
            "ssm.inner_size": heads * config["linear_value_head_dim"],
            "ssm.state_size": config["linear_key_head_dim"],
            "ssm.time_step_rank": heads,
        }
    if "kv_lora_rank" in config:
        latent, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
        values |= {
            "attention.head_count_kv": 1,
            "attention.key_length": latent + rotated,
            "attention.value_length": latent,
            "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
            "attention.value_length_mla": config["v_head_dim"],
            "attention.kv_lora_rank": latent,
            "attention.q_lora_rank": config.get("q_lora_rank"),
            "expert_gating_func": 1 if family in ("deepseek_v2", "mistral4") else _SIGMOID,
            "expert_weights_norm": config.get("norm_topk_prob"),
            "rope.dimension_count": rotated,
        }
        if "rope_scaling" in config:
            values["rope.scaling.yarn_log_multiplier"] = 0.1 * config["rope_scaling"]["mscale_all_dim"]
        if "index_topk" in config:
            values["attention.indexer.head_count"] = config["index_n_heads"]
            values["attention.indexer.key_length"] = config["index_head_dim"]
            values["attention.indexer.top_k"] = config["index_topk"]
        if family == "mistral4":
            values["attention.temperature_scale"] = config["rope_scaling"]["llama_4_scaling_beta"]
            values["attention.temperature_length"] = config["rope_scaling"]["original_max_position_embeddings"]
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "yarn":
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling["factor"],
            "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        }
    return {key: value for key, value in values.items() if value is not None}


def tokenizer_metadata(tokenizer: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    """Metadata of a byte-level BPE tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 4 if token in added else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
    }
