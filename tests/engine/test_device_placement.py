"""Answers have the same bits whichever layers a device runs, and whether or not it has room for them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.device_plan import DevicePlan, plan_device
from edgemoe.engine.engine import Engine
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.opening import graph_of, model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.device import opening
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import find_model
from edgemoe.store.reader import Store
from tests.golden.covering import COVERING, GOLDEN
from tests.support.failing_device import FailingDevice

TOKENS = 24


class _OwnMemory(HostRuntime):
    """The host as a device with memory of its own, all of which counts."""

    unified = False
    free = 1 << 30

    def adopt(self, host: object) -> None:  # type: ignore[override]
        return None

    def free_bytes(self) -> int:
        return self.free


def pieces(name: str) -> list[np.ndarray]:
    """A prompt in two runs, then token by token."""
    return np.split(np.load(GOLDEN / name / "golden.npz")["ids"][:TOKENS], [9, 17, *range(18, TOKENS)])


def expected(store: Path, name: str) -> list[bytes]:
    with open_engine(store, EngineOptions(threads=1)) as engine:
        return [engine.forward(piece).tobytes() for piece in pieces(name)]


def device_of(engine: Engine) -> DeviceBackend:
    assert isinstance(engine.backend, DeviceBackend)
    return engine.backend


def planned(store: Path, engine: Engine) -> DevicePlan:
    """The plan that `edgemoe plan` shows for this engine."""
    opened = Store.open(store)
    graph = graph_of(store_spec(opened), opened, engine.lossy)
    plan = plan_device(graph, model_sizes(opened, graph.spec).formats, engine.backend, engine.memory)
    assert plan is not None
    return plan


@pytest.fixture
def _own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "HostRuntime", _OwnMemory)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERING[1:9])
def test_placements_that_change_between_steps_leave_the_same_bits(name: str, tmp_path: Path) -> None:
    """About 130 placements of each model, 1,000 in all: what a device may run, it runs or does not, step by step."""
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    wanted, random = expected(store, name), np.random.default_rng(7)
    with open_engine(store, EngineOptions(threads=1, device="host")) as engine:
        device = device_of(engine)
        assert device.segments
        for _ in range(-(-130 // len(wanted))):
            engine.rewind(0)
            for piece, logits in zip(pieces(name), wanted, strict=True):
                for segment, on in zip(device.segments, random.random(len(device.segments)) < 0.5, strict=True):
                    segment.on = bool(on)
                assert engine.forward(piece).tobytes() == logits
        assert device.failure is None


@pytest.mark.slow
@pytest.mark.usefixtures("_own_memory")
def test_a_budget_is_kept_and_shows_in_no_bit(tmp_path: Path) -> None:
    name = "qwen2_moe"
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    wanted, used = expected(store, name), []
    for vram in (1, 30_000, 120_000, 400_000, None):
        with open_engine(store, EngineOptions(threads=1, device="host", vram=vram)) as engine:
            device = device_of(engine)
            assert [engine.forward(piece).tobytes() for piece in pieces(name)] == wanted
            assert device.failure is None
            assert device.memory.used_bytes <= (vram or _OwnMemory.free)
            used.append(device.memory.used_bytes)
            plan = planned(store, engine)
            assert plan.budget_bytes == device.memory.most_bytes
            assert plan.operations <= sum(segment.operations for segment in device.segments if segment.on_device)
            if plan.without_room == 0:
                assert plan.weight_bytes < used[-1] <= plan.weight_bytes + plan.activation_bytes
    assert used == sorted(used)
    assert used[0] == 0 < used[-2]


def test_a_plan_has_what_the_budget_has_room_for() -> None:
    store, plans = Store.open(find_model(None)), []
    graph = graph_of(store_spec(store), store, EngineOptions().lossy)
    sizes, backend = model_sizes(store, graph.spec), DeviceBackend(FailingDevice(1 << 30), 1)
    memory = MemoryPlan(0, 0, 0, 0, 0, 0, 0, 0, 0, context_length=512, chunk_tokens=8, kv_format="f16")
    for most in (None, 40 << 20, 1000):
        backend.memory.most_bytes = most
        plan = plan_device(graph, sizes.formats, backend, memory)
        assert plan is not None
        assert plan.budget_bytes == most
        assert most is None or plan.weight_bytes + plan.activation_bytes <= most
        plans.append(plan)
    backend.close()
    assert plans[0].operations > plans[1].operations > 0
    assert plans[0].without_room == plans[2].operations == plans[2].weight_bytes == 0
    for one, other in itertools.pairwise(plans):
        assert one.operations + one.without_room == other.operations + other.without_room < one.total_operations
