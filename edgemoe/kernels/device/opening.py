"""Finds devices, opens the one that is asked for, and asks it what is known before it may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemoe.errors import UsageError
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.known_answers import check
from edgemoe.kernels.device.runtime import DeviceError, Runtime
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.sizes import format_size, parse_size

AUTO_SHARE = 0.85
"""The share of a device's free memory that is its budget: the rest is for the driver, and for the screen."""


@dataclass(frozen=True)
class Found:
    """A device that is here, or a kind of which there is none."""

    device: str
    """As one asks for it, such as `cuda:0`; of a kind of which there is none, its name."""
    name: str
    problem: str
    """Why it cannot be used; an empty text where nothing is known against it."""
    processor: bool = False
    """Whether it is the processor itself, which gains nothing by it."""


def open_device(device: str, vram: str | int | None, threads: int, isa: str | None = None) -> NativeBackend:
    """Open the native backend with a device beside it; with `auto` without, where none works.

    Raises UsageError for a budget that the device does not have, and DeviceError for one that cannot be opened, or that
    gives other bits.
    """
    if device != "auto":
        return beside_device(open_runtime(device), threads, isa, vram)
    for one in found_devices():
        if one.problem or one.processor:
            continue
        try:
            return beside_device(open_runtime(one.device), threads, isa, vram)
        except DeviceError:
            continue  # `tried` says why
    return NativeBackend(threads, isa)


def beside_device(
    runtime: Runtime, threads: int, isa: str | None = None, vram: str | int | None = None
) -> DeviceBackend:
    """Return the native backend with a device beside it; raises as `open_device`, after closing it."""
    try:
        backend, native = DeviceBackend(runtime, threads, isa, _budget(runtime, vram)), NativeBackend(1, isa)
    except BaseException:
        runtime.close()
        raise
    try:
        check(backend, native)
        backend.tier = None  # a model has its own
    except BaseException:
        backend.close()
        raise
    finally:
        native.close()
    return backend


def _budget(runtime: Runtime, vram: str | int | None) -> int | None:
    """Return the budget of a device's own memory in bytes; None where it has none of its own.

    That of `floor` follows once a model's programs are known (`DeviceBackend.hold_to_floor`).
    """
    if runtime.unified:
        if vram in (None, "auto"):
            return None
        raise UsageError(
            f"`vram={vram}`: the device {runtime.name} has the processor's memory, whose budget is `ram`.",
            "Leave it out.",
        )
    free = runtime.free_bytes()
    if vram in (None, "auto", "floor"):
        return int(AUTO_SHARE * free)
    size = parse_size(vram) if isinstance(vram, str) else int(vram or 0)
    if not 0 < size <= free:
        raise UsageError(
            f"`vram={vram}`: expected up to {format_size(free)}, which is free on the device {runtime.name}.",
            "Give less, or leave it out.",
        )
    return size


def open_runtime(device: str) -> Runtime:
    """Open a device by its kind, and its number or letters of its name. Raises DeviceError."""
    kind, _, which = device.partition(":")
    if kind == "cuda":
        from edgemoe.kernels.device.cuda import CudaRuntime

        return CudaRuntime(which)
    if kind == "metal":
        from edgemoe.kernels.device.metal import MetalRuntime

        return MetalRuntime(which)
    if kind == "opencl":
        from edgemoe.kernels.device.opencl import OpenClRuntime

        return OpenClRuntime(which)
    return HostRuntime()


def found_devices() -> list[Found]:
    """Return all devices that are here, and of each kind without one why there is none; the best kinds first."""
    found = []
    for kind, listed in _LISTS.items():
        try:
            of_kind = listed()
        except DeviceError as error:
            found.append(Found(kind, "", error.message))
            continue
        found += [Found(f"{kind}:{number}", *one) for number, one in enumerate(of_kind)]
        if not of_kind:
            found.append(Found(kind, "", f"There is no device of the kind {kind} here."))
    return found


def tried(one: Found) -> Found:
    """Return what is known of a device once its known answers were asked for."""
    if one.problem:
        return one
    try:
        beside_device(open_runtime(one.device), 1).close()
    except DeviceError as error:
        return Found(one.device, one.name, error.message, one.processor)
    return one


def _cuda() -> list[tuple[str, str, bool]]:
    from edgemoe.kernels.device.cuda import devices
    from edgemoe.kernels.device.driver import load_driver

    return [(name, problem, False) for name, problem in devices(load_driver())]


def _metal() -> list[tuple[str, str, bool]]:
    from edgemoe.kernels.device.metal import devices

    return [(name, "", False) for name in devices()]


def _opencl() -> list[tuple[str, str, bool]]:
    from edgemoe.kernels.device.opencl import devices

    return devices()


_LISTS: dict[str, Callable[[], list[tuple[str, str, bool]]]] = {"cuda": _cuda, "metal": _metal, "opencl": _opencl}
