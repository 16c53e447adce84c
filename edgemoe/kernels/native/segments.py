"""Programs with operations that the C library does not have: runs of those that it has, and the reference between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Pause, Program, ProgramTimes
from edgemoe.kernels.native.binding import has_kernel
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.stepwise import MEANINGS, RunBounds, StepwiseProgram, measured_operation

Bind = Callable[[Sequence[op.Operation], int], Program]
"""Makes a program in C of operations, the first of which has that number in the whole list."""


def fallbacks() -> tuple[str, ...]:
    """Return the names of all operations that the C library does not have."""
    return tuple(sorted(kind.__name__ for kind in MEANINGS if not has_kernel(kind)))


class SegmentedProgram:
    """One program after the other; each is a call into C, or steps of the reference."""

    def __init__(self, operations: Sequence[op.Operation], bind: Bind) -> None:
        """Raises KernelError for an operation that is not as defined, or that no backend knows."""
        self._bounds = RunBounds.of([measured_operation(number, o) for number, o in enumerate(operations)])
        self._programs: list[Program] = []
        self._counts: list[int] = []
        first = 0
        for native, group in itertools.groupby(operations, key=lambda operation: has_kernel(type(operation))):
            segment = list(group)
            self._programs.append(bind(segment, first) if native else StepwiseProgram(REFERENCE, segment, first))
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
