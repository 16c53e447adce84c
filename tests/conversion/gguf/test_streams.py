"""GGUF files of families with several residual streams: written, read back as the same model, or refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.families import ARCHITECTURES
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.errors import SourceError, StoreError
from edgemoe.store.reader import Store
from tests.support.every_case import every_case
from tests.support.gguf_round_trip import assert_same_model, exported_model, rewritten
from tests.support.stores import store_weights
from tests.support.stream_models import SMALL_STREAMS

Exported = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gives the store of random weights of a family, and the GGUF of it, both made once."""

    @functools.cache
    def made(family: str) -> tuple[Path, Path]:
        return exported_model(tmp_path_factory.mktemp("exported"), SMALL_STREAMS[family])

    return made


@pytest.mark.parametrize("name", SMALL_STREAMS)
def test_a_file_is_the_same_model(name: str, exported: Exported, tmp_path: Path) -> None:
    store, path = exported(name)
    assert_same_model(store, path, SMALL_STREAMS[name], tmp_path)


def test_a_file_has_the_shapes_of_llama_cpp(exported: Exported) -> None:
    """What positions within a block add is a row for each; the experts of each token are whole numbers."""
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
        ("deepseek_v4", {"expert_gating_func": 2}, "expert_gating_func: expected 4 .root of softplus., found 2"),
        ("deepseek_v4", {"expert_weights_norm": False}, "expert_weights_norm: expected true, found False"),
        ("deepseek_v4", {"swiglu_clamp_exp": [1.0, 1.0, 2.0, 1.0]}, "swiglu_clamp_exp: expected one number for all"),
        ("deepseek_v4", {"embedding_length_out": 64}, "embedding_length_out: expected 256, found 64"),
        ("deepseek_v4", {"attention.compress_ratios": [4, 0]}, "compress_ratios: expected a number for each of 4"),
        ("deepseek_v4", {"attention.compress_ratios": [8, 4, 0, 4]}, "attention.compress_ratios is 8"),
        ("deepseek_v4", {"expert_shared_count": 2}, "expert_shared_count is 2"),
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
