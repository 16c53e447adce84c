"""CUDA's runtime over a fake of the driver, and the compiled text that is shipped.

The tests of all backends say of the same text in C that the kernels compute what they should; these show that the
runtime gives them what they ask for, and that answers stay right when the driver fails.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.kernels.device import cuda
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.cuda import CudaRuntime
from edgemoe.kernels.device.driver import FUNCTIONS, load_driver
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.memory import DeviceMemory
from edgemoe.kernels.device.opening import beside_device
from edgemoe.kernels.device.ptx import COMPILER, compiled_ptx, shipped_ptx
from edgemoe.kernels.device.runtime import Block, DeviceError, Place
from edgemoe.kernels.device.table import kernels
from edgemoe.kernels.native.backend import NativeBackend
from tests.kernels.conftest import items_in_any_order
from tests.kernels.device_chain import TOKENS, Chain
from tests.support.fake_cuda import LOST, FakeCuda


@pytest.fixture(autouse=True)
def _any_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares each opening the reading of the compiled text, which the fake does not look at."""
    monkeypatch.setattr(cuda, "shipped_ptx", lambda: "")


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets copies of some kilobytes take several parts of the pinned memory."""
    monkeypatch.setattr(cuda, "PART_BYTES", 1000)


@pytest.mark.usefixtures("_small_parts")
def test_bytes_come_back_as_they_went() -> None:
    """Copies that are longer than the pinned memory, and begin anywhere."""
    driver = FakeCuda()
    runtime = CudaRuntime(driver=driver)
    block = Block(runtime.allocate(10_000))
    sent = np.random.default_rng(4).integers(0, 256, 7777).astype(np.uint8)
    for size in (1, 999, 1000, 1001, 7777):
        runtime.upload(Place(block, 13), sent[:size])
        assert (runtime.download(Place(block, 13), size) == sent[:size]).all()
    assert runtime.free_bytes() == driver.memory_bytes - 10_000
    del block
    assert not driver.device_bytes
    runtime.close()
    assert not driver.held


@pytest.mark.usefixtures("_small_parts")
def test_parts_come_back_together_and_copies_go_beside() -> None:
    """One wait for all that fit the pinned memory; a copy beside takes its turn, and none is waited for."""
    driver = FakeCuda()
    runtime = CudaRuntime(driver=driver, longest_wait_seconds=5)
    block = Block(runtime.allocate(10_000))
    sent = np.random.default_rng(4).integers(0, 256, 9999).astype(np.uint8)
    assert runtime.arrived(runtime.upload_beside(Place(block, 1), sent))
    parts = [(1, 400), (5000, 300), (401, 300), (900, 2500), (2, 1000), (7, 1)]
    driver.calls.clear()
    found = list(runtime.download_all([(Place(block, at), size) for at, size in parts]))
    assert all((one == sent[at - 1 : at - 1 + size]).all() for one, (at, size) in zip(found, parts, strict=True))
    assert driver.calls.count("cuEventRecord") == 1 + 3 + 1 + 1  # for the first three, the long one, and two
    assert list(runtime.download_all([])) == []
    driver.hang()
    copies = [runtime.upload_beside(Place(block, 1), sent[:9]) for _ in range(3)]
    assert copies[0] is None  # the parts before have not ended, nor will they
    driver.statuses.clear()
    copies = [runtime.upload_beside(Place(block, 1), sent[:9]) for _ in range(2)]
    driver.hang()
    assert [runtime.arrived(one) for one in copies] == [False, False]
    assert runtime.upload_beside(Place(block, 1), sent[:9]) is None
    runtime._longest_wait_seconds = 0
    with pytest.raises(DeviceError, match="has not answered for 0 s"):
        runtime.arrived(copies[0])


def test_pages_are_copied_in_runs_of_neighbours() -> None:
    """As many copies as there are runs, and one wait; what comes back is what each page has."""
    driver = FakeCuda()
    runtime = CudaRuntime(driver=driver)
    memory, pages = DeviceMemory(runtime), np.random.default_rng(4).random((40, 1000), np.float32)
    mirror = memory.mirror(pages, True)
    memory.make_room(mirror)
    driver.calls.clear()
    units = np.array([3, 4, 5, 9, 30, 29, 12])
    mirror.bring(runtime, units)
    assert driver.calls.count("cuMemcpyHtoDAsync_v2") == 4
    mirror.bring(runtime, np.arange(3, 7))
    assert driver.calls.count("cuMemcpyHtoDAsync_v2") == 5
    wanted = pages.copy()
    pages[:] = 0
    parts = list(mirror.parts(units))
    for (host, _), copied in zip(parts, runtime.download_all([part for _, part in parts]), strict=True):
        host[:] = copied
    assert (pages[units] == wanted[units]).all()
    assert not np.delete(pages, units, axis=0).any()
    assert driver.calls.count("cuEventRecord") == 1
    runtime.close()


def test_a_device_is_chosen_by_number_or_letters() -> None:
    driver = FakeCuda(("Big Card", "Big Card", "Small Card", "Old Card"), ((9, 0), (9, 0), (7, 5), (6, 1)))
    for which, name in (("", "Big Card"), ("1", "Big Card"), ("small", "Small Card"), ("2", "Small Card")):
        runtime = CudaRuntime(which, driver)
        assert runtime.name == name
        runtime.close()
    listed = "0 Big Card; 1 Big Card; 2 Small Card; 3 Old Card"
    for which, problem in (
        ("big", f"CUDA device big is the name of several: {listed}"),
        ("4", f"CUDA device 4 is not one that is here: {listed}"),
        ("toaster", "CUDA device toaster is not one that is here"),
        ("old", "Old Card is too old: expected compute capability 7.5 or later, found 6.1"),
    ):
        with pytest.raises(DeviceError, match=problem):
            CudaRuntime(which, driver)
    assert not driver.held


@pytest.mark.parametrize("status", ["none", 100])
def test_without_a_device_one_error_says_so(status: Any) -> None:
    driver = FakeCuda(names=(), capabilities=())
    if status != "none":
        driver.statuses["cuInit"] = status
    with pytest.raises(DeviceError, match="There is no CUDA device here"):
        CudaRuntime(driver=driver)


def test_without_a_driver_one_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match="There is no NVIDIA driver here") as told:
        CudaRuntime()
    assert "Install the driver" in told.value.hint


def test_an_old_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.raises(DeviceError, match="driver here is too old: it has no cuInit"):
        load_driver()


def test_a_driver_that_refuses_the_kernels_is_quoted() -> None:
    driver = FakeCuda()
    driver.statuses["cuModuleLoadDataEx"] = 218
    driver.log = b"ptxas application ptx input, line 9; fatal: unknown\n"
    with pytest.raises(DeviceError, match=r"cannot be given its kernels \(ptxas .*: unknown\): CUDA_ERROR_INVALID_PTX"):
        CudaRuntime(driver=driver)
    assert not driver.held


def test_a_device_that_fails_while_it_is_opened_keeps_nothing() -> None:
    opened = FakeCuda()
    runtime = CudaRuntime(driver=opened)
    functions = set(opened.calls) - {"cuDeviceGetAttribute"}
    assert len(functions) == 11
    runtime.close()
    for name in functions:
        driver = FakeCuda()
        driver.statuses[name] = LOST
        with pytest.raises(DeviceError, match=r"CUDA_ERROR_LAUNCH_FAILED \(unspecified launch failure\)"):
            CudaRuntime(driver=driver)
        assert not driver.held, name


@pytest.mark.slow
def test_a_device_that_fails_at_any_call_leaves_the_same_bits(chain: Chain) -> None:
    operations = chain.operations[:3]
    native = NativeBackend(1)
    expected = chain.run_on(native, (TOKENS,), operations)
    native.close()
    calls, failed = 0, True
    while failed:
        driver = FakeCuda()
        device = DeviceBackend(CudaRuntime(driver=driver), 1)
        driver.calls_left = calls
        found = chain.run_on(device, (TOKENS,), operations)
        failed = device.failure is not None
        assert (found == expected) == failed  # its results, where it gave any, were zeros
        assert not failed or "CUDA_ERROR_LAUNCH_FAILED" in str(device.failure)
        calls += 1
    assert calls > 30


def test_a_device_that_never_answers_is_left_alone(chain: Chain, left: bytes) -> None:
    driver = FakeCuda()
    device = DeviceBackend(CudaRuntime(driver=driver, longest_wait_seconds=0), 1)
    driver.hang()
    assert chain.run_on(device, (2, TOKENS)) == left
    assert "has not answered for 0 s" in str(device.failure)
    asked = len(driver.calls)
    device.close()
    assert len(driver.calls) == asked


@pytest.mark.parametrize("room", [2_000, 25_000, 40_000])
def test_a_device_without_room_for_all_does_what_it_has_room_for(chain: Chain, left: bytes, room: int) -> None:
    """The second segment alone, in 25,000 bytes; 2,000 are not enough for any."""
    for budget in (None, room):
        driver = FakeCuda(memory_bytes=room if budget is None else 1 << 30)
        device = DeviceBackend(CudaRuntime(driver=driver), 1, most_bytes=budget)
        chain.run_on(device, (2, TOKENS))
        assert device.failure is None
        assert (driver.calls.count("cuLaunchKernel") > 0) == (room > 2_000)
        assert driver.most_device_bytes <= room
        assert device.memory.used_bytes == driver.device_bytes
        device.close()
        assert not driver.held


@pytest.mark.slow
@pytest.mark.usefixtures("_small_parts")
def test_kernels_get_what_they_ask_for(chain: Chain, left: bytes) -> None:
    driver = FakeCuda(host=HostRuntime(items_in_any_order))
    device = beside_device(CudaRuntime(driver=driver), 1)
    assert chain.run_on(device, (2, TOKENS)) == left
    assert device.failure is None
    device.close()
    assert not driver.held


@pytest.mark.slow
def test_a_device_that_does_not_fuse_is_refused() -> None:
    driver = FakeCuda(host=HostRuntime(flags=["-Dfused(a,b,c)=((a)*(b)+(c))"]))
    with pytest.raises(DeviceError, match=r"rounds differently than the processor in .*products in q4,"):
        beside_device(CudaRuntime(driver=driver), 1)
    assert not driver.held


# ---- the compiled text ------------------------------------------------------------------------------------


def test_the_shipped_code_is_that_of_the_text() -> None:
    """If not: `make ptx`."""
    entries = re.findall(r"\.visible \.entry em_(\w+)\(", shipped_ptx())
    assert sorted(entries) == sorted(kernels())
    assert len(shipped_ptx()) < 2 << 20  # every installation has it


ROUNDED = ("add", "sub", "mul", "fma", "div", "rcp", "sqrt")
EXACT = ("ld", "st", "mov", "selp", "setp", "neg", "abs", "min", "max", "cvta")


def test_the_shipped_code_rounds_every_operation_to_nearest() -> None:
    """Without a rounding mode a driver may fuse an addition with the product before it."""
    counts = dict.fromkeys(ROUNDED, 0)
    for operation in set(
        re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][\w.]*f(?:16|32|64)[\w.]*)", shipped_ptx(), re.MULTILINE)
    ):
        name, *marks = operation.split(".")
        assert not {"ftz", "approx", "full", "f64", "f16"} & set(marks), operation
        if name in ROUNDED:
            assert marks[0] == "rn", operation
            counts[name] += 1
        elif name == "cvt":
            assert marks[0] in ("rn", "rzi"), operation
        else:
            assert name in EXACT, operation
    assert all(counts[name] for name in ("add", "mul", "fma", "div", "sqrt"))


needs_nvcc = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs nvcc")


@pytest.mark.slow
@needs_nvcc
def test_the_compiler_makes_the_shipped_code() -> None:
    """Another release of the compiler may write it otherwise: then only that it compiles."""
    release = re.compile(r"release [\d.]+, V[\d.]+")
    made, shipped = compiled_ptx(), shipped_ptx()
    if release.findall(made) == release.findall(shipped):
        assert made == shipped


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ptxas") is None and not Path("/usr/local/cuda/bin/ptxas").exists(), reason="no ptxas")
@pytest.mark.parametrize("capability", ["75", "86", "89", "90", "120"])
def test_cards_compile_the_shipped_code_without_spills(capability: str, tmp_path: Path) -> None:
    code = tmp_path / "device.ptx"
    code.write_text(shipped_ptx())
    assembler = shutil.which("ptxas") or "/usr/local/cuda/bin/ptxas"
    command = [assembler, "-v", f"-arch=sm_{capability}", str(code), "-o", str(tmp_path / "device.cubin")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    assert spills == [("0", "0")] * len(kernels())


_TRAITS = """
#include <cuda.h>
#include <type_traits>
template <class T, int BYTES> constexpr bool is_number = !std::is_pointer<T>::value && sizeof(T) == BYTES;
template <class... T> constexpr int count(CUresult (*)(T...)) { return sizeof...(T); }
template <int N, class... T> struct nth;
template <class F, class... T> struct nth<0, F, T...> { using type = F; };
template <int N, class F, class... T> struct nth<N, F, T...> : nth<N - 1, T...> {};
template <int N, class F> struct argument;
template <int N, class... T> struct argument<N, CUresult (*)(T...)> : nth<N, T...> {};
"""


@pytest.mark.slow
@needs_nvcc
def test_functions_of_the_driver_have_the_arguments_of_its_header(tmp_path: Path) -> None:
    """Numbers and their order; of addresses, that they are such."""
    lines = [_TRAITS]
    for name, types in FUNCTIONS.items():
        plain = name.removesuffix("_v2")
        lines.append(f'static_assert(count(&{plain}) == {len(types)}, "{name}");')
        for number, kind in enumerate(types):
            found = f"argument<{number}, decltype(&{plain})>::type"
            number_of = kind in (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64)
            wanted = f"is_number<{found}, {ctypes.sizeof(kind)}>" if number_of else f"std::is_pointer<{found}>::value"
            lines.append(f'static_assert({wanted}, "{name} {number}");')
    source = tmp_path / "signatures.cu"
    source.write_text("\n".join(lines))
    subprocess.run(
        [str(shutil.which(COMPILER)), "-std=c++17", "-c", str(source), "-o", str(tmp_path / "s.o")], check=True
    )
