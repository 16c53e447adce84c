"""A device beside the processor: what is copied to it and back, and that it never shows in a result.

Whether its kernels compute what they should, the tests of all backends say, over which `device` runs too (conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import edgemoe
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels import operations as op
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.opening import AUTO_SHARE, Found, _budget, beside_device, found_devices, open_device, tried
from edgemoe.kernels.device.runtime import DeviceError, Runtime
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.select import KERNELS_VARIABLE, select_backend
from tests.kernels.device_chain import TOKENS, Chain
from tests.kernels.planned import planned
from tests.support.failing_device import FailingDevice


class Copying(HostRuntime):
    """The host without memory in common: weights are copied, as to a device of its own memory."""

    def adopt(self, host: op.Bytes) -> None:  # type: ignore[override]
        return None


def pocl(options: Sequence[str] = ()) -> Runtime:
    """The OpenCL driver that runs on any processor; a test that asks for it is skipped where it is not installed."""
    pytest.importorskip("pyopencl", reason="needs the extra pocl")
    from edgemoe.kernels.device.opencl import OpenClRuntime

    return OpenClRuntime("pocl", options)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [HostRuntime, Copying, pocl])
def test_arrays_that_share_memory_do_so_on_the_device(
    chain: Chain, left: bytes, runtime: Callable[[], Runtime]
) -> None:
    device = DeviceBackend(runtime(), 1)
    assert chain.run_on(device, (2, TOKENS)) == left
    assert device.failure is None


@pytest.mark.slow
def test_weights_lie_on_the_device_once_and_as_long_as_a_program_has_them(chain: Chain) -> None:
    device = DeviceBackend(HostRuntime(), 1)
    programs = [device.program(chain.operations) for _ in range(2)]
    assert len(device.memory._resident) == 9  # matrices and biases of four products, and the weight of a norm
    del programs
    assert not device.memory._resident


def test_what_a_segment_takes_is_planned_before_there_is_memory(chain: Chain) -> None:
    device = DeviceBackend(FailingDevice(1000), 1)  # it never fails
    size = device.scratch_bytes(planned(tuple(chain.operations)))
    device.program(chain.operations)
    taken = device.memory.shared.buffer.size
    assert taken <= size - NativeBackend.scratch_bytes(device, chain.operations) <= 12 * taken


def test_a_device_that_fails_at_any_call_leaves_the_same_bits(chain: Chain) -> None:
    """The processor runs what it was at, from the same numbers, and the device is asked for nothing more."""
    operations = chain.operations[:3]  # one segment, whose last result is added to its input
    native = NativeBackend(1)
    expected = chain.run_on(native, (TOKENS,), operations)
    calls, failed = 0, True
    while failed:
        runtime = FailingDevice(calls)
        device = DeviceBackend(runtime, 1)
        found = chain.run_on(device, (TOKENS,), operations)
        failed = device.failure is not None
        assert runtime.failures == failed
        assert (found == expected) == failed  # its results, where it gave any, were zeros
        device.close()
        calls += 1
    assert calls > 15
    native.close()


def test_a_failed_device_is_asked_for_nothing_more(chain: Chain, left: bytes) -> None:
    runtime = FailingDevice(0)
    device = DeviceBackend(runtime, 1)
    assert [chain.run_on(device, (2, TOKENS)) for _ in range(2)] == [left, left]
    assert runtime.failures == 1


def test_times_of_a_device_are_those_of_its_operations(chain: Chain) -> None:
    device = DeviceBackend(FailingDevice(1000), 1)
    program = device.program(chain.operations)
    program.time_runs(True)
    program.run(TOKENS)
    times = program.times()
    assert (times.operations_ns > 0).all()
    assert times.operations_ns.sum() <= times.elapsed_ns
    program.time_runs(True)
    assert not program.times().elapsed_ns


def test_pauses_come_between_segments_and_may_end_a_run(chain: Chain) -> None:
    shares: list[float] = []
    program = DeviceBackend(FailingDevice(1000), 1).program(chain.operations)
    program.run(TOKENS, shares.append)
    assert shares == [3 / 7, 4 / 7, 1.0]


@pytest.mark.parametrize("device", ["toaster", "auto:1", "cpu:0", "CUDA"])
def test_a_device_is_asked_for_by_its_kind(device: str) -> None:
    with pytest.raises(UsageError, match=f"`device={device}`: expected auto, cpu, cuda, opencl or metal"):
        EngineOptions(device=device)


def test_a_device_needs_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "reference")
    with pytest.raises(UsageError, match="`device=host` needs the native kernels"):
        select_backend(1, "host")


def test_a_budget_without_a_device_is_refused() -> None:
    with pytest.raises(UsageError, match="`vram=1GiB` is a budget of a device, and none is asked for"):
        EngineOptions(vram="1GiB")


@pytest.mark.parametrize("vram", ["least", "much"])
def test_a_budget_is_a_size(vram: str) -> None:
    with pytest.raises(UsageError, match=f"`vram={vram}`: expected a size such as 6GiB, auto or floor"):
        EngineOptions(device="cuda", vram=vram)


@pytest.mark.parametrize(
    ("unified", "vram", "budget"),
    [
        (False, None, AUTO_SHARE * (1 << 30) // 1),
        (False, "auto", AUTO_SHARE * (1 << 30) // 1),
        (False, "floor", AUTO_SHARE * (1 << 30) // 1),  # until a model's floor is known
        (False, "1MiB", 1 << 20),
        (False, 5, 5),
        (False, "2GiB", "expected up to 1.00 GiB, which is free on the device failing"),
        (False, 0, "expected up to"),
        (True, None, None),
        (True, "auto", None),
        (True, "1MiB", "has the processor's memory, whose budget is `ram`"),
        (True, "floor", "`vram=floor`: the device failing has the processor's memory, whose budget is `ram`"),
    ],
)
def test_a_device_has_a_budget_of_its_own_memory(unified: bool, vram: str | int | None, budget: object) -> None:
    runtime = FailingDevice(1000)
    runtime.unified = unified
    if isinstance(budget, str):
        with pytest.raises(UsageError, match=budget):
            _budget(runtime, vram)
    else:
        assert _budget(runtime, vram) == budget


def test_without_a_device_that_works_auto_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first device fails, the second is the processor itself."""
    found = [Found("cuda:0", "Fake", "too old"), Found("cuda:1", "Fake", ""), Found("opencl:0", "PoCL", "", True)]
    monkeypatch.setattr("edgemoe.kernels.device.opening.found_devices", lambda: found)
    asked: list[str] = []

    def fails(device: str) -> Runtime:
        asked.append(device)
        return FailingDevice(3)

    monkeypatch.setattr("edgemoe.kernels.device.opening.open_runtime", fails)
    backend = select_backend(1, "auto")
    assert (type(backend), backend.device, asked) == (NativeBackend, None, ["cuda:1"])
    backend.close()
    assert tried(found[0]) is found[0]
    assert "The device is lost" in tried(found[1]).problem


