"""The pages of a model's neurons in RAM: all of them, or those in the slots of an arena, read as operations need them.

Where not all are in RAM, operations in C ask the row pager in C (`native/src/row_pager.c`), and kernels in Python the
one here; which pages stay decides the speed of an answer, never its numbers.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS
from edgemoe.io.bulk import BulkRead, Span, SpanAlteredError
from edgemoe.io.checksum import as_written
from edgemoe.io.direct import PageReadError, open_direct
from edgemoe.io.reads import RecordReader, open_reader
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.neuron_operations import RowPaging
from edgemoe.kernels.operations import Bytes, Integers
from edgemoe.kernels.paging import CacheStatistics, RowFile
from edgemoe.kernels.reads import NOT_AS_WRITTEN, RecordRead
from edgemoe.store.dense import not_read, unreadable
from edgemoe.store.neurons import NeuronTable
from edgemoe.store.reader import Store

READER_THREADS = 16
"""Threads that read pages: each is one read of 4096 bytes, of which a disk takes many at a time."""
PYTHON_SLOT_BYTES = 128
"""Bytes of the objects that `RowPager` has at most for a slot."""


def pager_bytes(slots: int, backend: Backend) -> int:
    """The bytes that the pager of a model takes besides the slots themselves, and the tables of pages and checksums."""
    if backend.name == "native":
        from edgemoe.kernels.native.row_pager import NativeRowPager

        return NativeRowPager.planned_bytes(slots)
    return slots * PYTHON_SLOT_BYTES


class NeuronPages:
    """The pages of the neurons of all layers, and who is asked for those that are absent."""

    def __init__(self, store: Store, table: NeuronTable, arena: Bytes, backend: Backend, direct: bool) -> None:
        """`arena` is `(slots, page bytes)`: with a slot for each page, all are read now, and verified.

        Raises ReadError, naming layer and expert where what is read is not what was written; StoreError, BudgetError.
        """
        self.table = table
        self.arena = arena
        self.statistics = CacheStatistics()
        self.slots: Integers = np.arange(table.pages, dtype=np.int32)
        self._reader: RecordReader | None = None
        self._paging: RowPaging | None = None
        self._descriptor = -1
        begin = table.checksums_begin
        self._checksums = np.ascontiguousarray(store.read_table_checksums()[begin : begin + table.count])
        if len(arena) >= table.pages:
            self._read_all(store)
            return
        try:
            self._descriptor, _ = open_direct(store.dense_path, direct)
        except OSError as problem:
            raise ReadError(f"{store.dense_path}: cannot be opened for reading ({problem.strerror}).") from problem
        try:
            self._open_pager(backend)
        except BaseException:
            self.close()
            raise

    def leaf(self, layer: int, field: str) -> Any:
        """The part of the pages that an operation of a layer needs: `graph.NeuronPages` says which fields there are."""
        fields: dict[str, Any] = {
            "arena": self.arena,
            "slots": self.slots,
            "layout": self.table.layout,
            "first": self.table.first[layer],
            "paging": self._paging,
        }
        return fields[field]

    def close(self) -> None:
        """Stop the reader, and close the file; nothing can be read afterwards."""
        if self._reader is not None:
            self._reader.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._reader, self._descriptor = None, -1

    def _open_pager(self, backend: Backend) -> None:
        layout = self.table.layout
        rows = RowFile(
            self._descriptor, self.table.offset, layout.neuron_bytes, layout.neurons_per_page, self._checksums
        )
        self.slots.fill(-1)
        self._reader = open_reader(self.arena, READER_THREADS)
        if backend.name == "native":
            from edgemoe.kernels.native.reader import NativeReader
            from edgemoe.kernels.native.row_pager import NativeRowPager

            assert isinstance(self._reader, NativeReader)  # the library that has the kernels has it too
            named = self.table.name
            native = NativeRowPager(self.arena, self.slots, rows, self._reader, READ_TIMEOUT_SECONDS, named)
            self.statistics, self._paging = native.statistics, RowPaging(native)
        else:
            self._paging = RowPaging(RowPager(self.arena, self.slots, rows, self._reader, self.table, self.statistics))

    def _read_all(self, store: Store) -> None:
        """Read all pages, which lie in the arena as they do in the file."""
        table, memory = self.table, self.arena.reshape(-1)
        spans = [
            Span(store.dense_path, tensor.offset, tensor.bytes, tensor.offset - table.offset, tensor.crc32c)
            for tensor in table.tensors
        ]
        reading = BulkRead(memory)
        try:
            reading.begin(spans)
            reading.wait()
        except OSError as problem:
            raise unreadable(store.dense_path, problem.strerror or str(problem)) from problem
        except PageReadError as problem:
            raise not_read(problem) from problem
        except SpanAlteredError:
            size = table.layout.neuron_bytes
            for neuron, expected in enumerate(self._checksums.tolist()):
                if not as_written(memory[neuron * size : (neuron + 1) * size], expected):
                    raise _altered(table, neuron) from None
            raise
        finally:
            reading.close()


class RowPager:
    """The row pager for kernels in Python; slots make way in turn."""

    def __init__(
        self,
        arena: Bytes,
        slots: Integers,
        rows: RowFile,
        reader: RecordReader,
        table: NeuronTable,
        statistics: CacheStatistics,
    ) -> None:
        self._arena, self._slots, self._rows, self._reader = arena, slots, rows, reader
        self._table, self._statistics = table, statistics
        self._pages = [-1] * len(arena)  # of each slot
        self._hand = 0
        self._reading: dict[int, tuple[int, int]] = {}  # page and slot by the tickets of reads that have not ended

    def fetch(self, numbers: npt.NDArray[np.int64]) -> int:
        """Bring the pages of these rows to slots; returns the nanoseconds that it waited. Raises ReadError."""
        wanted = np.unique(numbers // self._rows.per_page).tolist()
        absent = [page for page in wanted if self._slots[page] < 0]
        self._statistics.hits += len(wanted) - len(absent)
        self._statistics.misses += len(absent)
        if not absent:
            return 0
        began_ns = time.perf_counter_ns()
        self._await()
        places = [self._take_slot(set(wanted)) for _ in absent]
        reads = [self._read(page, slot) for page, slot in zip(absent, places, strict=True)]
        tickets = self._reader.submit(reads, demand=True)
        self._reading = dict(zip(tickets, zip(absent, places, strict=True), strict=True))
        self._await()
        self._statistics.demand_bytes += sum(read.length for read in reads)
        return time.perf_counter_ns() - began_ns

    def _take_slot(self, kept: set[int]) -> int:
        while self._pages[self._hand] in kept:
            self._hand = (self._hand + 1) % len(self._pages)
        slot, self._hand = self._hand, (self._hand + 1) % len(self._pages)
        if self._pages[slot] >= 0:
            self._slots[self._pages[slot]] = -1
        self._pages[slot] = -1
        return slot

    def _read(self, page: int, slot: int) -> RecordRead:
        rows = self._rows
        address = self._arena.ctypes.data + slot * rows.page_bytes
        return RecordRead(rows.descriptor, rows.offset + page * rows.page_bytes, rows.read_bytes(page), address)

    def _await(self) -> None:
        """Wait for all reads. One that does not end in time stays pending, since it may still write to its slot."""
        failure = None
        for ticket, (page, slot) in list(self._reading.items()):
            try:
                self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
                self._check(page, slot)
                self._pages[slot], self._slots[page] = page, slot
            except ReadError as error:
                named = self._table.name(page * self._rows.per_page)
                failure = failure or (
                    error if error.message.startswith("Layer") else ReadError(f"{named}: {error.message}", error.hint)
                )
            if self._reader.done(ticket):
                del self._reading[ticket]
                self._reader.release(ticket)
        if failure is not None:
            raise failure

    def _check(self, page: int, slot: int) -> None:
        first, size = page * self._rows.per_page, self._rows.row_bytes
        expected = self._rows.crc32c[first : first + self._rows.per_page].tolist()
        for number, checksum in enumerate(expected):
            if not as_written(self._arena[slot, number * size : (number + 1) * size], checksum):
                raise _altered(self._table, first + number)


def _altered(table: NeuronTable, neuron: int) -> ReadError:
    message, hint = NOT_AS_WRITTEN
    return ReadError(f"{table.name(neuron)}: {message}", hint)
