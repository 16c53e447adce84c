"""Routed experts whose weights pass through a device: the bits of the processor, in the budget, whatever fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.device import chunk_trial, cuda, staging
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.chunk_trial import ChunkTrial
from edgemoe.kernels.device.cuda import CudaRuntime
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.runtime import DeviceMemoryError, Runtime
from edgemoe.kernels.device.staging import half_bytes
from edgemoe.kernels.native.backend import NativeBackend
from tests.kernels.builders import aligned, aligned_copy, numbers
from tests.kernels.test_device import pocl
from tests.kernels.test_products import pack_experts, random_ffn
from tests.support.failing_device import FailingDevice
from tests.support.fake_cuda import FakeCuda
from tests.support.reordering_device import ReorderingDevice

TOKENS, WIDTH, EXPERTS, LAYERS, TOP_K = 20, 40, 4, 6, 2


class Layers:
    """The experts of some layers, in one arena, for the same tokens; a choice of none passes on."""

    def __init__(self) -> None:
        random = np.random.default_rng(8)
        ffns = [random_ffn(("q4", "q8", "f16")[n % 3], WIDTH, 24, random) for n in range(EXPERTS * LAYERS)]
        slots = random.permutation(len(ffns)).astype(np.int32)
        arena, layouts = pack_experts(ffns, slots)
        values = numbers("normal", (TOKENS, WIDTH), random)
        self.slot_bytes, self.arena_bytes = arena.shape[1], arena.nbytes
        self.operations = []
        for layer in range(LAYERS):
            chosen = np.array([random.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)], np.int32)
            chosen[random.random(chosen.shape) < 0.1] = -1
            of_layer = slice(EXPERTS * layer, EXPERTS * (layer + 1))
            own = aligned_copy(slots[of_layer]), arena, layouts.layouts, aligned_copy(layouts.layout_of[of_layer])
            output = aligned((TOKENS, TOP_K, WIDTH), np.float32)
            self.operations.append(ex.Experts(values, aligned_copy(chosen), *own, output))

    def run_on(self, backend: Backend, runs: Sequence[int]) -> list[bytes]:
        program, found = backend.program(self.operations), []
        for tokens in runs:
            for operation in self.operations:
                operation.output[...] = 7
            program.run(tokens)
            found.append(b"".join(operation.output.tobytes() for operation in self.operations))
        return found


@pytest.fixture(scope="module")
def layers() -> Layers:
    return Layers()


@pytest.fixture(scope="module")
def left(layers: Layers) -> list[bytes]:
    """The outputs of the processor after each of three runs."""
    native = NativeBackend(1)
    found = layers.run_on(native, (TOKENS, 1, 9))
    native.close()
    return found


def streaming(runtime: Runtime, layers: Layers, slots: int = EXPERTS) -> DeviceBackend:
    """A device on which no layer's experts have room, and which streams all runs, with room for so many slots twice."""
    device = DeviceBackend(runtime, 1, most_bytes=1 << 30)
    for operation in layers.operations:
        device.memory.reserve(device.scratch_bytes([operation]))
    tables = 2 * LAYERS * EXPERTS * 8
    device.memory.most_bytes = device.memory.used_bytes + tables + 4 * slots * layers.slot_bytes
    assert device.memory.left_bytes < layers.arena_bytes
    device.streaming.trial = ChunkTrial("on", least_rows=1)
    return device


def own_pocl() -> Runtime:
    runtime = pocl()
    runtime.unified = False
    runtime.adopt = lambda host: None  # type: ignore[method-assign]
    return runtime


def own_cuda() -> Runtime:
    return CudaRuntime(driver=FakeCuda(host=HostRuntime()))


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3, EXPERTS])
@pytest.mark.parametrize("make", [ReorderingDevice, own_cuda, own_pocl])
def test_experts_that_pass_through_a_device_have_the_same_bits(
    layers: Layers, left: list[bytes], make: Callable[[], Runtime], slots: int
) -> None:
    device = streaming(make(), layers, slots)
    assert layers.run_on(device, (TOKENS, 1, 9)) == left
    assert device.failure is None
    assert device.streaming.streamed == 3 * LAYERS
    assert device.memory.used_bytes <= (device.memory.most_bytes or 0)
    device.close()


@pytest.mark.slow
def test_experts_of_the_next_layer_come_beside_those_of_this_one(layers: Layers, left: list[bytes]) -> None:
    """Where buffers have room for a layer, each layer is copied once; the last one of a run begins no other."""
    device = streaming(runtime := ReorderingDevice(), layers)
    assert layers.run_on(device, (TOKENS,)) == left[:1]
    assert runtime.copied == LAYERS * EXPERTS * layers.slot_bytes
    device.close()


