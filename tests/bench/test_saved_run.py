"""Runs on disk: what was written comes back, and what was cut off or altered is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench.saved_run import MAGIC, RUN_VERSION, RunHeader, RunWriter, SavedRun, check_room, is_run
from edgemoe.errors import StoreError, UsageError
from edgemoe.lab.divergence import ReferenceRow

V, TOKENS = 50, 30
IDS = np.arange(TOKENS, dtype=np.int32) % V
LOGITS = (np.random.default_rng(0).standard_normal((TOKENS, V)) * 3).astype(np.float32)


def header(top: int | None = None) -> RunHeader:
    return RunHeader(RUN_VERSION, {"path": "a"}, "text", V, [1], TOKENS, 12, 6, top, {"0": "a"})


def write(path: Path, top: int | None = None, windows: int | None = None) -> RunHeader:
    head = header(top)
    with path.open("w+b") as file:
        writer = RunWriter(file, head, IDS)
        for window in head.windows()[:windows]:
            for place in window.following:
                writer.add(LOGITS[place], int(IDS[place]))
            writer.end_window()
    return head


@pytest.mark.parametrize("top", [None, 7])
def test_every_row_comes_back(tmp_path: Path, top: int | None) -> None:
    path = tmp_path / "run"
    head = write(path, top)
    assert path.stat().st_size == head.file_bytes()
    assert is_run(path)
    with path.open("rb") as file:
        run = SavedRun(file, "run")
        assert (run.header, run.complete, run.windows) == (head, True, head.windows())
        np.testing.assert_array_equal(run.text.ids, IDS)
        assert run.text.head == (1,)
        for _ in range(2):
            run.rewind()
            for window in run.windows:
                for place, row in zip(window.following, run.rows(window), strict=True):
                    if top is None:
                        np.testing.assert_array_equal(row.logits, LOGITS[place])
                        continue
                    expected = ReferenceRow.keeping(LOGITS[place], top, int(IDS[place]), np.empty(V))
                    assert row.ids is not None
                    np.testing.assert_array_equal(row.ids, expected.ids)
                    np.testing.assert_array_equal(row.ids, np.argsort(-LOGITS[place], kind="stable")[:top])
                    np.testing.assert_array_equal(row.logits, expected.logits)
                    assert (row.total, row.rest) == (expected.total, expected.rest)
                    assert row.followed == LOGITS[place][IDS[place]]


def test_a_run_that_was_cut_off_has_its_first_windows(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    head = write(whole)
    windows = head.windows()
    data = whole.read_bytes()
    ends = head.file_bytes() - np.cumsum([0, *(head.block_bytes(window) for window in reversed(windows))])
    for size, count in ((ends[1], len(windows) - 1), (ends[1] - 1, len(windows) - 2), (ends[-2] + 5, 1)):
        part.write_bytes(data[:size])
        with part.open("rb") as file:
            run = SavedRun(file, "part")
            assert (run.complete, run.windows) == (False, windows[:count])
            for window in run.windows:
                assert len(list(run.rows(window))) == window.scored
    part.write_bytes(data[: ends[-1] + 20])
    with part.open("rb") as file, pytest.raises(StoreError, match="cut off in its first window"):
        SavedRun(file, "part")


def read_all(path: Path) -> None:
    with path.open("rb") as file:
        run = SavedRun(file, "run")
        for window in run.windows:
            list(run.rows(window))


def test_every_altered_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write(path, windows=1)
    data = path.read_bytes()
    for place in [*range(len(MAGIC), 600, 7), *range(600, len(data), 97), len(data) - 1]:
        altered = bytearray(data)
        altered[place] ^= 0x10
        path.write_bytes(altered)
        with pytest.raises(StoreError, match=r"damaged|version|cut off"):
            read_all(path)


def test_other_files_and_versions_are_no_runs(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for content in (b"", b"edgemoe", b"GGUF and more"):
        path.write_bytes(content)
        assert not is_run(path)
        with path.open("rb") as file, pytest.raises(StoreError, match="expected a run"):
            SavedRun(file, "run")
    assert not is_run(tmp_path / "none")
    assert not is_run(tmp_path)
    head = RunHeader(99, {}, "text", V, [1], TOKENS, 12, 6, None, {})
    with path.open("w+b") as file:
        RunWriter(file, head, IDS)
        with pytest.raises(StoreError, match=r"version 1, found 99"):
            SavedRun(file, "run")


def test_a_disk_without_room_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(header(), tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"has 1000 bytes left. Score fewer tokens \(`tokens`\).*`top=4096`"):
        check_room(header(), tmp_path)
