"""Answers have the same bits whichever layers a device runs, and whether or not it has room for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.device_plan import DevicePlan, plan_device
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import LossySettings
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.opening import graph_of, model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.experts import prefetch
from edgemoe.kernels import operations as op
from edgemoe.kernels.device import opening
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.chunk_trial import ChunkTrial
from edgemoe.kernels.device.cuda import CudaRuntime
from edgemoe.kernels.device.device_slots import DeviceSlots
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.opening import AUTO_SHARE
from edgemoe.kernels.device.runtime import Place, Runtime
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import find_model
from edgemoe.store.reader import Store
from tests.architectures.test_device import IDS, answers
from tests.golden.covering import COVERING, GOLDEN
from tests.kernels.test_streamed_experts import own_cuda, own_pocl
from tests.support.engines import engine_with_slots
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
        assert device.memory.left_bytes > 4 * slot_bytes
        device.memory.most_bytes = most = device.memory.used_bytes + 4 * slots * slot_bytes
        device.streaming.trial = _Changing()
        assert [one.tobytes() for one in answers(engine, ids)] == wanted
        assert device.failure is None
        assert device.streaming.streamed > 0
        assert device.memory.used_bytes <= most


class _LateCopies(_OwnMemory):
    """Copies beside what is computed end when chance has it, and at times there is no room for more."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(11)
        self.under_way = 0

    def upload_beside(self, to: Place, host: op.Bytes) -> object:
        if self.random.random() < 0.2:
            return None
        self.under_way += 1
        return to, host.copy()

    def arrived(self, copy: Any) -> bool:
        """Write at the end alone, so that a kernel that reads before shows it."""
        if self.random.random() < 0.5:
            return False
        self.upload(*copy)
        self.under_way -= 1
        return True


def slots_of(engine: Engine) -> DeviceSlots:
    """The device's slots for experts, which the tests of this file fill and use as they like."""
    tier = engine.backend.tier
    assert isinstance(tier, DeviceSlots)
    return tier


