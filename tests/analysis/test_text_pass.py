"""A text on its way through a model: what experts get and give is what the model computes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.analysis.text_pass import TextPass
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf_store import GgufStore
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import ReadError, StoreError, UsageError
from edgemoe.lab.recorder import recording
from edgemoe.lab.trace import read_trace
from edgemoe.store.reader import Store
from tests.analysis.conftest import random_windows
from tests.support.checkpoints import SMALL_NEMOTRON, SMALL_SWITCH, read_tensors, write_checkpoint

PARTS = {"gate": "w1", "up": "w3", "down": "w2"}


@pytest.fixture(scope="module")
def weights(mixtral: Path) -> Mapping[str, np.ndarray]:
    return read_tensors(mixtral)


def of_expert(weights: Mapping[str, np.ndarray], layer: int, expert: int, part: str) -> np.ndarray:
    found = weights[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{PARTS[part]}.weight"]
    return found.astype(np.float64)


def test_experts_have_the_weights_of_the_checkpoint(exact: Store, weights: Mapping[str, np.ndarray]) -> None:
    for layer in TextPass(exact, random_windows()).layers():
        for expert in range(layer.num_experts):
            for part in layer.parts:
                expected = of_expert(weights, layer.number, expert, part)
                assert np.array_equal(layer.matrix(expert, part), expected)
                assert np.array_equal(layer.rows(expert, part, 16, 48), expected[16:48])
        router = weights[f"model.layers.{layer.number}.block_sparse_moe.gate.weight"]
        assert np.array_equal(layer.router, router)


def test_what_experts_give_follows_from_what_they_get(exact: Store, weights: Mapping[str, np.ndarray]) -> None:
    windows = random_windows()
    layers = 0
    for layer in TextPass(exact, windows).layers():
        assert layer.inputs.shape == (3 * 39, 64)
        inputs = layer.inputs.astype(np.float64)
        router = weights[f"model.layers.{layer.number}.block_sparse_moe.gate.weight"].astype(np.float64)
        assert np.allclose(layer.logits, inputs @ router.T, atol=1e-5)
        assert np.array_equal(layer.chosen, np.argsort(-layer.logits, axis=1, kind="stable")[:, :2])
        assert np.allclose(layer.weights.sum(axis=1), 1, atol=1e-6)
        tokens = layer.sample(10)
        (found,) = [output for _, output in layer.outputs(tokens)]
        for expert in range(4):
            gate, up, down = (of_expert(weights, layer.number, expert, part) for part in ("gate", "up", "down"))
            products = inputs @ gate.T
            hidden = products / (1 + np.exp(-products)) * (inputs @ up.T)
            assert np.allclose(layer.hidden(expert, layer.inputs), hidden, atol=1e-5)
            expected = hidden @ down.T
            assert np.allclose(found[:, expert], expected[tokens], atol=1e-5)
            rows, columns = np.nonzero(layer.chosen == expert)
            assert np.allclose(layer.norms[rows, columns], np.linalg.norm(expected[rows], axis=1), rtol=1e-4)
        layers += 1
    assert layers == 2


def test_routing_is_that_of_the_engine(exact: Store, tmp_path: Path) -> None:
    windows = random_windows(count=1)
    with open_engine(exact.path, EngineOptions()) as engine, recording(engine, tmp_path / "trace"):
        engine.forward(windows.ids[0])
    trace = read_trace(tmp_path / "trace")
    for layer in TextPass(exact, windows).layers():
        engines = trace.expert[trace.layer == layer.number].reshape(-1, 2)
        assert np.array_equal(layer.chosen, engines[1:])


def test_damaged_weights_are_refused(exact: Store, tmp_path: Path) -> None:
    for number, (name, offset, error) in enumerate(
        (
            (exact.manifest.dense_file.name, exact.manifest.dense[0].offset, StoreError),
            (exact.manifest.expert_files[0].name, exact.record(1, 2).offset, ReadError),
        )
    ):
        folder = Path(shutil.copytree(exact.path, tmp_path / str(number)))
        with (folder / name).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(error):
            list(TextPass(Store.open(folder), random_windows()).layers())


def test_a_gguf_file_shows_what_its_store_does(exact: Store, tmp_path: Path) -> None:
    file = export_gguf(exact, tmp_path / "model.gguf", name="tiny", tokenizer=False, force=False)
    store = Store.open(convert_checkpoint(str(file), tmp_path / "store", experts="keep"))
    passes = (TextPass(one, random_windows()).layers() for one in (store, GgufStore.open_file(file)))
    for own, of_file in zip(*passes, strict=True):
        assert np.array_equal(own.chosen, of_file.chosen)
        assert np.array_equal(own.norms, of_file.norms)
        assert np.array_equal(own.matrix(3, "gate"), of_file.matrix(3, "gate"))


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["q4", "n1+n3", "q4,down=q8"])
def test_every_kind_of_record_has_the_weights_that_kernels_use(mixtral: Path, tmp_path: Path, experts: str) -> None:
    store = Store.open(convert_checkpoint(str(mixtral), tmp_path / "store", experts=experts, dense="f32"))
    for layer in TextPass(store, random_windows()).layers():
        tokens = layer.sample(10)
        (found,) = [output for _, output in layer.outputs(tokens)]
        for expert in range(4):
            expected = layer.hidden(expert, layer.inputs[tokens]) @ layer.matrix(expert, "down").T
            error = np.linalg.norm(found[:, expert] - expected) / np.linalg.norm(expected)
            assert error < 0.02, experts  # kernels round what they multiply to 8 bits


def test_experts_without_a_gate_and_on_latent_rows(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", SMALL_NEMOTRON)
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="f32", dense="f32"))
    layers = 0
    for layer in TextPass(store, random_windows()).layers():
        assert layer.parts == ("up", "down")
        assert layer.inputs.shape[1] == 48
        tokens = layer.sample(10)
        (found,) = [output for _, output in layer.outputs(tokens)]
        expected = layer.hidden(3, layer.inputs[tokens]) @ layer.matrix(3, "down").T
        assert np.allclose(found[:, 3], expected, atol=1e-4)
        layers += 1
    assert layers == 2


def test_a_model_whose_text_does_not_go_layer_by_layer_is_refused(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {"without an encoder": SMALL_SWITCH}
    dense = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    dense |= {"num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    cases["with routed experts, found none"] = dense
    for number, (message, config) in enumerate(cases.items()):
        write_checkpoint(tmp_path / f"source-{number}", config)
        store = convert_checkpoint(str(tmp_path / f"source-{number}"), tmp_path / f"store-{number}")
        with pytest.raises(UsageError, match=message):
            TextPass(Store.open(store), random_windows(50))
