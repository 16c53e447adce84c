"""Other side files for a store: taken whole or not at all, whenever the process ends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgemoe.errors import StoreError, UsageError
from edgemoe.store import update
from edgemoe.store.manifest import MANIFEST_NAME
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files
from edgemoe.store.update import SideChange, changed_names, replace_side_files, staged
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import folder_bytes
from tests.support.stores import flip_bit, small_store

ORIGIN = {"source": "here"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("made"))


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(made.path, tmp_path / "store"))


def side_files(store: Store) -> dict[str, bytes]:
    return {entry.name: (store.path / entry.name).read_bytes() for entry in store.manifest.side_files}


def replaced(store: Store, files: dict[str, bytes]) -> list[SideChange]:
    with staged(store.path, files) as staging:
        return replace_side_files(store, staging, ORIGIN)


def test_files_are_added_changed_removed_and_restored(store: Store) -> None:
    files = side_files(store)
    config = files.pop("config.json")
    flip_bit(store.path / "config.json", 0)
    assert replaced(store, {"config.json": config, "chat_template.jinja": b"{{ x }}"}) == [
        SideChange("chat_template.jinja", "added", 7),
        SideChange("config.json", "restored", len(config)),
        SideChange("tokenizer.json", "removed"),
    ]
    opened = Store.open(store.path)
    check_side_files(opened)
    assert verify_store(opened) == []
    assert side_files(opened) == {"config.json": config, "chat_template.jinja": b"{{ x }}"}
    assert opened.manifest.provenance == {**store.manifest.provenance, "side_files": ORIGIN}
    assert opened.manifest.dense == store.manifest.dense
    assert replaced(opened, {"config.json": b"{}", "chat_template.jinja": b"{{ x }}"}) == [
        SideChange("config.json", "changed", 2)
    ]


def test_the_same_files_change_no_byte_of_a_store(store: Store) -> None:
    before = folder_bytes(store.path)
    assert changed_names(store, side_files(store)) == set()
    assert replaced(store, side_files(store)) == []
    assert folder_bytes(store.path) == before


def test_a_second_update_at_the_same_time_is_refused(store: Store) -> None:
    with staged(store.path, {}), pytest.raises(UsageError, match="another process is changing this store"):
        replaced(store, {})
    check_side_files(store)


class Killed(BaseException):
    """The end of a process, after which it does nothing more."""


def test_an_update_that_is_killed_leaves_nothing_that_opens_as_a_mixture(
    made: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of the calls that change the folder, the last included."""
    old = side_files(made)
    config = old["config.json"] + b"\n"
    new = {"config.json": config, "chat_template.jinja": b"{{ x }}", "generation_config.json": b"{}"}
    outcomes = []
    for calls in range(100):
        store = Store.open(shutil.copytree(made.path, tmp_path / str(calls)))
        left = [calls]

        def counted(real: Any, left: list[int] = left) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if left[0] <= 0:
                    raise Killed
                left[0] -= 1
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as context:
            for owner, name in (
                (Path, "replace"),
                (Path, "unlink"),
                (Path, "mkdir"),
                (os, "fsync"),
                (update.shutil, "rmtree"),
            ):
                context.setattr(owner, name, counted(getattr(owner, name)))
            try:
                replaced(store, new)
                ended = True
            except Killed:
                ended = False
        opened = Store.open(store.path)
        try:
            check_side_files(opened)
        except StoreError as error:
            assert f"edgemoe update {store.path}" in error.hint
            outcomes.append("refused")
        else:
            assert side_files(opened) in (old, new)
            outcomes.append("old" if side_files(opened) == old else "new")
        replaced(opened, new)
        opened = Store.open(store.path)
        check_side_files(opened)
        assert side_files(opened) == new
        assert {path.name for path in store.path.iterdir()} == {file.name for file in opened.manifest.files} | {
            MANIFEST_NAME
        }
        if ended:
            break
    assert ended
    assert outcomes == sorted(outcomes, key=["old", "refused", "new"].index)
    assert set(outcomes) == {"old", "refused", "new"}
