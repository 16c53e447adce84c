"""Times of prompts: what is told before one begins, what a prompt teaches, and that nothing of it changes an answer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.engine import loaded
from edgemoe.engine.prompt_times import (
    LEAST_TOKENS,
    MOST_NOTED,
    PROBED_LEAST,
    PROBED_MOST,
    Chunk,
    PromptEstimate,
    PromptRates,
    PromptTimes,
    PromptWork,
    rates_note,
)
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.kernels.select import ISA_VARIABLE, KERNELS_VARIABLE
from edgemoe.paths import CACHE_VARIABLE
from edgemoe.store.note import StoreNote
from edgemoe.store.reader import Store
from tests.support.engines import engine_with_slots
from tests.support.small_engine import EXPERTS, PROMPT, SLOTS

WORK = PromptWork(1e9, {(64, 8.0): 10}, record_bytes=1_000_000, slots=160, chunk_tokens=1024)
"""A model of ten layers of 64 experts, a quarter of which have slots; in a chunk each of its experts is used."""
DIGEST = "cd" * 32


class Machine:
    """A machine whose rates are known: how often they were asked for, and the times of chunks at them."""

    def __init__(self, products_per_s: float = 20e9, disk_bytes_per_s: float = 0.5e9) -> None:
        self.rates = products_per_s, disk_bytes_per_s
        self.probes = 0
        self.resident = 0

    def probe(self) -> tuple[float, float]:
        self.probes += 1
        return self.rates

    def times(self, note: StoreNote | None = None, settings: str = "here", work: PromptWork = WORK) -> PromptTimes:
        return PromptTimes(work, settings, note, lambda: self.resident, self.probe)

    def run(self, times: PromptTimes, tokens: int, work: PromptWork = WORK) -> PromptEstimate | None:
        """Run a prompt; returns what was told before it."""
        prompt = times.begin(tokens)
        rates = PromptRates(work.token_products / self.rates[0], self.rates[1])
        for chunk in work.chunks(tokens, self.resident):
            prompt.ran_chunk(rates.seconds([chunk]))
        self.resident = work.slots
        return prompt.estimate


def note_in(folder: Path) -> StoreNote:
    return StoreNote(folder, DIGEST, ".prompt.json", "edgemoe_prompt_rates", 1)


def test_a_chunk_misses_what_is_neither_in_ram_nor_unused() -> None:
    assert WORK.total_experts == 640
    first, second, last = WORK.chunks(2048 + 4, 0)
    assert [first.tokens, second.tokens, last.tokens] == [1024, 1024, 4]
    assert first.bytes == pytest.approx(640e6)
    assert second.bytes == pytest.approx(480e6)  # a quarter of the experts found slots
    assert last.bytes == pytest.approx(480e6 * (1 - (7 / 8) ** 4))
    assert WORK.chunks(1024, 320)[0].bytes == pytest.approx(320e6)
    assert WORK.chunks(1024, 640) == [Chunk(1024, 0.0)]
    everything = PromptWork(1.0, {(4, 4.0): 2}, record_bytes=1, slots=1, chunk_tokens=8)
    assert everything.chunks(1, 0)[0].bytes == pytest.approx(8)
    assert PromptWork(1.0, {}, 0, 0, 8).chunks(9, 0) == [Chunk(8, 0.0), Chunk(1, 0.0)]


def test_the_lower_rate_decides_each_chunk() -> None:
    rates = PromptRates(token_s=0.01, disk_bytes_per_s=1e8)
    assert rates.seconds([Chunk(100, 5e8), Chunk(100, 5e7)]) == 5 + 1
    assert rates.corrected(Chunk(100, 5e8), 10.0) == PromptRates(0.01, 5e7)
    assert rates.corrected(Chunk(100, 5e8), 0.5) == PromptRates(0.005, 1e9)
    assert rates.corrected(Chunk(100, 5e7), 2.0) == PromptRates(0.02, 1e8)
    assert rates.corrected(Chunk(100, 5e7), 0.25) == PromptRates(0.0025, 2e8)
    for chunk in (Chunk(100, 5e8), Chunk(100, 5e7), Chunk(100, 0.0)):
        for seconds in (0.1, 1.0, 30.0):
            assert rates.corrected(chunk, seconds).seconds([chunk]) == pytest.approx(seconds)


def test_the_first_prompt_is_told_a_range_by_a_probe_and_the_next_one_its_time(tmp_path: Path) -> None:
    machine, note = Machine(), note_in(tmp_path)
    # 51.2 s of computing for each chunk, beside which 640 MB and then 480 MB are read
    first = machine.run(machine.times(note), 2048)
    assert first == PromptEstimate(2048, PROBED_LEAST * 102.4, PROBED_MOST * 102.4)
    assert machine.probes == 1
    again = machine.times(note)
    assert machine.run(again, 2048) == PromptEstimate.about(2048, 102.4)
    machine.rates = 20e9, 5e6  # another disk: 96 s to read what a chunk misses
    assert machine.run(again, 1024) == PromptEstimate.about(1024, 51.2)
    told = machine.run(machine.times(note), 2048)
    assert told is not None
    assert told.most_seconds == pytest.approx(2 * 96)
    assert machine.probes == 1


def test_each_setting_has_rates_of_its_own(tmp_path: Path) -> None:
    machine, note = Machine(), note_in(tmp_path)
    machine.run(machine.times(note, "two threads"), 1024)
    machine.rates = 10e9, 0.5e9
    machine.run(machine.times(note, "one thread"), 1024)
    assert machine.probes == 2
    assert machine.run(machine.times(note, "two threads"), 1024) == PromptEstimate.about(1024, 51.2)
    for number in range(MOST_NOTED - 1):
        machine.run(machine.times(note, f"other {number}"), 1024)
    noted = json.loads(note.path.read_text())["rates"]
    assert list(noted) == ["two threads", *(f"other {number}" for number in range(MOST_NOTED - 1))]


def test_short_prompts_ask_for_nothing(tmp_path: Path) -> None:
    machine = Machine()
    times = PromptTimes(WORK, "here", note_in(tmp_path), lambda: pytest.fail("asked"), machine.probe)
    assert times.begin(LEAST_TOKENS - 1).estimate is None
    quick = PromptWork(1e6, {(64, 8.0): 10}, record_bytes=100_000, slots=160, chunk_tokens=1024)
    times = machine.times(note_in(tmp_path), work=quick)
    assert machine.run(times, 1024, quick) is None
    assert machine.run(times, 1024, quick) is None
    assert machine.probes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_unexpectedly_long_teaches_too(tmp_path: Path) -> None:
    """A prompt that would take no second on the fastest machine takes ten here."""
    work = PromptWork(1e8, {}, record_bytes=0, slots=0, chunk_tokens=512)
    machine = Machine(1e8 * 512 / 10, math.inf)
    times = machine.times(note_in(tmp_path), work=work)
    assert machine.run(times, 512, work) is None
    assert machine.run(times, 512, work) == PromptEstimate.about(512, 10.0)
    assert machine.run(machine.times(note_in(tmp_path), work=work), 512, work) == PromptEstimate.about(512, 10.0)
    assert machine.probes == 1


def test_a_prompt_that_ends_early_or_was_short_keeps_nothing(tmp_path: Path) -> None:
    machine, note = Machine(), note_in(tmp_path)
    prompt = machine.times(note).begin(2048)
    prompt.ran_chunk(51.2)
    assert not note.path.exists()
    prompt = machine.times(note).begin(1024)
    prompt.ran_chunk(4.9)
    prompt.ran_chunk(51.2)  # more than the prompt has
    assert not note.path.exists()
    times = machine.times(note)
    prompt = times.begin(2048)
    prompt.ran_chunk(1.0)
    prompt.ran_chunk(3.9)
    assert times.begin(1024).estimate == PromptEstimate(1024, PROBED_LEAST * 51.2, PROBED_MOST * 51.2)


def test_without_a_probe_or_a_place_for_files_it_learns_all_the_same() -> None:
    machine = Machine()
    times = PromptTimes(WORK, "here", None, lambda: 0, lambda: None)
    assert machine.run(times, 1024) is None
    assert machine.run(times, 1024) == PromptEstimate.about(1024, 51.2)
    times = machine.times(None)
    assert machine.run(times, 1024) == PromptEstimate(1024, PROBED_LEAST * 51.2, PROBED_MOST * 51.2)
    assert machine.run(times, 1024) == PromptEstimate.about(1024, 51.2)


@pytest.mark.parametrize("rates", [
    7, [], {"here": 7}, {"here": [1]}, {"here": [0.05]}, {"here": [0.05, 1e9, 2.0]}, {"here": ["0.05", 1e9]},
    {"here": [-0.05, 1e9]}, {"here": [0.0, 1e9]}, {"here": [None, 1e9]}, {"here": [0.05, -1.0]}, {"here": [True, 1e9]},
    {"here": [math.nan, 1e9]}, {"here": [math.inf, 1e9]}, {"here": [0.05, math.nan]}, {"here": [10**400, 1e9]},
])  # fmt: skip
def test_a_note_of_anything_else_counts_as_none(tmp_path: Path, rates: Any) -> None:
    machine, note = Machine(), note_in(tmp_path)
    note.write({"rates": rates})
    told = machine.run(machine.times(note), 1024)
    assert told == PromptEstimate(1024, PROBED_LEAST * 51.2, PROBED_MOST * 51.2)
    assert machine.run(machine.times(note), 1024) == PromptEstimate.about(1024, 51.2)


def test_the_note_lies_in_the_user_s_cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(made)
    assert rates_note(store) is None  # tests keep no files
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    note = rates_note(store)
    assert note is not None
    assert note.path == tmp_path / f"{store.digest[:32]}.prompt.json"


def test_the_work_is_that_of_every_weight_but_the_embedding_and_the_head(made: Path) -> None:
    with engine_with_slots(made, SLOTS, chunk_tokens=32) as engine:
        work = engine.prompt_times._work
        attention = 64 * (64 + 32 + 32) + 64 * 64
        norms = 2 * 64
        experts = 2 * 3 * 64 * 96
        assert work.token_products == pytest.approx(3 * (attention + 64 * 8 + experts), abs=3 * norms)
        assert work.layers == {(8, 2.0): 3}
        assert (work.slots, work.chunk_tokens, work.record_bytes) == (SLOTS, 32, engine.store.record_bytes)
        assert work.total_experts == EXPERTS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kernels", [*(("native", isa) for isa in available_isas()), ("jit", ""), ("reference", "")])
def test_a_probe_changes_no_bit(made: Path, monkeypatch: pytest.MonkeyPatch, kernels: tuple[str, str]) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, kernels[0])
    if kernels[1]:
        monkeypatch.setenv(ISA_VARIABLE, kernels[1])
    monkeypatch.setattr(loaded, "piece_bytes_of", lambda store: PAGE_BYTES)
    monkeypatch.setattr(loaded, "PROBE_SECONDS", 0.005)
    with engine_with_slots(made, SLOTS, threads=2) as engine:
        engine.forward(PROMPT[:30])
        expected = engine.forward(PROMPT[30:], all_logits=True)
        loaded_before = engine.resident_experts()
        ledger = engine.statistics.cache.counts.copy()
        found = engine._probe()
        assert found is not None
        assert all(0 < rate < 1e15 for rate in found)
        np.testing.assert_array_equal(engine.resident_experts(), loaded_before)
        np.testing.assert_array_equal(engine.statistics.cache.counts, ledger)
        engine.rewind(30)
        np.testing.assert_array_equal(engine.forward(PROMPT[30:], all_logits=True), expected)
        assert engine._probe() is not None


def test_what_cannot_be_probed_is_not(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_with_slots(made, SLOTS, chunk_tokens=8) as engine:
        assert engine._probe() is None  # too little memory to read into
    with engine_with_slots(made, EXPERTS) as engine:
        found = engine._probe()
        assert found is not None
        assert found[1] == math.inf  # all experts are in RAM
        engine.close()
        assert engine._loaded.measure_products(8) is None


def test_a_read_that_fails_is_no_error_of_a_probe(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "piece_bytes_of", lambda store: PAGE_BYTES)
    store = shutil.copytree(made, tmp_path / "store")
    with engine_with_slots(store, SLOTS) as engine:
        (path,) = engine.store.expert_paths
        path.write_bytes(b"")
        assert engine._probe() is None
