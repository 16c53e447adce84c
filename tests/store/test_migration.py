"""Migration: a store of version 1 becomes, in place, the very store that conversion writes today."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import StoreError, UsageError
from edgemoe.store.lock import locked
from edgemoe.store.manifest import MANIFEST_NAME
from edgemoe.store.reader import Store
from edgemoe.store.records import RECORDS_NAME
from edgemoe.store.update import replace_side_files, staged
from edgemoe.store.verification import migrate_store, verify_store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.stores import edit_manifest, flip_bit, small_store, version_1


class Killed(BaseException):
    """Stands for the end of the process at some call."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Store, tmp_path: Path) -> Path:
    return shutil.copytree(made.path, tmp_path / "store")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(folder: Path) -> bytes:
    with open_engine(folder, EngineOptions("floor", threads=1, context_length=32, warm_start=False)) as engine:
        return engine.forward([1, 2, 3, 4, 5]).tobytes()


@pytest.mark.parametrize("fast_checksums", [True, False])
def test_a_store_of_version_1_is_read_as_it_is(made: Store, folder: Path, fast_checksums: bool) -> None:
    old = version_1(folder, fast_checksums)
    assert old.manifest.version == 1
    assert not (folder / RECORDS_NAME).exists()
    assert old.manifest.checked_when_read == fast_checksums
    assert (old.manifest.records == made.manifest.records) == fast_checksums
    assert old.manifest.layouts == made.manifest.layouts
    assert old.layouts_of_layers == made.layouts_of_layers
    assert verify_store(old) == []
    for record in made.manifest.records:
        found, expected = old.record(record.layer, record.expert), made.record(record.layer, record.expert)
        assert (found.path.name, found.offset, found.length) == (expected.path.name, expected.offset, expected.length)
    assert np.array_equal(old.manifest.records.sha256, made.manifest.records.sha256)
    assert logits(folder) == logits(made.path)


@pytest.mark.parametrize("fast_checksums", [True, False])
def test_a_migrated_store_has_the_bytes_of_a_conversion(made: Store, folder: Path, fast_checksums: bool) -> None:
    version_1(folder, fast_checksums)
    store, problems = migrate_store(folder)
    assert problems == []
    assert store.manifest == made.manifest
    assert contents(folder) == contents(made.path)


def test_a_store_of_this_version_stays_as_it_is(made: Store, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    store, problems = migrate_store(folder)
    assert (store.manifest, problems) == (made.manifest, [])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_weights_are_not_written(folder: Path) -> None:
    version_1(folder)
    before = {path: path.stat() for path in folder.iterdir() if path.name != MANIFEST_NAME}
    migrate_store(folder)
    for path, status in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


@pytest.mark.parametrize("fast_checksums", [True, False])
def test_a_damaged_store_is_not_migrated(folder: Path, fast_checksums: bool) -> None:
    record = version_1(folder, fast_checksums).record(0, 1)
    flip_bit(record.path, record.offset)
    before = contents(folder)
    _, (problem,) = migrate_store(folder)
    assert (problem.layer, problem.expert) == (0, 1)
    assert contents(folder) == before


def test_a_migration_that_is_killed_anywhere_leaves_a_store_and_can_be_repeated(
    made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for calls in range(30):
        folder = shutil.copytree(made.path, tmp_path / str(calls))
        version_1(folder)
        left = [calls]

        def counted(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if left[0] <= 0:
                    raise Killed
                left[0] -= 1
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as context:
            for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync")):
                context.setattr(owner, name, counted(getattr(owner, name)))
            try:
                migrate_store(folder)
                ended = True
            except Killed:
                ended = False
        store = Store.open(folder)
        assert verify_store(store) == []
        outcomes.append(store.manifest.version)
        migrate_store(folder)
        assert contents(folder) == contents(made.path)
        if ended:
            break
    assert ended
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_only_one_process_changes_a_store(folder: Path) -> None:
    version_1(folder)
    with locked(folder), pytest.raises(UsageError, match="another process is changing this store"):
        migrate_store(folder)


def test_an_update_leaves_the_version_of_a_store(made: Store, folder: Path) -> None:
    old = version_1(folder)
    files = {file.name: (folder / file.name).read_bytes() for file in old.manifest.side_files}
    with staged(folder, {**files, "chat_template.jinja": b"{{ messages }}"}) as staging:
        replace_side_files(old, staging, {"source": "a test"})
    found = Store.open(folder)
    assert found.manifest.version == 1
    assert found.manifest.records == made.manifest.records
    assert "chat_template.jinja" in {file.name for file in found.manifest.side_files}
    assert found.manifest.provenance["side_files"] == {"source": "a test"}
    assert verify_store(found) == []
    store, problems = migrate_store(folder)
    assert (problems, store.manifest.version) == ([], 2)
    assert store.manifest.side_files == found.manifest.side_files


def test_a_file_of_version_1_cannot_have_the_name_of_the_table(folder: Path) -> None:
    version_1(folder)
    (folder / "experts-00000.safetensors").rename(folder / RECORDS_NAME)
    edit_manifest(folder, lambda data: data["experts"]["files"][0].update(name=RECORDS_NAME))
    with pytest.raises(StoreError, match="a file: is named twice"):
        Store.open(folder)


def test_a_store_without_experts_is_migrated_too(tmp_path: Path) -> None:
    dense = {key: value for key, value in SMALL_MIXTRAL.items() if "expert" not in key} | {"model_type": "llama"}
    write_checkpoint(tmp_path / "checkpoint", dense)
    folder = convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store")
    whole = contents(folder)
    assert RECORDS_NAME not in whole
    version_1(folder)
    assert migrate_store(folder)[1] == []
    assert contents(folder) == whole
