"""Loading every expert at the start, where the budget has room for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.cache import Record, RecordTable
from edgemoe.io.bulk import BulkRead, Span, share_bytes
from edgemoe.io.checksum import as_written
from edgemoe.io.direct import PageReadError
from edgemoe.kernels.reads import NOT_AS_WRITTEN


@dataclass(frozen=True)
class _Placed:
    """An expert's record, and its place in the arena."""

    layer: int
    expert: int
    record: Record
    place: int

    def error(self, message: str, hint: str) -> ReadError:
        return ReadError(f"Layer {self.layer}, expert {self.expert}: {message}", hint)


class ExpertLoading:
    """Reads all experts into the arena, each to a slot of its own, in the order of layers and experts."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        slot_tables: Sequence[npt.NDArray[np.int32] | None],
        table: RecordTable,
        direct: bool = True,
    ) -> None:
        """Begins to read, and fills the layers' slot tables `(E,)`. Raises ReadError where a file cannot be opened."""
        self._placed: list[_Placed] = []
        self._memory: memoryview = arena.reshape(-1).data
        for layer, slots in enumerate(slot_tables):
            if slots is None:
                continue
            first = len(self._placed)
            slots[:] = np.arange(first, first + len(slots))
            for expert in range(len(slots)):
                place = len(self._placed) * arena.shape[1]
                self._placed.append(_Placed(layer, expert, table.record(layer, expert), place))
        try:
            self._reading = BulkRead([self._span(run) for run in _runs(self._placed)], direct)
        except OSError as problem:
            raise ReadError(
                f"{problem.filename}: cannot be opened for reading ({problem.strerror}).",
                "Check that the store is whole with: edgemoe verify",
            ) from problem

    def wait(self) -> None:
        """Return when every expert is in its slot.

        Raises ReadError naming the layer and expert where one cannot be read, or differs from its checksum.
        """
        try:
            self._reading.wait()
        except PageReadError as problem:
            lost = next(
                p
                for p in self._placed
                if p.record.path == problem.path and 0 <= problem.offset - p.record.offset < p.record.length
            )
            reason = problem.reason or f"{problem.path.name} ends at byte {problem.offset}"
            hint = "Check the disk, and the store with: edgemoe verify"
            raise lost.error(f"it could not be read: {reason}.", hint) from problem

    def close(self) -> None:
        """Stop loading, if it has not ended."""
        self._reading.close()

    def _span(self, run: Sequence[_Placed]) -> Span:
        first = run[0]
        size = sum(p.record.length for p in run)
        return Span(first.record.path, first.record.offset, size, self._memory[first.place :], lambda: self._check(run))

    def _check(self, run: Sequence[_Placed]) -> None:
        for p in run:
            data = self._memory[p.place : p.place + p.record.length]
            if not as_written(data, p.record.crc32c):
                raise p.error(*NOT_AS_WRITTEN)


def _runs(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    """Group records that follow one another both in a file and in memory, up to the size of one piece to read."""
    longest_bytes = share_bytes(sum(p.record.length for p in placed))
    runs: list[list[_Placed]] = []
    end: tuple[Path, int, int] | None = None
    for p in placed:
        r = p.record
        room = runs and (len(runs[-1]) + 1) * r.length <= longest_bytes
        if room and end == (r.path, r.offset, p.place):
            runs[-1].append(p)
        else:
            runs.append([p])
        end = (r.path, r.offset + r.length, p.place + r.length)
    return runs
