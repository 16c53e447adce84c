"""Plans for recorded routing: hits are those of a replay in as large a share of the trace's experts."""

from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench.plan import assume_traced
from edgemoe.bench.plan_model import PlanOptions, plan_model
from edgemoe.engine.phase import DECODE
from edgemoe.errors import TraceError
from edgemoe.lab.replay import Replay
from edgemoe.lab.trace import TraceWriter, read_trace
from edgemoe.lab.trace_rows import Trace, TraceShape

SHAPE = TraceShape("made up", "mixtral", 2, 8, 2, (4096, 4096), (0, 0))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty tokens that use mostly the first experts of two layers."""
    path = tmp_path_factory.mktemp("trace") / "routing.trace"
    random = np.random.default_rng(3)
    rows = [
        (0, DECODE, step, layer, slot, expert, 0.5, False, 4096)
        for step in range(40)
        for layer in range(2)
        for slot, expert in enumerate(np.minimum(random.permutation(8)[:2], random.integers(1, 8, 2)))
    ]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    with TraceWriter(path, SHAPE) as writer:
        writer.write(made_trace(columns))
    return path


def made_trace(columns: list[np.ndarray]) -> Trace:
    from edgemoe.lab.trace_rows import COLUMNS

    return Trace(SHAPE, *(column.astype(kind) for column, kind in zip(columns, COLUMNS.values(), strict=True)))


def test_hits_are_those_of_a_replay(trace: Path) -> None:
    assumption = assume_traced(trace)
    for slots in (4, 8, 12):
        hits = assumption.hit_rates(4 * slots, 64, 16)  # a model four times as large
        assert hits.low == hits.likely == hits.high
        assert hits.likely == Replay(read_trace(trace)).run("lru", 100 * slots / 16).decode_hit_rate
    assert "routing.trace" in assumption.basis
    assert assumption.hit_rates(1, 10_000, 16).likely == 0.0  # not one slot of the trace's


def test_a_plan_takes_a_trace(store: Path, trace: Path, tmp_path: Path) -> None:
    options = PlanOptions(ram="floor", routing=str(trace), disk_bytes_per_s=1e9, memory_bytes_per_s=1e10)
    planned = plan_model(str(store), options)
    assert planned.assumption.basis == "replayed from routing.trace"
    memory = planned.forecast.memory
    assert planned.forecast.hit_rates == assume_traced(trace).hit_rates(
        memory.slots, memory.total_experts, planned.planner.work.routed
    )
    missing = PlanOptions(ram="floor", routing=str(tmp_path / "none"), disk_bytes_per_s=1e9, memory_bytes_per_s=1e10)
    with pytest.raises(TraceError, match="none"):
        plan_model(str(store), missing)
