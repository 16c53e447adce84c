"""NVIDIA's devices, through the driver alone: no package and no toolkit is needed.

Copies go by way of pinned memory, which the device reads and writes while the processor goes on; so a wait has an end,
though a device may never answer.
"""

from __future__ import annotations

import ctypes
import itertools
import time
import weakref
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np

from edgemoe.kernels.device import driver as cu
from edgemoe.kernels.device.choosing import choose
from edgemoe.kernels.device.ptx import OLDEST, shipped_ptx
from edgemoe.kernels.device.runtime import Argument, Copies, DeviceError, DeviceMemoryError, Mark, Place
from edgemoe.kernels.device.table import kernels
from edgemoe.kernels.operations import Bytes

PART_BYTES = 4 << 20
"""Two parts of the pinned memory of each stream take copies to the device in turn, and one has copies from it."""
_MARKS = 8
"""Events that are points in turn (`runtime.Mark`)."""
LONGEST_WAIT_SECONDS = 60.0
_ITEMS_AT_ONCE = 128
_SPIN_SECONDS = 0.002
_NAME_BYTES, _LOG_BYTES = 256, 8192


class _Memory:
    """Bytes of the device."""

    def __init__(self, address: int) -> None:
        self.address = address


class _Stream:
    """A stream, and the parts of pinned memory by way of which it copies to the device."""

    def __init__(self, handle: c_void_p, parts: Any, events: Sequence[c_void_p]) -> None:
        self.handle, self.parts, self.events = handle, parts, events
        self.part = self.used = 0


