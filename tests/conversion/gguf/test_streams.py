"""GGUF files of families with several residual streams: written, read back as the same model, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgemoe.architectures import model_spec, unused_tensors
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.expressible import check_expressible
from edgemoe.conversion.gguf.families import ARCHITECTURES
from edgemoe.conversion.gguf.metadata import remarks
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.gguf_store import GgufStore
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError, StoreError
from edgemoe.store.reader import Store
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.gguf_round_trip import Exported, assert_same_model, rewritten
from tests.support.stores import store_weights
from tests.support.stream_models import SMALL_STREAMS


@pytest.mark.parametrize("name", SMALL_STREAMS)
def test_a_file_is_the_same_model(name: str, exported: Exported, tmp_path: Path) -> None:
    store, path = exported(name)
    assert_same_model(store, path, SMALL_STREAMS[name], tmp_path)


def test_a_table_in_parts_comes_back_in_one(tmp_path: Path) -> None:
    """No file says how many parts there were, nor from which number on primes were counted."""
    config = SMALL_STREAMS["qwen4_exp"]
    source = tmp_path / "source"
    write_checkpoint(source, config | {"split_ngram_parts": 5, "ngram_vocab_size_base": 150}, dtype="F32")
    store = convert_checkpoint(str(source), tmp_path / "store", experts="f32", dense="f32")
    path = export_gguf(Store.open(store), tmp_path / "model.gguf", name="test", tokenizer=False)
    shards = {name: values for name, values in read_tensors(source).items() if ".shard_" in name}
    (rows,) = (t.data for t in gguf.GGUFReader(path).tensors if t.name == "per_layer_token_embd.weight")
    np.testing.assert_array_equal(rows, np.concatenate([shards[name] for name in sorted(shards)]))
    assert_same_model(store, path, config, tmp_path)
    with pytest.raises(SourceError, match=r"it has a table of rows that stays on the disk; .* a conversion"):
        GgufStore.open_file(path)


def test_a_file_has_the_shapes_of_llama_cpp(exported: Exported) -> None:
    """Numbers added by position within a block have a row for each position; experts of tokens are integers."""
    store, path = exported("deepseek_v4")
    weights = store_weights(Store.open(store))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    shapes = {name: tuple(tensor.shape[::-1].tolist()) for name, tensor in tensors.items()}
    assert shapes["blk.0.attn_compressor_ape.weight"] == (128, 64)
    assert shapes["blk.1.indexer_compressor_ape.weight"] == (4, 128)
    assert (shapes["blk.2.hc_ffn_fn.weight"], shapes["blk.2.hc_ffn_scale.weight"]) == ((24, 256), (3,))
    assert "blk.0.exp_probs_b.bias" not in tensors
    table = tensors["blk.1.ffn_gate_tid2eid.weight"]
    assert table.tensor_type == gguf.GGMLQuantizationType.I32
    np.testing.assert_array_equal(table.data.view(np.int32).reshape(-1), weights["layers.1.router_table"])
    base = np.concatenate([weights["layers.3.attention_collapse_base"], weights["layers.3.attention_balance_base"]])
    np.testing.assert_array_equal(tensors["blk.3.hc_attn_base.weight"].data, base)


def test_a_file_is_opened_as_it_is(exported: Exported) -> None:
    """The experts of its tokens are whole numbers there, and floats in memory."""
    store, path = exported("deepseek_v4")
    ids = np.random.default_rng(1).integers(0, 128, 100)
    logits = []
    for one in (store, GgufStore.open_file(path)):
        with open_engine(one, EngineOptions(threads=1, context_length=len(ids))) as engine:
            logits.append(engine.forward(ids, all_logits=True))
    np.testing.assert_array_equal(*logits)


def test_a_bias_for_images_is_left_out(exported: Exported, tmp_path: Path) -> None:
    _, path = exported("deepseek_v4")
    bias = {"blk.0.exp_probs_b_vl.bias": np.ones(8, np.float32)}
    source = GgufSource(rewritten(path, tmp_path / "changed.gguf", {}, bias))
    (name,) = unused_tensors(source.config, source.tensors())
    assert name == "layers.0.ffn.gate.bias_vl"


def test_tokens_that_llama_cpp_shows_beside_the_chosen_are_told() -> None:
    spec = model_spec(SMALL_STREAMS["qwen4_exp"])
    check_expressible(spec)
    assert any("up to 3 tokens of one block beside the 4 blocks" in text for text in remarks(spec))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("deepseek_v4", {"hc_mult": 3}, "deepseek4 has no residual streams but 4"),
        ("deepseek_v4", {"tie_word_embeddings": True}, "no head that is the embedding"),
        (
            "deepseek_v4",
            {"compress_rates": {"heavily_compressed_attention": 64}},
            "no blocks of 64 tokens .it has blocks of 4, which are chosen, and of 128.",
        ),
        ("deepseek_v4", {"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, "no tables of experts after layers"),
        ("qwen4_exp", {"output_gate_type": "silu"}, "qwen4exp has no gates by SiLU in layers of Gated DeltaNet"),
        ("qwen4_exp", {"ple_layer_ids": [1, 3]}, "no several tables"),
        ("qwen4_exp", {"ple_embed_dim": 32}, "no rows of a table that are not together as wide as the model"),
        ("qwen4_exp", {"linear_value_head_dim": 16}, "no keys of another width than values"),
        ("qwen4_exp", {"seed": 5000}, "qwen4exp has fixed patterns"),
        ("qwen4_exp", {"make_ngram_vocab_size_divisible_by": 5}, "qwen4exp has fixed patterns"),
        (
            "deepseek_v4",
            {"rope_scaling": {"type": "yarn", "factor": 8.0, "attention_factor": 1.2}},
            "deepseek4 has fixed patterns of layers, positions or weights",
        ),
    ],
    ids=str,
)
def test_what_llama_cpp_cannot_run_is_refused(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Before any weight is read: the store is planned only."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL_STREAMS[name] | changes))
    store = forecast_store(str(tmp_path)).store
    with pytest.raises(StoreError, match=words):
        export_gguf(store, tmp_path / "model.gguf", name="test", tokenizer=False)
    assert not list(tmp_path.glob("model.gguf*"))


@every_case(
    ("name", "changes", "words"),
    [
        ("qwen4_exp", {"attention.compress_ratios": [4, 4, 4, 8]}, "compress_ratios: expected one number above 0"),
        ("qwen4_exp", {"ple.layers": [0, 2]}, "ple.layers: expected one layer, found .0, 2."),
        ("qwen4_exp", {"ple.head_vocab_sizes": [151, 158]}, "ple.head_vocab_sizes: expected .151, 157., found"),
        ("qwen4_exp", {"ple.head_vocab_sizes": [151]}, "ple.head_vocab_sizes: expected 2 numbers, 64 at most"),
        ("qwen4_exp", {"ple.head_offsets": [1, 151]}, "ple.head_offsets: expected .0, 151., found"),
        ("qwen4_exp", {"ple.layer_multipliers": [1, 3, 5]}, "layer_multipliers: expected those of a seed below 4096"),
        ("qwen4_exp", {"ple.conv_kernel": 0}, "ple.conv_kernel: expected a whole number above 0, found 0"),
        ("deepseek_v4", {"expert_gating_func": 2}, "expert_gating_func: expected 4 .root of softplus., found 2"),
        ("deepseek_v4", {"expert_weights_norm": False}, "expert_weights_norm: expected true, found False"),
        ("deepseek_v4", {"swiglu_clamp_exp": [1.0, 1.0, 2.0, 1.0]}, "swiglu_clamp_exp: expected one number for all"),
        ("deepseek_v4", {"embedding_length_out": 64}, "embedding_length_out: expected 256, found 64"),
        ("deepseek_v4", {"attention.compress_ratios": [4, 0]}, "compress_ratios: expected a number for each of 4"),
        ("deepseek_v4", {"attention.compress_ratios": [8, 4, 0, 4]}, "attention.compress_ratios is 8"),
        ("deepseek_v4", {"expert_shared_count": 2}, "expert_shared_count is 2"),
        ("deepseek_v4", {"hyper_connection.epsilon": "0"}, "hyper_connection.epsilon: expected a number, found '0'"),
    ],
    ids=str,
)
def test_keys_that_contradict_the_architecture_are_refused_by_name(
    name: str, changes: dict[str, Any], words: str, exported: Exported, tmp_path: Path
) -> None:
    renamed = {f"{ARCHITECTURES[name]}.{key}": value for key, value in changes.items()}
    changed = rewritten(exported(name)[1], tmp_path / "changed.gguf", renamed)
    with pytest.raises(SourceError, match=words):
        GgufSource(changed)
