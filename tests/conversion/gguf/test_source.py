"""A GGUF gives the same model as the checkpoint that it was made from: same spec, same rows, same blocks."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.architectures import model_spec, resolve
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.file import read_gguf
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.source import read_slice
from edgemoe.errors import SourceError, StoreError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.session.default_model import find_model
from edgemoe.store.reader import Store
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.gguf_files import tokenizer_metadata, write_gguf
from tests.support.pairs import default_pairs
from tests.support.small_tokenizer import small_tokenizer
from tests.support.stores import store_weights

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 404,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50_000.0,
}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}
_LOCAL_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
_GRANITE = _LOCAL_EXPERTS | {
    "attention_multiplier": 0.0625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama with biases and wide heads": {"model_type": "llama", "attention_bias": True, "head_dim": 32},
    "mixtral": {"model_type": "mixtral", **_LOCAL_EXPERTS},
    "bailing_moe_v2": {
        "model_type": "bailing_moe_v2",
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "n_group": 3,
        "norm_topk_prob": True,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "num_shared_experts": 2,
        "partial_rotary_factor": 0.5,
        "routed_scaling_factor": 2.5,
        "topk_group": 2,
    },
    "deepseek": {
        "model_type": "deepseek",
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_experts_per_tok": 2,
    },
    "dots1": {
        "model_type": "dots1",
        "first_k_dense_replace": 1,
        "head_dim": 24,
        "moe_intermediate_size": 32,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 2.5,
    },
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe",
        "num_hidden_layers": 5,
        "moe_intermediate_size": 32,
        "moe_k": 2,
        "moe_layer_interval": 2,
        "moe_layer_start_index": 2,
        "moe_num_experts": 5,
        "moe_num_shared_experts": 2,
        "tie_word_embeddings": True,
    },
    "hunyuan_v1_moe": {
        "model_type": "hunyuan_v1_moe",
        "head_dim": 24,
        "attention_bias": False,
        "moe_topk": 2,
        "num_experts": 5,
        "tie_word_embeddings": True,
    },
    "hy_v3": {
        "model_type": "hy_v3",
        "num_hidden_layers": 3,
        "head_dim": 24,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "moe_intermediate_size": 32,
        "num_shared_experts": 2,
        "router_scaling_factor": 2.5,
        **_EXPERTS,
    },
    "minimax_m2": {
        "model_type": "minimax_m2",
        "head_dim": 24,
        "partial_rotary_factor": 0.25,
        **_LOCAL_EXPERTS,
    },
    "glm4_moe": {
        "model_type": "glm4_moe",
        "num_hidden_layers": 3,
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 24,
        "moe_intermediate_size": 32,
        "n_group": 3,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_experts_per_tok": 3,
        "partial_rotary_factor": 0.25,
        "routed_scaling_factor": 2.5,
        "topk_group": 2,
        "use_qk_norm": True,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 3,
        "head_dim": 24,
        "sliding_window": 37,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "truncate": False,
        },
        **_LOCAL_EXPERTS,
    },
    "granitemoe": {"model_type": "granitemoe", "tie_word_embeddings": True, **_GRANITE},
    "granitemoeshared": {"model_type": "granitemoeshared", "shared_intermediate_size": 160, **_GRANITE},
    "lfm2_moe": {
        "model_type": "lfm2_moe",
        "num_hidden_layers": 4,
        "rms_norm_eps": None,
        "norm_eps": 1e-5,
        "layer_types": ["conv", "full_attention", "full_attention", "conv"],
        "num_dense_layers": 1,
        "conv_L_cache": 4,
        "moe_intermediate_size": 32,
        "tie_word_embeddings": True,
        **_EXPERTS,
    },
    "olmoe": {"model_type": "olmoe", "norm_topk_prob": False, **_EXPERTS},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 128,
        "norm_topk_prob": False,
        "qkv_bias": True,
        **_EXPERTS,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "head_dim": 32,
        "tie_word_embeddings": True,
        **_EXPERTS,
    },
}
_LINEAR = {
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "head_dim": 32,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_value_head_dim": 32,
    "moe_intermediate_size": 32,
    "partial_rotary_factor": 0.25,
    "shared_expert_intermediate_size": 64,
    **_EXPERTS,
}
CONFIGS |= {
    "qwen3_5_moe": {"model_type": "qwen3_5_moe", "intermediate_size": None, **_LINEAR},
    "qwen3_next": {"model_type": "qwen3_next", **_LINEAR},
    "qwen3_next with heads of its own": {
        "model_type": "qwen3_next",
        **_LINEAR,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
_LATENT = {
    "rms_norm_eps": 1e-6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "num_experts_per_tok": 3,
}
CONFIGS |= {
    "deepseek_v2": {"model_type": "deepseek_v2", **_LATENT, "n_routed_experts": 5, "routed_scaling_factor": 2.0},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **_LATENT,
        "n_group": 3,
        "n_routed_experts": 6,
        "norm_topk_prob": True,
        "q_lora_rank": 96,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 128,
        },
        "routed_scaling_factor": 2.827,
        "topk_group": 2,
    },
    "mistral4": {
        "model_type": "mistral4",
        **_LATENT,
        "n_group": 3,
        "n_routed_experts": 6,
        "norm_topk_prob": True,
        "q_lora_rank": 96,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16,
        },
        "routed_scaling_factor": 1.5,
        "topk_group": 2,
    },
}
CONFIGS = {name: _COMMON | config for name, config in CONFIGS.items()}


class Checkpoint:
    """A random checkpoint as our own source reads it, and as arrays."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        write_checkpoint(folder, config, dtype="F32")
        self.folder, self.config = folder, dict(config)
        self.tensors = read_tensors(folder)
        self.source = open_source(str(folder))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: Checkpoint(folder / name, config) for name, config in CONFIGS.items()}


