"""Benchmarks whose routing comes from a trace: what is asked for, what hits, and what is said about it."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench.benchmark import Benchmark
from edgemoe.bench.forced import Accesses, accesses, routing_report
from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
from edgemoe.bench.run import Run
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import TraceError, UsageError
from edgemoe.kernels.select import describe_backend
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.recorder import recording
from edgemoe.lab.replay import simulate
from edgemoe.lab.trace import Trace, TraceShape, read_trace, write_trace
from tests.lab.traces import make_shape, random_trace
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.traces import write_csv

LAYERS, EXPERTS = 3, 16
CONFIG = {**SMALL_MIXTRAL, "num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 4}
IDS = np.random.default_rng(1).integers(0, 101, 64).tolist()


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 experts, 4 used for each token in a layer."""
    folder = tmp_path_factory.mktemp("forced")
    write_checkpoint(folder / "tiny", CONFIG, side_files={"generation_config.json": b"{}"})
    return convert_checkpoint(str(folder / "tiny"), folder / "wide-moe", experts="q4", dense="q8")


def routing_trace(used: int = 3, prompt_tokens: int = 9, decode_tokens: int = 50) -> Trace:
    """Routing that prefers some experts; of another number of experts used than the model's."""
    trace = random_trace(make_shape(LAYERS, EXPERTS, used), prompt_tokens, decode_tokens)
    return dataclasses.replace(trace, slot=np.tile(np.arange(used, dtype=np.int32), len(trace) // used))


def replay(asked: Accesses, slots: int, keys: int) -> np.ndarray:
    """Which of some accesses hit."""
    return simulate("lru", slots, keys, asked.keys, asked.begins, at_once=True, scans=asked.scans).hits


@pytest.mark.parametrize("slots", [9, 20, 40])
def test_accesses_are_those_of_an_engine_and_a_replay_of_them_hits_as_often(
    wide_store: Path, tmp_path: Path, slots: int
) -> None:
    forced = ForcedRouting(routing_trace())
    runs = []
    with engine_with_slots(wide_store, slots, routing=forced) as engine:
        object.__setattr__(engine.memory, "chunk_tokens", 8)
        with recording(engine, tmp_path / "t"):
            for prompt, continuation in ((5, 30), (21, 0), (1, 40)):
                runs.append(Run.next(forced, prompt, continuation))
                engine.rewind(0)
                engine.turn.begin()
                engine.forward(IDS[:prompt])
                engine.turn.begin_decoding()
                for token in IDS[:continuation]:
                    engine.forward([token])
        hits, misses = engine.statistics.expert_hits, engine.statistics.expert_misses
    done = read_trace(tmp_path / "t")
    asked = accesses(forced, runs, 8, slots)
    assert len(asked.keys) == hits + misses
    assert asked.scans.any() == (slots < 40)
    assert not asked.scans[asked.run >= 0].any()
    decoded = done.phase == DECODE
    np.testing.assert_array_equal(asked.keys[asked.run >= 0], done.keys[decoded])
    np.testing.assert_array_equal(asked.run[asked.run >= 0], done.turn[decoded])
    assert set(asked.keys[asked.run < 0].tolist()) == set(done.keys[done.phase == PROMPT].tolist())
    assert asked.begins.sum() == LAYERS * (1 + 30 + 3 + 1 + 40)
    replayed = replay(asked, slots, forced.shape.keys)
    assert replayed[asked.run >= 0].mean() == pytest.approx(done.residency[decoded].mean(), abs=0.005)
    assert 0.05 < replayed.mean() < 0.95
    assert replayed[asked.run >= 0].tolist() == done.residency[decoded].tolist()


def test_a_report_of_forced_routing() -> None:
    forced = ForcedRouting(routing_trace(), "some.csv")
    runs = [Run(0, 5, 0, 30), Run(5, 5, 30, 30)]
    memory = {"slots": 20, "total_experts": 48, "chunk_tokens": 8}
    done = [asdict(run) for run in runs]
    counted = {"expert_hits": 60, "expert_misses": 20, "useful_prefetches": 25, "late_prefetches": 5}
    answers = [{"routing": run, **counted} for run in done]
    report = routing_report(forced, 4, memory, answers[1:], done)
    assert report.recall is None
    assert report.hit_rate == 0.5  # 20 of the 60 had been read ahead in time
    asked = accesses(forced, runs, 8, 20)
    hits = replay(asked, 20, 48)
    assert report.replay_hit_rate == hits[asked.run == 1].mean() != hits.mean()
    assert (report.top_k, report.model_top_k) == (3, 4)
    assert (report.prompt_steps, report.decode_steps) == (9, 50)
    assert (report.steps, report.distinct_steps) == (30, 30)
    assert routing_report(forced, 4, memory, answers, done).distinct_steps == 50
    assert routing_report(forced, 4, {**memory, "slots": 48}, answers, done).replay_hit_rate is None


def test_a_whole_benchmark_on_the_routing_of_a_trace(wide_store: Path, tmp_path: Path, start: Start) -> None:
    write_csv(tmp_path / "r.csv", routing_trace())
    benchmark = Benchmark(
        wide_store, Settings(4, 20, 9, 2), describe_backend(1), EngineOptions("floor"),
        routing=tmp_path / "r.csv", trace=tmp_path / "done", start=start,
    )  # fmt: skip
    report = benchmark.run()
    routing, experts = report.routing, report.experts
    assert routing is not None
    assert experts is not None
    assert (routing.top_k, routing.model_top_k, experts.per_token) == (3, 4, 3)
    assert routing.steps == 40
    assert routing.hit_rate == experts.hit_rate
    assert routing.replay_hit_rate is not None
    assert routing.hit_rate is not None
    assert abs(routing.hit_rate - routing.replay_hit_rate) <= 0.005
    assert routing.slots == report.edgemoe.about["memory"]["slots"]
    done = read_trace(tmp_path / "done")
    assert report.trace is not None
    assert report.trace["failure"] is None
    # 1 + 2 rounds, with the ledger on and off: a prompt with its continuation, and a prompt
    assert done.tokens == report.trace["tokens"] == 3 * 2 * (4 + 20 + 9)
    assert done.shape.experts_used == 3
    assert report.trace["turns"] == 12


def test_a_benchmark_that_reads_ahead_on_made_up_guesses(wide_store: Path, tmp_path: Path, start: Start) -> None:
    write_trace(tmp_path / "r", routing_trace())
    benchmark = Benchmark(
        wide_store, Settings(4, 40, 4, 1), describe_backend(1), EngineOptions("floor", prefetch="on"),
        routing=tmp_path / "r", recall=0.8, start=start,
    )  # fmt: skip
    report = benchmark.run()
    assert report.routing is not None
    assert report.routing.recall == 0.8
    assert report.guesses is not None
    assert report.guesses.recall == pytest.approx(0.8, abs=0.12)  # 40 tokens x 2 layers x 3 experts
    assert report.experts is not None
    assert report.routing.hit_rate is not None
    assert report.experts.hit_rate is not None
    assert report.routing.hit_rate <= report.experts.hit_rate


def test_routing_that_cannot_be_used_is_told_before_anything_is_measured(wide_store: Path, tmp_path: Path) -> None:
    shape = TraceShape("other", "mixtral", 2, EXPERTS, 2, (1, 1), (1, 1))
    write_trace(tmp_path / "other", dataclasses.replace(routing_trace(), shape=shape).select(slice(0, 0)))
    write_trace(tmp_path / "layers", random_trace(make_shape(2, EXPERTS, 1), 2, 3))
    (tmp_path / "text").write_text("hello")
    for name, error, says in (
        ("other", UsageError, "no rows"),
        ("layers", UsageError, "expected 3 layers, 3 of them with 16 experts, found 2 layers"),
        ("text", TraceError, "line 1"),
    ):
        with pytest.raises(error, match=says) as told:
            Benchmark(wide_store, Settings(2, 2, 2, 1), describe_backend(1), routing=tmp_path / name)
        assert name in told.value.message
