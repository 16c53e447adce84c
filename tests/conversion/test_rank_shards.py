"""Checkpoints in shards of tensor-parallel ranks, as xAI publishes Grok-2: no index, the same names in each rank's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.conversion.hub.source import HubSource
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.rank_shards import rank_shards
from edgemoe.errors import SourceError
from edgemoe.store.reader import Store
from tests.support.hub_server import HubServer, Repository, hub_server, use_hub
from tests.support.stores import store_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "grok_2"
MODEL = "maker/grok"
RANKS = 4
GATE = "model.layers.1.block_sparse_moe.experts.5.w1.weight"
DOWN = "model.layers.1.block_sparse_moe.experts.5.w2.weight"


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of the golden model as float32, which holds bfloat16 exactly."""
    from tests.architectures.harness import load_checkpoint

    return load_checkpoint(GOLDEN)[1]


@pytest.fixture(scope="module")
def folder(whole: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model as its ranks would have saved it, gates, downs and ups of experts in shards of their own."""
    found = tmp_path_factory.mktemp("ranks")
    shutil.copy(GOLDEN / "config.json", found)
    (found / "tokenizer.tok.json").write_bytes(b"{}")
    common = {name: values for name, values in whole.items() if ".experts." not in name}
    save_file(common, found / "pytorch_model-00000-TP-common.safetensors")
    for part in (1, 2, 3):
        own = {name: values for name, values in whole.items() if name.endswith(f".w{part}.weight")}
        for rank in range(RANKS):
            cut = {name: _part(values, rank, columns=part == 2) for name, values in own.items()}
            save_file(cut, found / f"pytorch_model-0000{part}-TP-00{rank}.safetensors")
    return found


def _part(values: np.ndarray[Any, Any], rank: int, columns: bool) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.split(values, RANKS, axis=int(columns))[rank])


@pytest.fixture
def server(folder: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        server.models[MODEL] = Repository({path.name: path.read_bytes() for path in folder.iterdir()})
        yield server


@pytest.fixture
def connect(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], HubSource]:
    use_hub(monkeypatch, server.url, tmp_path / "cache")
    return lambda: HubSource(HubRepository(HubId(MODEL), downloads=tmp_path / "downloads"))


def test_the_parts_of_all_ranks_are_one_tensor(folder: Path, whole: dict[str, np.ndarray[Any, Any]]) -> None:
    source = open_source(str(folder))
    assert {name: info.shape for name, info in source.tensors().items()} == {
        name: values.shape for name, values in whole.items()
    }
    for name in (GATE, DOWN, "lm_head.weight"):
        for start, stop in ((0, len(whole[name])), (0, 1), (4, 6), (4, 5), (3, 12), (10, 10)):
            np.testing.assert_array_equal(source.read_rows(name, None, start, stop), whole[name][start:stop])
    source.close()


def test_the_store_is_that_of_the_whole_tensors(
    folder: Path, whole: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    formats = {"experts": "q4", "dense": "q8"}
    heard: list[str] = []
    found = Store.open(convert_checkpoint(str(folder), tmp_path / "ranks", **formats, notice=heard.append))
    single = tmp_path / "single"
    single.mkdir()
    shutil.copy(GOLDEN / "config.json", single)
    save_file(whole, single / "model.safetensors")
    expected = Store.open(convert_checkpoint(str(single), tmp_path / "whole", **formats))
    own = store_weights(expected)
    assert own.keys() == store_weights(found).keys()
    for name, values in store_weights(found).items():
        np.testing.assert_array_equal(values, own[name])
    (notice,) = heard
    assert "tokenizer.tok.json" in notice
    assert "alvarobartt/grok-2-tokenizer" in notice
    assert forecast_store(str(folder), **formats).store.manifest.model == found.manifest.model


def test_a_missing_rank_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "pytorch_model-00002-TP-001.safetensors").unlink()
    with pytest.raises(SourceError, match=r"of 4 ranks.*1 are missing: pytorch_model-00002-TP-001\.safetensors"):
        open_source(str(copy))


def test_a_part_of_another_shape_is_an_error_that_names_the_expert(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shard = copy / "pytorch_model-00001-TP-003.safetensors"
    save_file({name: values[:2] for name, values in load_file(shard).items()}, shard)
    with pytest.raises(SourceError, match=r"experts\.0\.w1\.weight: expected .* \(20, 24\)"):
        convert_checkpoint(str(copy), tmp_path / "store")


def test_shards_are_of_ranks_only_if_all_are() -> None:
    ranks = ["a-TP-000.safetensors", "a-TP-001.safetensors", "b-TP-common.safetensors"]
    assert rank_shards("here", [*reversed(ranks), "config.json"]) == ranks
    assert rank_shards("here", [*ranks, "model-00001-of-00002.safetensors"]) == []
    assert rank_shards("here", []) == []


def test_the_hub_gives_the_same_parts_and_keeps_them_until_the_last(
    connect: Callable[[], HubSource], folder: Path, whole: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    from edgemoe.conversion.tailed import with_tails

    source = with_tails(connect())
    np.testing.assert_array_equal(source.read_rows(DOWN, None, 0, len(whole[DOWN])), whole[DOWN])
    shards = [f"pytorch_model-00002-TP-00{rank}.safetensors" for rank in range(RANKS)]
    assert source.tensors()[DOWN].shard == shards[-1]
    held = lambda: {path.name for path in (tmp_path / "downloads").rglob("*.safetensors")}  # noqa: E731
    for shard in shards[:-1]:
        source.release(shard)
    assert held() == set(shards)
    source.release(shards[-1])
    assert held() == set()
    source.close()


def test_the_hub_refuses_where_a_rank_is_missing(connect: Callable[[], HubSource], server: HubServer) -> None:
    del server.models[MODEL].files["pytorch_model-00003-TP-000.safetensors"]
    with pytest.raises(SourceError, match=r"missing: pytorch_model-00003-TP-000\.safetensors"):
        connect()