def test_a_device_that_fails_at_any_call_of_a_chunk_leaves_the_same_bits(layers: Layers, left: list[bytes]) -> None:
    for calls in itertools.count(step=2):
        device = streaming(FailingDevice(1 << 30), layers, 2)
        program = device.program(layers.operations[:2])
        assert isinstance(device.runtime, FailingDevice)
        device.runtime.left = calls
        for operation in layers.operations:
            operation.output[...] = 7
        program.run(TOKENS)
        found = b"".join(operation.output.tobytes() for operation in layers.operations[:2])
        failed = device.failure is not None
        assert device.runtime.failures == failed
        assert (found == left[0][: len(found)]) == failed  # its results, where it gave any, were zeros
        device.close()
        if not failed:
            break
    assert calls > 15


@pytest.mark.parametrize("never", ["begins", "ends", "CUDA"])
def test_a_copy_that_never_ends_leaves_the_chunk_to_the_processor(
    layers: Layers, left: list[bytes], monkeypatch: pytest.MonkeyPatch, never: str
) -> None:
    """On devices that would wait for ever, and on one that notices."""
    told = "has not copied for 0 s"
    monkeypatch.setattr(staging, "LONGEST_WAIT_SECONDS", 0)
    if never == "CUDA":
        monkeypatch.setattr(cuda, "shipped_ptx", lambda: "")
        driver, told = FakeCuda(), "has not answered for 0 s"
        device = streaming(CudaRuntime(driver=driver, longest_wait_seconds=0), layers)
        driver.hang()
    else:
        device = streaming(FailingDevice(1 << 30), layers)
        if never == "begins":
            monkeypatch.setattr(device.runtime, "upload_beside", lambda to, host: None)
        else:
            monkeypatch.setattr(device.runtime, "arrived", lambda copy: False)
    assert layers.run_on(device, (TOKENS, 1, 9)) == left
    assert told in str(device.failure)
    device.close()


def test_a_staging_area_without_memory_leaves_chunks_to_the_processor(
    layers: Layers, left: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FailingDevice(1 << 30)
    device = streaming(runtime, layers)

    def allocate(size: int) -> np.ndarray:
        if size >= layers.slot_bytes:
            raise DeviceMemoryError("Full.")
        return np.zeros(size, np.uint8)

    monkeypatch.setattr(runtime, "allocate", allocate)
    assert layers.run_on(device, (TOKENS, 1, 9)) == left
    assert device.failure is None
    assert device.streaming.streamed == 0
    used = device.memory.used_bytes
    device.close()
    assert used <= (device.memory.most_bytes or 0)


def test_experts_that_are_not_in_memory_are_the_processors(layers: Layers) -> None:
    device = streaming(FailingDevice(1 << 30), layers)
    operation = layers.operations[0]
    program, slots = device.program([operation]), operation.slots.copy()
    operation.slots[operation.experts[0, 0]] = -1
    program.run(1)
    assert device.streaming.streamed == 0
    operation.slots[:] = slots
    program.run(1)
    assert device.streaming.streamed == 1
    device.close()


def test_buffers_take_what_is_left() -> None:
    assert half_bytes(600, 100, 2400) == 600
    assert half_bytes(600, 100, 1000) == 250
    assert half_bytes(600, 100, 399) == 0


def trial_of(times: dict[bool, int], chunks: int, rows: int = 512) -> str:
    """Which of some chunks are streamed, where each way takes the same time for a row."""
    trial, found = ChunkTrial(), []
    for _ in range(chunks):
        found.append(trial.open(rows))
        trial.record(rows, rows * times[found[-1]])
    return "".join(".s"[one] for one in found)


def test_the_faster_way_is_kept_for_longer_and_longer() -> None:
    first = chunk_trial.HOLD_CHUNKS[0]
    assert trial_of({False: 100, True: 50}, 8 + 3 * first) == ".s.s" + "s" * first + ".s.s" + "s" * 2 * first
    assert trial_of({False: 100, True: 99}, 4 + 2 * first) == ".s.s" + "." * 2 * first
    assert trial_of({False: 100, True: 151}, 2 + first) == ".s" + "." * first


def test_each_size_of_chunks_has_a_trial_and_small_ones_have_none() -> None:
    trial = ChunkTrial()
    trial.record(64, 1000)
    assert trial.open(127)
    assert not trial.open(128)
    assert trial.most_ns(127) == chunk_trial.PATIENCE * 127 * 1000 / 64
    assert trial.most_ns(128) is None
    for _ in range(9):
        assert not trial.open(63)
        trial.record(63, 1000)
    assert not ChunkTrial("off").open(512)
    assert ChunkTrial("on").most_ns(512) is None


def test_a_hopeless_chunk_is_streamed_no_further(layers: Layers) -> None:
    device = streaming(FailingDevice(1 << 30), layers)
    trial = device.streaming.trial = ChunkTrial(least_rows=1)
    trial.record(TOKENS, 0)  # the processor takes no time at all
    layers.run_on(device, (TOKENS,))
    assert device.streaming.streamed == 0
    trial.record(TOKENS, 0)
    assert not trial.open(TOKENS)
    device.close()
