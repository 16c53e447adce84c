"""Programs of routed experts of which a device computes those in its slots, and the processor the others beside it.

The processor's operations are those of the model, but with choices of their own, in which those that the device
computes are -1: then no pager is asked for them, and `Experts` writes rows for them that the device's replace. Each
result has a row of its own, and `Combine` sums them in the router's order, so no bit shows the split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Pause, Program, ProgramTimes
from edgemoe.kernels.device.device_slots import DeviceSlots, SlotLayer, can_have_slots
from edgemoe.kernels.device.memory import address_of
from edgemoe.kernels.device.runtime import DeviceError

Bind = Callable[[op.Operation, int], Program]
"""Makes the processor's program of an operation, which has that number in a whole list."""
Failed = Callable[[DeviceError], None]
"""Uses the device no more."""


def split_operations(operations: Sequence[op.Operation], slots: DeviceSlots) -> dict[op.Operation, SlotLayer]:
    """Return the experts of operations that can be shared out, and the requests to pagers for them, by their layers.

    Layers whose answers depend on what is in RAM are left alone: the device would change them.
    """
    fetches = [one for one in operations if isinstance(one, ex.Fetch) and one.paged is not None]
    lossy = {_layer_of(one) for one in fetches if one.drop_cold or one.from_base}
    found: dict[op.Operation, SlotLayer] = {}
    by_number = {}
    for one in operations:
        if not isinstance(one, ex.Experts) or _layer_of(one) in lossy or not can_have_slots(one):
            continue
        layer = slots.layer(one) if address_of(one.arena) == address_of(slots.arena) else None
        if layer is not None:
            found[one] = layer
            if one.paged is not None:
                by_number[one.paged.layer] = layer
    for one in operations:
        if isinstance(one, (ex.Fetch, ex.Prefetch)) and (number := _layer_of(one)) in by_number:
            found[one] = by_number[number]
    return found


def _layer_of(operation: ex.Fetch | ex.Prefetch | ex.Experts) -> int | None:
    """Return the layer of which an operation asks a pager; None without a pager."""
    return None if operation.paged is None else operation.paged.layer


class SplitProgram:
    """Operations that `split_operations` found, one after the other."""

    def __init__(
        self,
        operations: Sequence[op.Operation],
        layers: dict[op.Operation, SlotLayer],
        slots: DeviceSlots,
        bind: Bind,
        first: int,
        failed: Failed,
    ) -> None:
        """`failed` is called with an error of the device, after which the processor computes all."""
        self._slots, self._failed = slots, failed
        self._operations = [(one, layers[one]) for one in operations]
        self._programs: list[Program] = []
        for number, (one, layer) in enumerate(self._operations):
            self._programs.append(bind(self._of_processor(one, layer), first + number))
            if isinstance(one, ex.Fetch):
                layer.fetch = self._programs[-1]
        self._timed = False
        self._device_ns = np.zeros(len(operations), np.int64)
        """Time for each operation besides that of the processor's program."""

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run the operations, with a pause at the end."""
        for number, ((one, layer), program) in enumerate(zip(self._operations, self._programs, strict=True)):
            began_ns = time.perf_counter_ns()
            if isinstance(one, ex.Experts):
                spent_ns = self._run_experts(one, layer, program, tokens)
            else:
                if isinstance(one, ex.Fetch):
                    self._choose(layer, tokens)
                else:
                    assert isinstance(one, ex.Prefetch)
                    left = self._slots.copy_of("guessed", one.experts)[:tokens]
                    self._slots.without(layer.number, one.experts[:tokens], left)
                spent_ns = time.perf_counter_ns() - began_ns
                program.run(tokens)
            self._device_ns[number] += spent_ns if self._timed else 0
        if pause is not None:
            pause(1.0)

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""
        self._timed = on
        self._device_ns[:] = 0
        for program in self._programs:
            program.time_runs(on)

    def times(self) -> ProgramTimes:
        """Return the times of the processor's programs, and of what is done for the device before and after them."""
        parts = [program.times() for program in self._programs]
        operations_ns = np.concatenate([part.operations_ns for part in parts]) + self._device_ns
        return ProgramTimes(
            sum(part.elapsed_ns for part in parts) + int(self._device_ns.sum()),
            operations_ns,
            np.concatenate([part.waited_ns for part in parts]),
            np.concatenate([part.disk_ns for part in parts]),
        )

    def _of_processor(self, operation: op.Operation, layer: SlotLayer) -> op.Operation:
        """Return an operation with the choices that are left to the processor."""
        if isinstance(operation, ex.Prefetch):
            return replace(operation, experts=self._slots.copy_of("guessed", operation.experts))
        assert isinstance(operation, (ex.Fetch, ex.Experts))
        return replace(operation, experts=layer.left)

    def _choose(self, layer: SlotLayer, tokens: int) -> None:
        try:
            self._slots.choose(layer, tokens)
        except DeviceError as error:
            self._failed(error)

    def _run_experts(self, operation: ex.Experts, layer: SlotLayer, program: Program, tokens: int) -> int:
        """Run the experts of a layer; returns the nanoseconds besides those of the processor's program."""
        slots, began_ns = self._slots, time.perf_counter_ns()
        if operation.paged is None:
            self._choose(layer, tokens)
        begun = layer.here is not None and self._tried(lambda: slots.begin(layer, tokens))
        if layer.here is not None and not begun:
            self._leave_all(layer, tokens)
        before_ns = time.perf_counter_ns() - began_ns
        try:
            program.run(tokens)
        except BaseException:
            slots.interrupted = True
            raise
        began_ns = time.perf_counter_ns()
        if begun and not self._tried(lambda: slots.take(layer, tokens)):
            self._leave_all(layer, tokens)
            program.run(tokens)
        self._tried(lambda: slots.learn(layer, tokens))
        return before_ns + time.perf_counter_ns() - began_ns

    def _tried(self, work: Callable[[], bool | None]) -> bool:
        """Return whether the device has done what it was asked for; it is asked for nothing once it has failed."""
        try:
            return not self._slots.lost and work() is not False
        except DeviceError as error:
            self._failed(error)
            return False

    def _leave_all(self, layer: SlotLayer, tokens: int) -> None:
        """Leave all experts of a run to the processor, which has been left without some."""
        layer.left[:tokens], layer.here = layer.operation.experts[:tokens], None
        if layer.fetch is not None:
            layer.fetch.run(tokens)
