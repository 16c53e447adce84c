"""Loading every expert at the start, where the budget has room for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS, Record, RecordTable, record_read
from edgemoe.io.bulk import THREADS, BulkRead, Span, SpanAlteredError
from edgemoe.io.direct import PageFile, PageReadError
from edgemoe.io.reads import RecordReader, open_reader
from edgemoe.kernels.reads import BAD_RECORD, CHECK_THE_FILE, NOT_AS_WRITTEN, RecordRead
from edgemoe.store.reader import Store

LANDING_AT_ONCE = 64
"""Records in parts that are being read at a time."""


@dataclass(frozen=True)
class _Placed:
    """An expert's record, and its place in the arena."""

    layer: int
    expert: int
    record: Record
    place: int

    def error(self, message: str, hint: str) -> ReadError:
        return ReadError(f"Layer {self.layer}, expert {self.expert}: {message}", hint)


def load_experts(
    arena: npt.NDArray[np.uint8],
    slot_tables: Sequence[npt.NDArray[np.int32] | None],
    store: Store,
    direct: bool = True,
) -> ExpertLoading | LandedLoading:
    """Begin to read all experts of a store into the arena, each to a slot of its own, in the order of layers.

    Fills the layers' slot tables `(E,)`. Raises ReadError where a file cannot be opened.
    """
    if store.staging_bytes:
        return LandedLoading(arena, slot_tables, store, store.staging_bytes, direct)
    return ExpertLoading(arena, slot_tables, store, direct)


def _place(
    arena: npt.NDArray[np.uint8], slot_tables: Sequence[npt.NDArray[np.int32] | None], table: RecordTable
) -> Iterator[_Placed]:
    """Give every expert a slot, and yield its record with the slot's place."""
    number = 0
    for layer, slots in enumerate(slot_tables):
        for expert in range(0 if slots is None else len(slots)):
            assert slots is not None
            slots[expert] = number
            yield _Placed(layer, expert, table.record(layer, expert), number * arena.shape[1])
            number += 1


def _not_opened(problem: OSError) -> ReadError:
    return ReadError(
        f"{problem.filename}: cannot be opened for reading ({problem.strerror}).",
        CHECK_THE_FILE,
    )


class ExpertLoading:
    """Reads all experts into the arena, each to a slot of its own, in the order of layers and experts."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        slot_tables: Sequence[npt.NDArray[np.int32] | None],
        table: Store,
        direct: bool = True,
    ) -> None:
        """Begins to read, and fills the layers' slot tables `(E,)`. Raises ReadError where a file cannot be opened."""
        self._placed = list(_place(arena, slot_tables, table))
        self._arena, self._layouts = arena.reshape(-1), table.record_layouts
        self._reading = BulkRead(self._arena, direct)
        try:
            self._reading.begin(
                [Span(p.record.path, p.record.offset, p.record.length, p.place, p.record.crc32c) for p in self._placed]
            )
        except OSError as problem:
            self._reading.close()
            raise _not_opened(problem) from problem

    def wait(self) -> None:
        """Return when every expert is in its slot.

        Raises ReadError naming the layer and expert where one cannot be read, or differs from its checksum.
        """
        try:
            self._reading.wait()
        except PageReadError as problem:
            reason = problem.reason or f"{problem.path.name} ends at byte {problem.offset}"
            named = self._at(problem.path, problem.offset).error(f"it could not be read: {reason}.", CHECK_THE_FILE)
            raise named from problem
        except SpanAlteredError as problem:
            raise self._at(problem.path, problem.offset).error(*NOT_AS_WRITTEN) from problem
        self._reading.close()
        self._check_records()

    def _check_records(self) -> None:
        """Check records whose matrices say themselves how long they are: kernels trust what they say."""
        for placed in self._placed:
            layouts = self._layouts[placed.layer]
            if layouts is not None and layouts.layout(placed.expert).varying:
                record = self._arena[placed.place :][: placed.record.length]
                if layouts.layout(placed.expert).fault(record) is not None:
                    raise placed.error(*BAD_RECORD)

    def close(self) -> None:
        """Stop loading, if it has not ended."""
        self._reading.close()

    def _at(self, path: Path, offset: int) -> _Placed:
        """The expert whose record has a byte."""
        return next(
            p for p in self._placed if p.record.path == path and 0 <= offset - p.record.offset < p.record.length
        )


