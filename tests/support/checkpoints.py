"""Random checkpoints as Hugging Face writes them, of any family and size, made a few rows at a time."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edgemoe.architectures import checkpoint_shapes
from edgemoe.store.headers import build_header

SMALL_MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
"""Two layers; the FFN width and the vocabulary fill neither their last panel nor their last group."""

SMALL_LFM2: dict[str, Any] = {
    "model_type": "lfm2_moe",
    "hidden_size": 72,
    "intermediate_size": 56,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 5,
    "layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"],
    "num_dense_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "conv_L_cache": 3,
    "vocab_size": 193,
    "max_position_embeddings": 512,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
}
"""Four layers of 10 experts, and a dense one before them; three layers have a convolution in the place of attention."""

SMALL_QWEN: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 72,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "head_dim": 16,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "shared_expert_intermediate_size": 24,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "vocab_size": 193,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
}
"""Four layers of 10 experts; three have Gated DeltaNet in the place of attention, whose output has a gate."""

SMALL_QWEN4: dict[str, Any] = SMALL_QWEN | {
    "model_type": "qwen4_exp_text",
    "hc_count": 3,
    "hc_lowrank": 10,
    "ple_layer_ids": [1, 3],
    "ple_embed_dim": 48,
    "ngram_vocab_size_base": 70,
    "heads_per_ngram": 3,
    "split_ngram_parts": 3,
    "eos_token_id": 3,
    "indexer_n_heads": 5,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 20,
    "indexer_budget": 24,
    "indexer_compress_ratio": 4,
}
"""The same with three residual streams, tables before two layers, and attention that chooses 6 blocks of 4 tokens."""

SMALL_SWITCH: dict[str, Any] = {
    "model_type": "switch_transformers",
    "d_model": 72,
    "d_kv": 16,
    "d_ff": 40,
    "num_heads": 6,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 3,
    "num_experts": 10,
    "expert_capacity": 8,
    "vocab_size": 193,
    "n_positions": 256,
    "decoder_start_token_id": 0,
}
"""An encoder with a layer of 10 experts, which small inputs fill, and a decoder with three."""

SMALL_NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hidden_size": 72,
    "layers_block_type": ["linear_attention", "moe", "linear_attention", "full_attention", "moe", "mlp"],
    "head_dim": 16,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "n_routed_experts": 10,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "moe_latent_size": 48,
    "moe_shared_expert_intermediate_size": 24,
    "mamba_num_heads": 6,
    "mamba_head_dim": 20,
    "n_groups": 2,
    "ssm_state_size": 12,
    "vocab_size": 193,
    "max_position_embeddings": 512,
    "layer_norm_epsilon": 1e-5,
}
"""Layers of one block each: two of Mamba-2, two of 10 experts on latent rows, one of attention, and an FFN
without a gate."""
SMALL_JAMBA: dict[str, Any] = {
    "model_type": "jamba",
    "attn_layer_offset": 1,
    "attn_layer_period": 3,
    "hidden_size": 72,
    "intermediate_size": 40,
    "mamba_d_state": 12,
    "mamba_dt_rank": 6,
    "max_position_embeddings": 512,
    "num_attention_heads": 6,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 193,
}
"""Three layers of Mamba-1 and one of attention; every second one has 10 experts."""
SMALL_LONGCAT: dict[str, Any] = {
    "model_type": "longcat_flash",
    "expert_ffn_hidden_size": 40,
    "ffn_hidden_size": 24,
    "hidden_size": 72,
    "kv_lora_rank": 32,
    "max_position_embeddings": 512,
    "moe_topk": 4,
    "n_routed_experts": 10,
    "num_attention_heads": 6,
    "num_layers": 4,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "v_head_dim": 16,
    "vocab_size": 193,
    "zero_expert_num": 5,
}
"""Four layers of two attentions, two FFNs, and 10 experts beside 5 choices of none."""
SMALL_DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 72,
    "intermediate_size": 56,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 5,
    "first_k_dense_replace": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "kv_lora_rank": 40,
    "q_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 10,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "vocab_size": 193,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
"""Four layers of 10 experts, and a dense one before them, with latent attention over rows of a group and a half."""

SMALL_DEEPSEEK_V4: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "hidden_size": 72,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 4,
    "compress_ratios": [4, 128, 0, 4],
    "num_hash_layers": 2,
    "num_attention_heads": 6,
    "head_dim": 20,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 36,
    "o_groups": 2,
    "o_lora_rank": 24,
    "index_head_dim": 12,
    "index_n_heads": 4,
    "index_topk": 7,
    "sliding_window": 48,
    "n_routed_experts": 10,
    "num_experts_per_tok": 3,
    "vocab_size": 193,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}
"""Four layers of 10 experts, two of which a table of token ids chooses, with windows and, in three, compressed rows, of
which two layers choose some."""

ELEMENT_BYTES = {"I64": 8, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_ROWS_AT_ONCE = 1 << 20
_SMALL_ELEMENTS = 1 << 18


def random_values(count: int, dtype: str, generator: np.random.Generator) -> bytes:
    """Weights of standard deviation 0.05, as the bytes of a checkpoint's dtype."""
    values = generator.standard_normal(count, np.float32) * np.float32(0.05)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    dtype: str = "BF16",
    shards: int = 1,
    stacked: bool = False,
    seed: int = 0,
    side_files: Mapping[str, bytes] | None = None,
) -> dict[str, tuple[int, ...]]:
    """A checkpoint of random weights in a folder; returns the shapes of its tensors. Needs little memory."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(config))
    (folder / "config.json").write_text(text)
    for name, content in (side_files or {"tokenizer.json": b'{"version": "1.0"}'}).items():
        (folder / name).write_bytes(content)
    shapes = _shapes(text, stacked)
    if sum(map(math.prod, shapes.values())) <= _SMALL_ELEMENTS:
        for name, content in _small_files(text, dtype, shards, stacked, seed).items():
            (folder / name).write_bytes(content)
    else:
        for name, pieces in _files(text, dtype, shards, stacked, seed):
            with (folder / name).open("wb") as file:
                file.writelines(pieces)
    return dict(shapes)


@functools.lru_cache(maxsize=16)
def _shapes(config: str, stacked: bool) -> dict[str, tuple[int, ...]]:
    return checkpoint_shapes(json.loads(config), stacked=stacked)


@functools.lru_cache(maxsize=16)
def _small_files(config: str, dtype: str, shards: int, stacked: bool, seed: int) -> dict[str, bytes]:
    """The files of a small checkpoint, which tests of a module write again and again."""
    return {name: b"".join(pieces) for name, pieces in _files(config, dtype, shards, stacked, seed)}


def _files(config: str, dtype: str, shards: int, stacked: bool, seed: int) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Each file that holds tensors, or says in which others they are, in pieces."""
    shapes = _shapes(config, stacked)
    # In the order of names, as save_pretrained writes them: what one expert needs may lie in two shards.
    names = sorted(shapes)
    per_shard = -(-len(names) // shards)
    groups = [names[start : start + per_shard] for start in range(0, len(names), per_shard)]
    weight_map = {}
    generator = np.random.default_rng(seed)
    for number, group in enumerate(groups, 1):
        file_name = "model.safetensors" if shards == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        weight_map |= dict.fromkeys(group, file_name)
        own = {name: shapes[name] for name in group}
        yield file_name, _shard(own, dtype, generator, json.loads(config).get("n_routed_experts", 1))
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        yield "model.safetensors.index.json", [json.dumps(index).encode()]


def _shard(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, generator: np.random.Generator, experts: int
) -> Iterator[bytes]:
    types = {name: "I64" if name.endswith("tid2eid") else dtype for name in shapes}
    yield build_header(
        (name, types[name], shape, math.prod(shape) * ELEMENT_BYTES[types[name]]) for name, shape in shapes.items()
    )
    for name, shape in shapes.items():
        if types[name] == "I64":  # of each token as many experts as it uses, in any order
            table = generator.random((shape[0], experts)).argsort(axis=1)[:, : shape[1]]
            yield table.astype("<i8").tobytes()
            continue
        left = math.prod(shape)
        while left:
            count = min(left, _ROWS_AT_ONCE)
            yield random_values(count, dtype, generator)
            left -= count


def read_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a small checkpoint as float32, read by the safetensors library."""
    import safetensors

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(path.read_bytes()):
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                dtypes = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
                values = np.frombuffer(entry["data"], dtypes[entry["dtype"]]).astype(np.float32)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its contents, to compare two of them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_routers_decided(checkpoint: Path) -> None:
    """Norms of one and larger router weights, so that a token's experts differ in weight."""
    tensors = load_file(checkpoint)
    for name, values in tensors.items():
        if "norm" in name:
            values[:] = 1
        elif "router" in name:
            values *= 3
    save_file(tensors, checkpoint, {"format": "pt"})
