"""A record reader under a test's control: reads end when the test says so, and fail where it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgemoe.errors import ReadError
from edgemoe.kernels.reads import RecordRead


class SteppedReader:
    """Reads from an array; `finish_some` decides which reads in flight end now, `failing` which offsets fail."""

    def __init__(self, arena: np.ndarray, disk: np.ndarray, failing: set[int]) -> None:
        self.failing = failing
        self.choose: Callable[[list[int]], list[int]] = lambda tickets: tickets[:1]
        self.ends_all = False
        """Whether a wait for a read that has not ended ends all reads in flight, not only that one."""
        self._arena = arena.reshape(-1)
        self._disk = disk
        self._in_flight: dict[int, tuple[int, int, int, bool]] = {}
        self._ended: dict[int, bool] = {}
        self._next = 0

    def submit(self, reads: Sequence[RecordRead], demand: bool) -> list[int]:
        tickets = range(self._next + 1, self._next + 1 + len(reads))
        self._next += len(reads)
        for ticket, read in zip(tickets, reads, strict=True):
            self._in_flight[ticket] = (read.offset, read.length, read.address - self._arena.ctypes.data, demand)
        return list(tickets)

    def finish_some(self) -> None:
        for ticket in self.choose(sorted(self._in_flight)):
            self._finish(ticket)

    def done(self, ticket: int) -> bool:
        return ticket in self._ended

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        if ticket in self._in_flight:
            self._end_for(ticket)
        if not self._ended[ticket]:
            raise ReadError("the disk said no")

    def promote(self, ticket: int) -> None:
        offset, length, start, _ = self._in_flight[ticket]
        self._in_flight[ticket] = (offset, length, start, True)

    def cancel(self, ticket: int) -> bool:
        """Half of the reads in flight count as not begun."""
        if ticket not in self._in_flight or ticket % 2:
            return False
        del self._in_flight[ticket]
        self._ended[ticket] = False
        return True

    def release(self, ticket: int) -> None:
        del self._ended[ticket]

    def state(self) -> tuple[dict[int, tuple[int, int, int, bool]], dict[int, bool]]:
        """Reads in flight by ticket, and whether those that have ended succeeded."""
        return self._in_flight, self._ended

    def outstanding(self) -> int:
        """Reads that were not released."""
        return len(self._in_flight) + len(self._ended)

    def close(self) -> None:
        pass

    def wait_any(self, tickets: Sequence[int]) -> None:
        if not any(map(self.done, tickets)):
            self._end_for(tickets[0])

    def _end_for(self, ticket: int) -> None:
        for one in list(self._in_flight) if self.ends_all else [ticket]:
            self._finish(one)

    def _finish(self, ticket: int) -> None:
        offset, length, start, _ = self._in_flight.pop(ticket)
        good = offset not in self.failing
        self._arena[start : start + length] = self._disk[offset : offset + length] if good else 0xEE
        self._ended[ticket] = good
