"""Kept measurements of quality: found again under the same store, settings and budget, and never in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgemoe.cli.lossy import quality_command
from edgemoe.engine.lossy import LossySettings
from edgemoe.session import quality
from edgemoe.session.quality import Quality, find_quality, keep_quality, quality_path

QUALITY = Quality(0.0123, 0.041, 1000, "a text", 1.25)
SETTINGS = LossySettings(cache_aware_routing=0.2)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path / "cache" / "edgemoe"))
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "edgemoe.json").write_text('{"checksums": "abc"}')
    return folder


def test_a_measurement_is_found_again_where_all_is_the_same(store: Path, tmp_path: Path) -> None:
    assert find_quality(store, SETTINGS, "240MiB") is None
    assert keep_quality(store, SETTINGS, "240MiB", QUALITY)
    assert quality_path() == tmp_path / "cache" / "edgemoe" / "quality.json"
    assert [file.name for file in quality_path().parent.iterdir()] == ["quality.json"]
    for same in ("240MiB", "0.234375GiB", 240 << 20, f" {240 << 20} "):
        assert find_quality(store, SETTINGS, same) == QUALITY
    for other in ("241MiB", "auto", "floor", None):
        assert find_quality(store, SETTINGS, other) is None
    assert find_quality(store, LossySettings(cache_aware_routing=0.21), "240MiB") is None
    assert find_quality(store, LossySettings(drop_cold=0.2), "240MiB") is None
    assert find_quality(store, LossySettings(cache_aware_routing=0.2, experts_per_token=1), "240MiB") is None
    (store / "edgemoe.json").write_text('{"checksums": "abd"}')
    assert find_quality(store, SETTINGS, "240MiB") is None


def test_auto_is_what_is_not_said(store: Path) -> None:
    assert keep_quality(store, SETTINGS, None, QUALITY)
    assert find_quality(store, SETTINGS, "Auto") == QUALITY
    assert find_quality(store, SETTINGS, "floor") is None


def test_a_new_measurement_replaces_the_old_and_the_oldest_are_forgotten(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "KEPT_MAX", 3)
    budgets = ["1GiB", "2GiB", "3GiB"]
    for budget in budgets:
        keep_quality(store, SETTINGS, budget, QUALITY)
    newer = Quality(0.5, 0.6, 7, None, 0.8)
    keep_quality(store, SETTINGS, "1GiB", newer)
    keep_quality(store, SETTINGS, "4GiB", QUALITY)
    found = [find_quality(store, SETTINGS, budget) for budget in (*budgets, "4GiB")]
    assert found == [newer, None, QUALITY, QUALITY]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"edgemoe_quality": 99, "measured": {}}',
        b'{"edgemoe_quality": 1}',
        b'{"edgemoe_quality": 1, "measured": []}',
        b"[" * 100_000,
        b" " * (quality.FILE_LIMIT_BYTES + 1),
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(store: Path, content: bytes) -> None:
    quality_path().parent.mkdir(parents=True)
    quality_path().write_bytes(content)
    assert find_quality(store, SETTINGS, "1GiB") is None
    assert keep_quality(store, SETTINGS, "1GiB", QUALITY)
    assert find_quality(store, SETTINGS, "1GiB") == QUALITY


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        {},
        {**QUALITY.to_json(), "more": 1},
        {**QUALITY.to_json(), "positions": "many"},
        {**QUALITY.to_json(), "positions": 10**400},
        {**QUALITY.to_json(), "divergence_nats": float("nan")},
        {**QUALITY.to_json(), "speed_ratio": None},
        {**QUALITY.to_json(), "text": ["x"]},
    ],
)
def test_a_damaged_entry_spoils_no_other(store: Path, entry: object) -> None:
    keep_quality(store, SETTINGS, "1GiB", QUALITY)
    keep_quality(store, SETTINGS, "2GiB", QUALITY)
    data = json.loads(quality_path().read_text())
    first, second = data["measured"]
    assert "ram=2147483648" in second
    data["measured"][first] = entry
    quality_path().write_text(json.dumps(data))
    assert find_quality(store, SETTINGS, "1GiB") is None
    assert find_quality(store, SETTINGS, "2GiB") == QUALITY


def test_where_nothing_can_be_written_nothing_is_kept(store: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder would be")
    assert not keep_quality(store, SETTINGS, "1GiB", QUALITY)
    assert find_quality(store, SETTINGS, "1GiB") is None


def test_a_full_disk_leaves_what_there_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_quality(store, SETTINGS, "1GiB", QUALITY)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        assert not keep_quality(store, SETTINGS, "2GiB", QUALITY)
    assert [file.name for file in quality_path().parent.iterdir()] == ["quality.json"]
    assert find_quality(store, SETTINGS, "1GiB") == QUALITY


def test_where_nothing_is_to_be_kept_nothing_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", "")
    assert not keep_quality(store, SETTINGS, "1GiB", QUALITY)
    assert find_quality(store, SETTINGS, "1GiB") is None


def test_a_store_that_is_gone_has_no_measurement(store: Path) -> None:
    (store / "edgemoe.json").unlink()
    assert find_quality(store, SETTINGS, None) is None
    assert not keep_quality(store, SETTINGS, None, QUALITY)


def test_words() -> None:
    lossy = LossySettings(0.05, 0.1, 2)
    command = (
        "edgemoe bench 'a model' --quality --ram 6GiB --cache-aware-routing 0.05 --drop-cold 0.1 --experts-per-token 2"
    )
    assert quality_command("a model", lossy, "6GiB") == command
    assert quality_command(None, SETTINGS, None) == "edgemoe bench --quality --cache-aware-routing 0.2"
    assert (
        QUALITY.describe() == "KL divergence 0.0123 nats, top token changed at 4.1% of 1000 positions, 1.25 x the speed"
    )
    assert "7 positions of random ids" in Quality(0.5, 0.6, 7, None, 0.8).describe()
