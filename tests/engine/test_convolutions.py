"""A model whose sequences keep state that cannot be cut anywhere: going back, errors on the way, and its memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.batch import Rows
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import LossySettings
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.part_sizes import snapshot_count
from edgemoe.engine.workspace import LEAST_SNAPSHOTS
from edgemoe.errors import ReadError, UsageError
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.trace import TraceShape
from edgemoe.model.build import build_graph
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.engine.test_faults import break_descriptor, let_reads_end
from tests.support.checkpoints import SMALL_LFM2, SMALL_MIXTRAL, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.traces import made_up_trace

EXPERTS, SLOTS = 4 * 10, 6
IDS = np.random.default_rng(4).integers(0, SMALL_LFM2["vocab_size"], 400)
ROW = 3 * 72 * 4
"""Bytes that one input of each of the three convolutions takes."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convolutions")
    write_checkpoint(folder / "source", SMALL_LFM2)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


@pytest.fixture(scope="module")
def expected(store: Path) -> np.ndarray:
    """Logits after each token, all in one call."""
    with engine_with_slots(store, EXPERTS) as engine:
        return engine.forward(IDS, all_logits=True)


class Steps:
    """Notes how many tokens were observed."""

    one_sequence = True
    drafts = False

    def __init__(self) -> None:
        self.tokens = 0

    def step(self, run: Sequence[Rows]) -> None:
        self.tokens += sum(rows.count for rows in run)


def next_logits(engine: Engine) -> np.ndarray:
    """The logits after the next of the `IDS`."""
    return engine.forward(IDS[engine.position : engine.position + 1])


@pytest.mark.parametrize(("position", "behind"), [(337, 0), (336, 0), (335, 15), (0, 0)])
def test_only_what_lies_behind_the_newest_snapshot_is_run_again(
    store: Path, expected: np.ndarray, position: int, behind: int
) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        engine.recorder = steps = Steps()
        for first in range(0, 400, 80):  # snapshots at 64, 128, 192 and so on, as each call passes a page's end
            engine.forward(IDS[first : first + 80])
        engine.rewind(position)
        assert engine.sequence.behind == behind
        computed = engine.statistics.tokens
        np.testing.assert_array_equal(next_logits(engine), expected[position])
        assert engine.statistics.tokens == computed + behind + 1
        assert (steps.tokens, engine.turn.step) == (401, 401)  # what was run again is of no turn


def test_a_position_that_does_not_exist_is_refused(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        engine.forward(IDS[:100])
        for position in (101, -1):
            with pytest.raises(UsageError, match=f"Cannot rewind to position {position}"):
                engine.rewind(position)
        np.testing.assert_array_equal(next_logits(engine), expected[100])


def test_a_kept_prefix_begins_at_a_snapshot(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, EXPERTS, sequences=2, context_length=512) as engine:
        first = engine.sequences.open()
        engine.step({first: IDS[:200]})
        engine.sequences.close(first)
        other = engine.sequences.open(IDS[:390])
        assert other.position == 192
        np.testing.assert_array_equal(engine.step({other: IDS[192:390]})[other], expected[389])


def test_an_error_while_tokens_are_run_again_loses_nothing(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, SLOTS, sequences=2, context_length=512, undo_tokens=4, prefetch="off") as engine:
        one, other = engine.sequence, engine.sequences.open()
        engine.step({one: IDS[:200], other: IDS[:150]})
        one.rewind(100)
        assert one.behind > 0
        mend = break_descriptor(engine)
        for _ in range(2):
            with pytest.raises(ReadError):
                engine.step({one: IDS[100:190], other: IDS[150:170]})
            assert (one.position, other.position) == (100, 150)
        let_reads_end(engine)
        mend()
        logits = engine.step({one: IDS[100:190], other: IDS[150:170]})
        np.testing.assert_array_equal(logits[one], expected[189])
        np.testing.assert_array_equal(logits[other], expected[169])


def test_too_little_room_is_told_before_tokens_are_run_again(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, EXPERTS, context_length=256) as engine:
        engine.forward(IDS[:250])
        engine.rewind(100)
        behind = engine.sequence.behind
        assert behind
        with pytest.raises(UsageError, match="157 tokens after 100 do not fit"):
            engine.forward(IDS[100:257])
        assert engine.sequence.behind == behind
        np.testing.assert_array_equal(next_logits(engine), expected[100])


def test_forced_routing_cannot_be_had_again(store: Path) -> None:
    shape = TraceShape("small", "lfm2_moe", 5, 10, 3, (4096,) * 5, (100,) * 5)
    trace = made_up_trace(shape, tokens=20)
    routed = trace.select(trace.layer > 0)
    with engine_with_slots(store, EXPERTS, routing=ForcedRouting(routed)) as engine:
        engine.forward(IDS[:100])
        engine.rewind(36)
        engine.forward(IDS[:1])
        engine.rewind(30)
        with pytest.raises(UsageError, match="would have to run 30 tokens again; their forced routing is used up"):
            engine.forward(IDS[:1])
        engine.rewind(0)
        engine.forward(IDS[:1])


def test_where_answers_depend_on_the_cache_a_sequence_has_its_own_snapshots_and_no_prefix(store: Path) -> None:
    with engine_with_slots(store, SLOTS, lossy=LossySettings(drop_cold=0.2), sequences=2, context_length=512) as engine:
        for first in (0, 70):
            engine.forward(IDS[first : first + 70 + first])
        engine.rewind(100)
        assert engine.sequence.behind == 100 - 64
        engine.forward(IDS[100:120])
        assert (engine.sequence.behind, engine.position) == (0, 120)
        assert engine.sequences.open(IDS[:200]).position == 0


def test_the_plan_counts_rows_and_snapshots(store: Path) -> None:
    for sequences in (1, 4):
        with open_engine(store, EngineOptions(threads=1, context_length=256, sequences=sequences)) as engine:
            plan = engine.memory
            values = engine.sequences._snapshots.fixed._values
            assert sum(value.rows.nbytes + value.snapshots.nbytes for value in values) == plan.fixed_state_bytes
            assert plan.fixed_state_bytes == ROW * (sequences * (2 + PAGE_TOKENS) + 2 * plan.snapshots)
            assert plan.planned_bytes <= plan.budget_bytes


def test_snapshots_cost_a_share_of_the_keys_and_values_and_no_less_than_two_of_each_sequence(store: Path) -> None:
    graph = build_graph(store_spec(Store.open(store)))
    position_bytes = 2 * 2 * 2 * 12 * 2  # layers with attention, keys and values, heads, their width, float16
    for length in (512, 1 << 14):
        assert snapshot_count(graph, length, "f16") == length * position_bytes // 8 // (2 * ROW)
    assert snapshot_count(graph, 64, "f16", sequences=3) == 3 * LEAST_SNAPSHOTS
    assert snapshot_count(graph, 512, "f32") == 512 // PAGE_TOKENS  # they could pay for more than one of each page


def test_a_model_without_fixed_state_has_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL)
    made = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    with open_engine(made, EngineOptions(threads=1)) as engine:
        assert (engine.memory.fixed_state_bytes, engine.memory.snapshots) == (0, 0)
        engine.forward(IDS[:100] % 101)
        engine.rewind(3)
        assert engine.sequence.behind == 0
