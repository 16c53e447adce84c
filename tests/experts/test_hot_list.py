"""Hot lists: what was written comes back; nothing that lies in the file or the folder is ever an error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.experts.hot_list import HotList
from edgemoe.store.note import MOST_NOTES
from tests.support.examples import examples

DIGEST = "ab" * 32
EXPERTS = [0, 8, 8, 4]


def make(folder: Path, digest: str = DIGEST) -> HotList:
    return HotList(folder, digest, EXPERTS)


def test_what_was_written_comes_back_in_its_order(tmp_path: Path) -> None:
    made = make(tmp_path / "not" / "there yet")
    made.write([(2, 7), (1, 0), (3, 3)])
    assert make(tmp_path / "not" / "there yet").read() == [(2, 7), (1, 0), (3, 3)]
    made.write([(1, 1)])
    assert made.read() == [(1, 1)]
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert make(tmp_path).read() == []


def test_another_store_s_list_is_not_taken(tmp_path: Path) -> None:
    other = make(tmp_path, DIGEST[:40] + "c" * 24)
    other.write([(1, 1)])
    assert other.path == make(tmp_path).path  # the same name, and yet another store
    assert make(tmp_path).read() == []


def written(tmp_path: Path, **changes: Any) -> list[tuple[int, int]]:
    made = make(tmp_path)
    data = {"edgemoe_hot_list": 1, "store": DIGEST, "experts": [[1, 2]], **changes}
    made.path.write_text(json.dumps(data))
    return made.read()


def test_entries_are_checked(tmp_path: Path) -> None:
    assert written(tmp_path) == [(1, 2)]
    assert written(tmp_path, experts=[[1, 2], [1, 3], [1, 2]]) == [(1, 2), (1, 3)]
    wrong_entries = [[0, 0], [4, 0], [1, 8], [-1, 0], [1, -1], [1.0, 2], [True, 2], [1], [1, 2, 3], "12", None, {}, 7]
    for wrong in wrong_entries:
        assert written(tmp_path, experts=[[1, 2], wrong]) == [], wrong
    for changes in ({"edgemoe_hot_list": 2}, {"store": 7}, {"experts": {}}, {"experts": [[1, 2]] * 70_000}):
        assert written(tmp_path, **changes) == []


def test_a_huge_file_is_not_even_parsed(tmp_path: Path) -> None:
    made = make(tmp_path)
    with made.path.open("wb") as file:
        file.truncate(1 << 40)  # of zeros, and no block on the disk
    assert made.read() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(60), deadline=None)
@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_are_no_error(tmp_path: Path, content: bytes) -> None:
    made = make(tmp_path)
    made.path.write_bytes(content)
    assert made.read() == []


def test_deeply_nested_json_is_no_error(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.path.write_bytes(b"[" * 500_000)
    assert made.read() == []


def test_places_that_cannot_be_used_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no"), Path("with\0zero")):
        made = make(folder)
        made.write([(1, 2)])
        assert made.read() == []
    folder = tmp_path / "folder"
    made = make(folder)
    made.path.mkdir(parents=True)  # a folder in the place of the file
    made.write([(1, 2)])
    assert made.read() == []
    assert list(folder.iterdir()) == [made.path]


def test_a_full_disk_leaves_the_list_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    made.write([(1, 2)])

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    made.write([(2, 3)])
    assert made.read() == [(1, 2)]
    assert list(tmp_path.iterdir()) == [made.path]


def test_few_lists_are_kept_the_newest(tmp_path: Path) -> None:
    (tmp_path / "something else").write_text("is left alone")
    for number in range(20):
        made = make(tmp_path, f"{number:064x}"[::-1])
        made.write([(1, number % 8)])
        os.utime(made.path, (number, number))
    last = make(tmp_path, f"{99:064x}"[::-1])
    last.write([(1, 1)])
    kept = sorted(tmp_path.glob("*.hot.json"), key=lambda path: path.stat().st_mtime)
    assert len(kept) == MOST_NOTES
    assert kept[-1] == last.path
    assert kept[0].stat().st_mtime >= 4
    assert (tmp_path / "something else").exists()
