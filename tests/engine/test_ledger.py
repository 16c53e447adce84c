"""The ledger: each part has just the time that it took, and all parts together are the wall time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edgemoe
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.expert_uses import ExpertUses
from edgemoe.engine.ledger import TimeLedger
from edgemoe.engine.memory import plan_memory
from edgemoe.engine.opening import model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.build import build_graph
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import find_model
from edgemoe.store.reader import Store
from tests.engine.test_engine import CONFIG, EXPERTS
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_clock import COST_NS, DISK_NS, WAITED_NS, Clock, ClockedBackend
from tests.support.pairs import some

LAYERS = CONFIG["num_hidden_layers"]
NORM, LINEAR = COST_NS[op.RmsNorm], COST_NS[op.Linear]
GLUE_NS = 1_000
"""Time on the clock that the engine's own work between programs takes, once for each token."""
LEAST_SHARE, MOST_SHARE = 0.97, 1.0001
"""The parts of a ledger must add up to a share of the wall time between these two."""
ROUNDS = 6
"""A busy machine may stop a thread between two readings of the clock, but not in every round; a forgotten part is
missing in all of them."""

OpenClocked = Callable[[int], "tuple[Engine, Clock]"]


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


@pytest.fixture
def open_clocked(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenClocked]:
    """Opens an engine with so many slots, all of whose time is that of the clock."""
    clock, opened = Clock(), []

    def count(uses: ExpertUses, tokens: int) -> None:
        clock.now_ns += GLUE_NS

    def open_with(slots: int) -> tuple[Engine, Clock]:
        store = Store.open(store_path)
        spec = store_spec(store)
        backend = ClockedBackend(clock)
        graph = build_graph(spec)
        plan = dataclasses.replace(plan_memory(graph, model_sizes(store, spec), backend, "auto"), slots=slots)
        opened.append(Engine(store, graph, plan, backend, EngineOptions(prefetch="on")))
        for routing in opened[-1].routing:  # what no operation computes here
            assert routing is not None
            routing.experts[:] = routing.guess[:] = np.arange(routing.experts.shape[1])
        return opened[-1], clock

    monkeypatch.setattr("edgemoe.engine.engine.time", clock)
    monkeypatch.setattr(ExpertUses, "add", count)
    yield open_with
    for engine in opened:
        engine.close()


def expected_ns(tokens: int, streamed: bool) -> dict[str, int]:
    """By hand: what the operations of each part cost for so many tokens, one by one, and how many they are."""
    attention = [NORM, LINEAR, 2 * COST_NS[op.Rope], COST_NS[so.StoreKv], COST_NS[so.Attention], LINEAR]
    router = [NORM, LINEAR, COST_NS[ex.Route]]
    costs = {
        "embedding": (COST_NS[op.Embed], 1),
        "attention": (LAYERS * sum(attention), LAYERS * 7),
        "router": (LAYERS * sum(router), LAYERS * 3),
        "experts": (LAYERS * COST_NS[ex.Experts], LAYERS),
        "shared_expert": (LAYERS * COST_NS[op.GatedFfn], LAYERS),
        "combine": (LAYERS * COST_NS[ex.Combine], LAYERS),
        "head": (NORM + LINEAR, 2),
    }
    if streamed:
        costs["experts"] = (LAYERS * (COST_NS[ex.Fetch] + COST_NS[ex.Experts]), LAYERS * 2)
        costs["prefetch"] = ((LAYERS - 1) * (sum(router) + COST_NS[ex.Prefetch]), (LAYERS - 1) * 4)
    operations = sum(count for _, count in costs.values())
    parts = {part: tokens * (cost - (WAITED_NS + DISK_NS) * count) for part, (cost, count) in costs.items()}
    waited = {"synchronisation": tokens * WAITED_NS * operations, "disk_wait": tokens * DISK_NS * operations}
    return {**parts, **waited, "python": tokens * GLUE_NS}


