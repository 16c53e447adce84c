"""Warm start: a streaming engine begins with what the last one left hot, and answers are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgemoe.engine.engine import Engine
from edgemoe.experts import hot_list
from edgemoe.paths import CACHE_VARIABLE
from tests.support.engines import engine_with_slots
from tests.support.small_engine import EXPERTS, PROMPT, SLOTS, answer
from tests.support.stores import flip_bit


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def landed(engine: Engine) -> np.ndarray:
    """Which experts are in RAM once the reads of the warm start have ended; nobody but those is reading."""
    for ticket in engine._loaded._stepper._cache.tickets:
        if ticket >= 0:
            engine._loaded._reader.wait(int(ticket), 60)
    return engine.resident_experts()


def test_what_was_hot_is_there_again_and_the_answer_is_the_same(made: Path, lists: Path, expected: list[int]) -> None:
    with engine_with_slots(made, SLOTS, warm_start=True) as engine:
        assert engine.statistics.cache.warm_bytes == 0
        answer(engine, 25)
        hot, uses = engine.resident_experts(), engine.expert_uses.copy()
    (kept,) = lists.iterdir()
    with engine_with_slots(made, SLOTS, warm_start=True) as engine:
        np.testing.assert_array_equal(landed(engine), hot)
        statistics = engine.statistics.cache
        assert statistics.warm_bytes == hot.sum() * engine.store.record_bytes
        assert (statistics.read_bytes, statistics.prefetched_reads, statistics.misses) == (0, 0, 0)
        listed = engine._loaded._hot_list.read()
        assert answer(engine, 25) == expected
    by_heat = [uses[key] for key in listed]
    assert by_heat == sorted(by_heat, reverse=True)
    assert kept.exists()


@pytest.mark.parametrize("slots", [2, 3, SLOTS, EXPERTS - 1])
def test_no_number_of_slots_and_no_wait_changes_the_answer(
    made: Path,
    lists: Path,
    expected: list[int],
    slots: int,
) -> None:
    for _ in range(3):  # the prompt comes while the reads of the warm start are under way
        with engine_with_slots(made, slots, warm_start=True) as engine:
            assert answer(engine, 25) == expected


def test_all_experts_in_memory_need_none(made: Path, lists: Path) -> None:
    with engine_with_slots(made, EXPERTS, warm_start=True) as engine:
        engine.forward(PROMPT)
    assert not lists.exists()


def test_nothing_computed_leaves_the_list_as_it_was(made: Path, lists: Path) -> None:
    with engine_with_slots(made, SLOTS, warm_start=True) as engine:
        engine.forward(PROMPT)
    (kept,) = lists.iterdir()
    before = kept.read_bytes()
    engine_with_slots(made, SLOTS, warm_start=True).close()
    assert kept.read_bytes() == before


def test_off_and_unwritable_are_no_error(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("", str(tmp_path / "file" / "below")):
        monkeypatch.setenv(CACHE_VARIABLE, place)
        with engine_with_slots(made, SLOTS, warm_start=True) as engine:
            engine.forward(PROMPT)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_expert_in_the_list_is_no_error_until_it_is_used(made: Path, lists: Path, tmp_path: Path) -> None:
    store = shutil.copytree(made, tmp_path / "store")
    with engine_with_slots(store, SLOTS) as engine:
        right = engine.forward(PROMPT[:1])
        unused = [(int(layer), int(expert)) for layer, expert in np.argwhere(engine.expert_uses == 0)]
    hot_list.HotList(lists, engine.store.digest, [8, 8, 8]).write(unused[:1])
    record = engine.store.record(*unused[0])
    flip_bit(record.path, record.offset)
    with engine_with_slots(store, SLOTS, warm_start=True) as engine:
        assert engine.statistics.cache.warm_bytes == record.length
        np.testing.assert_array_equal(engine.forward(PROMPT[:1]), right)
