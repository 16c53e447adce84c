"""Runs of several sequences that decode together: what they prefetch changes their speed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.experts.prefetch import BLOCK_TOKENS, WARM_UP_TOKENS
from edgemoe.model.graph import GUESSED_ROWS
from tests.engine.test_engine import CONFIG, EXPERTS, PROMPT
from tests.support.checkpoints import SMALL_DEEPSEEK_V4, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.pairs import default_pairs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stepper")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


@pytest.mark.parametrize(("together", "slots"), default_pairs([2, GUESSED_ROWS, GUESSED_ROWS + 1], [1, 6, 17]))
def test_sequences_that_decode_together_prefetch_and_change_no_bit(store: Path, slots: int, together: int) -> None:
    found = {}
    for count, prefetch in ((slots, "on"), (EXPERTS, "off")):
        with engine_with_slots(store, count, prefetch=prefetch, sequences=together, context_length=64) as engine:
            sequences = [engine.sequence, *(engine.sequences.open() for _ in range(together - 1))]
            logits = [engine.step({one: PROMPT[number : number + 9] for number, one in enumerate(sequences)})]
            for sequence in sequences:
                sequence.turn.begin_decoding()
            for _ in range(12):
                logits.append(engine.step({one: [int(row.argmax())] for one, row in logits[-1].items()}))
            cache = engine.statistics.cache
            found[prefetch] = np.array([list(step.values()) for step in logits])
        if prefetch == "on":
            assert (cache.guessable_uses > 0) == (together <= GUESSED_ROWS)
            assert (cache.prefetched_reads > 0) >= (slots == 17 and together <= GUESSED_ROWS)
    np.testing.assert_array_equal(found["on"], found["off"])


def test_experts_that_a_table_names_are_guessed_right(tmp_path: Path) -> None:
    """All of them, in every layer after the first one with a guess before it, and with the bits of no guess at all."""
    write_checkpoint(tmp_path / "source", SMALL_DEEPSEEK_V4 | {"num_hash_layers": 4})
    store = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="q4", dense="q8")
    logits = {}
    for prefetch in ("on", "off"):
        with engine_with_slots(store, 17, prefetch=prefetch, context_length=256) as engine:
            engine.forward(PROMPT)
            engine.sequence.turn.begin_decoding()
            logits[prefetch] = [engine.forward([token]) for token in range(20)]
            cache = engine.statistics.cache
            assert cache.guessed_uses == cache.guessable_uses == (3 * 3 * 20 if prefetch == "on" else 0)
    np.testing.assert_array_equal(logits["on"], logits["off"])


def test_each_number_of_sequences_has_a_trial_of_its_own(store: Path) -> None:
    """A trial of runs of one row says nothing about runs of two."""
    with engine_with_slots(store, 12, prefetch="auto", sequences=2, context_length=256) as engine:
        one, two = engine.sequence, engine.sequences.open()
        for sequence in (one, two):
            sequence.turn.begin_decoding()
        for token in range(WARM_UP_TOKENS + BLOCK_TOKENS + 1):  # from then on every other block of a trial prefetches
            engine.step({one: [token]})
        assert engine.statistics.cache.guessable_uses > 0
        before = engine.statistics.cache.guessable_uses
        for token in range(WARM_UP_TOKENS + BLOCK_TOKENS):
            engine.step({one: [token], two: [token + 1]})
        assert engine.statistics.cache.guessable_uses == before
        engine.step({one: [1], two: [2]})
        assert engine.statistics.cache.guessable_uses > before