@pytest.mark.parametrize("slots", [EXPERTS, 3])
def test_each_part_has_the_time_of_its_operations(open_clocked: OpenClocked, slots: int) -> None:
    engine, clock = open_clocked(slots)
    engine.forward([1])
    engine.turn.begin_decoding()
    assert engine.ledger is None
    engine.keep_ledger()
    began_ns = clock.now_ns
    for token in (2, 3, 4):
        engine.forward([token])
        clock.now_ns += 1_000_000  # not the engine's
    ledger = engine.ledger
    assert ledger is not None
    assert ledger.ns == expected_ns(3, streamed=slots < EXPERTS)
    assert ledger.total_ns == clock.now_ns - began_ns - 3_000_000


def test_a_ledger_begins_anew_and_ends(open_clocked: OpenClocked) -> None:
    engine, _ = open_clocked(EXPERTS)
    engine.keep_ledger()
    engine.forward([1, 2])
    before = engine.ledger
    engine.forward([3])
    after = engine.ledger
    assert before is not None
    assert after is not None
    assert (after - before).ns == expected_ns(1, False)
    assert (after - before + before).ns == after.ns
    engine.keep_ledger()
    assert engine.ledger is not None
    assert engine.ledger.total_ns == 0
    engine.keep_ledger(False)
    engine.forward([4])
    assert engine.ledger is None


def test_a_forward_that_fails_is_time_too(open_clocked: OpenClocked, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, clock = open_clocked(EXPERTS)
    engine.keep_ledger()
    began_ns = clock.now_ns

    def fail(*arguments: object) -> None:
        clock.now_ns += 77
        raise UsageError("no")

    with monkeypatch.context() as patch:
        patch.setattr(ExpertUses, "add", fail)
        with pytest.raises(UsageError):
            engine.forward([1])
    assert engine.ledger is not None
    assert engine.ledger.ns["python"] == 77
    assert engine.ledger.total_ns == clock.now_ns - began_ns
    engine.close()
    assert engine.ledger is None


def test_shares_and_milliseconds() -> None:
    ledger = TimeLedger({"python": 1_000_000, "experts": 3_000_000})
    assert ledger.shares() == {"python": 0.25, "experts": 0.75}
    assert ledger.to_json() == {"python": 1.0, "experts": 3.0}
    assert TimeLedger({"text": 0}).shares() == {"text": 0.0}


@pytest.mark.parametrize("ram", some(["floor", "auto"]))
def test_the_parts_of_the_bundled_model_add_up_to_the_wall_time(ram: str) -> None:
    random = np.random.default_rng(0)
    with open_engine(find_model(None), EngineOptions(ram, prefetch="on")) as engine:
        engine.forward(random.integers(0, engine.spec.vocab_size, 8))
        engine.turn.begin_decoding()
        shares = []
        for _ in range(ROUNDS):
            engine.keep_ledger()
            began_ns = time.perf_counter_ns()
            for token in random.integers(0, engine.spec.vocab_size, 8):
                engine.forward([int(token)])
            wall_ns = time.perf_counter_ns() - began_ns
            ledger = engine.ledger
            assert ledger is not None
            shares.append(ledger.total_ns / wall_ns)
            if LEAST_SHARE <= shares[-1] <= MOST_SHARE:
                break
        resident = engine.memory.all_resident
    assert LEAST_SHARE <= shares[-1] <= MOST_SHARE, shares
    parts = {"embedding", "attention", "router", "experts", "shared_expert", "combine", "head", "python"}
    if not resident:
        parts |= {"disk_wait", "prefetch"}
    assert {part for part, ns in ledger.ns.items() if ns > 0} >= parts
    assert min(ledger.ns.values()) >= 0


def test_sampling_and_text_belong_to_an_answer() -> None:
    with edgemoe.load() as model:
        model.engine.keep_ledger()
        prompt = model.encode_chat("Count to one hundred.")
        shares = []
        for _ in range(ROUNDS):
            generation = model.stream(prompt, 48)
            began_ns = time.perf_counter_ns()
            for _ in generation:
                pass
            wall_ns = time.perf_counter_ns() - began_ns
            assert generation.ledger is not None
            shares.append(generation.ledger.total_ns / wall_ns)
            if LEAST_SHARE <= shares[-1] <= MOST_SHARE:
                break
    assert LEAST_SHARE <= shares[-1] <= MOST_SHARE, shares
    assert generation.ledger.ns["sampling"] > 0
    assert generation.ledger.ns["text"] > 0