class CudaRuntime:
    """One device, with a stream in which everything runs in order, and one of copies beside it."""

    unified = coherent = False

    def __init__(self, which: str = "", driver: Any = None, longest_wait_seconds: float = LONGEST_WAIT_SECONDS) -> None:
        """Open the device of a number, or the one in whose name letters are found; else the first.

        Raises DeviceError where there is no such device, it is too old, or it fails.
        """
        self.name = "cuda"
        self._driver = cu.load_driver() if driver is None else driver
        self._longest_wait_seconds = longest_wait_seconds
        self._live: set[int] = set()
        self._events: list[c_void_p] = []
        self._context, self._module, self._pinned = (c_void_p() for _ in range(3))
        self._handles: list[c_void_p] = []
        self._hangs = self._closed = False
        found = devices(self._driver)
        number = choose("CUDA", [name for name, _ in found], which)
        self.name, problem = found[number]
        if problem:
            raise DeviceError(problem, "Choose another, or go without.")
        self._device = c_int()
        self._call("found", "cuDeviceGet", byref(self._device), number)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._call("opened", "cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self._enter()
        self._load()
        self._functions = {name: c_void_p() for name in kernels()}
        for name, function in self._functions.items():
            self._call(f"asked for {name}", "cuModuleGetFunction", byref(function), self._module, f"em_{name}".encode())
        for _ in range(2):
            handle = c_void_p()
            self._call("given a stream", "cuStreamCreate", byref(handle), 1)  # apart from those of others
            self._handles.append(handle)
        for _ in range(5 + _MARKS):
            event = c_void_p()
            self._call("given an event", "cuEventCreate", byref(event), cu.WITHOUT_TIMING)
            self._events.append(event)
        self._call("given pinned memory", "cuMemHostAlloc", byref(self._pinned), 5 * PART_BYTES, 0)
        memory = (ctypes.c_uint8 * (5 * PART_BYTES)).from_address(self._pinned.value or 0)
        parts, events = np.ctypeslib.as_array(memory).reshape(5, PART_BYTES), self._events
        self._stream = _Stream(self._handles[0], parts[:2], events[:2])
        self._beside = _Stream(self._handles[1], parts[2:4], events[2:4])
        self._download_part, self._finished = parts[4], events[4]
        self._marks = itertools.cycle(events[5:])

    def _load(self) -> None:
        """Compile the kernels for this device; the driver keeps what it compiled for later starts."""
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (c_int * 2)(cu.ERROR_LOG, cu.ERROR_LOG_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        image = ctypes.create_string_buffer(shipped_ptx().encode())
        status = self._driver.cuModuleLoadDataEx(byref(self._module), ctypes.addressof(image), 2, options, values)
        if status:
            told = log.value.decode("utf-8", "replace").strip()
            raise self._error(f"given its kernels{f' ({told})' * bool(told)}", status)

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self._enter()
        self._call("asked for its free memory", "cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, size: int) -> _Memory:
        address = c_uint64()
        self._enter()
        self._call(f"given {size:,} bytes of memory", "cuMemAlloc_v2", byref(address), size)
        memory = _Memory(address.value)
        self._live.add(memory.address)
        weakref.finalize(memory, self._free, memory.address).atexit = False
        return memory

    def adopt(self, host: Bytes) -> None:
        """Return None: weights are copied."""
        return

    def upload(self, to: Place, host: Bytes) -> None:
        self._enter()
        self._copy(to, host, self._stream)

    def _copy(self, to: Place, host: Bytes, stream: _Stream) -> None:
        done = 0
        while done < host.size:
            if stream.used == PART_BYTES:
                self._record(stream.events[stream.part], stream)
                stream.part, stream.used = 1 - stream.part, 0
                self._wait(stream.events[stream.part])
            size = min(host.size - done, PART_BYTES - stream.used)
            part = stream.parts[stream.part, stream.used : stream.used + size]
            part[:] = host[done : done + size]
            address = to.block.buffer.address + to.at + done
            self._call("written to", "cuMemcpyHtoDAsync_v2", address, part.ctypes.data, size, stream.handle)
            stream.used += size
            done += size

    def download(self, of: Place, size: int) -> Bytes:
        copied = np.empty(size, np.uint8)
        self._enter()
        for begin in range(0, size, PART_BYTES):
            part = self._download_part[: min(PART_BYTES, size - begin)]
            address = of.block.buffer.address + of.at + begin
            self._call("read from", "cuMemcpyDtoHAsync_v2", part.ctypes.data, address, part.size, self._stream.handle)
            self._record(self._finished, self._stream)
            self._wait(self._finished)
            copied[begin : begin + part.size] = part
        return copied

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        packed: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Place):
                packed.append(c_uint64(argument.block.buffer.address + argument.at))
            elif argument is None:
                packed.append(c_uint64(0))
            else:
                packed.append(ctypes.c_float(argument) if isinstance(argument, float) else c_int(argument))
        packed.append(c_int(items))
        places = (c_void_p * len(packed))(*map(ctypes.addressof, packed))
        shape = (-(-items // _ITEMS_AT_ONCE), 1, 1, _ITEMS_AT_ONCE, 1, 1, 0)
        self._enter()
        function = self._functions[kernel]
        self._call(f"asked for {kernel}", "cuLaunchKernel", function, *shape, self._stream.handle, places, None)

    def mark(self) -> Mark:
        self._enter()
        return self._record(next(self._marks), self._stream)

    def copy_beside(self, copies: Copies, after: Mark) -> Mark:
        self._enter()
        self._let_wait(self._beside, after)
        for to, host in copies:
            self._copy(to, host, self._beside)
        return self._record(next(self._marks), self._beside)

    def wait_for(self, mark: Mark) -> None:
        self._enter()
        self._let_wait(self._stream, mark)

    def _let_wait(self, stream: _Stream, mark: Mark) -> None:
        if mark is not None:
            self._call("waited for", "cuStreamWaitEvent", stream.handle, mark, 0)

    def finish(self) -> None:
        self._enter()
        for stream in (self._beside, self._stream):
            self._record(self._finished, stream)
            self._wait(self._finished)

    def close(self) -> None:
        """Free all that this runtime has, unless the device did not answer in time: freeing would wait for it."""
        if self._closed:
            return
        self._closed = True
        if self._hangs or not self._context:
            return
        self._driver.cuCtxSetCurrent(self._context)
        for address in self._live:
            self._driver.cuMemFree_v2(address)
        self._live.clear()
        for event in self._events:
            self._driver.cuEventDestroy_v2(event)
        if self._pinned:
            self._driver.cuMemFreeHost(self._pinned)
        for handle in self._handles:
            self._driver.cuStreamDestroy_v2(handle)
        if self._module:
            self._driver.cuModuleUnload(self._module)
        self._driver.cuDevicePrimaryCtxRelease_v2(self._device)

    def _enter(self) -> None:
        """Make the device the one of this thread."""
        if self._closed:
            raise DeviceError(f"The device {self.name} is closed.")
        self._call("opened", "cuCtxSetCurrent", self._context)

    def _free(self, address: int) -> None:
        """Free memory to which nobody refers any more; a device that has failed may refuse, and it does not matter."""
        if address in self._live and not self._hangs:
            self._live.remove(address)
            self._driver.cuCtxSetCurrent(self._context)
            self._driver.cuMemFree_v2(address)

    def _record(self, event: c_void_p, stream: _Stream) -> c_void_p:
        self._call("waited for", "cuEventRecord", event, stream.handle)
        return event

    def _wait(self, event: c_void_p) -> None:
        """Return once all that was in the stream before this event has run. Raises DeviceError if that never ends."""
        began = time.monotonic()
        while (status := self._driver.cuEventQuery(event)) == cu.NOT_READY:
            waited = time.monotonic() - began
            if waited > self._longest_wait_seconds:
                self._hangs = True
                raise DeviceError(f"The device {self.name} has not answered for {waited:.0f} s.", "Go without it.")
            time.sleep(0 if waited < _SPIN_SECONDS else 1e-4)
        if status:
            raise self._error("waited for", status)

    def _call(self, what: str, function: str, *arguments: Any) -> None:
        """Call a function of the driver; `what` says what cannot be done with the device if that fails."""
        status = getattr(self._driver, function)(*arguments)
        if status:
            raise self._error(what, status)

    def _error(self, what: str, status: int) -> DeviceError:
        kind = DeviceMemoryError if status == cu.OUT_OF_MEMORY else DeviceError
        return kind(f"The device {self.name} cannot be {what}: {error_text(self._driver, status)}.")


def devices(driver: Any) -> list[tuple[str, str]]:
    """Return the names of all devices, and of each why it cannot be used, if so. Raises DeviceError if that fails."""
    status = driver.cuInit(0)
    if status == cu.NO_DEVICE:
        return []
    count = c_int()
    status = status or driver.cuDeviceGetCount(byref(count))
    if status:
        raise DeviceError(f"The NVIDIA driver cannot be used: {error_text(driver, status)}.", "Go without it.")
    return [_described(driver, number) for number in range(count.value)]


def _described(driver: Any, number: int) -> tuple[str, str]:
    device, letters = c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    capability = (c_int(), c_int())
    status = driver.cuDeviceGet(byref(device), number) or driver.cuDeviceGetName(letters, _NAME_BYTES, device)
    for value, attribute in zip(capability, (cu.CAPABILITY_MAJOR, cu.CAPABILITY_MINOR), strict=True):
        status = status or driver.cuDeviceGetAttribute(byref(value), attribute, device)
    name = letters.value.decode("utf-8", "replace").strip() or f"cuda:{number}"
    if status:
        return name, f"The device {name} cannot be asked what it is: {error_text(driver, status)}."
    found = tuple(value.value for value in capability)
    if found < OLDEST:
        expected, has = (".".join(map(str, one)) for one in (OLDEST, found))
        return name, f"The device {name} is too old: expected compute capability {expected} or later, found {has}."
    return name, ""


def error_text(driver: Any, status: int) -> str:
    """Return the driver's own name and text of a status."""
    words = []
    for function in (driver.cuGetErrorName, driver.cuGetErrorString):
        text = c_char_p()
        if not function(status, byref(text)) and text.value:
            words.append(text.value.decode("utf-8", "replace"))
    return " ".join(words[:1] + [f"({word})" for word in words[1:]]) or f"error {status}"
