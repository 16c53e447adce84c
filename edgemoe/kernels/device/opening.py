"""Opens the device of a name, and asks it what is known before it may answer."""

from __future__ import annotations

from edgemoe.errors import UsageError
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.known_answers import check
from edgemoe.kernels.device.runtime import Runtime
from edgemoe.kernels.native.backend import NativeBackend

DEVICES = ("host", "opencl", "cuda")
"""The kinds of devices; after `opencl:` or `cuda:` a device's number, or a part of its name or of its platform's."""


def open_device(name: str, threads: int, isa: str | None = None) -> DeviceBackend:
    """Open the native backend with a device beside it.

    Raises UsageError for an unknown name, and DeviceError for a device that cannot be opened, or gives other bits.
    """
    return beside_device(_open_runtime(name), threads, isa)


def beside_device(runtime: Runtime, threads: int, isa: str | None = None) -> DeviceBackend:
    """Return the native backend with a device beside it. Raises DeviceError if that fails, or gives other bits."""
    backend, native = DeviceBackend(runtime, threads, isa), NativeBackend(1, isa)
    try:
        check(backend, native)
    except BaseException:
        backend.close()
        raise
    finally:
        native.close()
    return backend


def _open_runtime(name: str) -> Runtime:
    kind, _, which = name.partition(":")
    if kind == "opencl":
        from edgemoe.kernels.device.opencl import OpenClRuntime

        return OpenClRuntime(which)
    if kind == "cuda":
        from edgemoe.kernels.device.cuda import CudaRuntime

        return CudaRuntime(which)
    if name == "host":
        return HostRuntime()
    raise UsageError(f"The device {name} is unknown: expected {', '.join(DEVICES)}.", "Choose one of those, or none.")
