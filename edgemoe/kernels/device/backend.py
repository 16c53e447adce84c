"""The native backend with a device beside it, which runs the operations that it has a text for.

The device gives the same bits, so no answer shows where an operation ran: the name, the settings and the kept prefixes
are those of the native backend. A device that fails is used no more, and the processor runs again what it was at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Nanoseconds, Pause, Program, ProgramTimes
from edgemoe.kernels.device.device_slots import DeviceSlots, SlotLayer, can_have_slots, planned_row_bytes
from edgemoe.kernels.device.lowering import can_run
from edgemoe.kernels.device.memory import DeviceMemory
from edgemoe.kernels.device.placing import Placing, PlannedUse, lasting_arrays, planned_bytes, planned_use, streams
from edgemoe.kernels.device.runtime import DeviceError, DeviceMemoryError, Runtime
from edgemoe.kernels.device.segment import Segment
from edgemoe.kernels.device.split import SplitProgram, split_operations
from edgemoe.kernels.device.streamed import Streaming
from edgemoe.kernels.expert_operations import Experts, Route
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.segments import SegmentedProgram, Where, where_without_device
from edgemoe.kernels.stepwise import RunBounds
from edgemoe.sizes import format_size


class DeviceBackend(NativeBackend):
    """Kernels in C, and those of a device."""

    def __init__(self, runtime: Runtime, threads: int, isa: str | None = None, most_bytes: int | None = None) -> None:
        """`most_bytes` is the budget of the device's memory; what has no room there runs on the processor."""
        super().__init__(threads, isa)
        self.runtime = runtime
        self.memory = DeviceMemory(runtime, most_bytes)
        self.streaming = Streaming(self.memory)
        self.device = runtime.name
        self.failure: DeviceError | None = None
        """Why the device is used no more, once it has failed."""
        self.segments: WeakSet[DeviceSegment] = WeakSet()
        """Segments for the device: each may be switched off and on between two runs, and no bit shows it."""

        self.tier: DeviceSlots | None = None
        """Slots for routed experts, if they may lie in the device's memory, and not all of them do."""
        self._splits = True
        """Whether experts may be shared out: not where routers prefer those in RAM."""

    def fail(self, error: DeviceError) -> None:
        """Use the device no more."""
        self.failure, self.device = error, None
        if self.tier is not None:
            self.tier.lost = True

    def planned_use(self, programs: Sequence[Sequence[op.Operation]], most_row_bytes: int) -> PlannedUse:
        """Return what such programs, made in this order, would have on the device (`placing.planned_use`)."""
        return planned_use(programs, self.memory.most_bytes, most_row_bytes)

    def hold_to_floor(self, programs: Sequence[Sequence[op.Operation]], most_row_bytes: int) -> None:
        """Make the budget the least with which the device runs all that it can of such programs but routed experts.

        Nothing changes where its memory is the processor's. Raises UsageError where it has not so much.
        """
        memory = self.memory
        if memory.most_bytes is None:
            return
        use, free = planned_use(programs, None, most_row_bytes, without_experts=True), self.runtime.free_bytes()
        least = use.weight_bytes + use.state_bytes + max(use.activation_bytes, memory.shared_bytes)
        if least > free + memory.used_bytes:
            raise UsageError(
                f"`vram=floor`: all but the routed experts takes {format_size(least)} of the device"
                f" {self.runtime.name}, which has {format_size(free)} free.",
                "Leave it out: then the device runs the part that it has room for.",
            )
        memory.most_bytes = least

    def program(self, operations: Sequence[op.Operation]) -> Program:
        """Check and bind operations. Raises KernelError as the native backend does, whatever runs where."""
        self._check_open()
        return self.streaming.watched(SegmentedProgram(operations, self._places, self._bind))

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        """Return the native backend's bytes, and those of the longest segment on the device and of its results."""
        segments = [list(group) for able, group in itertools.groupby(operations, can_run) if able]
        size = super().scratch_bytes(operations) + 2 * max(map(planned_bytes, segments), default=0)
        if self.memory.most_bytes is None:
            return size
        return size + max((planned_row_bytes(o) for o in operations if isinstance(o, Experts)), default=0)

    def forget_copies(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Note that the device's copies of some state are no longer as on the host."""
        self.memory.forget_copies(arrays)

    def close(self) -> None:
        super().close()
        if self.tier is not None:
            self.tier.close()
        self.runtime.close()

    def _places(self, operations: Sequence[op.Operation]) -> list[Where]:
        """Return where operations run that have been checked."""
        memory = self.memory
        if memory.most_bytes is None:
            return ["device" if can_run(one) else where_without_device(one) for one in operations]
        placing = Placing(memory.most_bytes, memory.used_bytes, memory.shared_bytes, memory.keys())
        chosen = set(placing.choose(operations))
        self._split = self._to_split([one for one in operations if one not in chosen])
        return [
            "device" if one in chosen else "split" if one in self._split else where_without_device(one)
            for one in operations
        ]

    def _to_split(self, others: Sequence[op.Operation]) -> dict[op.Operation, SlotLayer]:
        """Return those of the processor's operations that share out experts, with their layers."""
        experts = [one for one in others if isinstance(one, Experts) and can_have_slots(one) and one.arena.size]
        if any(isinstance(one, Route) and one.slots is not None for one in others):
            self._splits = False
        if not (experts and self._splits) or self.failure is not None:
            return {}
        tier = self.tier or DeviceSlots(self.memory, experts[0].arena, self.streaming.halves)
        found = split_operations(others, tier)
        if found:
            self.tier = tier
        return found

    def _bind_alone(self, operation: op.Operation, number: int) -> Program:
        return super()._bind("native", [operation], number)

    def _bind(self, where: Where, operations: Sequence[op.Operation], first: int) -> Program:
        if where == "split":
            assert self.tier is not None
            split = SplitProgram(operations, self._split, self.tier, self._bind_alone, first, self.fail)
            if not all(map(streams, operations)):
                return split
            return DeviceSegment(self, operations, split, self.streaming.bind)
        if where != "device":
            program, state = super()._bind(where, operations, first), _state_of(operations)
            return _Forgetting(program, self.memory, state) if state else program
        native = super()._bind("native", operations, first)
        segment = DeviceSegment(self, operations, native, self._segment)
        self.segments.add(segment)
        return segment

    def _segment(self, operations: Sequence[op.Operation], tokens_max: int) -> Segment:
        return Segment(operations, self.memory, tokens_max)


def _state_of(operations: Sequence[op.Operation]) -> list[Any]:
    """Return the arrays of state that operations write."""
    return [array for one in operations for field, array in lasting_arrays(one) if field.role.writes]


class _Forgetting:
    """A program of the processor, after which the device's copies of the state that it writes are old."""

    def __init__(self, program: Program, memory: DeviceMemory, state: Sequence[Any]) -> None:
        self._program, self._memory, self._state = program, memory, state
        self.time_runs, self.times = program.time_runs, program.times

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Forget first, as a run that fails may have written some of it."""
        self._memory.forget_mirrors(self._state)
        self._program.run(tokens, pause)


class OnDevice(Protocol):
    """Operations that are bound to a device."""

    def run(self, tokens: int, operations_ns: Nanoseconds | None = None) -> bool:
        """Run them, and return whether that was possible; the host's arrays change last (`Segment.run`)."""


class DeviceSegment:
    """A segment on the device, and the same operations on the processor, which have checked its arrays."""

    on = True
    """Whether the device runs it, if it can."""

    def __init__(
        self,
        backend: DeviceBackend,
        operations: Sequence[op.Operation],
        native: Program,
        make: Callable[[Sequence[op.Operation], int], OnDevice],
    ) -> None:
        """`make` binds the operations to the device for runs of so many tokens at most."""
        self.operations = len(operations)
        self._backend = backend
        self._native = _Forgetting(native, backend.memory, _state_of(operations))
        self._segment: OnDevice | None = None
        self._operations_ns = np.zeros(len(operations), np.int64)
        self._timed = False
        if backend.failure is None:
            tokens_max = RunBounds.of([o.measure() for o in operations]).rows
            try:
                self._segment = make(operations, tokens_max)
            except DeviceMemoryError:
                pass  # the device goes on with what it has room for
            except DeviceError as error:
                backend.fail(error)

    @property
    def on_device(self) -> bool:
        """Whether the device has room for it, and runs it unless it is switched off or has failed."""
        return self._segment is not None

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run on the device, with a pause at the end.

        The processor runs what the device does not take, so that it says why not, and all once the device has failed.
        """
        if self.on and self._segment is not None and self._backend.failure is None:
            try:
                done = self._segment.run(tokens, self._operations_ns if self._timed else None)
            except DeviceError as error:
                self._backend.fail(error)
            else:
                if done:
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
