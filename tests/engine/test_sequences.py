"""Sequences: pages that are shared, copied and found again, and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.pages import PageGroup, PagePool, prefix_hash
from edgemoe.engine.part_sizes import POSITION_OBJECT_BYTES
from edgemoe.engine.sequence import Sequences
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.engine.test_engine import CONFIG
from tests.support.checkpoints import write_checkpoint
from tests.support.every_case import every_case

IDS = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], 400)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


def of_pages(rows: int, pages: int) -> tuple[Sequences, np.ndarray]:
    """Sequences without a model, whose state is one number for each position."""
    state = np.zeros((rows * pages, PAGE_TOKENS))
    group = PageGroup(np.zeros((rows, pages), np.int32), rows * pages, arrays=[state])
    return Sequences([group], CONFIG["vocab_size"], keeps_prefixes=True), state


def append(sequence, state: np.ndarray, ids: np.ndarray) -> None:
    """Write the ids as the state of their positions, as a run would."""
    sequence.reserve(len(ids))
    for position, token in enumerate(ids.tolist(), sequence.position):
        state[sequence.whole.pages[position // PAGE_TOKENS], position % PAGE_TOKENS] = token
    sequence.end_run(ids)


def contents(sequence, state: np.ndarray) -> list[int]:
    places = [(sequence.whole.pages[p // PAGE_TOKENS], p % PAGE_TOKENS) for p in range(sequence.position)]
    return [int(state[place]) for place in places]


def test_a_closed_sequence_leaves_its_full_pages_to_be_found() -> None:
    sequences, state = of_pages(2, 4)
    first = sequences.open()
    append(first, state, IDS[:150])
    sequences.close(first)
    second = sequences.open(IDS[:200])
    assert second.position == 128  # two full pages
    assert contents(second, state) == IDS[:128].tolist()
    assert sequences.open(IDS[1:200]).position == 0


def test_the_last_token_is_always_left_to_be_run() -> None:
    sequences, state = of_pages(2, 4)
    append(sequences.open(), state, IDS[:128])
    assert sequences.open(IDS[:128]).position == 64


def test_a_fork_shares_pages_until_one_of_both_goes_on() -> None:
    sequences, state = of_pages(3, 4)
    first = sequences.open()
    append(first, state, IDS[:100])
    second = sequences.fork(first)
    assert first.whole.pages == second.whole.pages
    append(second, state, IDS[200:300])
    append(first, state, IDS[100:140])
    assert first.whole.pages[0] == second.whole.pages[0]
    assert first.whole.pages[1] != second.whole.pages[1]
    assert contents(first, state) == IDS[:140].tolist()
    assert contents(second, state) == [*IDS[:100], *IDS[200:300]]


def test_after_a_rewind_into_a_named_page_its_old_prefix_is_not_found() -> None:
    sequences, state = of_pages(2, 4)
    first = sequences.open()
    append(first, state, IDS[:128])
    first.rewind(100)
    append(first, state, IDS[300:350])
    other = sequences.open(IDS[:200])
    assert other.position == 64
    assert contents(other, state) == IDS[:64].tolist()


def test_kept_pages_make_way_the_oldest_first() -> None:
    sequences, state = of_pages(1, 4)
    for start in (0, 150):
        one = sequences.open()
        append(one, state, IDS[start : start + 130])
        sequences.close(one)
    again = sequences.open(IDS[150:300])
    assert again.position == 128
    sequences.close(again)
    assert sequences.open(IDS[:130]).position == 64  # its second page was needed


def test_pages_are_neither_lost_nor_given_twice() -> None:
    random = np.random.default_rng(1)
    pool, used, hashes = PagePool(8), [], [prefix_hash(b"", [n]) for n in range(4)]
    for _ in range(3000):
        action = random.integers(4)
        if action == 0 and pool.available:
            page = pool.take()
            assert page not in used
            used.append(page)
        elif used:
            page = used[random.integers(len(used))]
            if action == 1:
                pool.release(page)
                used.remove(page)
            elif action == 2:
                pool.share(page)
                used.append(page)
            else:
                pool.name(page, hashes[random.integers(4)])
        assert pool.available == 8 - len(set(used))


def test_the_plan_has_room_for_the_objects_of_every_position() -> None:
    rows, pages = 8, 16
    tracemalloc.start()
    sequences, _ = of_pages(rows, pages)
    before = tracemalloc.get_traced_memory()[0]
    tokens = np.random.default_rng(2).integers(1000, 2**31 - 1, (rows, pages * PAGE_TOKENS))  # no small integers
    for ids in tokens:
        one = sequences.open()
        one.reserve(len(ids))
        one.end_run(ids)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0 < taken <= tokens.size * POSITION_OBJECT_BYTES


@every_case("ids", [[1.5, 2.0], [[1, 2]], [-1], [CONFIG["vocab_size"]], []])
def test_ids_that_cannot_begin_a_sequence_are_refused_and_take_no_place(ids: list[object]) -> None:
    sequences, _ = of_pages(1, 4)
    with pytest.raises(UsageError):
        sequences.open(ids)  # type: ignore[arg-type]
    sequences.open()


def test_sequences_of_another_model_are_refused() -> None:
    one, (other, _) = of_pages(1, 4)[0].open(), of_pages(2, 4)
    for call in (other.close, other.fork):
        with pytest.raises(UsageError, match="another model"):
            call(one)


def test_what_is_refused_changes_no_sequence(store: Path) -> None:
    with open_engine(store, EngineOptions(threads=1, context_length=128, sequences=2)) as engine:
        first, second = engine.sequence, engine.sequences.open()
        with pytest.raises(UsageError, match="2 sequences are open"):
            engine.sequences.open()
        expected = engine.step({first: IDS[:50], second: IDS[50:90]})
        refused = [
            ({}, "no sequences"),
            ({first: [1], second: []}, "no tokens"),
            ({first: [1], second: [CONFIG["vocab_size"]]}, "outside the vocabulary"),
            ({first: [1], second: IDS[:100]}, "100 tokens after 40 do not fit"),
        ]
        for batch, message in refused:
            with pytest.raises(UsageError, match=message):
                engine.step(batch)
        with pytest.raises(UsageError, match="Cannot rewind to position 51"):
            first.rewind(51)
        assert (first.position, second.position) == (50, 40)
        for sequence, ids in ((first, IDS[:50]), (second, IDS[50:90])):
            sequence.rewind(0)
            np.testing.assert_array_equal(engine.step({sequence: ids})[sequence], expected[sequence])
        engine.sequences.close(second)
        for call in (lambda: engine.step({second: [1]}), lambda: engine.sequences.close(second)):
            with pytest.raises(UsageError, match="is closed, or belongs to another model"):
                call()


@every_case("sequences", [0, 257, 1.0, True])
def test_numbers_of_sequences_out_of_range_are_refused(sequences: object) -> None:
    with pytest.raises(UsageError, match="`sequences`: expected 1 to 256"):
        EngineOptions(sequences=sequences)  # type: ignore[arg-type]


@pytest.mark.parametrize("context_length", [64.0, "64", True])
def test_context_lengths_that_are_no_whole_numbers_are_refused(context_length: object) -> None:
    with pytest.raises(UsageError, match="`context_length`: expected a whole number of tokens"):
        EngineOptions(context_length=context_length)  # type: ignore[arg-type]


def test_the_plan_counts_every_sequence(store: Path) -> None:
    plans = []
    for sequences in (1, 8):
        with open_engine(store, EngineOptions(threads=1, context_length=128, sequences=sequences)) as engine:
            plans.append(engine.memory)
            assert engine.sequences.most == sequences
    per_sequence = 128 * 4 * 2 * 2 * 16 * 2  # layers, keys and values, heads, width, float16
    assert plans[1].kv_cache_bytes - plans[0].kv_cache_bytes == 7 * per_sequence