def model_rows(source: Any, start: int = 0, stop: int = 1 << 30) -> dict[str, Any]:
    """The rows `start` to `stop` of every tensor of the model, by its internal name."""
    slices = resolve(source.config, {name: info.shape for name, info in source.tensors().items()})
    rows = {}
    for name, place in slices.items():
        if start < place.rows:
            rows[name] = read_slice(source, place, start, min(stop, place.rows))
    return rows


@pytest.mark.parametrize(("name", "stacked"), default_pairs([*CONFIGS], [True, False], every=3))
def test_the_model_is_that_of_the_checkpoint(
    name: str, stacked: bool, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints[name]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, stacked=stacked)
    source = open_source(str(path))
    assert model_spec(source.config) == model_spec(checkpoint.config)
    expected, found = model_rows(checkpoint.source), model_rows(source)
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)
        assert found[tensor].dtype == np.float32


MERGEABLE = [name for name in CONFIGS if not name.startswith("llama")]
KINDS = ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "MXFP4"]
MERGED = [
    pytest.param(name, kind, marks=[] if number == at else pytest.mark.slow)
    for number, name in enumerate(MERGEABLE)
    for at, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("name", "kind"), MERGED)
def test_gate_and_up_in_one_tensor_are_those_in_two(
    name: str, kind: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """In each expert the rows of gate come first: llama.cpp, src/llama-graph.cpp, build_moe_ffn (`gate_up_exps`)."""
    checkpoint = checkpoints[name]
    parts = {"kinds": {"_exps": kind, ".": "F32"}}
    apart = GgufSource(write_gguf(tmp_path / "a.gguf", checkpoint.config, checkpoint.tensors, **parts))
    widths = {"expert_feed_forward_length": None}  # which files that are older than the key leave to the tensors
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, merged=True, metadata=widths, **parts)
    assert any(tensor.endswith("ffn_gate_up_exps.weight") for tensor in read_gguf(path).tensors)
    merged = GgufSource(path)
    assert model_spec(merged.config) == model_spec(apart.config)
    for start, stop in ((0, 1 << 30), (3, 21)):
        expected, found = model_rows(apart, start, stop), model_rows(merged, start, stop)
        assert found.keys() == expected.keys()
        for tensor, rows in expected.items():
            if isinstance(rows, Blocks):
                assert _block_bytes(found[tensor]) == _block_bytes(rows), tensor
            else:
                np.testing.assert_array_equal(found[tensor], rows, err_msg=tensor)


@pytest.mark.parametrize("name", ["mixtral", "granitemoe", "qwen3_moe"])
def test_a_store_is_the_same_from_gate_and_up_in_one_tensor(
    name: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints[name]
    stores = []
    for merged in (False, True):
        path = write_gguf(
            tmp_path / f"{merged}.gguf", checkpoint.config, checkpoint.tensors, kinds={"_exps": "Q4_0"}, merged=merged
        )
        stores.append(convert_checkpoint(str(path), tmp_path / str(merged)))
    for file in ("resident.safetensors", "experts-00000.safetensors"):
        assert (stores[0] / file).read_bytes() == (stores[1] / file).read_bytes()


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        (
            "blk.0.ffn_gate_up_exps.weight",
            (5, 64, 64),
            r"found two: blk\.0\.ffn_gate_up_exps.* and blk\.0",
        ),
        ("blk.2.ffn_gate_up_exps.weight", (5, 3, 64), r"blk\.2\.ffn_gate_up_exps.*as many rows for gate as for up"),
        ("blk.2.ffn_gate_up_exps.weight", (64, 64), r"expected experts, .* found the shape \(64, 64\)"),
        ("blk.0.ffn_up.3.weight", (32, 64), r"expected one tensor for .*experts\.3\.up_proj"),
    ],
)
def test_experts_that_are_there_twice_or_by_halves_are_refused(
    tensor: str, shape: tuple[int, ...], message: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["qwen3_moe"]
    more = checkpoint.tensors | {tensor: np.zeros(shape, np.float32)}
    with pytest.raises(SourceError, match=message):
        GgufSource(write_gguf(tmp_path / "m.gguf", checkpoint.config, more))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize("name", ["llama", "granitemoe", "qwen3_moe"])
def test_half_precision_is_read_as_float32(
    name: str, kind: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints[name]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds={".": kind})
    found = model_rows(GgufSource(path))
    type_ = gguf.GGMLQuantizationType[kind]
    for tensor, values in model_rows(checkpoint.source).items():
        expected = values if values.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(values, type_), type_)
        np.testing.assert_array_equal(found[tensor], expected, err_msg=tensor)


