"""Plans: the sizes that an engine then gets, budgets that hold all experts, and assumptions about routing."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench import plan_model as plan_module
from edgemoe.bench.hit_rates import SKEWED_HIT_RATES, HitRates, skewed_hit_rate, uniform_hit_rate
from edgemoe.bench.plan import (
    POSITION,
    HitRateAssumption,
    Planner,
    assume_trained,
    assume_uniform,
    dense_parts,
    forecast_budget,
)
from edgemoe.bench.plan_model import PlanOptions, find_source, plan_model
from edgemoe.bench.speed import MachineRates
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import BudgetError, SourceError, UsageError
from edgemoe.kernels.select import select_backend
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.pairs import default_pairs

GOLDEN = Path(__file__).parents[1] / "golden"
# Experts that matter beside what an interpreter varies by: 64 of 408 KiB.
WIDE = SMALL_MIXTRAL | {"num_local_experts": 32, "hidden_size": 256, "intermediate_size": 512}
RATES = MachineRates(memory_bytes_per_s=10e9, disk_bytes_per_s=1e9)
GIVEN = PlanOptions(disk_bytes_per_s=1e9, memory_bytes_per_s=10e9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "checkpoint"
    write_checkpoint(folder, WIDE)
    return folder


@pytest.fixture(scope="module")
def wide(checkpoint: Path) -> Store:
    return Store.open(convert_checkpoint(str(checkpoint), checkpoint.with_name("store"), experts="q8"))


@pytest.fixture
def planner(wide: Store) -> Iterator[Planner]:
    backend = select_backend(1)
    yield Planner(wide, store_spec(wide), backend, interpreter=50 << 20)
    backend.close()


@pytest.mark.slow
@pytest.mark.parametrize(("above_floor_bytes", "kv"), default_pairs([0, 3 << 20, 1 << 28], [None, "q8"]))
def test_floor_and_slots_are_those_of_the_engine(
    wide: Store, checkpoint: Path, above_floor_bytes: int, kv: str | None
) -> None:
    """But for the interpreter, which is taken from the engine here: it is measured anew in each process."""
    least = open_engine(wide.path, EngineOptions("floor", 1, kv=kv))
    least.close()
    with open_engine(
        wide.path, EngineOptions(least.memory.floor_bytes + (12 << 20) + above_floor_bytes, 1, kv=kv)
    ) as engine:
        found = engine.memory
        for store in (wide, forecast_store(str(checkpoint), experts="q8").store):
            options: dict[str, Any] = {"kv": kv, "interpreter": found.interpreter_bytes}
            planned = Planner(store, store_spec(store), engine.backend, **options)
            assert planned.memory(found.budget_bytes) == found
            assert planned.traffic.at(POSITION) == engine.traffic.at(POSITION)
    assert (found.slots == found.total_experts) == (above_floor_bytes == 1 << 28)


def test_the_budget_for_all_experts_is_the_least(planner: Planner) -> None:
    most = planner.all_fit_bytes()
    assert planner.memory(most).all_resident
    assert not planner.memory(most - (1 << 20)).all_resident


def test_a_model_whose_experts_fit_at_the_floor_needs_no_more(tmp_path: Path) -> None:
    backend = select_backend(1)
    store = forecast_store(str(GOLDEN / "llama")).store
    planner = Planner(store, store_spec(store), backend, interpreter=50 << 20)
    floor = planner.memory("floor").floor_bytes
    assert planner.all_fit_bytes() == floor
    assert planner.other_budgets(floor) == []
    forecast = forecast_budget(planner.memory(floor), planner.work, assume_trained(), MachineRates(10e9, math.inf))
    assert forecast.missed_bytes_per_token == 0
    assert 0 < forecast.tokens_per_s.low < forecast.tokens_per_s.high < math.inf
    backend.close()


def test_other_budgets_end_where_all_experts_fit(planner: Planner) -> None:
    floor, most = planner.memory("floor").floor_bytes, planner.all_fit_bytes()
    assert planner.other_budgets(floor) == [most]  # half as much again is more than that
    between = (floor + most) // 2
    assert planner.other_budgets(between) == [floor, most]


def test_more_memory_is_never_slower(planner: Planner) -> None:
    for assumption in (assume_uniform(), assume_trained()):
        floor = planner.memory("floor").floor_bytes
        speeds = [
            forecast_budget(planner.memory(floor + step * (1 << 20)), planner.work, assumption, RATES).tokens_per_s
            for step in range(0, 30, 6)
        ]
        for name in ("low", "likely", "high"):
            values = [getattr(speed, name) for speed in speeds]
            assert values == sorted(values)
        assert speeds[0].likely < speeds[-1].likely


def test_a_range_spans_hit_rates_and_what_may_overlap(planner: Planner) -> None:
    memory = dataclasses.replace(planner.memory("floor"), slots=32)
    wide_range = forecast_budget(
        memory, planner.work, HitRateAssumption("", lambda *sizes: HitRates(0.1, 0.5, 0.9)), RATES
    )
    ends = [
        forecast_budget(
            memory, planner.work, HitRateAssumption("", lambda *sizes, rate=rate: HitRates(rate, rate, rate)), RATES
        )
        for rate in (0.1, 0.5, 0.9)
    ]
    assert wide_range.tokens_per_s.low == ends[0].tokens_per_s.low
    assert wide_range.tokens_per_s.likely == ends[1].tokens_per_s.likely
    assert wide_range.tokens_per_s.high == ends[2].tokens_per_s.high
    assert wide_range.missed_bytes_per_token == pytest.approx(0.5 * 4 * memory.slot_bytes)


def test_hit_rates() -> None:
    assert uniform_hit_rate(3, 100, 4) == skewed_hit_rate(3, 100, 4) == 0.0  # less than a token's cycle
    assert uniform_hit_rate(20, 100, 4) == 0.2
    assert uniform_hit_rate(100, 100, 4) == skewed_hit_rate(100, 100, 100) == 1.0
    for share, rate in SKEWED_HIT_RATES[1:-1]:
        assert skewed_hit_rate(round(1000 * share), 1000, 4) == pytest.approx(rate)
    assert skewed_hit_rate(25, 100, 4) == pytest.approx((0.72 + 0.83) / 2)
    rates = [skewed_hit_rate(slots, 100, 4) for slots in range(101)]
    assert rates == sorted(rates)


def test_a_plan_of_a_store_without_text_is_for_uniform_routing(
    store_without_text: Path, store: Path, checkpoint: Path
) -> None:
    assert "uniform routing, as" in plan_model(str(store_without_text), GIVEN).assumption.basis
    assert "skew" in plan_model(str(store), GIVEN).assumption.basis
    assert "skew" in plan_model(str(checkpoint), GIVEN).assumption.basis  # nobody knows
    asked = dataclasses.replace(GIVEN, routing="uniform")
    assert "uniform routing, as" in plan_model(str(store), asked).assumption.basis


def test_rates_are_measured_where_the_experts_would_lie(
    store: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemoe.bench.rates.PASS_SECONDS", 0.005)
    monkeypatch.setattr("edgemoe.bench.rates.PROBE_BYTES", 1 << 20)
    monkeypatch.setattr("edgemoe.bench.rates.BUFFER_BYTES", 4 << 20)
    monkeypatch.chdir(tmp_path)
    memory_given = PlanOptions(memory_bytes_per_s=10e9)
    of_store = plan_model(str(store), PlanOptions(threads=1))
    assert of_store.memory_rate.bytes_per_s > 0
    assert of_store.memory_rate.basis == "measured with 1 threads"
    assert of_store.disk_rate is not None
    assert of_store.disk_rate.basis.startswith("measured on the store's disk: ")
    monkeypatch.setattr(plan_module, "PROBE_BYTES", 1 << 20)
    of_checkpoint = plan_model(str(checkpoint), memory_given)
    assert of_checkpoint.disk_rate is not None
    assert of_checkpoint.disk_rate.basis.startswith("measured on the checkpoint's disk: ")
    of_config = plan_model(str(checkpoint / "config.json"), memory_given)
    assert of_config.disk_rate is not None
    assert of_config.disk_rate.basis.startswith(f"measured on the disk of {tmp_path}: ")
    assert list(tmp_path.iterdir()) == []
    without_experts = plan_model(str(GOLDEN / "llama" / "config.json"), memory_given)
    assert without_experts.disk_rate is None


def test_a_folder_that_cannot_be_written_to_asks_for_the_rate(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path, record_bytes: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(plan_module, "measure_folder_disk", refused)
    with pytest.raises(UsageError, match=r"Permission denied.*`disk_rate`"):
        plan_model(str(checkpoint / "config.json"), PlanOptions(memory_bytes_per_s=1e9))


def test_what_cannot_be_planned_is_told_before_anything_is_measured(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("measure_memory", "measure_disk", "measure_store_disk", "measure_folder_disk"):
        monkeypatch.setattr(plan_module, name, None)
    with pytest.raises(BudgetError, match=r"needs at least .*`ram=\d+MiB` or more"):
        plan_model(str(checkpoint), PlanOptions(ram="1MiB"))
    with pytest.raises(UsageError, match="1 to 256"):
        plan_model(str(checkpoint), PlanOptions(context=1000))
    with pytest.raises(UsageError, match="is a store, whose formats are fixed"):
        plan_model(str(store), PlanOptions(experts="q8"))
    with pytest.raises(UsageError, match="kv"):
        plan_model(str(store), PlanOptions(kv="q4"))
    with pytest.raises(SourceError, match="no such folder"):
        plan_model("no-such-model", PlanOptions())


def test_sources(store: Path, checkpoint: Path) -> None:
    assert find_source(None).tokenizer is True  # the bundled model
    assert find_source(str(store)).store.manifest == Store.open(store).manifest
    made = find_source(str(checkpoint), FormatChoice(dense="f16"))
    assert made.weights == (checkpoint / "model.safetensors",)
    assert made.tokenizer is None
    assert made.store.dense_format == "f16"


def test_parts_are_all_that_is_resident(wide: Store) -> None:
    parts = dense_parts(wide.manifest)
    assert parts["attention"][0] == "q8"
    assert parts["router"][0] == parts["vectors"][0] == "f32"
    assert sum(size for _, size in parts.values()) == sum(tensor.bytes for tensor in wide.manifest.dense)


def test_json_has_all_of_it(checkpoint: Path) -> None:
    planned = plan_model(str(checkpoint), dataclasses.replace(GIVEN, ram="floor"))
    data = json.loads(json.dumps(planned.to_json(), allow_nan=False))
    assert data["memory"]["slots"] == planned.forecast.memory.slots == 4
    assert data["memory"]["floor_bytes"] == data["memory"]["budget_bytes"]
    assert data["limits"]["disk"] > 0
    assert set(data["tokens_per_s"]) == {"low", "likely", "high"}
    assert data["other_budgets"][-1]["memory"]["all_resident"]
    assert data["other_budgets"][-1]["limits"]["disk"] is None
    assert "tokens_per_s" in data["estimates"]