class LandedLoading:
    """As `ExpertLoading`, for records in parts, which the reader threads bring into the slots.

    Parts that the page cache has whole are read from there, all others past it.
    """

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        slot_tables: Sequence[npt.NDArray[np.int32] | None],
        table: RecordTable,
        staging_bytes: int,
        direct: bool = True,
    ) -> None:
        """Begins to read, and fills the layers' slot tables `(E,)`. Raises ReadError where a file cannot be opened."""
        self._placed = list(_place(arena, slot_tables, table))
        self._address = arena.ctypes.data
        self._memory = arena  # the threads write there until `close` returns
        self._files: dict[Path, PageFile] = {}
        self._next = 0
        self._reading: dict[int, tuple[_Placed, RecordRead]] = {}  # by ticket, in the order of the reads
        self._reader: RecordReader | None = open_reader(
            arena, THREADS, 2 * LANDING_AT_ONCE, staging_bytes=staging_bytes
        )
        try:
            for path in sorted({place.path for placed in self._placed for place in placed.record.places}):
                self._files[path] = PageFile(path, direct)
            self._begin()
        except OSError as problem:
            self.close()
            raise _not_opened(problem) from problem
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Begin the reads that come next, up to `LANDING_AT_ONCE` in all."""
        next_ones = self._placed[self._next : self._next + LANDING_AT_ONCE - len(self._reading)]
        if next_ones and self._reader is not None:
            reads = [self._read(placed) for placed in next_ones]
            tickets = self._reader.submit(reads, demand=True)
            self._reading.update(zip(tickets, zip(next_ones, reads, strict=True), strict=True))
            self._next += len(next_ones)

    def _read(self, placed: _Placed) -> RecordRead:
        """The request for a record, whose descriptors follow from what the page cache has."""
        read = record_read(placed.record, self._address + placed.place, lambda path: self._files[path].descriptor)
        assert read.parts is not None
        assert read.places is not None
        for part, place, where in zip(read.parts, read.places, placed.record.places, strict=True):
            file, size = self._files[where.path], int(part["bytes"])
            if file.direct and file.cached_bytes(where.offset, size) >= size:
                place["descriptor"] = file.plain
        return read

    def wait(self) -> None:
        """Return when every expert is in its slot. Raises ReadError naming the layer and expert that failed first."""
        while self._reading and self._reader is not None:
            ticket, (placed, read) = next(iter(self._reading.items()))
            try:
                self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
            except ReadError as error:
                if not self._reader.done(ticket):
                    self._abandon()
                self.close()
                raise placed.error(error.message, error.hint or CHECK_THE_FILE) from error
            self._reader.release(ticket)
            del self._reading[ticket]
            self._forget(placed, read)
            if len(self._reading) <= LANDING_AT_ONCE // 2:
                self._begin()
        self.close()

    def close(self) -> None:
        """Stop loading, if it has not ended."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._reading.clear()
        self._next = len(self._placed)

    def _forget(self, placed: _Placed, read: RecordRead) -> None:
        """Drop from the page cache what was read through it because the file system refuses direct reads."""
        assert read.parts is not None
        for part, where in zip(read.parts, placed.record.places, strict=True):
            file = self._files[where.path]
            if not file.direct:
                file.forget(where.offset, where.offset + int(part["bytes"]))

    def _abandon(self) -> None:
        """Leave a hanging read to itself, with the memory and the files that it may still use."""
        assert self._reader is not None
        self._reader.abandon()
        _abandoned.append((self._reader, self._memory, self._files, self._reading))
        self._reader, self._files, self._reading = None, {}, {}


_abandoned: list[object] = []
"""Readers, memory and files of reads that were given up: they stay for the rest of the process."""
