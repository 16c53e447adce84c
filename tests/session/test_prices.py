"""Kept prices: found again under the same store, settings and budget, and never in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgemoe.cli.lossy import price_command
from edgemoe.engine.lossy import LossySettings
from edgemoe.session import prices
from edgemoe.session.prices import Price, find_price, keep_price, prices_path

PRICE = Price(0.0123, 0.041, 1000, "a text", 1.25)
SETTINGS = LossySettings(cache_aware_routing=0.2)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path / "cache" / "edgemoe"))
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "edgemoe.json").write_text('{"checksums": "abc"}')
    return folder


def test_a_price_is_found_again_where_all_is_the_same(store: Path, tmp_path: Path) -> None:
    assert find_price(store, SETTINGS, "240MiB") is None
    assert keep_price(store, SETTINGS, "240MiB", PRICE)
    assert prices_path() == tmp_path / "cache" / "edgemoe" / "prices.json"
    assert [file.name for file in prices_path().parent.iterdir()] == ["prices.json"]
    for same in ("240MiB", "0.234375GiB", 240 << 20, f" {240 << 20} "):
        assert find_price(store, SETTINGS, same) == PRICE
    for other in ("241MiB", "auto", "floor", None):
        assert find_price(store, SETTINGS, other) is None
    assert find_price(store, LossySettings(cache_aware_routing=0.21), "240MiB") is None
    assert find_price(store, LossySettings(drop_cold=0.2), "240MiB") is None
    assert find_price(store, LossySettings(cache_aware_routing=0.2, experts_used=1), "240MiB") is None
    (store / "edgemoe.json").write_text('{"checksums": "abd"}')
    assert find_price(store, SETTINGS, "240MiB") is None


def test_auto_is_what_is_not_said(store: Path) -> None:
    assert keep_price(store, SETTINGS, None, PRICE)
    assert find_price(store, SETTINGS, "Auto") == PRICE
    assert find_price(store, SETTINGS, "floor") is None


def test_a_new_price_replaces_the_old_and_the_oldest_are_forgotten(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "PRICES_MAX", 3)
    budgets = ["1GiB", "2GiB", "3GiB"]
    for budget in budgets:
        keep_price(store, SETTINGS, budget, PRICE)
    newer = Price(0.5, 0.6, 7, None, 0.8)
    keep_price(store, SETTINGS, "1GiB", newer)
    keep_price(store, SETTINGS, "4GiB", PRICE)
    found = [find_price(store, SETTINGS, budget) for budget in (*budgets, "4GiB")]
    assert found == [newer, None, PRICE, PRICE]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"edgemoe_prices": 99, "prices": {}}',
        b'{"edgemoe_prices": 1}',
        b'{"edgemoe_prices": 1, "prices": []}',
        b"[" * 100_000,
        b" " * (prices.FILE_LIMIT_BYTES + 1),
    ],
)
def test_a_damaged_file_is_no_prices_and_is_replaced(store: Path, content: bytes) -> None:
    prices_path().parent.mkdir(parents=True)
    prices_path().write_bytes(content)
    assert find_price(store, SETTINGS, "1GiB") is None
    assert keep_price(store, SETTINGS, "1GiB", PRICE)
    assert find_price(store, SETTINGS, "1GiB") == PRICE


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        {},
        {**PRICE.to_json(), "more": 1},
        {**PRICE.to_json(), "positions": "many"},
        {**PRICE.to_json(), "positions": 10**400},
        {**PRICE.to_json(), "divergence_nats": float("nan")},
        {**PRICE.to_json(), "speed_ratio": None},
        {**PRICE.to_json(), "text": ["x"]},
    ],
)
def test_an_entry_that_is_no_price_spoils_no_other(store: Path, entry: object) -> None:
    keep_price(store, SETTINGS, "1GiB", PRICE)
    keep_price(store, SETTINGS, "2GiB", PRICE)
    data = json.loads(prices_path().read_text())
    first, second = data["prices"]
    assert "ram=2147483648" in second
    data["prices"][first] = entry
    prices_path().write_text(json.dumps(data))
    assert find_price(store, SETTINGS, "1GiB") is None
    assert find_price(store, SETTINGS, "2GiB") == PRICE


def test_where_nothing_can_be_written_nothing_is_kept(store: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder would be")
    assert not keep_price(store, SETTINGS, "1GiB", PRICE)
    assert find_price(store, SETTINGS, "1GiB") is None


def test_a_full_disk_leaves_what_there_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_price(store, SETTINGS, "1GiB", PRICE)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        assert not keep_price(store, SETTINGS, "2GiB", PRICE)
    assert [file.name for file in prices_path().parent.iterdir()] == ["prices.json"]
    assert find_price(store, SETTINGS, "1GiB") == PRICE


def test_where_nothing_is_to_be_kept_nothing_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", "")
    assert not keep_price(store, SETTINGS, "1GiB", PRICE)
    assert find_price(store, SETTINGS, "1GiB") is None


def test_a_store_that_is_gone_has_no_price(store: Path) -> None:
    (store / "edgemoe.json").unlink()
    assert find_price(store, SETTINGS, None) is None
    assert not keep_price(store, SETTINGS, None, PRICE)


def test_words() -> None:
    lossy = LossySettings(0.05, 0.1, 2)
    command = "edgemoe bench 'a model' --price --ram 6GiB --cache-aware-routing 0.05 --drop-cold 0.1 --experts-used 2"
    assert price_command("a model", lossy, "6GiB") == command
    assert price_command(None, SETTINGS, None) == "edgemoe bench --price --cache-aware-routing 0.2"
    assert PRICE.describe() == "KL 0.0123 nats, another top token at 4.1% of 1000 positions, 1.25 x the speed"
    assert "7 positions of random ids" in Price(0.5, 0.6, 7, None, 0.8).describe()
