"""NVIDIA's devices, through the driver alone: no package and no toolkit is needed.

Copies go by way of pinned memory, which the device reads and writes while the processor goes on; so a wait has an end,
though a device may never answer.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any, NamedTuple

import numpy as np

from edgemoe.kernels.device import driver as cu
from edgemoe.kernels.device.choosing import choose
from edgemoe.kernels.device.ptx import OLDEST, shipped_ptx
from edgemoe.kernels.device.runtime import Argument, DeviceError, DeviceMemoryError, Place
from edgemoe.kernels.device.table import kernels
from edgemoe.kernels.operations import Bytes

PART_BYTES = 4 << 20
"""Two parts of the pinned memory take copies to the device in turn, one has copies from it, and two take in turn what
is copied beside what the device computes."""
_FROM, _BESIDE, _PARTS = 2, 3, 5
"""The part for copies from the device, the first of those for copies beside, and how many there are."""
LONGEST_WAIT_SECONDS = 60.0
_ITEMS_AT_ONCE = 128
_SPIN_SECONDS = 0.002
_NAME_BYTES, _LOG_BYTES = 256, 8192


class _Memory:
    """Bytes of the device."""

    def __init__(self, address: int) -> None:
        self.address = address


class _Beside(NamedTuple):
    """A copy beside what the device computes: the number of its last part, and when it began."""

    number: int
    began: float


class CudaRuntime:
    """One device, with a stream in which everything runs in order, and another for copies beside it."""

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
        self._context, self._module, self._stream, self._beside, self._pinned = (c_void_p() for _ in range(5))
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
        for stream in (self._stream, self._beside):
            self._call("given a stream", "cuStreamCreate", byref(stream), 1)  # apart from those of others
        for _ in range(_PARTS):
            event = c_void_p()
            self._call("given an event", "cuEventCreate", byref(event), cu.WITHOUT_TIMING)
            self._events.append(event)
        self._call("given pinned memory", "cuMemHostAlloc", byref(self._pinned), _PARTS * PART_BYTES, 0)
        memory = (ctypes.c_uint8 * (_PARTS * PART_BYTES)).from_address(self._pinned.value or 0)
        self._parts = np.ctypeslib.as_array(memory).reshape(_PARTS, PART_BYTES)
        self._part = self._used = 0
        self._copies_beside = 0
        """How many parts were copied beside so far: one after the other in turn, so those before the last two ended."""

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
        done = 0
        while done < host.size:
            if self._used == PART_BYTES:
                self._record(self._part)
                self._part, self._used = 1 - self._part, 0
                self._wait(self._part)
            size = min(host.size - done, PART_BYTES - self._used)
            part = self._parts[self._part, self._used : self._used + size]
            part[:] = host[done : done + size]
            address = to.block.buffer.address + to.at + done
            self._call("written to", "cuMemcpyHtoDAsync_v2", address, part.ctypes.data, size, self._stream)
            self._used += size
            done += size

    def download(self, of: Place, size: int) -> Bytes:
        copied = np.empty(size, np.uint8)
        parts = [Place(of.block, of.at + begin) for begin in range(0, size, PART_BYTES)]
        for begin, place in zip(range(0, size, PART_BYTES), parts, strict=True):
            (part,) = self._read([(place, min(PART_BYTES, size - begin))])
            copied[begin : begin + part.size] = part
        return copied

    def download_all(self, parts: Sequence[tuple[Place, int]]) -> Iterator[Bytes]:
        """Yield copies, waiting once for all that fit a part of the pinned memory together."""
        batch: list[tuple[Place, int]] = []
        left = PART_BYTES
        for place, size in parts:
            if size > left:
                yield from [one.copy() for one in self._read(batch)]
                batch, left = [], PART_BYTES
            if size > PART_BYTES:
                yield self.download(place, size)
                continue
            batch.append((place, size))
            left -= size
        yield from [one.copy() for one in self._read(batch)]

    def _read(self, parts: Sequence[tuple[Place, int]]) -> list[Bytes]:
        """Return parts of the pinned memory, to which the device's were copied: they fit it together."""
        if not parts:
            return []
        self._enter()
        found, used = [], 0
        for of, size in parts:
            part = self._parts[_FROM, used : used + size]
            address = of.block.buffer.address + of.at
            self._call("read from", "cuMemcpyDtoHAsync_v2", part.ctypes.data, address, size, self._stream)
            found.append(part)
            used += size
        self._record(_FROM)
        self._wait(_FROM)
        return found

    def upload_beside(self, to: Place, host: Bytes) -> _Beside | None:
        self._enter()
        began, done = time.monotonic(), 0
        while done < host.size:
            part = _BESIDE + self._copies_beside % (_PARTS - _BESIDE)
            if self._copies_beside >= _PARTS - _BESIDE:
                if not done and self._status(part) == cu.NOT_READY:
                    return None
                self._wait(part)
            size = min(host.size - done, PART_BYTES)
            pinned = self._parts[part, :size]
            pinned[:] = host[done : done + size]
            address = to.block.buffer.address + to.at + done
            self._call("written to", "cuMemcpyHtoDAsync_v2", address, pinned.ctypes.data, size, self._beside)
            self._record(part, self._beside)
            self._copies_beside += 1
            done += size
        return _Beside(self._copies_beside - 1, began)

    def arrived(self, copy: _Beside) -> bool:
        if copy.number < self._copies_beside - (_PARTS - _BESIDE):
            return True  # its part of the pinned memory was waited for
        self._enter()
        status = self._status(_BESIDE + copy.number % (_PARTS - _BESIDE))
        if status == cu.NOT_READY:
            self._check_wait(time.monotonic() - copy.began)
        elif status:
            raise self._error("waited for", status)
        return status != cu.NOT_READY

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
        self._call(f"asked for {kernel}", "cuLaunchKernel", function, *shape, self._stream, places, None)

    def finish(self) -> None:
        self._enter()
        self._record(_FROM)
        self._wait(_FROM)

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
        for stream in (self._stream, self._beside):
            if stream:
                self._driver.cuStreamDestroy_v2(stream)
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

    def _record(self, event: int, stream: c_void_p | None = None) -> None:
        self._call("waited for", "cuEventRecord", self._events[event], stream or self._stream)

    def _status(self, event: int) -> int:
        status: int = self._driver.cuEventQuery(self._events[event])
        return status

    def _check_wait(self, waited: float) -> None:
        """Raise DeviceError after so many seconds, if nothing may take so long."""
        if waited > self._longest_wait_seconds:
            self._hangs = True
            raise DeviceError(f"The device {self.name} has not answered for {waited:.0f} s.", "Go without it.")

    def _wait(self, event: int) -> None:
        """Return once all that was in the stream before this event has run. Raises DeviceError if that never ends."""
        began = time.monotonic()
        while (status := self._status(event)) == cu.NOT_READY:
            waited = time.monotonic() - began
            self._check_wait(waited)
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
