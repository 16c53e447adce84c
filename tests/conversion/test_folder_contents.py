"""Folders that are not, or not only, a checkpoint: each is named for what it is, with the way on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgemoe.conversion.folder import FolderSource
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.opening import open_source
from edgemoe.errors import SourceError
from edgemoe.session.default_model import find_model
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
"""The example of the Git LFS specification (git-lfs, docs/spec.md)."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, shards=2)
    return tmp_path / "model"


def refusal(folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_source(str(folder))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "name", ["config.json", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
def test_a_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(LFS_POINTER)
    problem = refusal(folder)
    assert re.search(rf"{name}: expected the file itself, found a Git LFS pointer", problem.message)
    assert "git lfs pull" in problem.hint


@pytest.mark.parametrize("name", ["model.gguf", "model-00001-of-00002.gguf"])
def test_a_gguf_that_is_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LFS_POINTER)
    assert "found a Git LFS pointer" in refusal(tmp_path / name).message


def write_adapter(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "maker/base", "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    problem = refusal(tmp_path / "adapter")
    assert "expected a whole model, found a LoRA adapter of maker/base (adapter_config.json)" in problem.message
    assert "merge_and_unload" in problem.hint
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert "found a LoRA adapter (adapter_model.safetensors)" in refusal(tmp_path / "adapter").message


def test_an_adapter_beside_a_model_is_not_left_out_in_silence(folder: Path) -> None:
    """As transformers 5.24 adds it: integrations/peft.maybe_load_adapters, where config.json lies beside it."""
    write_adapter(folder)
    problem = refusal(folder)
    assert "found a LoRA adapter of maker/base beside it (adapter_config.json)" in problem.message
    (folder / "adapter_config.json").unlink()
    FolderSource(folder).close()  # its weights alone are used by no program


@pytest.mark.parametrize("config", [True, False])
def test_the_gguf_in_a_folder_is_named(tmp_path: Path, config: bool) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(SMALL_MIXTRAL))
    problem = refusal(tmp_path)
    assert "found GGUF: 2 of them (a.gguf, b.gguf)" in problem.message
    assert str(tmp_path / "a.gguf") in problem.hint


def test_the_checkpoint_in_a_folder_of_it_is_named(folder: Path) -> None:
    assert f"Is the checkpoint {folder}?" in refusal(folder.parent).hint


def hub_repository(folder: Path, tmp_path: Path, *commits: str) -> Path:
    repository = tmp_path / "models--maker--tiny"
    for commit in commits:
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (repository / "snapshots" / commits[-1] / path.name).symlink_to(Path("../../blobs") / str(number))
    return repository


def test_a_repository_of_the_hubs_cache_is_its_snapshot(folder: Path, tmp_path: Path) -> None:
    repository = hub_repository(folder, tmp_path, "0" * 40)
    source = open_source(str(repository))
    assert source.name == "0" * 40
    assert forecast_store(str(repository)).store.manifest.total_bytes > 0
    with pytest.raises(Exception, match=r"found a repository of the hub's cache.* edgemoe convert"):
        find_model(repository)
    source.close()


def test_of_several_snapshots_the_main_branch_decides(folder: Path, tmp_path: Path) -> None:
    repository = hub_repository(folder, tmp_path, "0" * 40, "1" * 40)
    assert "found 2" in refusal(repository).message
    assert "snapshots/" + "0" * 40 in refusal(repository).hint
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("../../..")
    assert "found 2" in refusal(repository).message
    (repository / "refs" / "main").write_text("1" * 40)
    source = open_source(str(repository))
    assert source.name == "1" * 40
    source.close()
