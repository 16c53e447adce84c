"""A checkpoint that carries a head although its config ties it to the embedding: a copy is harmless, another is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.architectures import checkpoint_shapes
from edgemoe.conversion import places, transfer
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError, UsageError
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, folder_bytes
from tests.support.gguf_files import write_gguf
from tests.support.hub_server import Repository, hub_server, use_hub
from tests.support.pairs import default_pairs
from tests.support.stores import store_weights

TIED = SMALL_MIXTRAL | {"tie_word_embeddings": True}
UNTIED = SMALL_MIXTRAL | {"tie_word_embeddings": False}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DIFFERENT = r"lm_head\.weight: expected the numbers of model\.embed_tokens\.weight.*found others.*tie_word_embeddings"

Tensors = dict[str, "np.ndarray[Any, Any]"]


def tensors_with_head() -> Tensors:
    """The tensors of a checkpoint whose head repeats its embedding."""
    random = np.random.default_rng(3)
    tensors: Tensors = {}
    for name, shape in checkpoint_shapes(UNTIED).items():
        # numbers that float16 has too
        tensors[name] = (random.standard_normal(shape, np.float32) * np.float32(0.05)).astype(np.float16)
        tensors[name] = tensors[name].astype(np.float32)
    return tensors | {HEAD: tensors[EMBEDDING].copy()}


def save(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any], shards: list[list[str]]) -> Path:
    """The checkpoint with these names in these shards, and what no shard names in one more."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    (folder / "tokenizer.json").write_text("{}")
    left = [name for name in tensors if not any(name in shard for shard in shards)]
    weight_map = {}
    for number, names in enumerate([*shards, left], 1):
        file = f"model-{number:05d}-of-{len(shards) + 1:05d}.safetensors"
        save_file({name: np.ascontiguousarray(tensors[name]) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def without_manifest(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in folder_bytes(folder).items() if name != "edgemoe.json"}


LAYOUTS = {
    "one shard": [],
    "the head in a shard before": [[HEAD], [EMBEDDING]],
    "the head in a shard behind": [[EMBEDDING], [HEAD]],
    "both in the last shard": [["model.norm.weight"]],
}


@pytest.mark.parametrize(("layout", "dense"), default_pairs([*LAYOUTS], ["f32", "q8", "q4"]))
def test_a_head_that_repeats_the_embedding_changes_nothing(
    layout: str, dense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SLICE_WEIGHTS", 2000)
    tensors = tensors_with_head()
    source = save(tmp_path / "with", tensors, TIED, LAYOUTS[layout])
    plain = save(tmp_path / "without", {n: t for n, t in tensors.items() if n != HEAD}, TIED, [])
    found = convert_checkpoint(str(source), tmp_path / "found", dense=dense)
    expected = convert_checkpoint(str(plain), tmp_path / "expected", dense=dense)
    assert without_manifest(found) == without_manifest(expected)
    manifests = [Store.open(folder).manifest for folder in (found, expected)]
    assert manifests[0].quantisation == manifests[1].quantisation


def test_the_same_numbers_in_another_dtype_are_the_same(tmp_path: Path) -> None:
    tensors = tensors_with_head()
    source = save(tmp_path / "with", tensors | {HEAD: tensors[HEAD].astype(np.float16)}, TIED, [])
    convert_checkpoint(str(source), tmp_path / "store", dense="f32")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_head_is_refused_before_the_rest_is_converted(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SLICE_WEIGHTS", 2000)
    monkeypatch.setattr(transfer, "CHECKPOINT_BYTES", 1)
    tensors = tensors_with_head()
    tensors[HEAD][70] *= 2
    source = save(tmp_path / "checkpoint", tensors, TIED, LAYOUTS[layout])
    with pytest.raises(SourceError, match=DIFFERENT) as refused:
        convert_checkpoint(str(source), tmp_path / "store")
    assert "rows 64 to 79" in str(refused.value)
    assert not (tmp_path / "store").exists()
    pieces = [line for line in (tmp_path / "store.partial" / "journal").read_text().splitlines() if "piece" in line]
    others_in_its_shard = 1 if layout in ("one shard", "both in the last shard") else len(LAYOUTS[layout][0])
    assert len(pieces) <= others_in_its_shard


def test_the_way_out_leads_out(tmp_path: Path) -> None:
    tensors = tensors_with_head()
    tensors[HEAD] *= 2
    source = save(tmp_path / "checkpoint", tensors, TIED, [])
    with pytest.raises(SourceError, match=DIFFERENT):
        convert_checkpoint(str(source), tmp_path / "store", dense="f32")
    (source / "config.json").write_text(json.dumps(UNTIED))
    with pytest.raises(UsageError, match="`force`"):
        convert_checkpoint(str(source), tmp_path / "store", dense="f32")
    store = convert_checkpoint(str(source), tmp_path / "store", dense="f32", force=True)
    assert np.array_equal(store_weights(Store.open(store))["head"], tensors[HEAD])


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    tensors = tensors_with_head()
    source = save(tmp_path / "checkpoint", tensors | {HEAD: tensors[HEAD][:-1]}, TIED, [])
    with pytest.raises(SourceError, match=r"lm_head\.weight: expected .*\(101, 64\).*found \(100, 64\)"):
        convert_checkpoint(str(source), tmp_path / "store")


def test_an_interrupted_comparison_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "checkpoint", tensors_with_head(), TIED, LAYOUTS["the head in a shard behind"])
    expected = folder_bytes(convert_checkpoint(str(source), tmp_path / "undisturbed"))
    with monkeypatch.context() as patch:
        patch.setattr(transfer.Transfer, "_compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(str(source), tmp_path / "store")
    assert folder_bytes(convert_checkpoint(str(source), tmp_path / "store")) == expected


@pytest.mark.parametrize("same", [True, False])
def test_from_a_hub_one_shard_at_a_time(same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_with_head()
    tensors[HEAD][0] += 0 if same else 1
    folder = save(tmp_path / "checkpoint", tensors, TIED, [["model.norm.weight"], [HEAD], [EMBEDDING]])
    with hub_server() as server:
        server.models["maker/tiny"] = Repository({path.name: path.read_bytes() for path in folder.iterdir()})
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        if same:
            convert_checkpoint("maker/tiny", tmp_path / "store")
            return
        with pytest.raises(SourceError, match=DIFFERENT):
            convert_checkpoint("maker/tiny", tmp_path / "store")
        shards = [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
        assert [shard for shard in shards if server.models["maker/tiny"].gets(shard)] == shards[1:3]


@pytest.mark.parametrize("scale", [1, 2])
def test_a_gguf_with_a_head_has_that_head(scale: int, tmp_path: Path) -> None:
    config = UNTIED | {"vocab_size": 404}
    tensors = {
        name: np.random.default_rng(len(name)).standard_normal(shape, np.float32)
        for name, shape in checkpoint_shapes(config).items()
    }
    tensors[HEAD] = tensors[EMBEDDING] * np.float32(scale)
    path = write_gguf(tmp_path / "model.gguf", config, tensors)
    store = Store.open(convert_checkpoint(str(path), tmp_path / "store", dense="f32"))
    assert not store.model["tied_embeddings"]
    assert np.array_equal(store_weights(store)["head"], tensors[HEAD])
