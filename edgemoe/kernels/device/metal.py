"""Apple's devices, by Metal through the runtime of Objective-C: no package is needed.

Experimental: no Mac has run this yet. A device's memory is the processor's, so weights are shared where they begin at a
page, and copied where not.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Sequence
from ctypes import c_bool, c_char_p, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np

from edgemoe.kernels.device.choosing import choose
from edgemoe.kernels.device.entries import program_text
from edgemoe.kernels.device.runtime import Argument, Block, CopiesInLine, DeviceError, DeviceMemoryError, Place
from edgemoe.kernels.device.table import kernels
from edgemoe.kernels.operations import Bytes
from edgemoe.process import available_memory_bytes

LONGEST_WAIT_SECONDS = 60.0
_ITEMS_AT_ONCE = 64
_SHARED_MEMORY = 0
"""The storage mode (MTLResourceStorageModeShared) of memory that both have."""
_SAFE_MATHEMATICS = 0
"""MTLMathModeSafe, which macOS 15 has in place of fast mathematics that is switched off."""
_COMPLETED, _FAILED = 4, 5
"""States of a command buffer."""


class _Size(ctypes.Structure):
    """MTLSize."""

    _fields_ = (("width", c_size_t), ("height", c_size_t), ("depth", c_size_t))


class _ObjectiveC:
    """Messages to objects."""

    metal: Any
    _runtime: Any
    _send: int

    def __init__(self) -> None:
        """Raises DeviceError where there is no Metal."""
        if platform.system() != "Darwin":
            raise DeviceError("Metal is part of macOS, and this is another system.", "Go without it.")
        try:
            self.metal = ctypes.CDLL("/System/Library/Frameworks/Metal.framework/Metal")
            self._runtime = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        except OSError as error:
            raise DeviceError(f"Metal cannot be loaded: {error}.", "Go without it.") from error
        for name in ("sel_registerName", "objc_getClass", "objc_autoreleasePoolPush"):
            getattr(self._runtime, name).restype = c_void_p
        self._runtime.objc_autoreleasePoolPop.argtypes = [c_void_p]
        self.metal.MTLCopyAllDevices.restype = c_void_p
        self._send = ctypes.cast(self._runtime.objc_msgSend, c_void_p).value or 0

    def send(self, to: Any, message: str, *arguments: Any, result: Any = c_void_p) -> Any:
        """Send a message; arguments are objects of ctypes, which say their types."""
        types = [c_void_p, c_void_p, *map(type, arguments)]
        selector = self._runtime.sel_registerName(message.encode())
        return ctypes.CFUNCTYPE(result, *types)(self._send)(to, selector, *arguments)

    def make(self, name: str) -> Any:
        """Return a new object of a class."""
        made = self._runtime.objc_getClass(name.encode())
        return self.send(self.send(made, "alloc"), "init")

    def string(self, text: str) -> c_void_p:
        kind = self._runtime.objc_getClass(b"NSString")
        return c_void_p(self.send(kind, "stringWithUTF8String:", c_char_p(text.encode())))

    def text(self, string: Any) -> str:
        found = self.send(string, "UTF8String", result=c_char_p) if string else None
        return found.decode("utf-8", "replace") if found else "no reason given"

    def pool(self) -> Any:
        """Begin a pool of temporary objects, which `drain` frees."""
        return self._runtime.objc_autoreleasePoolPush()

    def drain(self, pool: Any) -> None:
        self._runtime.objc_autoreleasePoolPop(pool)


class _Buffer:
    """Memory that both have, which is released with this object; `host` keeps adopted bytes alive."""

    def __init__(self, objc: _ObjectiveC, handle: int, size: int, host: Bytes | None = None) -> None:
        self._objc, self.handle, self._host = objc, handle, host
        address = objc.send(handle, "contents")
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def __del__(self) -> None:
        self._objc.send(self.handle, "release", result=None)


class MetalRuntime(CopiesInLine):
    """One device, with a queue in which everything runs in order; launches are collected until somebody waits."""

    unified = coherent = True

    def __init__(self, which: str = "", longest_wait_seconds: float = LONGEST_WAIT_SECONDS) -> None:
        """Open the device of a number, or the one in whose name letters are found; else the first.

        Raises DeviceError where there is no such device, or it fails.
        """
        self._objc = objc = _ObjectiveC()
        self._longest_wait_seconds = longest_wait_seconds
        handles = _handles(objc)
        names = [_name(objc, handle) for handle in handles]
        number = choose("Metal", names, which)
        self.name, self._device = names[number], handles[number]
        pool = objc.pool()
        self._queue = objc.send(self._device, "newCommandQueue")
        self._states = self._compiled()
        objc.drain(pool)
        self._pool = self._commands = self._encoder = None
        self._nothing = self.allocate(16)
        self._kept: list[_Buffer] = [self._nothing]
        """Buffers that launches which have not run yet refer to."""

    def free_bytes(self) -> int:
        return available_memory_bytes()

    def allocate(self, size: int) -> _Buffer:
        length = c_size_t(size)
        handle = self._objc.send(self._device, "newBufferWithLength:options:", length, c_size_t(_SHARED_MEMORY))
        if not handle:
            raise DeviceMemoryError(f"The device {self.name} cannot be given {size:,} bytes of memory.")
        return _Buffer(self._objc, handle, size)

    def adopt(self, host: Bytes) -> _Buffer | None:
        """Share bytes that begin at a page and fill pages; None for others."""
        address, page = host.__array_interface__["data"][0], mmap.PAGESIZE
        if address % page or host.size % page:
            return None
        message = "newBufferWithBytesNoCopy:length:options:deallocator:"
        given = c_void_p(address), c_size_t(host.size), c_size_t(_SHARED_MEMORY), c_void_p()
        handle = self._objc.send(self._device, message, *given)
        return _Buffer(self._objc, handle, host.size, host) if handle else None

    def upload(self, to: Place, host: Bytes) -> None:
        self.finish()  # what was launched reads the bytes that were there
        to.block.buffer.bytes[to.at : to.at + host.size] = host

    def download(self, of: Place, size: int) -> Bytes:
        self.finish()
        copied: Bytes = of.block.buffer.bytes[of.at : of.at + size].copy()
        return copied

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        objc = self._objc
        if self._encoder is None:
            self._pool = objc.pool()
            self._commands = objc.send(self._queue, "commandBuffer")
            self._encoder = objc.send(self._commands, "computeCommandEncoder")  # runs one kernel after the other
        objc.send(self._encoder, "setComputePipelineState:", c_void_p(self._states[kernel]), result=None)
        for number, argument in enumerate((*arguments, items)):
            index = c_size_t(number)
            if argument is None or isinstance(argument, Place):
                block, at = (Block(self._nothing), 0) if argument is None else argument
                self._kept.append(block.buffer)
                given = c_void_p(block.buffer.handle), c_size_t(at), index
                objc.send(self._encoder, "setBuffer:offset:atIndex:", *given, result=None)
            else:
                value = ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int32(argument)
                given = c_void_p(ctypes.addressof(value)), c_size_t(4), index
                objc.send(self._encoder, "setBytes:length:atIndex:", *given, result=None)
        groups, group = _Size(-(-items // _ITEMS_AT_ONCE), 1, 1), _Size(_ITEMS_AT_ONCE, 1, 1)
        objc.send(self._encoder, "dispatchThreadgroups:threadsPerThreadgroup:", groups, group, result=None)

    def finish(self) -> None:
        """Run what was launched. Raises DeviceError if it fails, or never ends."""
        if self._encoder is None:
            return
        objc, commands, pool = self._objc, self._commands, self._pool
        objc.send(self._encoder, "endEncoding", result=None)
        self._encoder = None
        objc.send(commands, "commit", result=None)
        began = time.monotonic()
        while (state := objc.send(commands, "status", result=c_uint64)) < _COMPLETED:
            if time.monotonic() - began > self._longest_wait_seconds:
                raise DeviceError(f"The device {self.name} has not answered in time.", "Go without it.")
            time.sleep(0)
        told = self._reason(objc.send(commands, "error")) if state == _FAILED else ""
        objc.drain(pool)
        self._kept = [self._nothing]
        if state == _FAILED:
            raise DeviceError(f"The device {self.name} has failed: {told}.", "Go without it.")

    def close(self) -> None:
        """Run what was launched; memory is freed with what refers to it."""
        self.finish()

    def _reason(self, error: Any) -> str:
        return self._objc.text(self._objc.send(error, "localizedDescription")) if error else "no reason given"

    def _compiled(self) -> dict[str, int]:
        """Compile the text; returns a pipeline for each kernel."""
        objc, error = self._objc, c_void_p()
        options = objc.make("MTLCompileOptions")
        if objc.send(options, "respondsToSelector:", _selector(objc, "setMathMode:"), result=c_bool):
            objc.send(options, "setMathMode:", c_size_t(_SAFE_MATHEMATICS), result=None)
        else:
            objc.send(options, "setFastMathEnabled:", c_bool(False), result=None)
        reason = c_void_p(ctypes.addressof(error))
        text = objc.string(program_text("metal"))
        library = objc.send(self._device, "newLibraryWithSource:options:error:", text, c_void_p(options), reason)
        if not library:
            raise DeviceError(f"Metal refuses the device's text: {self._reason(error.value)[:2000]}")
        states = {}
        for name in kernels():
            function = objc.send(library, "newFunctionWithName:", objc.string(f"em_{name}"))
            message = "newComputePipelineStateWithFunction:error:"
            states[name] = objc.send(self._device, message, c_void_p(function), reason)
            if not states[name]:
                raise DeviceError(f"The device {self.name} refuses {name}: {self._reason(error.value)[:2000]}")
        return states


def devices() -> list[str]:
    """Return the names of all devices. Raises DeviceError where there is no Metal."""
    objc = _ObjectiveC()
    return [_name(objc, handle) for handle in _handles(objc)]


def _handles(objc: _ObjectiveC) -> list[int]:
    found = objc.metal.MTLCopyAllDevices()
    count = objc.send(found, "count", result=c_size_t)
    return [objc.send(found, "objectAtIndex:", c_size_t(number)) for number in range(count)]


def _name(objc: _ObjectiveC, handle: int) -> str:
    return objc.text(objc.send(handle, "name"))


def _selector(objc: _ObjectiveC, name: str) -> c_void_p:
    return c_void_p(objc._runtime.sel_registerName(name.encode()))