def test_each_kind_of_device_is_listed() -> None:
    """A machine without a driver has none of a kind, and is told why."""
    kinds = {one.device.partition(":")[0]: one for one in found_devices()}
    assert list(kinds) == ["cuda", "metal", "opencl"]
    assert all(one.name or one.problem for one in kinds.values())


def test_without_a_compiler_one_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(DeviceError, match="needs a C compiler, and there is no no-such-compiler"):
        HostRuntime()


def test_a_compiler_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho bad flag >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(DeviceError, match="refuses the device's text: bad flag"):
        HostRuntime()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [HostRuntime, pocl])
def test_a_device_that_knows_the_answers_is_used(runtime: Callable[[], Runtime]) -> None:
    backend = beside_device(runtime(), 1)
    assert backend.failure is None
    backend.close()


FAST_MATHEMATICS = (
    "-fassociative-math",
    "-ffinite-math-only",
    "-freciprocal-math",
    "-fno-math-errno",
    "-fno-signed-zeros",
    "-fno-trapping-math",
)
"""The parts of `-ffast-math`. Under that name it also links a start-up file, by which the whole process would take the
smallest numbers for zeros from then on."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "flags"),
    [
        (HostRuntime, ["-Dfused(a,b,c)=((a)*(b)+(c))"]),
        (HostRuntime, FAST_MATHEMATICS),
        (pocl, ["-cl-fast-relaxed-math"]),
    ],
)
def test_a_device_that_rounds_differently_is_refused(runtime: Callable[..., Runtime], flags: Sequence[str]) -> None:
    """An fma that is not fused, and fast mathematics."""
    different = HostRuntime(flags=flags) if runtime is HostRuntime else runtime(flags)
    with pytest.raises(DeviceError, match="rounds differently than the processor in") as told:
        beside_device(different, 1)
    for name in ("products in q8,", "products in q4,"):
        assert name in str(told.value)


@pytest.mark.slow
def test_the_text_does_nothing_undefined(tmp_path: Path) -> None:
    """Every kernel under the address and undefined-behaviour sanitizers."""
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")
    found = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    asked = (
        "from edgemoe.kernels.device.host import HostRuntime\n"
        "from edgemoe.kernels.device.opening import beside_device\n"
        f"beside_device(HostRuntime(flags={sanitizers}), 1).close()\n"
        "print('clean')"
    )
    own = {"LD_PRELOAD": found.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "EDGEMOE_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, env={**os.environ, **own})
    assert done.stdout == "clean\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("which", ["99", "toaster"])
def test_an_opencl_device_that_is_not_here_is_told_with_those_that_are(which: str) -> None:
    pytest.importorskip("pyopencl", reason="needs the extra pocl")
    with pytest.raises(DeviceError, match=rf"OpenCL device {which} is not one that is here: 0 .*Portable"):
        open_device(f"opencl:{which}", None, 1)


def test_without_pyopencl_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(DeviceError, match="needs the package pyopencl") as told:
        open_device("opencl", None, 1)
    assert "extra opencl" in told.value.hint


def test_a_device_that_fails_while_it_is_asked_is_refused_with_its_own_error() -> None:
    with pytest.raises(DeviceError, match="The device is lost"):
        beside_device(FailingDevice(100), 1)


@pytest.mark.slow
def test_the_text_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    HostRuntime()
    (kept,) = (tmp_path / "device").iterdir()
    made = kept.stat().st_mtime_ns
    HostRuntime()
    assert kept.stat().st_mtime_ns == made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["host", "opencl:pocl"])
def test_the_bundled_model_gives_the_same_bits(name: str) -> None:
    """A prompt in two runs, some tokens, and back to the middle of the prompt."""
    if name != "host":
        pytest.importorskip("pyopencl", reason="needs the extra pocl")
    found = []
    for device in (None, name):
        logits = []
        with edgemoe.load(device=device) as model:
            engine = model.engine
            assert isinstance(engine.backend, DeviceBackend) == bool(device)
            logits += [engine.forward(list(range(100, 110))).copy(), engine.forward(list(range(40, 43))).copy()]
            logits += [engine.forward([int(logits[-1].argmax())]).copy() for _ in range(2)]
            engine.rewind(11)
            logits.append(engine.forward([7, 8]).copy())
            assert not device or engine.backend.failure is None
        found.append([one.tobytes() for one in logits])
    assert found[0] == found[1]
