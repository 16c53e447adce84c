"""Tensors that a checkpoint keeps in parts are shown whole: the rows or columns of another one follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.tailed import TailedSource
from edgemoe.errors import SourceError
from edgemoe.store.reader import Store
from tests.golden.cases import Case
from tests.golden.published_code import make_model
from tests.golden.published_more import GroveMoe
from tests.support.stores import store_weights

CONFIG: dict[str, Any] = {
    "decoder_sparse_step": 1,
    "head_dim": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "mlp_only_layers": [],
    "model_type": "grove_moe",
    "moe_intermediate_size": 20,
    "num_attention_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "vocab_size": 32,
}
EXPERT, ADJUGATE = "model.layers.1.mlp.experts.3", "model.layers.1.mlp.chunk_experts.1"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray[Any, Any]]:
    return make_model(Case("grove_moe", 1, CONFIG), GroveMoe).tensors


def write(folder: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """Write a checkpoint of two shards, adjugate experts and biases of experts in the first."""
    folder.mkdir()
    biases = {f"model.layers.{layer}.mlp.expert_bias": np.zeros(4, np.float32) for layer in range(2)}
    files = {name: f"{int('chunk_experts' not in name)}.safetensors" for name in tensors} | dict.fromkeys(
        biases, "0.safetensors"
    )
    for file in sorted(set(files.values())):
        own = {name: (tensors | biases)[name] for name, shard in files.items() if shard == file}
        save_file(own, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_an_expert_has_the_rows_and_columns_of_its_adjugate(tensors, tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "c", tensors)))
    assert isinstance(source, TailedSource)
    gate, down = (f"{EXPERT}.{part}_proj.weight" for part in ("gate", "down"))
    whole = {
        gate: np.concatenate([tensors[f"{name}.gate_proj.weight"] for name in (EXPERT, ADJUGATE)]),
        down: np.concatenate([tensors[down], np.float32(0.05) * tensors[f"{ADJUGATE}.down_proj.weight"]], axis=1),
    }
    for name, meant in whole.items():
        assert source.tensors()[name].shape == meant.shape
        for start, stop in ((0, 7), (18, 23), (19, 20), (20, 22), (0, len(meant))):
            found = source.read_rows(name, None, min(start, len(meant)), min(stop, len(meant)))
            np.testing.assert_array_equal(found, meant[start:stop])
    assert not any("chunk_experts" in name for name in source.tensors())
    source.close()


def test_a_shard_goes_when_nothing_needs_it(tensors, tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "c", tensors)))
    released: list[str] = []
    inner = source._source  # type: ignore[attr-defined]
    inner.release = released.append
    first, second = source.shards()
    assert {source.tensors()[f"{EXPERT}.up_proj.weight"].shard} == {second}
    source.release(first)
    assert released == []
    source.release(second)
    assert released == [first, second]


def test_the_store_and_its_forecast_have_the_wider_experts(tensors, tmp_path: Path) -> None:
    folder = write(tmp_path / "c", tensors)
    forecast = forecast_store(str(folder), "f32", "f32").store.manifest
    store = Store.open(convert_checkpoint(str(folder), tmp_path / "store", experts="f32", dense="f32"))
    up = np.concatenate([tensors[f"{name}.up_proj.weight"] for name in (EXPERT, ADJUGATE)])
    np.testing.assert_array_equal(store_weights(store)["layers.1.experts.3.up"], up)
    assert store.manifest.model == forecast.model
    for name in ("0.safetensors", "1.safetensors"):
        (folder / name).unlink()
    by_index = forecast_store(str(folder), "f32", "f32")
    assert "the index" in by_index.known_from
    assert by_index.store.manifest.model == forecast.model


def test_a_missing_adjugate_is_an_error_that_names_the_expert(tensors, tmp_path: Path) -> None:
    without = {name: values for name, values in tensors.items() if not name.startswith(f"{ADJUGATE}.up")}
    with pytest.raises(SourceError, match=r"experts\.2\.up_proj\.weight: expected .* = \(148, 16\) from config"):
        convert_checkpoint(str(write(tmp_path / "c", without)), tmp_path / "store")


@pytest.mark.parametrize("part", [EXPERT, ADJUGATE])
def test_parts_that_are_no_floats_are_refused_before_the_work(
    part: str, tensors: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    name = f"{part}.down_proj.weight"
    folder = write(tmp_path / "c", tensors | {name: tensors[name].astype(np.int64)})
    with pytest.raises(SourceError, match=r"down_proj\.weight: expected weights of F64, F32, F16, BF16, found I64"):
        convert_checkpoint(str(folder), tmp_path / "store")
    assert not (tmp_path / "store.partial").exists()
