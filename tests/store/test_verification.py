"""Verification: every altered bit of a store is found and named, and a whole store passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import StoreError
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.examples import examples
from tests.support.stores import edit_records, flip_bit, small_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("made"))


def test_a_whole_store_has_no_problems_and_progress_reaches_its_end(made: Store) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_store(made, lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_altered_record_is_named_by_file_layer_and_expert(made: Store, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(made.path, tmp_path / "store"))
    record = store.record(1, 3)
    flip_bit(record.path, record.offset + record.length - 1)
    (problem,) = verify_store(store)
    assert (problem.file, problem.layer, problem.expert) == (record.path.name, 1, 3)
    assert "layers.1.experts.3" in str(problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"{}"), "expected 18 bytes, as the manifest says"),
        (lambda folder: flip_bit(folder / "tokenizer.json", 3), "is not what was written (its checksum differs)"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "is missing"),
        (lambda folder: (folder / "chat_template.jinja").write_text("x"), "is not in the manifest"),
    ],
)
def test_side_files_that_are_not_those_of_the_manifest_are_found(
    change: Callable[[Path], object], problem: str, made: Store, tmp_path: Path
) -> None:
    folder = shutil.copytree(made.path, tmp_path / "store")
    (folder / "README.md").write_text("Nothing reads this, so that it is nobody's business.")
    change(folder)
    (found,) = verify_store(Store.open(folder))
    assert found.in_side_file
    assert problem in found.message


def test_a_fast_checksum_that_is_not_the_record_s_is_a_problem(made: Store, tmp_path: Path) -> None:
    folder = shutil.copytree(made.path, tmp_path / "store")
    edit_records(folder, lambda columns: columns["crc32c"].__setitem__(4, 7))
    (problem,) = verify_store(Store.open(folder))
    assert (problem.layer, problem.expert) == (1, 0)
    assert "another crc32c" in problem.message


def test_a_file_that_vanishes_is_a_problem(made: Store, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(made.path, tmp_path / "store"))
    (store.path / "tokenizer.json").unlink()
    (problem,) = verify_store(store)
    assert problem.file == "tokenizer.json"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40), deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found(made: Store, tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(made.path.iterdir())))
    offset = data.draw(st.integers(0, path.stat().st_size - 1))
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made.path, folder)
    flip_bit(folder / path.name, offset, data.draw(st.integers(0, 7)))
    try:
        problems = verify_store(Store.open(folder))
    except StoreError:
        return
    if path.name == "edgemoe.json":
        # White space may change and mean nothing; a changed checksum is a problem of its file too.
        assert not problems or problems[0].file == path.name
    else:
        assert {problem.file for problem in problems} == {path.name}
