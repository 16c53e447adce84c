"""NVIDIA's driver without a card: its functions over memory of this process, which fail when a test says so."""

# ruff: noqa: N802, N815 - methods have the names of the driver's functions

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemoe.kernels.device.driver import FUNCTIONS, NOT_READY, NUMBERS, OUT_OF_MEMORY
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.runtime import Block, Place
from edgemoe.kernels.device.table import kernels

LOST = 719
_TEXTS = {
    2: (b"CUDA_ERROR_OUT_OF_MEMORY", b"out of memory"),
    100: (b"CUDA_ERROR_NO_DEVICE", b"no CUDA-capable device is detected"),
    218: (b"CUDA_ERROR_INVALID_PTX", b"a PTX JIT compilation failed"),
    LOST: (b"CUDA_ERROR_LAUNCH_FAILED", b"unspecified launch failure"),
}


class FakeCuda:
    """The driver. Each function gets its arguments as the real one would, by way of ctypes.

    Streams run at once. Kernels are those of `host`, if given; else a launch does nothing, and results are zeros.
    """

    def __init__(
        self,
        names: Sequence[str] = ("Fake Card",),
        capabilities: Sequence[tuple[int, int]] = ((7, 5),),
        memory_bytes: int = 1 << 30,
        host: HostRuntime | None = None,
    ) -> None:
        self.names, self.capabilities, self.memory_bytes = names, capabilities, memory_bytes
        self._host = host
        self.calls_left: int | None = None
        """After so many calls every call fails."""
        self.calls: list[str] = []
        self.statuses: dict[str, int] = {}
        """The statuses that functions return without doing anything, by their names."""
        self.log = b""
        """The words of the compiler of PTX."""
        self.held: dict[int, Any] = {}
        """Memory and handles that nobody has freed, by their addresses."""
        self.device_bytes = self.most_device_bytes = 0
        self._entries = ctypes.create_string_buffer(4096)  # a function's handle is an address in it
        self._kernels = list(kernels())
        for name, types in FUNCTIONS.items():
            called = functools.partial(self._called, name)
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *types)(called))

    def _called(self, name: str, *arguments: Any) -> int:
        if name.startswith("cuGetError"):
            text = _TEXTS.get(arguments[0])
            if text is None:
                return 1
            arguments[1][0] = text[name == "cuGetErrorString"]
            return 0
        self.calls.append(name)
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                return LOST
        if name in self.statuses:
            if name == "cuModuleLoadDataEx":
                ctypes.memmove(arguments[4][0], self.log, len(self.log) + 1)
            return self.statuses[name]
        made = getattr(self, "_" + name.partition("_")[0], None)
        return 0 if made is None else made(*arguments) or 0

    def _hold(self, size: int) -> int:
        memory = np.zeros(size + 256, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 256
        self.held[address] = memory
        return int(address)

    def _release(self, address: int, *_: Any) -> None:
        del self.held[address]

    _cuStreamDestroy = _cuEventDestroy = _cuModuleUnload = _cuMemFreeHost = _release

    def _make(self, out: Any, *_: Any) -> None:
        out[0] = self._hold(64)

    _cuStreamCreate = _cuEventCreate = _cuModuleLoadDataEx = _make

    def _cuDeviceGetCount(self, count: Any) -> None:
        count[0] = len(self.names)

    def _cuDeviceGet(self, device: Any, number: int) -> None:
        device[0] = number

    def _cuDeviceGetName(self, letters: int, size: int, device: int) -> None:
        ctypes.memmove(letters, self.names[device].encode() + b"\0", min(size, len(self.names[device]) + 1))

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        value[0] = self.capabilities[device][attribute == 76]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        self.held[-1 - device] = context[0] = 4096 + device

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        del self.held[-1 - device]

    def _cuModuleGetFunction(self, function: Any, module: int, name: bytes) -> None:
        function[0] = ctypes.addressof(self._entries) + self._kernels.index(name.decode().removeprefix("em_"))

    def _cuMemGetInfo(self, free: Any, total: Any) -> None:
        free[0], total[0] = self.memory_bytes - self.device_bytes, self.memory_bytes

    def _cuMemAlloc(self, out: Any, size: int) -> int:
        if self.device_bytes + size > self.memory_bytes:
            return OUT_OF_MEMORY
        out[0] = self._hold(size)
        self.device_bytes += size
        self.most_device_bytes = max(self.most_device_bytes, self.device_bytes)
        return 0

    def _cuMemFree(self, address: int) -> None:
        self.device_bytes -= self.held.pop(address).size - 256

    def _cuMemHostAlloc(self, out: Any, size: int, flags: int) -> None:
        out[0] = self._hold(size)

    def _cuMemcpyHtoDAsync(self, to: int, host: int, size: int, stream: int) -> None:
        ctypes.memmove(to, host, size)

    _cuMemcpyDtoHAsync = _cuMemcpyHtoDAsync

    def _cuLaunchKernel(self, function: int, *rest: Any) -> int:
        spec = kernels()[self._kernels[function - ctypes.addressof(self._entries)]]
        *shape, _, parameters, _ = rest
        types = [NUMBERS.get(one.type, ctypes.c_uint64) for one in spec.arguments] + [ctypes.c_int]
        values = [kind.from_address(parameters[number]).value for number, kind in enumerate(types)]
        items = values.pop()
        if not items <= shape[0] * shape[3] < items + shape[3]:
            return 1
        if self._host is not None:
            arguments = [
                value if one.is_number else _at(value) for one, value in zip(spec.arguments, values, strict=True)
            ]
            self._host.launch(spec.name, arguments, items)
        return 0

    def hang(self) -> None:
        """Let nothing that is asked for from now on ever end."""
        self.statuses["cuEventQuery"] = NOT_READY


def _at(address: int) -> Place | None:
    if not address:
        return None
    return Place(Block(np.frombuffer((ctypes.c_uint8 * 1).from_address(address), np.uint8)), 0)
