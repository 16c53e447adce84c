"""Forecasts for a memory budget: how memory is shared out, which share of experts it holds, and the resulting speed.

Sizes and slots are the memory plan's own; hit rates are assumptions, or replayed from a recorded trace; tokens per
second are the speed model's estimates on rates that were measured or given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemoe.bench.hit_rates import HitRates, skewed_hit_rate, uniform_hit_rate
from edgemoe.bench.speed import (
    MachineRates,
    SpeedEstimate,
    SpeedLimits,
    TokenWork,
    predict_speed,
    speed_limits,
    work_of_model,
)
from edgemoe.conversion.formats import class_of
from edgemoe.engine.device_plan import DevicePlan, plan_device
from edgemoe.engine.memory import MemoryPlan, plan_memory
from edgemoe.engine.opening import model_sizes, refuse_head
from edgemoe.engine.part_sizes import Beside
from edgemoe.engine.traffic import token_traffic
from edgemoe.experts.policy import DEFAULT_POLICY
from edgemoe.kernels.backend import Backend
from edgemoe.model.build import build_graph
from edgemoe.model.description import build_options, has_planes
from edgemoe.model.spec import ModelSpec
from edgemoe.store.manifest import Manifest
from edgemoe.store.reader import Store

POSITION = 64
"""Tokens in the conversation when a token's bytes are counted; `edgemoe bench` decodes near there by default."""
BASE_PAYS_AT = 0.4
"""The share of experts whose residuals have slots from which on it pays to compute missed ones from their bases.

Below it plain formats with all their bytes in the cache have less error at the same speed: on the recorded routing of
Qwen3-30B-A3B and Gemma-4, bases of 0.75 to 2 bits (docs/performance.md).
"""
STEP_BYTES = 1 << 20
"""The search for budgets uses steps of this size."""

HitRatesOf = Callable[[int, int, int], HitRates]
"""A function from slots, experts and a token's cycle to hit rates (see `hit_rates.py`)."""


@dataclass(frozen=True)
class HitRateAssumption:
    """Assumed hit rates, and where the assumption comes from."""

    basis: str
    hit_rates: HitRatesOf


def assume_uniform() -> HitRateAssumption:
    """Assumption for random weights and random tokens."""

    def hit_rates(slots: int, total_experts: int, cycle: int) -> HitRates:
        uniform = uniform_hit_rate(slots, total_experts, cycle)
        return HitRates(uniform, uniform, uniform)

    return HitRateAssumption("uniform routing, as random weights have", hit_rates)


def assume_trained() -> HitRateAssumption:
    """Assumption for trained models: skewed like recorded traces; uniform as the lower bound."""

    def hit_rates(slots: int, total_experts: int, cycle: int) -> HitRates:
        uniform = uniform_hit_rate(slots, total_experts, cycle)
        skewed = max(uniform, skewed_hit_rate(slots, total_experts, cycle))
        return HitRates(uniform, skewed, skewed)

    return HitRateAssumption("from uniform routing (low) to the skew of recorded traces (likely)", hit_rates)


def assume_traced(path: Path) -> HitRateAssumption:
    """Hit rates of a recorded trace, replayed in a cache with the same share of its experts. Raises TraceError."""
    from edgemoe.lab.replay import Replay  # needs Numba, which only this function uses
    from edgemoe.lab.trace import read_trace

    replay = Replay(read_trace(path))

    def hit_rates(slots: int, total_experts: int, cycle: int) -> HitRates:
        share = slots / total_experts
        if share * replay.total_experts < 0.5:
            return HitRates(0.0, 0.0, 0.0)  # not even one slot of the trace's model
        replayed = replay.run(DEFAULT_POLICY, 100 * share)
        rate = replayed.hit_rate if replayed.decode_hit_rate is None else replayed.decode_hit_rate
        return HitRates(rate, rate, rate)

    return HitRateAssumption(f"replayed from {path.name}", hit_rates)


@dataclass(frozen=True)
class BudgetForecast:
    """One budget, and its expected hit rates and speed."""

    memory: MemoryPlan
    hit_rates: HitRates
    missed_bytes_per_token: float
    """Bytes missed at the likely hit rate."""
    limits: SpeedLimits
    """Limits at the likely hit rate."""
    tokens_per_s: SpeedEstimate
    """From the lowest estimate at the lowest hit rate to the highest at the highest."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a limit that does not bind is null."""
        data = asdict(self)
        data["memory"] |= {"all_resident": self.memory.all_resident, "planned_bytes": self.memory.planned_bytes}
        if not self.missed_bytes_per_token:
            data["limits"]["disk"] = None
        return data


