"""The engine: paging, threads, prefetch, chunks and rewinds never change an answer; faults are told."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine import loaded as loaded_module
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.phase import DECODE, VERIFY
from edgemoe.errors import BudgetError, EdgemoeError, ReadError, StoreError, UsageError
from edgemoe.experts.policy import POLICIES
from edgemoe.io import reads
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.paging import CacheStatistics
from edgemoe.model.build import HEAD_ROWS
from edgemoe.process import rss_bytes
from edgemoe.store.reader import Store
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots, use_portable_reader

CONFIG = {
    "model_type": "granitemoeshared",
    "vocab_size": 193,
    "hidden_size": 96,
    "intermediate_size": 40,
    "shared_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 10,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 512,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
EXPERTS = 4 * 10
ALL_SLOTS = (1, 2, 3, 6, 10, 17, EXPERTS - 1)
PROMPT = np.random.default_rng(5).integers(0, 193, 150)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    write_checkpoint(folder / "source", CONFIG, dtype="BF16")
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


def greedy(engine: Engine, prompt: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    engine.turn.begin()
    logits = [engine.forward(prompt)]
    engine.turn.begin_decoding()
    tokens = []
    for _ in range(count):
        tokens.append(int(logits[-1].argmax()))
        logits.append(engine.forward(tokens[-1:]))
    return tokens, np.stack(logits)


@pytest.fixture(scope="module")
def expected(store: Path) -> tuple[list[int], np.ndarray]:
    with engine_with_slots(store, EXPERTS) as engine:
        assert engine.memory.all_resident
        return greedy(engine, PROMPT, 30)


@pytest.mark.parametrize(
    ("slots", "prefetch"),
    [
        # every number of slots with the readers at work; the slow tests have all pairs
        pytest.param(slots, prefetch, marks=[] if slots in often else pytest.mark.slow)
        for prefetch, often in {"on": ALL_SLOTS, "off": (1, 6, 17), "auto": (3, 10)}.items()
        for slots in ALL_SLOTS
    ],
)
def test_streamed_equals_resident_to_the_bit(store: Path, expected, slots: int, prefetch: str) -> None:
    with engine_with_slots(store, slots, prefetch=prefetch) as engine:
        tokens, logits = greedy(engine, PROMPT, 30)
        statistics = engine.statistics
    assert tokens == expected[0]
    np.testing.assert_array_equal(logits, expected[1])
    assert statistics.expert_misses > 0
    assert statistics.disk_bytes > 0
    assert (statistics.cache.prefetched_reads > 0) <= (prefetch != "off")


@pytest.mark.parametrize("phase", [DECODE, VERIFY])
@pytest.mark.parametrize("lossy", [EXACT, LossySettings(cache_aware_routing=0.5, drop_cold=0.5)])
def test_several_tokens_that_are_no_prompt_may_run_at_once(store: Path, phase: int, lossy: LossySettings) -> None:
    with engine_with_slots(store, 12, prefetch="on", lossy=lossy) as engine:
        engine.turn.phase = phase
        logits = engine.forward(PROMPT[:7], all_logits=True)
        logits = np.concatenate([logits, engine.forward(PROMPT[7:8])[None]])
        assert engine.statistics.cache.prefetched_reads == 0 or phase == DECODE
        assert (engine.statistics.cache.dropped > 0) == lossy.on
    assert np.isfinite(logits).all()
    if not lossy.on:
        with engine_with_slots(store, EXPERTS) as resident:
            np.testing.assert_array_equal(logits, resident.forward(PROMPT[:8], all_logits=True))


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("slots", [5, EXPERTS])
def test_threads_change_no_bit(store: Path, expected, threads: int, slots: int) -> None:
    with engine_with_slots(store, slots, threads=threads) as engine:
        np.testing.assert_array_equal(greedy(engine, PROMPT, 10)[1], expected[1][:11])


@pytest.mark.parametrize("direct_reads", [True, False])
def test_the_portable_reader_and_plain_reads_give_the_same(
    store: Path, direct_reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_portable_reader(monkeypatch)
    with engine_with_slots(store, EXPERTS) as engine:
        expected = greedy(engine, PROMPT[:20], 5)[1]
    for slots, prefetch in ((2, "off"), (8, "on")):
        with engine_with_slots(store, slots, direct_reads=direct_reads, prefetch=prefetch) as engine:
            np.testing.assert_array_equal(greedy(engine, PROMPT[:20], 5)[1], expected)


def test_grouping_tokens_in_calls_changes_no_bit(store: Path) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        whole = engine.forward(PROMPT, all_logits=True)
        engine.rewind(0)
        pieces = [engine.forward(part, all_logits=True) for part in np.split(PROMPT, [1, 2, 9, 140])]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        engine.rewind(100)
        np.testing.assert_array_equal(engine.forward(PROMPT[100:]), whole[-1])


@pytest.mark.parametrize("slots", [8, EXPERTS])
@pytest.mark.parametrize("first", [0, 1, 130, len(PROMPT) - 1, len(PROMPT)])
def test_logits_that_are_handed_over_are_those_of_a_whole_run(store: Path, slots: int, first: int) -> None:
    taken: list[np.ndarray] = []
    with engine_with_slots(store, slots) as engine:
        whole = engine.forward(PROMPT, all_logits=True)
        engine.rewind(0)
        engine.forward_each(PROMPT, lambda rows: taken.append(rows.copy()), first)
        assert engine.position == len(PROMPT)
        assert max(map(len, taken), default=0) <= HEAD_ROWS
    np.testing.assert_array_equal(np.concatenate([whole[:0], *taken]), whole[first:])


def test_an_error_of_the_taker_leaves_the_sequence_as_it_was(store: Path) -> None:
    def fail(rows: np.ndarray) -> None:
        raise KeyError("taken")

    with engine_with_slots(store, EXPERTS) as engine:
        engine.forward(PROMPT[:3])
        with pytest.raises(KeyError, match="taken"):
            engine.forward_each(PROMPT[3:], fail)
        assert engine.position == 3
        after = engine.forward(PROMPT[3:])
        engine.rewind(0)
        np.testing.assert_array_equal(after, engine.forward(PROMPT))


def test_expert_uses_and_residency(store: Path) -> None:
    with engine_with_slots(store, 8) as engine:
        engine.forward(PROMPT)
        assert engine.expert_uses.shape == (4, 10)
        assert (engine.expert_uses.sum(axis=1) == 3 * len(PROMPT)).all()
        assert (engine.expert_uses > 0).sum() > 20
        assert 1 <= engine.resident_experts().sum() <= 8


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([[1, 2]], r"expected a list of integers, found int64 of shape \(1, 2\)"),
        ([[1], [1, 2]], "expected a list of integers, found nested lists"),
        ([0.5], "found float64"),
        ([True], "found bool"),
        ("ab", "found <U2"),
        (3, r"of shape \(\)"),
        ([3, 193], "193 is outside the vocabulary of 193"),
        ([-1], "-1 is outside"),
        ([1] * 600, "do not fit the context"),
    ],
)
def test_bad_ids_are_refused_and_change_nothing(store: Path, expected, ids, message: str) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        with pytest.raises(UsageError, match=message):
            engine.forward(ids)
        assert engine.position == 0
        np.testing.assert_array_equal(engine.forward(PROMPT), expected[1][0])


def test_rewinding_beyond_what_there_is(store: Path) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        engine.forward([1, 2, 3])
        for position in (4, -1, 1.0, True, "1", None):
            with pytest.raises(UsageError, match=r"Cannot rewind .*Give a whole number from 0 to 3"):
                engine.rewind(position)  # type: ignore[arg-type]
        engine.rewind(np.int64(2))  # type: ignore[arg-type]
        assert engine.position == 2


class BreakingReader:
    """The portable reader, but for waits that raise `problem` while there is one."""

    problem: BaseException | None = None

    def __init__(self, arena: np.ndarray, threads: int, staging_bytes: int = 0) -> None:
        self._reader = reads.ThreadedReader(arena, threads, staging_bytes)

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        self._reader.wait(ticket, timeout_seconds)
        if BreakingReader.problem is not None:
            raise BreakingReader.problem

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BreakingReader]]:
    use_portable_reader(monkeypatch, BreakingReader)
    yield BreakingReader
    BreakingReader.problem = None


def test_a_failed_read_is_told_and_the_answer_is_right_once_the_disk_is(store: Path, breaking) -> None:
    with engine_with_slots(store, 4) as engine:
        expected = engine.forward(PROMPT[:30])
        engine.rewind(20)
        breaking.problem = ReadError("the disk said no")
        with pytest.raises(ReadError, match=r"Layer \d, expert \d: the disk said no"):
            engine.forward(PROMPT[20:30])
        assert engine.position == 20
        breaking.problem = None
        np.testing.assert_array_equal(engine.forward(PROMPT[20:30]), expected)


def test_a_store_cut_short_while_it_runs(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    with engine_with_slots(copy, 4) as engine:
        engine.forward(PROMPT[:20])
        with next(copy.glob("experts-*")).open("r+b") as file:
            file.truncate(8192)
        with pytest.raises(ReadError, match=r"Layer \d, expert \d"):
            engine.forward(PROMPT[20:])
    with pytest.raises(EdgemoeError, match=r"expected .* bytes, found 8192"):
        open_engine(copy)


@pytest.mark.parametrize("ram", ["auto", "floor"])
def test_what_is_done_meanwhile_is_done_before_the_plan(store: Path, expected, ram: str) -> None:
    held = []
    grown = np.zeros(0, np.uint8)

    def meanwhile() -> None:
        nonlocal grown
        grown = np.ones(64 << 20, np.uint8)
        held.append(rss_bytes())

    with open_engine(store, EngineOptions(ram, threads=1), meanwhile=meanwhile) as engine:
        # counted, and the weights that were read meanwhile not twice
        assert engine.memory.interpreter_bytes >= held[0]
        assert engine.memory.planned_bytes <= engine.memory.budget_bytes
        np.testing.assert_array_equal(greedy(engine, PROMPT, 3)[1], expected[1][:4])
    assert grown[-1] == 1


def test_an_error_meanwhile_is_passed_on_and_leaves_nothing_open(store: Path) -> None:
    def meanwhile() -> None:
        raise StoreError("tokenizer.json: damaged.")

    before = sorted(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else []
    threads = threading.active_count()
    with pytest.raises(StoreError, match=r"tokenizer\.json: damaged"):
        open_engine(store, meanwhile=meanwhile)
    assert threading.active_count() == threads
    if before:
        assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("place", ["ExpertFiles", "Stepper", "cache_folder"])
def test_an_engine_that_cannot_be_made_leaves_nothing_open(
    store: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ReadError("lost.")

    monkeypatch.setattr(loaded_module, place, fail)
    before = sorted(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else []
    threads = threading.active_count()
    with pytest.raises(ReadError, match="lost"):
        engine_with_slots(store, 8, warm_start=True)
    assert threading.active_count() == threads
    if before:
        assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_an_expert_lost_while_all_are_loaded_is_named(store: Path, tmp_path: Path, monkeypatch) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    opened = Store.open(copy)
    lost = opened.record(2, 7)
    os.truncate(lost.path, lost.offset + 100)
    monkeypatch.setattr(Store, "check_sizes", lambda self: None)
    with pytest.raises(ReadError, match=r"Layer 2, expert 7: it could not be read: experts-.* ends at byte"):
        engine_with_slots(copy, EXPERTS)
    lost.path.unlink()
    with pytest.raises(ReadError, match=r"experts-.*: cannot be opened"):
        engine_with_slots(copy, EXPERTS)


def test_after_an_interrupt_every_slot_can_be_had_again(store: Path, breaking) -> None:
    with engine_with_slots(store, 3) as engine:
        expected = engine.forward(PROMPT[:30])
        engine.rewind(0)
        breaking.problem = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt) as interrupt:
            engine.forward(PROMPT[:30])
        assert engine.position == 0
        breaking.problem = None
        np.testing.assert_array_equal(engine.forward(PROMPT[:30]), expected)
        del interrupt  # whoever keeps the exception, and with it the frames of the forward, keeps no expert pinned


@pytest.mark.parametrize("slots", [1, 17])
def test_a_run_of_many_tokens_reads_each_expert_once_at_most(store: Path, slots: int) -> None:
    record_bytes = Store.open(store).record(1, 1).length
    with engine_with_slots(store, slots) as engine:
        for turn in range(2):
            counts, uses = engine.statistics.cache.counts.copy(), engine.expert_uses.copy()
            engine.rewind(0)
            engine.turn.begin()
            engine.forward(PROMPT)
            own = CacheStatistics()
            own.counts[:] = engine.statistics.cache.counts - counts
            assert own.hits + own.misses == (engine.expert_uses > uses).sum() > slots
            assert own.read_bytes == own.misses * record_bytes
            assert (own.hits > 0) == (turn == 1 and slots > 1)


@pytest.mark.parametrize("slots", [3, EXPERTS])
def test_a_pause_may_end_a_prompt_anywhere(store: Path, slots: int) -> None:
    """None of its tokens is held then, and what comes next has the same bits."""
    with engine_with_slots(store, slots) as engine:
        expected = engine.forward(PROMPT[:30])
        turns, last, found = 0, 0, None

        def leave(share: float) -> None:
            nonlocal turns
            turns += 1
            if turns == last:
                raise TimeoutError

        engine.pause = leave
        while found is None:
            engine.rewind(0)
            turns, last = 0, last + 1
            try:
                found = engine.forward(PROMPT[:30])
            except TimeoutError:
                assert engine.position == 0
        assert last > 3
        np.testing.assert_array_equal(found, expected)
        engine.turn.begin_decoding()
        turns = 0
        engine.forward([5])
        assert turns == 0  # a token is over soon


def test_an_arena_that_cannot_be_had_is_told(store: Path) -> None:
    with pytest.raises(BudgetError, match="bytes of memory cannot be had"):
        engine_with_slots(store, 1 << 50)


def test_logits_are_put_where_they_are_wanted(store: Path) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        engine.forward(PROMPT)
        expected = engine.forward(PROMPT[:3], all_logits=True)
        engine.rewind(len(PROMPT))
        out = np.empty_like(expected[0])
        for token, logits in zip(PROMPT[:3], expected, strict=True):
            assert engine.forward([token], out=out) is out
            np.testing.assert_array_equal(out, logits)
        engine.rewind(len(PROMPT))
        rows = np.empty_like(expected)
        assert engine.forward(PROMPT[:3], all_logits=True, out=rows) is rows
        np.testing.assert_array_equal(rows, expected)
        for wrong in (rows, out[1:], out.astype(np.float64)):
            with pytest.raises(UsageError, match="out: expected float32"):
                engine.forward([1], out=wrong)
        assert engine.position == len(PROMPT) + 3


@pytest.mark.parametrize("slots", [4, EXPERTS])
def test_closing_gives_the_memory_back(store: Path, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[np.ndarray]] = []

    class Decoder(loaded_module.Decoder):
        def __init__(self, graph, weights, space, arena, *more, **named) -> None:
            matrices = (weight.data for weight in weights.values() if isinstance(weight, Matrix))
            state = (space.array(value) for value in graph.lasting if value.home == "state")
            held.extend(map(weakref.ref, (arena, *state, *matrices)))
            super().__init__(graph, weights, space, arena, *more, **named)

    monkeypatch.setattr(loaded_module, "Decoder", Decoder)
    with engine_with_slots(store, slots) as engine:
        engine.forward(PROMPT)
        assert all(reference() is not None for reference in held)
    gc.collect()
    assert not any(reference() is not None for reference in held)
    assert engine.statistics.tokens == len(PROMPT)
    with pytest.raises(UsageError, match="closed"):
        engine.forward([1])
    with pytest.raises(UsageError, match="closed"):
        engine.keep_ledger()
    engine.close()  # once more is harmless


@pytest.mark.parametrize("backend", ["jit", "reference"])
@pytest.mark.parametrize("slots", [3, 8])
def test_streamed_equals_resident_on_the_portable_kernels(
    store: Path, backend: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", backend)
    with engine_with_slots(store, EXPERTS) as engine:
        resident = greedy(engine, PROMPT[:20], 4)[1]
    with engine_with_slots(store, slots, prefetch="on") as engine:
        assert engine.backend.name == backend
        np.testing.assert_array_equal(greedy(engine, PROMPT[:20], 4)[1], resident)
        assert engine.statistics.expert_misses > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_change_no_bit(store: Path, expected, policy: str) -> None:
    with engine_with_slots(store, 7, policy=policy) as engine:
        np.testing.assert_array_equal(greedy(engine, PROMPT, 10)[1], expected[1][:11])


def test_what_is_no_policy_or_prediction_is_told(store: Path) -> None:
    with pytest.raises(UsageError, match="policy"):
        open_engine(store, EngineOptions(policy="newest"))
    with pytest.raises(UsageError, match="prefetch"):
        open_engine(store, EngineOptions(prefetch="never"))
