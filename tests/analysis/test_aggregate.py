"""All experts as one FFN: the mean of their matrices by weight, and exact where all experts are one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.analysis.aggregate import mean_weights, write_aggregated
from edgemoe.analysis.text_pass import TextPass
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.analysis.conftest import random_windows
from tests.support.checkpoints import SMALL_NEMOTRON, read_tensors, write_checkpoint

SHARED: dict[str, Any] = {
    "model_type": "granitemoeshared",
    "hidden_size": 64,
    "intermediate_size": 40,
    "shared_intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attention_multiplier": 0.25,
}


def logits(store: Path) -> np.ndarray:
    with open_engine(store, EngineOptions()) as engine:
        return engine.forward(np.arange(1, 41) % 50, all_logits=True)


def test_weights_are_means_over_tokens(exact: Store) -> None:
    windows = random_windows()
    found = mean_weights(exact, windows)
    for layer in TextPass(exact, windows).layers():
        own = [float(layer.weights[layer.chosen == expert].sum()) / len(layer.chosen) for expert in range(4)]
        assert np.allclose(found[layer.number], own)
        assert sum(own) == pytest.approx(1, abs=1e-5)


def test_experts_that_are_one_become_it(tmp_path: Path) -> None:
    """Beside a shared expert too: the dense model then computes what the mixture did."""
    write_checkpoint(tmp_path / "source", SHARED)
    tensors = dict(read_tensors(tmp_path / "source"))
    for name, own in tensors.items():
        if own.ndim == 3:
            tensors[name] = np.repeat(own[:1], len(own), axis=0)
    for file in (tmp_path / "source").glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="f32", dense="f32"))
    weights = {layer: np.array([0.1, 0.2, 0.3, 0.4]) for layer in (0, 1)}
    made = Store.open(write_aggregated(store, tmp_path / "made", weights, "by hand"))
    assert verify_store(made) == []
    assert not store_spec(made).routed
    assert np.allclose(logits(made.path), logits(store.path), atol=1e-5)
    assert "experts" not in made.manifest.quantisation
    assert made.manifest.provenance["compressed"] == "by hand"


def test_an_ffn_is_the_mean_by_weight(exact: Store, tmp_path: Path) -> None:
    weights = {layer: np.array([0.5, 0.0, 0.25, 0.5]) for layer in (0, 1)}
    made = Store.open(write_aggregated(exact, tmp_path / "made", weights, "by hand"))
    dense = made.load_dense()
    layer = next(TextPass(exact, random_windows()).layers())
    down = sum(weight * layer.matrix(expert, "down") for expert, weight in enumerate(weights[0]))
    found: Any = dense["layers.0.ffn.down"]
    stored = found.data.view(np.float32).reshape(4, -1, 16).transpose(0, 2, 1).reshape(64, -1)[:, :72]
    assert np.allclose(stored, down, atol=1e-6)
    assert json.loads((made.path / "config.json").read_text())["num_local_experts"] == 4


def test_experts_that_no_ffn_has_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", SMALL_NEMOTRON)
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="f32", dense="f32"))
    with pytest.raises(UsageError, match="`aggregate`: expected gated experts without biases in layer 1"):
        write_aggregated(store, tmp_path / "made", {}, "by hand")
    assert not list(tmp_path.glob("made*"))