def room_for_some(store: Path, device: str = "host", sequences: int = 1, context_length: int = 32) -> int:
    """The budget of a device that has room for all, but three in four of the experts."""
    options = EngineOptions(threads=1, context_length=context_length, device=device, sequences=sequences)
    with open_engine(store, options) as engine:
        sizes = model_sizes(engine.store, engine.spec)
        return device_of(engine).memory.used_bytes - 3 * sizes.total_experts * sizes.slot_bytes // 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "device", "resident"),
    [
        ("qwen2_moe", "host", True),
        ("qwen2_moe", "host", False),
        ("gpt_oss", "host", False),
        ("nemotron_h_latent", "host", False),
        ("qwen2_moe", "opencl:pocl", False),
        ("qwen2_moe", "cuda", False),
    ],
)
def test_device_slots_that_change_between_steps_leave_the_same_bits(
    name: str, device: str, resident: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits, misses, copies under way, experts that gave their slots in RAM up; prompts, tokens, and back again."""
    driver = FakeCuda(host=HostRuntime())
    if device == "opencl:pocl":
        pytest.importorskip("pyopencl", reason="needs the extra pocl")
        from edgemoe.kernels.device.opencl import OpenClRuntime

        monkeypatch.setattr(OpenClRuntime, "adopt", lambda *_: None)
    monkeypatch.setattr(opening, "HostRuntime", _OwnMemory)
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    wanted, random = expected(store, name), np.random.default_rng(5)
    vram = room_for_some(store)
    runtimes: dict[str, Callable[[], Any]] = {
        "host": _LateCopies,
        "cuda": lambda: CudaRuntime(driver=driver),
        "opencl:pocl": lambda: _apart(OpenClRuntime("pocl")),
    }
    monkeypatch.setattr(opening, "open_runtime", lambda _: runtimes[device]())
    total = model_sizes(Store.open(store), store_spec(Store.open(store))).total_experts
    slots = total if resident else max(2, total // 3)
    with engine_with_slots(store, slots, context_length=32, device=device, vram=vram) as engine:
        backend = device_of(engine)
        for _ in range(6):
            engine.rewind(0)
            for piece, logits in zip(pieces(name), wanted, strict=True):
                if backend.tier is not None:
                    backend.tier.share = float(random.choice([0, 0.5, 1, 1]))
                    backend.tier.fills = bool(random.random() < 0.8)
                    backend.tier.exclusive = not resident and bool(random.random() < 0.5)
                for segment in backend.segments:
                    segment.on = bool(random.random() < 0.8)
                assert engine.forward(piece).tobytes() == logits
                assert backend.memory.used_bytes <= vram
        assert backend.failure is None
        tier = slots_of(engine)
        assert tier.hits > 20
        assert tier.uploads > tier.count // 2 > 0
        assert planned(store, engine).slots <= tier.count < total
        held = tier.holds((len(engine.spec.layers), engine.spec.most_experts))
        assert 0 < held.sum() <= tier.count
        if not resident:
            assert (held & ~engine.resident_experts()).any()  # a tier of its own
    assert not driver.device_bytes


def _apart(runtime: Any) -> Any:
    """The processor's OpenCL driver as a device of its own memory."""
    runtime.unified = False
    return runtime


@pytest.mark.slow
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.usefixtures("_own_memory")
def test_eight_sequences_share_device_slots(exclusive: bool, tmp_path: Path) -> None:
    name = "qwen2_moe"
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    ids, found = np.load(GOLDEN / name / "golden.npz")["ids"], []
    for device, vram in ((None, None), ("host", room_for_some(store, sequences=8))):
        with engine_with_slots(store, 8, sequences=8, context_length=32, device=device, vram=vram) as engine:
            sequences = [engine.sequences.open() for _ in range(7)]
            for step in range(12):
                batch = {one: ids[step + number :][: 1 + step % 2] for number, one in enumerate(sequences)}
                logits = engine.step(batch)
                found.append([logits[one].tobytes() for one in sequences])
                if device is not None:
                    tier = slots_of(engine)
                    tier.share, tier.exclusive = 1.0, exclusive
            if device is not None:
                assert tier.hits > 50
                assert device_of(engine).failure is None
    assert found[:12] == found[12:]


@pytest.mark.slow
@pytest.mark.usefixtures("_own_memory")
def test_trials_while_answering_leave_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens with device slots and without in turn, as they are generated, whatever a trial finds faster."""
    for name, value in (("WARM_UP_TOKENS", 4), ("BLOCK_TOKENS", 2), ("HOLD_TOKENS", (3, 3))):
        monkeypatch.setattr(prefetch, name, value)
    name, found = "qwen2_moe", []
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    for device, vram in ((None, None), ("host", room_for_some(store, context_length=128))):
        with engine_with_slots(store, 8, context_length=128, device=device, vram=vram) as engine:
            logits = [engine.forward([3, 5, 7])]
            engine.turn.begin_decoding()
            logits += [engine.forward([int(logits[-1].argmax())]).copy() for _ in range(100)]
            found.append([one.tobytes() for one in logits])
            if device is not None:
                assert slots_of(engine).hits > 8
                assert device_of(engine).failure is None
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.usefixtures("_own_memory")
def test_answers_that_depend_on_what_is_in_ram_have_no_device_slots(tmp_path: Path) -> None:
    name = "qwen2_moe"
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    vram, found = room_for_some(store), []
    for lossy in (LossySettings(), LossySettings(drop_cold=0.1), LossySettings(cache_aware_routing=0.2)):
        with engine_with_slots(store, 8, context_length=32, lossy=lossy, device="host", vram=vram) as engine:
            engine.forward([3, 5, 7])
            engine.turn.begin_decoding()
            engine.forward([9])
            found.append(engine.backend.tier is not None)
    assert found == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["lost", "full", "hangs"])
def test_device_slots_that_fail_leave_the_same_bits(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is lost at any call, with half of its memory taken by others, or whose copies never end."""
    name = "qwen2_moe"
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    wanted, driver = expected(store, name), FakeCuda(host=HostRuntime())
    monkeypatch.setattr(opening, "open_runtime", lambda _: CudaRuntime(driver=driver, longest_wait_seconds=0.5))
    vram = room_for_some(store, "cuda") + 4 * Store.open(store).slot_bytes * (fault == "full")
    failures, driver.most_device_bytes = set(), 0
    for calls in (0, 7, 150, 800, 100_000) if fault == "lost" else (0,):
        with engine_with_slots(store, 8, context_length=32, device="cuda", vram=vram) as engine:
            backend, first = device_of(engine), pieces(name)[:4]
            if fault == "full":
                driver.memory_bytes = backend.memory.used_bytes + (vram - backend.memory.used_bytes) // 2
            for number, (piece, logits) in enumerate(zip(pieces(name), wanted, strict=True)):
                tier = slots_of(engine)
                tier.share, tier.exclusive = 1.0, True
                if number == len(first) and fault != "full":
                    assert tier.hits
                    if fault == "hangs":
                        driver.hang()
                    else:
                        driver.calls_left = calls
                assert engine.forward(piece).tobytes() == logits
            assert tier.hits
            failures.add(backend.failure is not None)
            assert driver.most_device_bytes <= (driver.memory_bytes if fault == "full" else vram)
            assert fault != "full" or 0 < tier.count < planned(store, engine).slots
            driver.calls_left = None
    assert failures == ({False, True} if fault == "lost" else {fault == "hangs"})


def test_a_plan_has_what_the_budget_has_room_for() -> None:
    store, plans = Store.open(find_model(None)), []
    graph = graph_of(store_spec(store), store, EngineOptions().lossy)
    sizes, backend = model_sizes(store, graph.spec), DeviceBackend(FailingDevice(1 << 30), 1)
    experts, arena = sizes.total_experts, sizes.total_experts * sizes.slot_bytes
    memory = MemoryPlan(0, 0, 0, 0, 0, 0, sizes.slot_bytes, experts, experts, 512, 8, kv_format="f16")
    for most in (None, arena // 2, 1000, -(arena // 2)):
        if most is not None and most < 0:  # all but half of the experts
            most += plans[0].weight_bytes + plans[0].state_bytes + plans[0].activation_bytes
        backend.memory.most_bytes = most
        plan = plan_device(graph, sizes.formats, backend, memory)
        assert plan is not None
        assert plan.budget_bytes == most
        taken = plan.weight_bytes + plan.state_bytes + plan.activation_bytes + plan.slots_bytes
        assert most is None or taken <= most
        assert plan.slots_bytes == plan.slots * sizes.slot_bytes
        plans.append(plan)
    backend.memory.most_bytes = int(AUTO_SHARE * backend.runtime.free_bytes())
    floor = plan_device(graph, sizes.formats, backend, memory, "floor")
    assert floor is not None
    assert floor.budget_bytes == floor.weight_bytes + floor.state_bytes + floor.activation_bytes
    assert floor.without_room == len(graph.spec.layers)  # their routed experts
    backend.memory.most_bytes += 4 * sizes.slot_bytes
    passing = plan_device(graph, sizes.formats, backend, memory)
    assert passing is not None
    assert passing.staging_bytes == 2 * sizes.slot_bytes
    assert passing.without_room == floor.without_room
    backend.memory.most_bytes = 1 << 20
    backend.runtime.free_bytes = lambda: 1 << 20  # type: ignore[method-assign]
    told = "`vram=floor`: all but the routed experts takes .* of the device failing, which has 1.0 MiB free"
    with pytest.raises(UsageError, match=told):
        plan_device(graph, sizes.formats, backend, memory, "floor")
    backend.close()
    split = plans.pop()
    assert experts // 4 < split.slots < split.slot_experts == experts
    assert 0 <= plans[0].weight_bytes - split.weight_bytes <= 8 * experts  # tables of layouts
    assert plans[1].state_bytes < arena < plans[0].state_bytes < 2 * arena  # one arena for all layers, whole or not
    assert plans[0].operations > plans[1].operations > 0
    assert [plan.slot_experts for plan in plans] == [0, experts, experts]
    assert [plan.slots for plan in plans] == [0, 0, 0]
    assert plans[0].without_room == plans[2].operations == plans[2].weight_bytes == 0
    assert plans[0].staging_bytes == plans[2].staging_bytes == floor.staging_bytes == 0
    for one, other in itertools.pairwise(plans):
        assert one.operations + one.without_room == other.operations + other.without_room < one.total_operations