@pytest.mark.parametrize(("name", "kind"), default_pairs([*CONFIGS], ["Q8_0", "Q4_0", "Q4_1", "MXFP4"], every=3))
def test_blocks_carry_over_to_the_bit(name: str, kind: str, checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Also those of query and key, whose rows come in another order, and of rows in the middle of a head."""
    checkpoint = checkpoints[name]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds={".": kind})
    type_ = gguf.GGMLQuantizationType[kind]
    source = GgufSource(path)
    found = model_rows(source, 3, 21)
    compared = 0
    for tensor, values in model_rows(checkpoint.source, 3, 21).items():
        if isinstance(found[tensor], Blocks):
            compared += 1
            data = gguf.quants.quantize(values, type_)
            assert _block_bytes(found[tensor]) == data.tobytes(), tensor
            np.testing.assert_array_equal(dequantise(found[tensor]), gguf.quants.dequantize(data, type_))
        else:
            np.testing.assert_array_equal(found[tensor], values)
            assert values.ndim == 1, tensor
    assert compared > 10


def _block_bytes(blocks: Blocks) -> bytes:
    """Blocks in the bytes of the file: of each the scale, the minimum if it has one, and the values."""
    assert blocks.scales is not None
    rows, groups = blocks.scales.shape
    values = blocks.values.reshape(rows, groups, 32)
    if blocks.format.name != "q8":  # the second half of a block lies in the upper four bits of the first
        values = (values[..., :16] | values[..., 16:] << 4).astype(np.uint8)
    parts = [blocks.scales, *([] if blocks.minimums is None else [blocks.minimums]), values]
    return np.concatenate([part.reshape(rows, groups, -1).view(np.uint8) for part in parts], axis=2).tobytes()


def test_gate_and_up_of_two_types_are_decoded(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["granitemoeshared"]
    kinds = {"ffn_gate_": "Q8_0", "ffn_up_": "Q4_1"}
    source = GgufSource(write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds=kinds))
    name = "model.layers.1.block_sparse_moe.input_linear.weight"
    assert source.tensors()[name].dtype == "F32"
    rows = source.read_rows(name, 3, 90, 100)
    assert isinstance(rows, np.ndarray)
    expected = []
    for part, kind in ((checkpoint.tensors[name][3, 90:96], "Q8_0"), (checkpoint.tensors[name][3, 96:100], "Q4_1")):
        type_ = gguf.GGMLQuantizationType[kind]
        expected.append(gguf.quants.dequantize(gguf.quants.quantize(part, type_), type_))
    np.testing.assert_array_equal(rows, np.concatenate(expected))


def test_parts_of_two_models_are_told(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "other"
    for folder, name, files in zip(folders, ("olmoe", "qwen3_moe"), (3, 2), strict=True):
        folder.mkdir()
        checkpoint = checkpoints[name]
        first = write_gguf(folder / "m.gguf", checkpoint.config, checkpoint.tensors, files=files)
    one, other = folders[0] / "m-00001-of-00003.gguf", first
    (tmp_path / "one" / "m-00002-of-00003.gguf").write_bytes((other.parent / "m-00002-of-00002.gguf").read_bytes())
    with pytest.raises(SourceError, match=r"m-00002-of-00003.gguf: expected part 2 of 3 of .*split.count 3; found 2"):
        GgufSource(one)
    (tmp_path / "one" / "m-00002-of-00003.gguf").write_bytes((tmp_path / "one" / "m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(SourceError, match=r"m-00002-of-00003.gguf: expected part 2 of 3 of .*split.no 1; found 2"):
        GgufSource(one)


def test_split_files(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["mixtral"]
    first = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, files=3)
    source = GgufSource(first)
    assert list(source.shards()) == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert {info.shard for info in source.tensors().values()} == set(source.shards())
    found = model_rows(source)
    for tensor, values in model_rows(checkpoint.source).items():
        np.testing.assert_array_equal(found[tensor], values)
    second = tmp_path / "m-00002-of-00003.gguf"
    with pytest.raises(SourceError, match=r"expected the first of 3 files, .* found number 2") as caught:
        GgufSource(second)
    assert caught.value.hint == "Give m-00001-of-00003.gguf with the others beside it."
    renamed = second.rename(tmp_path / "second.gguf")
    with pytest.raises(SourceError, match=r"named like model-00001-of-00003\.gguf; found number 2"):
        GgufSource(renamed)
    renamed.rename(second)
    second.unlink()
    with pytest.raises(SourceError, match=r"m-00002-of-00003\.gguf: missing"):
        GgufSource(first)


def test_a_gguf_is_known_by_its_first_bytes(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ollama keeps GGUF files as blobs/sha256-DIGEST; `blobs/x` would also be a hub id."""
    checkpoint = checkpoints["mixtral"]
    (tmp_path / "blobs").mkdir()
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors).rename(
        tmp_path / "blobs" / "sha256-6a"
    )
    monkeypatch.chdir(tmp_path)
    for text in ("blobs/sha256-6a", str(path)):
        source = open_source(text)
        assert isinstance(source, GgufSource)
        assert source.name == "sha256-6a"
        assert forecast_store(text).source == "sha256-6a"
    with pytest.raises(StoreError, match=r"found a GGUF file.*edgemoe convert blobs/sha256-6a"):
        find_model("blobs/sha256-6a")
    assert Store.open(convert_checkpoint("blobs/sha256-6a", tmp_path / "store")).manifest.total_bytes


