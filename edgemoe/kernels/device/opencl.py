"""OpenCL devices, through the package pyopencl."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgemoe.kernels.device.choosing import choose
from edgemoe.kernels.device.entries import program_text
from edgemoe.kernels.device.runtime import Argument, CopiesInLine, DeviceError, DeviceMemoryError, Place
from edgemoe.kernels.device.table import kernels
from edgemoe.kernels.operations import Bytes

OPTIONS = ("-cl-std=CL1.2", "-cl-fp32-correctly-rounded-divide-sqrt")
COPIES_BESIDE = 2
"""The most copies beside what the device computes that are under way."""
_ITEMS_AT_ONCE = 64
"""The work-items of a group: every device takes so many, and they share nothing."""


class OpenClRuntime(CopiesInLine):
    """One OpenCL device, with a queue in which everything runs in order, and another for copies beside it."""

    coherent = False

    def __init__(self, which: str = "", options: Sequence[str] = ()) -> None:
        """Open the device of a number, or the one in whose or whose platform's name letters are found; else the first.

        `options` for the compiler come after its own. Raises DeviceError where there is no such device, or it fails.
        """
        self._cl = _package()
        with self._told("opened"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever a compiler remarks
            found = _devices(self._cl)
            texts = [f"{_name(device)} {device.platform.version}" for device in found]
            device = found[choose("OpenCL", [_name(one) for one in found], which, texts)]
            self.name, self.unified = _name(device), bool(device.host_unified_memory)
            self._total_bytes = device.global_mem_size
            problem = _problem(self._cl, device)
            if problem:
                raise DeviceError(problem, "Go without it.")
            self._context = self._cl.Context([device])
            self._queue, self._beside = (self._cl.CommandQueue(self._context) for _ in range(2))
            program = self._cl.Program(self._context, program_text("opencl"))
            program.build(options=[*OPTIONS, *options], cache_dir=False)
            self._kernels = {name: self._cl.Kernel(program, f"em_{name}") for name in kernels()}
        self._begun: list[Any] = []
        """Copies beside that have not ended when last asked."""

    def free_bytes(self) -> int:
        """Return all bytes of the device: OpenCL does not tell which are free."""
        return int(self._total_bytes)

    def allocate(self, size: int) -> Any:
        with self._told(f"given {size:,} bytes of memory"):
            return self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)

    def adopt(self, host: Bytes) -> Any | None:
        """Share bytes with a device that has the host's memory; None with another.

        Its driver may keep what was there in a copy of its own, until it is told otherwise.
        """
        if not self.unified:
            return None
        access = self._cl.mem_flags.READ_WRITE if host.flags.writeable else self._cl.mem_flags.READ_ONLY
        flags = access | self._cl.mem_flags.USE_HOST_PTR
        with self._told(f"lent {host.size:,} bytes of memory"):
            return self._cl.Buffer(self._context, flags, hostbuf=host)

    def upload(self, to: Place, host: Bytes) -> None:
        with self._told("written to"):
            self._cl.enqueue_copy(self._queue, to.block.buffer, host, dst_offset=to.at, is_blocking=True)

    def download(self, of: Place, size: int) -> Bytes:
        copied = np.empty(size, np.uint8)
        with self._told("read from"):
            self._cl.enqueue_copy(self._queue, copied, of.block.buffer, src_offset=of.at, is_blocking=True)
        return copied

    def upload_beside(self, to: Place, host: Bytes) -> Any | None:
        """Begin a copy from a copy, which its event keeps."""
        if sum(not self.arrived(event) for event in self._begun) == COPIES_BESIDE:
            return None
        with self._told("written to"):
            event = self._cl.enqueue_copy(
                self._beside, to.block.buffer, host.copy(), dst_offset=to.at, is_blocking=False
            )
            self._beside.flush()
        self._begun.append(event)
        return event

    def arrived(self, copy: Any) -> bool:
        with self._told("written to"):
            status = copy.command_execution_status
            if status < 0:
                copy.wait()  # it tells the error
        done = status == self._cl.command_execution_status.COMPLETE
        if done and copy in self._begun:
            self._begun.remove(copy)
        return bool(done)

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        packed: list[Any] = []
        for argument in arguments:
            if argument is None or isinstance(argument, Place):
                packed += [argument.block.buffer, np.uint64(argument.at)] if argument else [None, np.uint64(0)]
            else:
                packed.append(np.float32(argument) if isinstance(argument, float) else np.int32(argument))
        groups = -(-items // _ITEMS_AT_ONCE)
        with self._told(f"asked for {kernel}"):
            self._kernels[kernel].set_args(*packed, np.int32(items))
            self._cl.enqueue_nd_range_kernel(
                self._queue, self._kernels[kernel], (groups * _ITEMS_AT_ONCE,), (_ITEMS_AT_ONCE,)
            )

    def finish(self) -> None:
        with self._told("waited for"):
            self._queue.finish()

    def close(self) -> None:
        """Wait for what runs; memory is freed with what refers to it."""
        self.finish()
        with self._told("waited for"):
            self._beside.finish()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Make a DeviceError of OpenCL's errors, which says what could not be done with the device."""
        try:
            yield
        except (self._cl.Error, MemoryError) as error:
            name = getattr(self, "name", "opencl")
            full = isinstance(error, (self._cl.MemoryError, MemoryError))
            kind = DeviceMemoryError if full else DeviceError
            raise kind(f"The device {name} cannot be {what}: {str(error).strip()[:2000]}.") from error


def devices() -> list[tuple[str, str, bool]]:
    """Return of each device its name, why it cannot be used, if so, and whether it is the processor.

    Raises DeviceError without the package.
    """
    cl = _package()
    return [(_name(one), _problem(cl, one), not one.type & cl.device_type.GPU) for one in _devices(cl)]


def _package() -> Any:
    try:
        import pyopencl
    except ImportError as error:
        raise DeviceError(
            f"The device `opencl` needs the package pyopencl: {error}.", "Install edgemoe with its extra opencl."
        ) from error
    return pyopencl


def _devices(cl: Any) -> list[Any]:
    """Return all devices of all platforms; none where there is no platform, which OpenCL has as an error."""
    try:
        return [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.LogicError:
        return []


def _problem(cl: Any, device: Any) -> str:
    """Return why a device cannot be used; an empty text if it can."""
    if device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
        return ""
    return f"The device {_name(device)} does not divide to the nearest number."


def _name(device: Any) -> str:
    return f"{device.name.strip()} ({device.platform.name.strip()})"
