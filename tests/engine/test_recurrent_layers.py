"""A model with layers that overwrite their state with each token: going back, kept prefixes, and its memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.support.checkpoints import SMALL_QWEN, write_checkpoint
from tests.support.engines import engine_with_slots

EXPERTS = 4 * 10
IDS = np.random.default_rng(4).integers(0, SMALL_QWEN["vocab_size"], 400)
LAYERS, HEADS, KEYS, COLUMNS, CHANNELS, TAPS = 3, 4, 12, 32, 2 * 2 * 12 + 4 * 20, 4
ROW = LAYERS * 4 * (HEADS * KEYS * COLUMNS + (TAPS - 1) * CHANNELS)
"""Bytes of a sequence's state, and of a snapshot: 20 columns of values take two panels of 16."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recurrent")
    write_checkpoint(folder / "source", SMALL_QWEN)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


@pytest.fixture(scope="module")
def expected(store: Path) -> np.ndarray:
    """Logits after each token, all in one call."""
    with engine_with_slots(store, EXPERTS) as engine:
        return engine.forward(IDS, all_logits=True)


@pytest.mark.parametrize(("position", "behind"), [(399, 15), (385, 1), (384, 0), (0, 0)])
def test_going_back_starts_from_a_snapshot(store: Path, expected: np.ndarray, position: int, behind: int) -> None:
    """Not even the last token can be taken out of a state; all are run again that came after the snapshot."""
    with engine_with_slots(store, EXPERTS) as engine:
        for first in range(0, 400, 80):
            engine.forward(IDS[first : first + 80])
        engine.rewind(position)
        assert engine.sequence.behind == behind
        np.testing.assert_array_equal(engine.forward(IDS[position : position + 1]), expected[position])


def test_logits_that_are_handed_over_skip_tokens_that_are_run_again(store: Path, expected: np.ndarray) -> None:
    taken: list[np.ndarray] = []
    with engine_with_slots(store, 8) as engine:
        engine.forward(IDS[:395])
        engine.rewind(390)
        assert engine.sequence.behind == 6
        engine.forward_each(IDS[390:], lambda rows: taken.append(rows.copy()), 2)
    np.testing.assert_array_equal(np.concatenate(taken), expected[392:])


def test_a_chat_that_takes_back_each_turn_is_exact(store: Path, expected: np.ndarray) -> None:
    """Twelve turns, each answered twice: the first answer, which goes another way, is taken back."""
    with engine_with_slots(store, EXPERTS, context_length=512) as engine:
        for turn in range(12):
            begin, question, end = 30 * turn, 30 * turn + 20, 30 * turn + 30
            np.testing.assert_array_equal(engine.forward(IDS[begin:question]), expected[question - 1])
            for wrong in (7, 8, 9):
                engine.forward([wrong])
            engine.rewind(question)
            for position in range(question, end):
                np.testing.assert_array_equal(engine.forward(IDS[position : position + 1]), expected[position])


def test_a_kept_prefix_begins_at_a_snapshot(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, EXPERTS, sequences=2, context_length=512) as engine:
        first = engine.sequences.open()
        engine.step({first: IDS[:200]})
        engine.sequences.close(first)
        other = engine.sequences.open(IDS[:390])
        assert other.position == 192
        np.testing.assert_array_equal(engine.step({other: IDS[192:390]})[other], expected[389])


def test_the_plan_counts_states_and_snapshots(store: Path) -> None:
    for sequences in (1, 4):
        with open_engine(store, EngineOptions(threads=1, context_length=256, sequences=sequences)) as engine:
            plan = engine.memory
            values = engine.sequences._snapshots.fixed._values
            assert sum(value.rows.nbytes + value.snapshots.nbytes for value in values) == plan.fixed_state_bytes
            assert plan.fixed_state_bytes == ROW * (sequences + plan.snapshots)
            assert 0 < plan.snapshots <= sequences * 256 // PAGE_TOKENS
            assert plan.planned_bytes <= plan.budget_bytes