def test_the_fingerprint_is_that_of_the_contents(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["llama"]
    (tmp_path / "a").mkdir()
    path = write_gguf(tmp_path / "a" / "m.gguf", checkpoint.config, checkpoint.tensors)
    content = path.read_bytes()
    moved, changed = tmp_path / "moved.gguf", tmp_path / "changed.gguf"
    moved.write_bytes(content)
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    other = write_gguf(tmp_path / "other.gguf", checkpoint.config, checkpoint.tensors, kinds={"ffn_up": "Q8_0"})
    assert GgufSource(path).fingerprint == GgufSource(moved).fingerprint
    assert len({GgufSource(file).fingerprint for file in (path, changed, other)}) == 3


@pytest.mark.parametrize("name", ["llama", "mixtral", "granitemoeshared", "qwen2_moe"])
def test_a_store_holds_the_blocks_of_the_file(name: str, checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints[name]
    kinds = {"_exps": "Q4_0", "ffn_gate_inp": "F32", "attn_v|token_embd": "Q8_0", "attn_o": "MXFP4", ".": "Q4_1"}
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds=kinds)
    store = Store.open(convert_checkpoint(str(path), tmp_path / "store"))
    found = store_weights(store)
    for tensor, rows in model_rows(GgufSource(path)).items():
        values = dequantise(rows) if isinstance(rows, Blocks) else rows
        np.testing.assert_array_equal(found[tensor], values.reshape(found[tensor].shape), err_msg=tensor)


def test_every_mxfp4_block_goes_into_a_store_and_back_into_a_file_to_the_bit(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Experts and dense matrices, with every code, minus zero too, and every scale that a weight may have."""
    checkpoint = checkpoints["mixtral"]
    kinds = {"ffn_gate_inp": "F32", ".": "MXFP4"}
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds=kinds)
    rewritten = bytearray(path.read_bytes())
    generator = np.random.default_rng(11)
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.MXFP4:
            blocks = generator.integers(0, 256, (tensor.n_elements // 32, 17), np.uint8)
            blocks[:, 0] = generator.integers(0, 253, len(blocks))
            rewritten[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = blocks.tobytes()
    path.write_bytes(rewritten)
    store = Store.open(convert_checkpoint(str(path), tmp_path / "store"))
    assert {store.dense_format, *store.manifest.quantisation["experts"]["formats"]} == {"m4"}
    assert store.manifest.quantisation["experts"]["relative_error"] == 0
    back = export_gguf(store, tmp_path / "back.gguf", name="x")
    wanted = {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors}
    found = {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in gguf.GGUFReader(back).tensors}
    assert found == wanted


def test_a_store_of_floats_is_that_of_the_checkpoint(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["granitemoeshared"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors)
    converted = convert_checkpoint(str(path), tmp_path / "from gguf")
    original = convert_checkpoint(str(checkpoint.folder), tmp_path / "from folder")
    for file in ("resident.safetensors", "experts-00000.safetensors"):
        assert (converted / file).read_bytes() == (original / file).read_bytes()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # as older files say it
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.original_context_length": 128}, None),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
                "rope.scaling.yarn_beta_slow": 2.0,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_slow": 2.0},
        ),
        ({"rope.scaling.type": "none", "rope.scaling.finetuned": False}, None),
    ],
)
def test_rules_of_positions(
    metadata: dict[str, Any], expected: dict[str, Any] | None, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["llama"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    config = checkpoint.config | ({"rope_scaling": expected} if expected else {})
    assert model_spec(GgufSource(path).config) == model_spec(config)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_positions_are_known_by_their_factors(
    factor: float, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["llama"]
    config = checkpoint.config | {"rope_theta": 500_000.0, "head_dim": 64}
    rule = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factors = []
    for pair in range(32):
        wavelength = 2 * np.pi * 500_000.0 ** (2 * pair / 64)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    assert 1.0 < factors[18] < factor or 1.0 < factors[15] < factor
    # Only the config matters here, so the weights need not fit the wider heads.
    tensors = {name: values for name, values in checkpoint.tensors.items() if "embed" in name or "layernorm" in name}
    path = write_gguf(tmp_path / "m.gguf", config, tensors | {"rope_freqs.weight": np.array(factors, np.float32)})
    expected = config | {"rope_scaling": {"rope_type": "llama3", "factor": factor, **rule}}
    assert model_spec(GgufSource(path).config) == model_spec(expected)
    path = write_gguf(
        tmp_path / "o.gguf", config, tensors | {"rope_freqs.weight": np.linspace(1, 8, 32, dtype=np.float32)}
    )
    with pytest.raises(SourceError, match="rope_freqs"):
        GgufSource(path)


def test_keys_older_than_the_widths_of_experts(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["qwen2_moe"]
    missing = {"expert_feed_forward_length": None, "expert_shared_feed_forward_length": None}
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=missing)
    assert model_spec(GgufSource(path).config) == model_spec(checkpoint.config)


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("llama", {"attn_logit_softcapping": 30.0}, r"llama\.attn_logit_softcapping"),
        ("llama", {"a_new_idea": 7}, r"llama\.a_new_idea: expected no such key, found 7"),
        ("llama", {"rope.dimension_count": 8}, r"llama\.rope\.dimension_count: expected 16"),
        ("llama", {"attention.value_length": 8}, "value_length"),
        ("llama", {"rope.scaling.type": "longrope"}, "none, linear or yarn"),
        (
            "llama",
            {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
            r"rope\.scaling\.type: expected linear or yarn beside a factor, found none",
        ),
        ("llama", {"block_count": 0}, "block_count"),
        ("gpt_oss", {"block_count": 0xFFFF_FFFF}, "gpt-oss.block_count: expected at most 4096, found 4294967295"),
        ("lfm2_moe", {"block_count": 0xFFFF_FFFF}, "lfm2moe.block_count: expected at most 4096, found 4294967295"),
        ("llama", {"attention.head_count": "four"}, "head_count"),
        ("llama", {"attention.head_count_kv": [2, 1]}, "head_count_kv"),
        ("llama", {"embedding_scale": 2.0}, "embedding_scale"),
        ("olmoe", {"attention.clamp_kqv": 8.0}, "clamp_kqv"),
        ("qwen3_moe", {"expert_gating_func": 2}, "expert_gating_func"),
        ("granitemoe", {"rope.scaling.finetuned": False}, "rotary positions"),
        ("mixtral", {"expert_used_count": None}, "expert_used_count"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    name: str, metadata: dict[str, Any], message: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints[name]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    with pytest.raises(SourceError, match=message):
        GgufSource(path)


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("qwen3_moe", {"expert_used_count": 9}, r"m\.gguf: qwen3moe\.expert_used_count is 9; .* experts, 5\."),
        ("qwen3_moe", {"expert_count": 1 << 20}, r"m\.gguf: qwen3moe\.expert_count is 1048576; expected"),
        ("mixtral", {"expert_count": 1 << 20}, r"m\.gguf: llama\.expert_count is 1048576; expected"),
        ("qwen2_moe", {"expert_feed_forward_length": 1 << 30}, r"qwen2moe\.expert_feed_forward_length is"),
        (
            "llama",
            {"attention.head_count_kv": 3},
            r"llama\.attention\.head_count is 4; .* of llama\.attention\.head_count_kv",
        ),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, r"llama\.attention\.layer_norm_rms_epsilon is missing"),
        ("llama", {"rope.freq_base": 0.5}, r"m\.gguf: llama\.rope\.freq_base is 0\.5; expected a number above 1"),
        ("llama", {"attention.sliding_window": 9}, r"llama\.attention\.sliding_window is 9; .* context of 512"),
        (
            "llama",
            {"rope.scaling.type": "linear", "rope.scaling.factor": -1.0},
            r"m\.gguf: llama\.rope\.scaling\.factor is -1\.0; expected a number above",
        ),
        ("llama", {"rope.scaling.type": "linear"}, r"m\.gguf: llama\.rope\.scaling\.factor is missing"),
        (
            "llama",
            {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 0, "rope.scaling.factor": 2.0},
            r"llama\.rope\.scaling\.original_context_length is 0",
        ),
        (
            "llama",
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 0.5},
            r"llama\.rope\.scaling\.yarn_beta_fast is 0\.5; expected at least llama\.rope\.scaling\.yarn_beta_slow",
        ),
    ],
)
def test_errors_name_the_keys_of_the_file(
    name: str, metadata: dict[str, Any], message: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints[name]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(path))
    assert "config.json" not in str(caught.value)


def test_a_file_that_names_no_rule_for_words_is_told(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """The rule `default` is what llama.cpp takes, with a warning (src/llama-vocab.cpp)."""
    checkpoint = checkpoints["llama"]
    for rule, told in (("gpt-2", False), ("default", False), ("", True), (None, True)):
        tokenizer = tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.pre": rule}
        path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, tokenizer=tokenizer)
        notices = GgufSource(path).notices()
        assert [str(path) in notice and "tokenizer.ggml.pre is missing" in notice for notice in notices] == [
            True
        ] * told


@pytest.mark.parametrize(
    "metadata",
    [
        {"attention.head_count_kv": [2, 2]},
        {"expert_count": 0, "expert_used_count": 0},
        {"attention.sliding_window": 512},
        {"logit_scale": 1.0, "attention.causal": True, "rope.scaling.attn_factor": 1.0, "expert_weights_scale": 0.0},
    ],
)
def test_values_that_change_nothing_are_accepted(
    metadata: dict[str, Any], checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["llama"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    assert model_spec(GgufSource(path).config) == model_spec(checkpoint.config)


def test_a_list_without_numbers_is_refused(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path, {"general.architecture": "afmoe", "afmoe.attention.head_count": []})
    with pytest.raises(SourceError, match=r"attention\.head_count: expected whole numbers above 0, found \[\]"):
        metadata.most("attention.head_count")


def test_an_architecture_that_is_not_ours(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"expected one of .*llama.*found mamba"):
        GgufSource(tmp_path / "m.gguf")


def test_a_tensor_type_that_is_not_supported_is_named(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["llama"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds={"ffn_down": "Q8_0"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"ffn_down.weight") + len(b"ffn_down.weight") + 4 + 2 * 8
    for number, found in ((24, "I8"), (99, "number 99")):
        data[entry : entry + 4] = number.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(SourceError, match=rf"m.gguf: blk\.\d\.ffn_down\.weight: .*Q8_0, Q4_0, .*, found {found}\."):
            GgufSource(path)


def test_tensors_that_are_missing_or_left_over_are_named(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["granitemoe"]
    name = "model.layers.1.block_sparse_moe.output_linear.weight"
    fewer = {key: values for key, values in checkpoint.tensors.items() if key != name}
    with pytest.raises(SourceError, match=re.escape(name)):
        model_rows(GgufSource(write_gguf(tmp_path / "m.gguf", checkpoint.config, fewer)))
    more = checkpoint.tensors | {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    with pytest.raises(SourceError, match="q_norm"):
        model_rows(GgufSource(write_gguf(tmp_path / "n.gguf", checkpoint.config, more)))


def test_a_file_cut_short_after_it_was_opened(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["llama"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors)
    source = GgufSource(path)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(SourceError, match="has become shorter"):
        model_rows(source)


def test_without_the_package_the_error_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['gguf'] = None; sys.modules['gguf.constants'] = None\n"
        "from edgemoe.errors import SourceError\n"
        "try:\n    from edgemoe.conversion.gguf.source import GgufSource\n"
        "except SourceError as error:\n    print(error.hint)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'edgemoe[gguf]'" in result.stdout


# Damaged files: whatever the bytes, the answer is a SourceError or a model, soon and in little memory.


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A header of about 2 kB over a kilobyte of weights: no mutation is far from something that matters."""
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    writer = gguf.GGUFWriter(path, "granitemoe")
    for key, value in (("block_count", 1), ("context_length", 64), ("embedding_length", 32)):
        writer.add_uint32(f"granitemoe.{key}", value)
    for key, value in (("feed_forward_length", 32), ("expert_count", 2), ("expert_used_count", 1)):
        writer.add_uint32(f"granitemoe.{key}", value)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "ab", "<x>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    writer.add_chat_template("{{ messages }}")
    for name in ("attn_q", "attn_k", "ffn_gate_shexp", "ffn_up_shexp"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), np.float16))
    writer.add_tensor(
        "blk.0.ffn_gate_exps.weight", np.zeros((2, 32, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor(
        "blk.0.ffn_up_exps.weight", np.zeros((2, 32, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert GgufSource(path).side_files()
    return path


def use(path: Path) -> None:
    """Everything that a conversion asks of a source."""
    with contextlib.suppress(SourceError):
        source = GgufSource(path)
        for name, info in source.tensors().items():
            source.read_rows(name, 0 if len(info.shape) == 3 else None, 0, min(4, info.shape[-2:][0]))
        source.side_files()
        json.dumps(dict(source.config))
        model_spec(source.config)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes(data: st.DataObject, small_file: Path, tmp_path: Path) -> None:
    content = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, 2000))
        value = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8), st.just(bytes(8))))
        content[position : position + len(value)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    use(path)


def _header(tensor_count: int = 0, pair_count: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count) + body


def _key(name: bytes, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind)


def _floats(name: bytes, count: int, offset: int) -> bytes:
    """The entry of a vector of F32 in a header."""
    return _key(name, 1) + struct.pack("<QIQ", count, 0, offset)


@every_case(
    ("content", "message"),
    [
        (b"", "the file ends at 0"),
        (b"GGUF", "the file ends at 4"),
        (b"PK\x03\x04" + bytes(100), "expected a GGUF file"),
        (_header(version=1), "version 2 or 3"),
        (_header(version=3 << 24), "big-endian"),
        (_header(tensor_count=1 << 63), "tensors"),
        (_header(pair_count=1 << 63), "metadata pairs"),
        (_header(pair_count=1, body=struct.pack("<Q", 1 << 62)), "bytes in a metadata key"),
        (_header(pair_count=1, body=_key(b"k", 99)), "unknown value type 99"),
        (_header(pair_count=1, body=_key(b"k", 8) + struct.pack("<Q", 1 << 20)), "'?k'? at byte"),
        (_header(pair_count=1, body=_key(b"k", 9) + struct.pack("<IQ", 0, 1 << 60)), "elements in 'k'"),
        (_header(pair_count=1, body=_key(b"k", 9) + struct.pack("<IQ", 8, 1 << 21)), "the header at byte 49"),
        (_header(pair_count=1, body=_key(b"k", 9) + struct.pack("<IQ", 9, 1)), "array of arrays"),
        (_header(pair_count=1, body=_key(b"\xff", 0)), "not UTF-8"),
        (_header(pair_count=2, body=(_key(b"k", 0) + b"\0") * 2), "occurs twice"),
        (_header(tensor_count=1, body=_key(b"t", 5) + bytes(100)), "1 to 4 dimensions"),
        (_header(tensor_count=1, body=_key(b"t", 2) + struct.pack("<QQIQ", 1 << 40, 1 << 40, 0, 0)), "the file ends"),
        (_header(tensor_count=1, body=_key(b"t", 1) + struct.pack("<QIQ", 33, 8, 0)), "does not fit blocks of 32"),
        (_header(tensor_count=1, body=_key(b"t", 1) + struct.pack("<QIQ", 0, 0, 0)), "does not fit blocks"),
        (
            _header(tensor_count=1, body=_key(b"t", 1) + struct.pack("<QIQ", 1, 0, 7) + bytes(64)),
            "where the header ends",
        ),
        (_header(tensor_count=1, body=_key(b"t", 1) + struct.pack("<QIQ", 1, 0, 2**64 - 32)), "the file ends"),
        (_header(tensor_count=2, body=_floats(b"t", 16, 0) + _floats(b"u", 16, 32) + bytes(160)), "where t ends"),
        (_header(tensor_count=2, body=_floats(b"u", 16, 0) + _floats(b"t", 16, 0) + bytes(160)), "where u ends"),
        (_header(tensor_count=2, body=_floats(b"u", 16, 96) + _floats(b"t", 16, 0) + bytes(256)), "where t ends"),
        (_header(tensor_count=1, body=_key(b"t", 1) + struct.pack("<QIQ", 1, 4242, 0)), "found number 4242"),
        (_header(pair_count=1, body=_key(b"general.alignment", 4) + struct.pack("<I", 48)), "power of two"),
    ],
)
def test_headers_that_lie(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_gguf(path)


@pytest.mark.parametrize(
    ("metadata", "changes"),
    [
        ({"expert_gating_func": 2, "expert_weights_norm": True}, {"norm_topk_prob": True}),
        ({"expert_group_count": None, "expert_group_used_count": None}, {"n_group": 1, "topk_group": 1}),
        ({"expert_weights_scale": None, "leading_dense_block_count": 1}, {"routed_scaling_factor": 1.0}),
        ({"rope.dimension_count": 22}, {"partial_rotary_factor": 0.95}),
    ],
)
def test_the_numbers_of_a_sigmoid_router(
    metadata: dict[str, Any], changes: dict[str, Any], checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["glm4_moe"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    assert model_spec(GgufSource(path).config) == model_spec(checkpoint.config | changes)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_gating_func": 1}, r"glm4moe\.expert_gating_func: expected 2 \(sigmoid\), found 1"),
        ({"expert_group_count": 4}, r"groups: expected equal runs"),
        ({"expert_group_count": -1}, r"glm4moe\.expert_group_count: expected a whole number, found -1"),
        ({"nextn_predict_layers": 3}, r"nextn_predict_layers: expected fewer than all 3 layers, found 3"),
        ({"expert_weights_scale": -1.0}, r"glm4moe\.expert_weights_scale is -1\.0"),
        ({"expert_weights_norm": "no"}, r"glm4moe\.expert_weights_norm: expected true or false, found 'no'"),
        ({"rope.dimension_count": 48}, r"glm4moe\.rope\.dimension_count is 2\.0"),
    ],
)
def test_a_sigmoid_router_that_cannot_be_run_is_refused(
    metadata: dict[str, Any], message: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["glm4_moe"]
    values = {key: value if not isinstance(value, int) or value >= 0 else [value] for key, value in metadata.items()}
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=values)
    with pytest.raises(SourceError, match=message):
        GgufSource(path)


def test_layers_that_predict_further_tokens_are_left_out(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Files count them among the blocks: llama.cpp, src/models/glm4-moe.cpp."""
    checkpoint = checkpoints["glm4_moe"]
    last = {name: values for name, values in checkpoint.tensors.items() if name.startswith("model.layers.2.")}
    tensors = checkpoint.tensors | {name.replace("layers.2.", "layers.3."): values for name, values in last.items()}
    tensors |= {
        f"blk.3.nextn.{name}.weight": np.zeros(shape, np.float32)
        for name, shape in {"eh_proj": (64, 128), "enorm": (64,), "hnorm": (64,), "shared_head_norm": (64,)}.items()
    }
    config = checkpoint.config | {"num_hidden_layers": 4}
    path = write_gguf(tmp_path / "m.gguf", config, tensors, metadata={"nextn_predict_layers": 1})
    notes: list[str] = []
    store = convert_checkpoint(str(path), tmp_path / "store", notice=notes.append)
    plain = convert_checkpoint(str(checkpoint.folder), tmp_path / "plain")
    assert Store.open(store).model == Store.open(plain).model
    (note,) = [note for note in notes if "left out" in note]
    assert note.startswith(f"{4 + len(last)} tensors, such as model.layers.3.")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.head_count_kv": [0, 2, 1, 0]}, "expected one number of heads, or 0, for 4 layers"),
        ({"attention.head_count_kv": [0, 2, 2]}, "expected one number of heads, or 0, for 4 layers"),
        ({"attention.head_count_kv": [0, 0, 0, 0]}, "expected one number of heads, or 0, for 4 layers, found 0"),
        ({"attention.head_count_kv": None}, "expected one number of heads, or 0, for 4 layers, found none"),
        ({"attention.head_count_kv": ["2", "0", "0", "2"]}, "expected one number of heads, or 0, for 4 layers"),
        ({"attention.head_count_kv": [0.0, 2.0, 2.0, 0.0]}, "expected one number of heads, or 0, for 4 layers"),
        ({"attention.head_count_kv": [0, 3, 3, 0]}, "expected a multiple of lfm2moe.attention.head_count_kv"),
        ({"expert_gating_func": 1}, r"expert_gating_func: expected 2 \(sigmoid\), found 1"),
        ({"expert_gating_func": None}, r"expert_gating_func: expected 2 \(sigmoid\), found none"),
        ({"expert_weights_norm": False}, "expert_weights_norm: expected true, or no such key, found False"),
        ({"expert_weights_scale": 2.5}, "expert_weights_scale: expected 0.0 or 1.0, found 2.5"),
        ({"shortconv.l_cache": 1}, "lfm2moe.shortconv.l_cache is 1; expected a whole number from 2"),
        ({"shortconv.l_cache": None}, "shortconv.l_cache: expected a whole number above 0, found none"),
    ],
)
def test_convolutions_that_cannot_be_run_are_refused(
    metadata: dict[str, Any], message: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["lfm2_moe"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    with pytest.raises(SourceError, match=message):
        GgufSource(path)


def test_the_norm_before_the_head_may_have_the_name_that_other_architectures_have(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["lfm2_moe"]
    tensors = {name: values for name, values in checkpoint.tensors.items() if name != "model.embedding_norm.weight"}
    tensors["output_norm.weight"] = checkpoint.tensors["model.embedding_norm.weight"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, tensors)
    found = model_rows(GgufSource(path))
    np.testing.assert_array_equal(found["final_norm"], tensors["output_norm.weight"])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ssm.inner_size": 100}, r"ssm\.inner_size: expected a multiple of 6, the number of heads, found 100"),
        ({"ssm.time_step_rank": None}, r"ssm\.time_step_rank: expected a whole number above 0, found none"),
        ({"ssm.group_count": 4}, "time_step_rank is 6; expected a multiple of qwen35moe.ssm.group_count, which is 4"),
        ({"ssm.conv_kernel": 1}, "qwen35moe.ssm.conv_kernel is 1; expected a whole number from 2"),
        ({"attention.recurrent_layers": [True, False]}, r"expected true or false for each of 4 layers, found \[True"),
        ({"attention.recurrent_layers": 3}, "expected true or false for each of 4 layers, found 3"),
        ({"expert_weights_norm": False}, "expert_weights_norm: expected true, or no such key, found False"),
    ],
)
def test_linear_layers_that_cannot_be_run_are_refused(
    metadata: dict[str, Any], message: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["qwen3_5_moe"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    with pytest.raises(SourceError, match=message):
        GgufSource(path)


def test_a_file_may_list_its_linear_layers_and_say_what_images_need(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoints["qwen3_5_moe"]
    metadata = {
        "attention.recurrent_layers": [True, False, True, False],
        "full_attention_interval": None,
        "rope.dimension_sections": [2, 1, 1, 0],
        "expert_weights_norm": True,
    }
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata=metadata)
    assert model_spec(GgufSource(path).config) == model_spec(checkpoint.config)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_of_heads_that_lie_in_turn_are_carried_over(
    kind: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Rows and columns move as whole blocks: the numbers are those of the blocks of the checkpoint's own order."""
    checkpoint = checkpoints["qwen3_5_moe"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, kinds={"ssm_|attn_qkv": kind})
    found, expected = model_rows(GgufSource(path)), model_rows(checkpoint.source)
    for name in ("delta_in", "delta_out", "delta_strength"):
        rows, floats = found[f"layers.0.{name}"], expected[f"layers.0.{name}"]
        quantised = gguf.quants.quantize(floats, gguf.GGMLQuantizationType[kind])
        wanted = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType[kind])
        assert isinstance(rows, Blocks)
        np.testing.assert_array_equal(dequantise(rows), wanted)


def test_taps_of_another_shape_are_refused(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoints["lfm2_moe"]
    path = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, metadata={"shortconv.l_cache": 3})
    with pytest.raises(SourceError, match=r"conv\.conv\.weight: expected \(model, one, taps\) = \(64, 1, 3\)"):
        convert_checkpoint(str(path), tmp_path / "store")
