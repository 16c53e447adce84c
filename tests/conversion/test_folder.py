"""The folder source: rows as the checkpoint has them, and clear refusals of what is missing, cut or hostile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.conversion import sampling
from edgemoe.conversion.folder import FolderSource
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError
from tests.support.checkpoints import SMALL_MIXTRAL, read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.examples import examples

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, shards=3)
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("stacked", [False, True])
def test_rows_are_those_of_the_checkpoint(tmp_path: Path, dtype: str, stacked: bool) -> None:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, dtype=dtype, stacked=stacked, shards=2)
    source = open_source(str(tmp_path / "model"))
    expected = read_tensors(tmp_path / "model")
    assert set(source.tensors()) == set(expected)
    for name, tensor in expected.items():
        index = 2 if tensor.ndim == 3 else None
        whole = tensor[2] if index is not None else tensor
        for start, stop in ((0, len(whole)), (1, 2), (3, 3)):
            rows = source.read_rows(name, index, start, stop)
            assert isinstance(rows, np.ndarray)
            assert rows.dtype == np.float32
            assert np.array_equal(rows, whole[start:stop])
    source.close()


def test_a_released_shard_can_be_read_again(folder: Path) -> None:
    source = FolderSource(folder)
    before = source.read_rows("model.norm.weight", None, 0, 5)
    for shard in source.shards():
        source.release(shard)
        source.release(shard)
    assert np.array_equal(source.read_rows("model.norm.weight", None, 0, 5), before)
    source.close()


def test_the_fingerprint_is_of_the_checkpoint_and_not_of_its_place(folder: Path, tmp_path: Path) -> None:
    first = FolderSource(folder).fingerprint
    folder.rename(tmp_path / "elsewhere")
    assert FolderSource(tmp_path / "elsewhere").fingerprint == first
    (tmp_path / "elsewhere" / "tokenizer.json").write_text('{"version": "2.0"}')
    second = FolderSource(tmp_path / "elsewhere").fingerprint
    assert second != first
    config = dict(SMALL_MIXTRAL, rms_norm_eps=1e-6)
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(config))
    assert FolderSource(tmp_path / "elsewhere").fingerprint not in (first, second)


def test_samples_of_a_large_file_see_its_size_its_ends_and_what_changes_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 50)
    content = bytes(range(256)) * 400
    path = tmp_path / "shard"

    def sample(changed: bytes) -> str:
        path.write_bytes(changed)
        return sampling.sample_sha256(path)

    first = sample(content)
    assert sample(content) == first
    others = [content[:-1], b"x" + content[1:], content[:-1] + b"x", bytes(byte ^ 1 for byte in content)]
    assert len({first, *map(sample, others)}) == 5


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def _edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: expected a config\.json"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "found another JSON value"),
    "config nested": (lambda f: (f / "config.json").write_text("[" * 200_000), "nested too deeply"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "found no JSON"),
    "config a folder": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "expected a file"),
    "shard missing": (lambda f: _shard(f).unlink(), "1 of 3 shards are missing: model-00002-of-00003.safetensors"),
    "shard cut": (lambda f: os.truncate(_shard(f), _shard(f).stat().st_size - 7), "expected .* bytes by its header"),
    "shard cut in header": (lambda f: os.truncate(_shard(f), 100), "expected a safetensors header"),
    "shard empty": (lambda f: os.truncate(_shard(f), 0), "expected a safetensors header"),
    "shard longer": (lambda f: _append(_shard(f)), "expected .* bytes by its header"),
    "shard a page of HTML": (lambda f: _shard(f).write_text("<!DOCTYPE html>" * 9), "expected a safetensors header"),
    "shard swapped": (
        lambda f: _shard(f).write_bytes(sorted(f.glob("*.safetensors"))[0].read_bytes()),
        r"model-00002-of-00003\.safetensors: expected tensor .*, as .*index\.json says",
    ),
    "index no JSON": (lambda f: (f / INDEX).write_text("nope"), "expected the index of the shards"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), "expected a weight_map"),
    "index map of numbers": (
        lambda f: _edit_index(f, lambda i: i.update(weight_map={"a": 1})),
        "expected a weight_map",
    ),
    "no index": (lambda f: (f / INDEX).unlink(), "found 3 of them .* and no index"),
    "leaves the folder": (
        lambda f: _edit_index(f, lambda i: i["weight_map"].update({"model.norm.weight": "../secret"})),
        "'../secret', which lies outside",
    ),
    "absolute": (
        lambda f: _edit_index(f, lambda i: i["weight_map"].update({"model.norm.weight": "/etc/passwd"})),
        "'/etc/passwd', which lies outside",
    ),
    "zero byte": (
        lambda f: _edit_index(f, lambda i: i["weight_map"].update({"model.norm.weight": "a\0b"})),
        "which lies outside",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints_are_refused_with_what_is_wrong(folder: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(SourceError, match=message) as caught:
        FolderSource(folder)
    assert caught.value.hint


def test_a_shard_cut_while_it_is_read_is_an_error(folder: Path) -> None:
    source = FolderSource(folder)
    info = source.tensors()["model.norm.weight"]
    os.truncate(folder / info.shard, 4096)
    with pytest.raises(SourceError, match="in the middle of a tensor"):
        source.read_rows("model.norm.weight", None, 0, 5)
    source.close()


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"expected \.safetensors files, found none"):
        FolderSource(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match="found only PyTorch pickles"):
        FolderSource(tmp_path)


def test_a_store_is_no_checkpoint(folder: Path) -> None:
    (folder / "edgemoe.json").write_text("{}")
    with pytest.raises(SourceError, match=r"found a store.*edgemoe chat"):
        FolderSource(folder)


def test_links_in_the_folder_are_followed_wherever_they_lead(folder: Path, tmp_path: Path) -> None:
    """A shard on another disk, a --local-dir of links, a tokenizer shared by two checkpoints."""
    plain = FolderSource(folder)
    expected = read_tensors(folder)
    elsewhere = tmp_path / "another disk"
    elsewhere.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(elsewhere / str(number))
        path.symlink_to(elsewhere / str(number))
    source = FolderSource(folder)
    assert source.fingerprint == plain.fingerprint
    assert set(source.side_files()) == {"config.json", "tokenizer.json"}
    for name, values in expected.items():
        assert np.array_equal(np.asarray(source.read_rows(name, None, 0, len(values))), values)
    source.close()
    plain.close()


def test_a_path_in_a_downloaded_index_leads_nowhere_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "parts").mkdir()
    shard = _shard(folder)
    shard.rename(folder / "parts" / "real")
    _edit_index(folder, lambda i: i["weight_map"].update(_moved(i, shard.name, "parts/real")))
    assert "parts/real" in FolderSource(folder).shards()
    (folder / "parts" / "real").rename(tmp_path / "real")
    (folder / "parts" / "real").symlink_to(tmp_path / "real")
    with pytest.raises(SourceError, match="found a link out of it, to"):
        FolderSource(folder)
    (folder / "parts" / "real").unlink()
    (folder / "parts").rmdir()
    (folder / "parts").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="found a link out of it, to"):
        FolderSource(folder)


def _moved(index: dict[str, Any], shard: str, to: str) -> dict[str, str]:
    return {name: to for name, file in index["weight_map"].items() if file == shard}


@pytest.mark.parametrize("target", ["/dev/zero", "/", "nowhere"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00002-of-00003.safetensors"])
def test_links_to_what_is_no_file_are_refused(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(SourceError, match=r"expected a file, found something else|missing") as caught:
        FolderSource(folder)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800", "x/" * 3000 + "x"])
def test_an_index_with_names_that_no_file_can_have(folder: Path, name: str) -> None:
    _edit_index(folder, lambda i: i["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(SourceError, match="shards are missing"):
        FolderSource(folder)


def _write_anew(folder: Path) -> None:
    """One file with new weights, written over a checkpoint in three shards, as some programs save."""
    write_checkpoint(folder, SMALL_MIXTRAL, seed=1)


def test_a_single_file_comes_before_the_index_of_older_shards(folder: Path, tmp_path: Path) -> None:
    """As in transformers 5.24, modeling_utils._get_resolved_checkpoint_files: model.safetensors is looked for first."""
    write_checkpoint(tmp_path / "new", SMALL_MIXTRAL, seed=1)
    expected = read_tensors(tmp_path / "new")
    _write_anew(folder)
    source = FolderSource(folder)
    assert source.shards() == ["model.safetensors"]
    for name, values in expected.items():
        assert np.array_equal(np.asarray(source.read_rows(name, None, 0, len(values))), values)
    (notice,) = source.notices()
    assert "model.safetensors is converted, and not model-00001-of-00003.safetensors" in notice
    source.close()


@pytest.mark.parametrize("stale", ["{", '{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}'])
def test_a_stale_index_alone_does_not_refuse_a_whole_file(tmp_path: Path, stale: str) -> None:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL)
    (tmp_path / "model" / INDEX).write_text(stale)
    source = FolderSource(tmp_path / "model")
    assert source.tensors().keys() == read_tensors(tmp_path / "model").keys()
    assert source.notices() == []
    forecast = forecast_store(str(tmp_path / "model"))
    assert "headers" in forecast.known_from
    of_config = forecast_store(str(tmp_path / "model" / "config.json"))
    assert of_config.store.manifest.total_bytes == forecast.store.manifest.total_bytes


def test_a_tensor_that_only_the_shards_have_is_named_with_its_shard(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    _edit_index(folder, lambda i: i["weight_map"].pop("model.norm.weight"))
    message = rf"model\.norm\.weight: missing; the index leaves it out, but {index['model.norm.weight']} has it"
    with pytest.raises(SourceError, match=message):
        convert_checkpoint(str(folder), tmp_path / "store")
    assert not (tmp_path / "store.partial").exists()


def test_links_that_go_in_circles_are_missing_files(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        FolderSource(folder)


def test_a_snapshot_of_the_hub_cache_may_link_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    source = FolderSource(snapshot)
    assert source.read_rows("model.norm.weight", None, 0, 64).shape == (64,)
    assert set(source.side_files()) == {"config.json", "tokenizer.json"}
    source.close()


def test_dtypes_that_we_do_not_read_are_named(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F8_E4M3","shape":[4,4],"data_offsets":[0,16]}}'
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(SourceError, match="a: expected weights of F64, F32, F16, BF16, found F8_E4M3: they are quanti"):
        FolderSource(tmp_path).read_rows("a", None, 0, 4)


@every_case(
    ("text", "message"),
    [
        ("./absent", "no such folder or file, and not a hub id"),
        ("a/b/c", "no such folder or file"),
        ("", "no such folder or file"),
        ("model.gguf", "no such folder or file"),
        ("a\0b", "no such folder or file"),
        ("~nobody-here/model", "no such folder or file"),
        ("x" * 5000, "no such folder or file"),
    ],
)
def test_a_source_that_does_not_exist(text: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(SourceError, match=message):
        open_source(text)


def test_an_existing_file_is_never_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("edgemoe.conversion.hub.opening.HubRepository", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker").mkdir()
    (tmp_path / "maker" / "model").write_bytes(b"something")
    (tmp_path / "maker" / "gone").symlink_to("nowhere")
    (tmp_path / "maker" / "model.safetensors").write_bytes(b"")
    for text, message in (
        ("maker/model", "found a file of another kind"),
        ("maker/gone", "is a link to nowhere, which does not exist"),
        ("maker/model.safetensors", "found one file of a checkpoint"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(text)
        with pytest.raises(SourceError, match=message):
            forecast_store(text)


def test_a_file_of_another_kind_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(SourceError, match="found a file of another kind"):
        open_source(str(tmp_path / "x.bin"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(60), deadline=None)
@given(st.data())
def test_mutated_indexes_are_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        write_checkpoint(folder, SMALL_MIXTRAL, shards=3)
        (tmp_path / "index").write_bytes((folder / INDEX).read_bytes())
    content = bytearray((tmp_path / "index").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / INDEX).write_bytes(content)
    try:
        source = FolderSource(folder)
    except SourceError:
        return
    assert set(source.shards()) <= {path.name for path in folder.iterdir()}
