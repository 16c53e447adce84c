"""Dense checkpoints as mixtures of experts: with all experts on they compute what the dense model does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint, convert_source
from edgemoe.conversion.upcycling import UpcycledSource, Upcycling, clusters, plan_upcycled, upcycled
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import SMALL_MIXTRAL, folder_bytes, read_tensors, write_checkpoint

SMALL_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 120,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
EXACT = FormatChoice("f32", "f32", None)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose FFNs say something beside the embedding, which the norms make large."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    write_checkpoint(folder, SMALL_LLAMA)
    return folder


@pytest.fixture(scope="module")
def expected(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return logits(
        convert_checkpoint(str(dense), tmp_path_factory.mktemp("store") / "dense", experts="f32", dense="f32")
    )


def logits(store: Path) -> np.ndarray:
    with open_engine(store, EngineOptions()) as engine:
        return engine.forward(np.arange(1, 41) % 50, all_logits=True)


def converted(dense: Path, to: Path, how: Upcycling, choice: FormatChoice = EXACT) -> Path:
    return convert_source(
        lambda downloads: upcycled(open_source(str(dense)), how), to, choice=choice, planning=plan_upcycled
    )


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_carved_model_with_all_experts_on_is_the_dense_one(dense: Path, expected: np.ndarray, tmp_path: Path) -> None:
    for number, shared in enumerate((None, 0, 56)):
        store = converted(dense, tmp_path / f"all-{number}", Upcycling(8, 8, True, shared=shared))
        assert verify_store(Store.open(store)) == []
        assert error(logits(store), expected) < 1e-5
    some = logits(converted(dense, tmp_path / "some", Upcycling(8, 2, True, shared=56)))
    none = logits(converted(dense, tmp_path / "few", Upcycling(8, 1, True, shared=0)))
    assert 1e-4 < error(some, expected) < error(none, expected)  # neurons that are left out are missed


def test_an_upcycled_model_is_the_dense_one_until_it_is_trained(
    dense: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    store = converted(dense, tmp_path / "made", Upcycling(4, 2, False, width=16))
    assert np.array_equal(logits(store), expected)
    spec = store_spec(Store.open(store))
    assert model_spec(json.loads((store / "config.json").read_text())) == spec  # a family's, so that it can be updated
    routed = spec.routed
    assert {(own.num_experts, own.top_k, own.intermediate_size) for own in routed.values()} == {(4, 2, 16)}


def test_each_neuron_goes_to_one_expert(dense: Path) -> None:
    tensors = read_tensors(dense)
    source = upcycled(open_source(str(dense)), Upcycling(8, 2, True, shared=40))
    gate = tensors["model.layers.1.mlp.gate_proj.weight"]
    parts = [
        rows_of(source, "layers.1.shared.gate"),
        *(rows_of(source, f"layers.1.experts.{n}.gate") for n in range(8)),
    ]
    assert [len(part) for part in parts] == [40] + [10] * 8
    assert np.array_equal(sorted(np.concatenate(parts).tolist()), sorted(gate.astype(np.float32).tolist()))
    router = rows_of(source, "layers.1.router")
    means = np.stack([part.mean(axis=0) for part in parts[1:]])
    scale = router[0, 0] / means[0, 0]
    assert 0 < scale <= 1
    assert np.allclose(router, scale * means, atol=1e-6)
    source.close()


def rows_of(source: UpcycledSource, name: str) -> np.ndarray:
    return np.asarray(source.read_rows(name, None, 0, source.tensors()[name].shape[0]))


def test_clusters_are_alike_and_of_one_size() -> None:
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(16, 16)))[0][:4]
    kinds = generator.permutation(np.repeat(np.arange(4), 6))
    rows = (directions[kinds] * generator.uniform(1, 9, (24, 1)) + generator.normal(scale=0.01, size=(24, 16))).astype(
        np.float32
    )
    found = clusters(rows, 4)
    assert [len(own) for own in found] == [6] * 4
    assert sorted(np.concatenate(found).tolist()) == list(range(24))
    assert len(clusters(generator.normal(size=(20, 4)).astype(np.float32), 5)) == 5


def test_the_same_bytes_again(dense: Path, tmp_path: Path) -> None:
    how, choice = Upcycling(4, 2, True), EXACT
    stores = [converted(dense, tmp_path / name, how, choice) for name in ("one", "two")]
    assert folder_bytes(stores[0]) == folder_bytes(stores[1])
    assert converted(dense, stores[0], how, choice) == stores[0]
    with pytest.raises(EdgemoeError, match="is of another conversion"):
        converted(dense, stores[0], Upcycling(4, 1, True), choice)


def test_what_cannot_be_upcycled_is_refused(dense: Path, tmp_path: Path) -> None:
    cases: Mapping[str, tuple[Upcycling, FormatChoice]] = {
        "`top_k`: expected 1 to the 8 experts of a layer, found 9": (Upcycling(8, 9, True), EXACT),
        "`top_k`: expected 1 to the 8 experts of a layer, found 0": (Upcycling(8, 0, False, width=8), EXACT),
        "`width`: expected 1 or more neurons, found 0": (Upcycling(8, 2, False), EXACT),
        "a divisor of the 120 neurons that are not shared, of 120 in an FFN; found 7": (
            Upcycling(7, 2, True, shared=0),
            EXACT,
        ),
        "a divisor of the 0 neurons that are not shared": (Upcycling(4, 2, True, shared=130), EXACT),
        "`experts=sub1`: expected one format": (Upcycling(4, 2, True), FormatChoice("sub1", "q8", None)),
        "`experts=n1\\+n3`: expected one format": (Upcycling(4, 2, True), FormatChoice("n1+n3", "q8", None)),
    }
    for message, (how, choice) in cases.items():
        with pytest.raises(EdgemoeError, match=message):
            converted(dense, tmp_path / "made", how, choice)
    write_checkpoint(tmp_path / "moe", SMALL_MIXTRAL)
    with pytest.raises(
        EdgemoeError, match="expected a dense model with a gated FFN in each layer, found routed experts"
    ):
        converted(tmp_path / "moe", tmp_path / "made", Upcycling(4, 2, True))
    assert not list(tmp_path.glob("made*"))