class Planner:
    """Shares out budgets for one model. Uses only the manifest of its store."""

    def __init__(
        self,
        store: Store,
        spec: ModelSpec,
        backend: Backend,
        *,
        context: int | None = None,
        kv: str | None = None,
        interpreter: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """All are as in `open_engine` and `plan_memory`. Raises UsageError for `kv`, and for an MTP head."""
        refuse_head(store, spec)
        self.sizes = model_sizes(store, spec, kv, beside=beside)
        self.has_planes = has_planes(store)
        routed = spec.routed_of_tokens.values()
        self.whole_layers = sum(one.top_k == one.num_experts > 1 for one in routed)
        """How many layers of routed experts a token reads all experts of."""
        self._graph = build_graph(spec, build_options(store))
        self.traffic = token_traffic(self._graph, store.manifest, self.sizes.kv_format)
        self.work: TokenWork = work_of_model(spec, self.traffic, store.record_bytes, POSITION)
        self._backend = backend
        self._context = context
        self._interpreter = interpreter

    def memory(self, ram: str | int | None) -> MemoryPlan:
        """The memory plan for a budget. Raises as `plan_memory`: BudgetError below the floor."""
        return plan_memory(self._graph, self.sizes, self._backend, ram, self._context, self._interpreter)

    def device(self, memory: MemoryPlan, vram: str | int | None) -> DevicePlan | None:
        """The share of the backend's device, if it has one, of a model with such a memory plan."""
        return plan_device(self._graph, self.sizes.formats, self._backend, memory, vram)

    def base_pays_bytes(self, memory: MemoryPlan) -> int | None:
        """The budget from which on computing missed experts from their bases pays; None for experts without bases."""
        if not self.has_planes:
            return None
        slots = math.ceil(BASE_PAYS_AT * memory.total_experts)
        return memory.planned_bytes + (slots - memory.slots) * memory.slot_bytes

    def all_fit_bytes(self) -> int:
        """The least budget that has room for all experts, rounded up to a MiB: a smaller one may lack a slot."""
        floor = self.memory("floor").floor_bytes
        if self._all_fit(floor):
            return floor
        low, high = 0, 1  # steps above the floor: `low` is too few, `high` may be enough
        while not self._all_fit(floor + high * STEP_BYTES):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._all_fit(floor + middle * STEP_BYTES) else (middle, high)
        return floor + high * STEP_BYTES

    def _all_fit(self, budget_bytes: int) -> bool:
        return self.memory(budget_bytes).all_resident

    def other_budgets(self, budget_bytes: int) -> list[int]:
        """Budgets to compare with: the floor, 1.5 times and twice this budget, and room for all experts; ascending."""
        floor, most = self.memory("floor").floor_bytes, self.all_fit_bytes()
        others = {floor, budget_bytes * 3 // 2, budget_bytes * 2, most} - {budget_bytes}
        return sorted(other for other in others if other <= most)


def forecast_budget(
    memory: MemoryPlan, work: TokenWork, assumption: HitRateAssumption, rates: MachineRates
) -> BudgetForecast:
    """Hit rates and speed to expect of a memory plan."""
    hits, speed = expected_speed(memory.slots, memory.total_experts, work, assumption, rates)
    missed = work.missed_bytes(hits.likely)
    return BudgetForecast(memory, hits, missed, speed_limits(work, hits.likely, rates), speed)


def expected_speed(
    slots: int, total_experts: int, work: TokenWork, assumption: HitRateAssumption, rates: MachineRates
) -> tuple[HitRates, SpeedEstimate]:
    """The hit rates expected with a number of slots, and the resulting tokens per second."""
    resident = slots >= total_experts
    hits = HitRates(1.0, 1.0, 1.0) if resident else assumption.hit_rates(slots, total_experts, work.routed)
    low, likely, high = (predict_speed(work, rate, rates, resident) for rate in (hits.low, hits.likely, hits.high))
    return hits, SpeedEstimate(low.low, likely.likely, high.high)


def dense_parts(manifest: Manifest) -> dict[str, tuple[str, int]]:
    """Parts of the model that are always in memory: for each class its formats and bytes."""
    formats: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for tensor in manifest.dense:
        shape = (tensor.rows,) if tensor.format is None else (tensor.rows, tensor.columns)
        kind = class_of(tensor.name, shape)
        formats.setdefault(kind, set()).add(tensor.format.name if tensor.format else "f32")
        sizes[kind] = sizes.get(kind, 0) + tensor.bytes
    return {kind: (", ".join(sorted(formats[kind])), size) for kind, size in sorted(sizes.items())}
