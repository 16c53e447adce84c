"""Where the time of a run went: one sum of nanoseconds for each part of the work.

Invariant: every moment belongs to one part, so that the parts of a run add up to its wall time. Compute parts are
timed around each operation inside the backend, without the time in which the calling thread waited for other threads
(`synchronisation`) or, with nothing else to do, for records (`disk_wait`). `python` is the interpreter's time: that of
`Engine.forward` minus whole runs of programs, and minus waits for the disk outside of them. Each operation is timed by
itself, never as a remainder, so that an operation which is forgotten, or counted twice, shows: the parts then do not
add up to the wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend, ExpertTier, Program, ProgramTimes
from edgemoe.model.graph import Part

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class TimeLedger:
    """Nanoseconds of each part; a part with zero nanoseconds may be absent."""

    ns: Mapping[Part, int]

    @property
    def total_ns(self) -> int:
        """The sum of all parts."""
        return sum(self.ns.values())

    def shares(self) -> dict[Part, float]:
        """Each part's share of the total, 0 to 1."""
        total = self.total_ns or 1
        return {part: ns / total for part, ns in self.ns.items()}

    def __add__(self, other: TimeLedger) -> TimeLedger:
        return TimeLedger({part: self.ns.get(part, 0) + other.ns.get(part, 0) for part in {**self.ns, **other.ns}})

    def __sub__(self, earlier: TimeLedger) -> TimeLedger:
        """The time that was added since an earlier reading of the same ledger."""
        return TimeLedger({part: ns - earlier.ns.get(part, 0) for part, ns in self.ns.items()})

    def to_json(self) -> dict[str, float]:
        """Milliseconds by part."""
        return {part: ns / 1e6 for part, ns in self.ns.items()}


@dataclass(frozen=True, eq=False)
class _Made:
    """A program, with the part and the layer of each of its operations, `(operations,)`."""

    program: Program
    parts: npt.NDArray[np.int64]
    layers: npt.NDArray[np.int64]


class Programs:
    """Makes a model's programs, and sums up the time of their operations by part."""

    def __init__(
        self,
        backend: Backend,
        part_of: Callable[[op.Operation], Part],
        layer_of: Callable[[op.Operation], int] = lambda operation: -1,
    ) -> None:
        """`layer_of` gives -1 for operations of no layer."""
        self._backend = backend
        self._part_of = part_of
        self._layer_of = layer_of
        self._made: list[_Made] = []
        self._used: set[int] = set()
        """The parts of all programs."""
        self._timed = False

    @property
    def tier(self) -> ExpertTier | None:
        """The experts in the memory of the backend's device, if it has some of them."""
        return self._backend.tier

    def make(self, operations: Sequence[op.Operation], like: Sequence[op.Operation] | None = None) -> Program:
        """Make the program of a list of operations. Raises KernelError as the backend does.

        `like`: operations of the same parts of the work, where these are not those of the decoder.
        """
        program = self._backend.program(operations)
        if self._timed:
            program.time_runs(True)
        known = like or operations
        parts = np.array([PARTS.index(self._part_of(one)) for one in known], np.int64)
        self._used.update(parts.tolist())
        self._made.append(_Made(program, parts, np.array([self._layer_of(one) for one in known], np.int64)))
        return program

    def time_runs(self, on: bool) -> None:
        """Start to time all programs, those that are made later too, from zero, or stop."""
        self._timed = on
        for one in self._made:
            one.program.time_runs(on)

    def read(self) -> list[ProgramTimes]:
        """The times of all programs now, to be summed up by `ledger` and `layer_waits_ns` when that is wanted."""
        return [one.program.times() for one in self._made]

    def ledger(self, read: Sequence[ProgramTimes]) -> tuple[TimeLedger, int]:
        """The compute parts with `synchronisation` and `disk_wait`, and the nanoseconds of whole runs."""
        ns = np.zeros(len(PARTS), np.int64)
        waited_ns = disk_ns = elapsed_ns = 0
        for one, times in zip(self._made, read, strict=False):  # programs may have been made since
            if not times.elapsed_ns:
                continue
            elapsed_ns += times.elapsed_ns
            waited_ns += int(times.waited_ns.sum())
            disk_ns += int(times.disk_ns.sum())
            own_ns = times.operations_ns - times.waited_ns - times.disk_ns
            ns += np.bincount(one.parts, own_ns, len(PARTS)).astype(np.int64)  # floats are exact up to 104 days
        compute = {PARTS[part]: int(ns[part]) for part in sorted(self._used)}
        return TimeLedger({**compute, "synchronisation": waited_ns, "disk_wait": disk_ns}), elapsed_ns

    def layer_waits_ns(self, layers: int, read: Sequence[ProgramTimes]) -> npt.NDArray[np.int64]:
        """Time for which operations of each layer waited for records, `(L,)`."""
        waits = np.zeros(layers + 1, np.int64)  # the last is of no layer
        for one, times in zip(self._made, read, strict=False):
            np.add.at(waits, one.layers, times.disk_ns)
        return waits[:layers]


@dataclass(frozen=True, eq=False)
class LedgerReading:
    """An engine's ledger at one moment. It is summed up where it is asked for, on any thread and at any later time."""

    programs: Programs
    times: Sequence[ProgramTimes]
    forward_ns: int
    """The time of every `Engine.forward`."""
    waited_ns: int
    """The waits for the disk outside of programs."""
    layers: int

    @cached_property
    def ledger(self) -> TimeLedger:
        """Nanoseconds by part."""
        compute, programs_ns = self.programs.ledger(self.times)
        python_ns = self.forward_ns - programs_ns - self.waited_ns
        return compute + TimeLedger({"disk_wait": self.waited_ns, "python": python_ns})

    @cached_property
    def layer_waits_ns(self) -> npt.NDArray[np.int64]:
        """The part of the ledger's waits for the disk that each layer caused, `(L,)`."""
        return self.programs.layer_waits_ns(self.layers, self.times)
