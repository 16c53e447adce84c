"""Programs whose operations do not all run in one place: one call into C for each run of those that the library has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Pause, Program, ProgramTimes
from edgemoe.kernels.native.binding import has_kernel
from edgemoe.kernels.reference import backend as _meanings  # noqa: F401 - it registers what operations mean
from edgemoe.kernels.stepwise import MEANINGS, RunBounds, measured_operation

Where = Literal["native", "reference", "device", "split"]
"""Where an operation runs: the C library, the reference, which has all, a device (`kernels/device`), or the library and
the device both (`kernels/device/split.py`)."""

Places = Callable[[Sequence[op.Operation]], Sequence[Where]]
"""Returns the places of operations that are as defined."""

Bind = Callable[[Where, Sequence[op.Operation], int], Program]
"""Makes a program, for such a place, of operations, the first of which has that number in the whole list."""


def places_without_device(operations: Sequence[op.Operation]) -> list[Where]:
    """Return the places of operations where there is no device."""
    return [*map(where_without_device, operations)]


def where_without_device(operation: op.Operation) -> Where:
    """Return the place of an operation where there is no device."""
    return "native" if has_kernel(type(operation)) else "reference"


def fallbacks() -> tuple[str, ...]:
    """Return the names of all operations that the C library does not have."""
    return tuple(sorted(kind.__name__ for kind in MEANINGS if not has_kernel(kind)))


class SegmentedProgram:
    """One program after the other, each for a run of operations of one place."""

    def __init__(self, operations: Sequence[op.Operation], places: Places, bind: Bind) -> None:
        """Raises KernelError for an operation that is not as defined, or that no backend knows."""
        self._bounds = RunBounds.of([measured_operation(number, o) for number, o in enumerate(operations)])
        self._programs: list[Program] = []
        self._counts: list[int] = []
        first = 0
        for place, group in itertools.groupby(zip(places(operations), operations, strict=True), lambda one: one[0]):
            segment = [operation for _, operation in group]
            self._programs.append(bind(place, segment, first))
            self._counts.append(len(segment))
            first += len(segment)
        self._count = first

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run all segments. Raises KernelError before the first, if the buffers of any are too short."""
        self._bounds.check(tokens)
        done = 0
        for program, count in zip(self._programs, self._counts, strict=True):
            program.run(tokens, None if pause is None else _within(pause, done, count, self._count))
            done += count

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""
        for program in self._programs:
            program.time_runs(on)

    def times(self) -> ProgramTimes:
        """Return the times of all segments, put together."""
        parts = [program.times() for program in self._programs]
        return ProgramTimes(
            sum(part.elapsed_ns for part in parts),
            np.concatenate([part.operations_ns for part in parts]),
            np.concatenate([part.waited_ns for part in parts]),
            np.concatenate([part.disk_ns for part in parts]),
        )


def _within(pause: Pause, done: int, count: int, total: int) -> Pause:
    """Return the pause of a segment of `count` of all operations, before which `done` have been run."""
    return lambda share: pause((done + share * count) / total)
