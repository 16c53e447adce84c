"""Answers have the same bits whichever layers a device runs, and whether or not it has room for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.device_plan import DevicePlan, plan_device
from edgemoe.engine.engine import Engine
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.opening import graph_of, model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.device import opening
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.chunk_trial import ChunkTrial
from edgemoe.kernels.device.cuda import CudaRuntime
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.opening import AUTO_SHARE
from edgemoe.kernels.device.runtime import Runtime
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import find_model
from edgemoe.store.reader import Store
from tests.architectures.test_device import IDS, answers
from tests.golden.covering import COVERING, GOLDEN
from tests.kernels.test_streamed_experts import own_cuda, own_pocl
from tests.support.failing_device import FailingDevice
from tests.support.fake_cuda import FakeCuda
from tests.support.reordering_device import ReorderingDevice

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
@pytest.mark.usefixtures("_own_memory")
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
    wanted, plans, used, ran = expected(store, name), [], [], []
    for share in (None, 1.05, 0.8, 0.6, 0.5, 1e-9, "floor"):
        vram = max(1, int(share * used[0])) if isinstance(share, float) else share
        with open_engine(store, EngineOptions(threads=1, context_length=32, device="host", vram=vram)) as engine:
            device = device_of(engine)
            assert [engine.forward(piece).tobytes() for piece in pieces(name)] == wanted
            assert device.failure is None
            assert device.memory.used_bytes <= (device.memory.most_bytes or 0) <= _OwnMemory.free
            used.append(device.memory.used_bytes)
            plan = planned(store, engine)
            assert plan.budget_bytes == device.memory.most_bytes
            plans.append(plan)
            ran.append(sum(segment.operations for segment in device.segments if segment.on_device))
            assert plan.operations <= ran[-1]
    lasting = plans[0].weight_bytes + plans[0].state_bytes
    assert lasting < used[0] <= lasting + plans[0].activation_bytes
    assert plans[0].operations == ran[0] == ran[1] > ran[2] > ran[3] > ran[4] > ran[5] == used[5] == 0
    assert plans[0].without_room == 0 < plans[3].operations
    assert plans[0].operations == plans[-1].operations + plans[-1].without_room > ran[3]
    assert used[-1] <= (plans[-1].budget_bytes or 0) < used[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vram"), [("qwen2_moe", None), ("qwen2_moe", 110_000), ("bailing_hybrid", None)])
def test_nvidias_devices_have_copies_of_state(
    name: str, vram: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages, fixed state and slots of experts, within the budget."""
    driver = FakeCuda(host=HostRuntime())
    monkeypatch.setattr(opening, "open_runtime", lambda _: CudaRuntime(driver=driver))
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    wanted = expected(store, name)
    with open_engine(store, EngineOptions(threads=1, context_length=32, device="cuda", vram=vram)) as engine:
        device = device_of(engine)
        for _ in range(2):
            assert [engine.forward(piece).tobytes() for piece in pieces(name)] == wanted
            engine.rewind(0)
        assert device.failure is None
        assert any(segment.on_device for segment in device.segments)
        assert (planned(store, engine).without_room == 0) == (vram is None)
        assert driver.device_bytes == device.memory.used_bytes
        assert driver.most_device_bytes <= (vram or driver.memory_bytes)


class _Changing(ChunkTrial):
    """A trial that decides by chance, chunk by chunk."""

    def __init__(self) -> None:
        super().__init__("on")
        self._random = np.random.default_rng(5)

    def open(self, rows: int) -> bool:
        return bool(self._random.random() < 0.6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "slots"), [(ReorderingDevice, 1), (ReorderingDevice, 9), (own_pocl, 2), (own_cuda, 9)]
)
def test_prompts_whose_experts_pass_through_a_device_have_the_same_bits(
    make: Callable[[], Runtime], slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of any length, ways back, forks and eight sequences, in a budget with room for so many experts twice."""
    name = "gpt_oss"
    monkeypatch.setattr(opening, "open_runtime", lambda _: make())
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    options = EngineOptions(threads=1, context_length=256, sequences=9, kv="f16")
    with open_engine(store, options) as engine:
        ids, slot_bytes = IDS % engine.spec.vocab_size, engine.memory.slot_bytes
        wanted = [one.tobytes() for one in answers(engine, ids)]
    with open_engine(store, replace(options, device="cuda")) as engine:
        room = device_of(engine).memory.used_bytes - slot_bytes  # one expert less than all
    with open_engine(store, replace(options, device="cuda", vram=room)) as engine:
        device = device_of(engine)
        assert device.memory.left_bytes > 2 * slot_bytes
        device.memory.most_bytes = most = device.memory.used_bytes + 2 * slots * slot_bytes
        device.streaming.trial = _Changing()
        assert [one.tobytes() for one in answers(engine, ids)] == wanted
        assert device.failure is None
        assert device.streaming.streamed > 0
        assert device.memory.used_bytes <= most


def test_a_plan_has_what_the_budget_has_room_for() -> None:
    store, plans = Store.open(find_model(None)), []
    graph = graph_of(store_spec(store), store, EngineOptions().lossy)
    sizes, backend = model_sizes(store, graph.spec), DeviceBackend(FailingDevice(1 << 30), 1)
    experts, arena = sizes.total_experts, sizes.total_experts * sizes.slot_bytes
    memory = MemoryPlan(0, 0, 0, 0, 0, 0, sizes.slot_bytes, experts, experts, 512, 8, kv_format="f16")
    for most in (None, arena // 2, 1000):
        backend.memory.most_bytes = most
        plan = plan_device(graph, sizes.formats, backend, memory)
        assert plan is not None
        assert plan.budget_bytes == most
        assert most is None or plan.weight_bytes + plan.state_bytes + plan.activation_bytes <= most
        plans.append(plan)
    backend.memory.most_bytes = int(AUTO_SHARE * backend.runtime.free_bytes())
    floor = plan_device(graph, sizes.formats, backend, memory, "floor")
    assert floor is not None
    assert floor.budget_bytes == floor.weight_bytes + floor.state_bytes + floor.activation_bytes
    assert floor.without_room == len(graph.spec.layers)  # their routed experts
    backend.memory.most_bytes += 4 * sizes.slot_bytes
    passing = plan_device(graph, sizes.formats, backend, memory)
    assert passing is not None
    assert passing.staging_bytes == 4 * sizes.slot_bytes
    assert passing.without_room == floor.without_room
    backend.memory.most_bytes = 1 << 20
    backend.runtime.free_bytes = lambda: 1 << 20  # type: ignore[method-assign]
    told = "`vram=floor`: all but the routed experts takes .* of the device failing, which has 1.0 MiB free"
    with pytest.raises(UsageError, match=told):
        plan_device(graph, sizes.formats, backend, memory, "floor")
    backend.close()
    assert plans[1].state_bytes < arena < plans[0].state_bytes < 2 * arena  # one arena for all layers, whole or not
    assert plans[0].operations > plans[1].operations > 0
    assert plans[0].without_room == plans[2].operations == plans[2].weight_bytes == 0
    assert plans[0].staging_bytes == plans[2].staging_bytes == floor.staging_bytes == 0
    for one, other in itertools.pairwise(plans):
        assert one.operations + one.without_room == other.operations + other.without_room < one.total_operations
