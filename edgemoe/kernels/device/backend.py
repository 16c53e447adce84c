"""The native backend with a device beside it, which runs the operations that it has a text for.

The device gives the same bits, so no answer shows where an operation ran: the name, the settings and the kept prefixes
are those of the native backend. A device that fails is used no more, and the processor runs again what it was at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from weakref import WeakSet

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Pause, Program, ProgramTimes
from edgemoe.kernels.device.lowering import can_run
from edgemoe.kernels.device.runtime import DeviceError, DeviceMemoryError, Runtime
from edgemoe.kernels.device.segment import DeviceMemory, PlannedUse, Segment, planned_bytes, planned_use
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.segments import SegmentedProgram, Where, where_without_device
from edgemoe.kernels.stepwise import RunBounds


class DeviceBackend(NativeBackend):
    """Kernels in C, and those of a device."""

    def __init__(self, runtime: Runtime, threads: int, isa: str | None = None, most_bytes: int | None = None) -> None:
        """`most_bytes` is the budget of the device's memory; what has no room there runs on the processor."""
        super().__init__(threads, isa)
        self.runtime = runtime
        self.memory = DeviceMemory(runtime, most_bytes)
        self.device = runtime.name
        self.failure: DeviceError | None = None
        """Why the device is used no more, once it has failed."""
        self.segments: WeakSet[DeviceSegment] = WeakSet()
        """Segments for the device: each may be switched off and on between two runs, and no bit shows it."""

    def fail(self, error: DeviceError) -> None:
        """Use the device no more."""
        self.failure, self.device = error, None

    def planned_use(self, programs: Sequence[Sequence[op.Operation]]) -> PlannedUse:
        """Return what such programs, made in this order, would have on the device."""
        segments = [
            [list(group) for where, group in itertools.groupby(operations, _where) if where == "device"]
            for operations in programs
        ]
        return planned_use([one for program in segments for one in program], self.memory.most_bytes)

    def program(self, operations: Sequence[op.Operation]) -> Program:
        """Check and bind operations. Raises KernelError as the native backend does, whatever runs where."""
        if not any(map(can_run, operations)):
            return super().program(operations)
        self._check_open()
        return SegmentedProgram(operations, _where, self._bind)

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        """Return the native backend's bytes, and those of the longest segment on the device and of its results."""
        segments = [list(group) for where, group in itertools.groupby(operations, _where) if where == "device"]
        return super().scratch_bytes(operations) + 2 * max(map(planned_bytes, segments), default=0)

    def close(self) -> None:
        super().close()
        self.runtime.close()

    def _bind(self, where: Where, operations: Sequence[op.Operation], first: int) -> Program:
        if where != "device":
            return super()._bind(where, operations, first)
        segment = DeviceSegment(self, operations, super()._bind("native", operations, first))
        self.segments.add(segment)
        return segment


def _where(operation: op.Operation) -> Where:
    return "device" if can_run(operation) else where_without_device(operation)


class DeviceSegment:
    """A segment on the device, and the same operations on the processor, which have checked its arrays."""

    on = True
    """Whether the device runs it, if it can."""

    def __init__(self, backend: DeviceBackend, operations: Sequence[op.Operation], native: Program) -> None:
        self.operations = len(operations)
        self._backend = backend
        self._native = native
        self._segment: Segment | None = None
        self._operations_ns = np.zeros(len(operations), np.int64)
        self._timed = False
        if backend.failure is None:
            tokens_max = RunBounds.of([o.measure() for o in operations]).rows
            try:
                self._segment = Segment(operations, backend.memory, tokens_max)
            except DeviceMemoryError:
                pass  # the device goes on with what it has room for
            except DeviceError as error:
                backend.fail(error)

    @property
    def on_device(self) -> bool:
        """Whether the device has room for it, and runs it unless it is switched off or has failed."""
        return self._segment is not None

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run on the device, with a pause at the end; or on the processor, once the device has failed."""
        if self.on and self._segment is not None and self._backend.failure is None:
            try:
                self._segment.run(tokens, self._operations_ns if self._timed else None)
            except DeviceError as error:
                self._backend.fail(error)
            else:
                if pause is not None:
                    pause(1.0)
                return
        self._native.run(tokens, pause)

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""
        self._timed = on
        self._operations_ns[:] = 0
        self._native.time_runs(on)

    def times(self) -> ProgramTimes:
        """Return the times of both places; copies to the device count for the first operation, back for the last."""
        native = self._native.times()
        return ProgramTimes(
            native.elapsed_ns + int(self._operations_ns.sum()),
            native.operations_ns + self._operations_ns,
            native.waited_ns,
            native.disk_ns,
        )
