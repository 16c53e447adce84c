"""A clock that only moves when told to, and a kernel backend that computes nothing and takes known times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Pause, ProgramTimes

WAITED_NS = 3
"""The part of each operation's time in which it waits for other threads."""
DISK_NS = 11
"""The part of each operation's time in which it waits for records (here every operation may)."""
COST_NS: dict[type, int] = {
    op.Embed: 1_000,
    op.RmsNorm: 2_000,
    op.Linear: 40_000,
    op.Rope: 300,
    so.StoreKv: 500,
    so.Attention: 60_000,
    ex.Route: 7_000,
    op.GatedFfn: 100_000,
    ex.Fetch: 700,
    ex.Prefetch: 900,
    ex.Experts: 900_000,
    ex.Combine: 11_000,
}


class Clock:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns


class ClockedProgram:
    """Moves the clock by the cost of each operation, once it is to be timed and before that too."""

    def __init__(self, clock: Clock, operations: Sequence[op.Operation]) -> None:
        self._clock = clock
        self._costs = np.array([COST_NS[type(operation)] for operation in operations], np.int64)
        self._timed_runs = 0
        self._timed = False

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        self._clock.now_ns += int(self._costs.sum())
        self._timed_runs += self._timed

    def time_runs(self, on: bool) -> None:
        self._timed, self._timed_runs = on, 0

    def times(self) -> ProgramTimes:
        operations_ns = self._costs * self._timed_runs
        waited_ns, disk_ns = (np.full_like(operations_ns, ns * self._timed_runs) for ns in (WAITED_NS, DISK_NS))
        return ProgramTimes(int(operations_ns.sum()), operations_ns, waited_ns, disk_ns)


class ClockedBackend:
    """A backend of such programs."""

    name, isa, threads, growth_bytes = "clocked", "-", 2, 0
    scratch_grows_with_context = False
    device = tier = None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def program(self, operations: Sequence[op.Operation]) -> ClockedProgram:
        return ClockedProgram(self._clock, operations)

    def forget_copies(self, arrays: object) -> None:
        """Nothing to forget."""

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        return 0

    def close(self) -> None:
        pass
