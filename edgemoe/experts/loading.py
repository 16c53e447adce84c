"""Loading every expert at the start, where the budget has room for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.slots import Record, RecordTable
from edgemoe.io.bulk import BulkRead, Span, SpanAlteredError
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
        for layer, slots in enumerate(slot_tables):
            if slots is None:
                continue
            first = len(self._placed)
            slots[:] = np.arange(first, first + len(slots))
            for expert in range(len(slots)):
                place = len(self._placed) * arena.shape[1]
                self._placed.append(_Placed(layer, expert, table.record(layer, expert), place))
        self._reading = BulkRead(arena.reshape(-1), direct)
        try:
            self._reading.begin(
                [Span(p.record.path, p.record.offset, p.record.length, p.place, p.record.crc32c) for p in self._placed]
            )
        except OSError as problem:
            self._reading.close()
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
            reason = problem.reason or f"{problem.path.name} ends at byte {problem.offset}"
            hint = "Check the disk, and the store with: edgemoe verify"
            raise self._at(problem.path, problem.offset).error(f"it could not be read: {reason}.", hint) from problem
        except SpanAlteredError as problem:
            raise self._at(problem.path, problem.offset).error(*NOT_AS_WRITTEN) from problem
        self._reading.close()

    def close(self) -> None:
        """Stop loading, if it has not ended."""
        self._reading.close()

    def _at(self, path: Path, offset: int) -> _Placed:
        """The expert whose record has a byte."""
        return next(
            p for p in self._placed if p.record.path == path and 0 <= offset - p.record.offset < p.record.length
        )
