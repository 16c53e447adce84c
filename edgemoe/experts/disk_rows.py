"""Rows of matrices left on disk: a token uses one row of an embedding, or a few of a table, so only those are read.

Rows lie in panels of 16, which are read and verified one by one. The checksums of the panels of a store's embedding are
taken when the model is opened, as the whole matrix is read once to verify it; those of tables, which are larger than
that would be worth, are in the store. A GGUF file has none: its time of modification is compared after every read.

Letters: `D` width of a row, `B` rows that are read at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS
from edgemoe.io.checksum import as_written
from edgemoe.io.direct import allocate_pages, open_direct
from edgemoe.io.reads import RecordReader, open_reader
from edgemoe.kernels.backend import Program
from edgemoe.kernels.formats import PANEL_ROWS, Matrix
from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.reads import NOT_AS_WRITTEN, RecordRead
from edgemoe.store.panels import DiskPanels, Panels
from edgemoe.store.reader import Store

EMBEDDING_BATCH = 16
TABLE_BATCH = 128
READER_THREADS = 4


def saved_bytes(store: Store) -> int:
    """Bytes saved by leaving a store's embedding on disk; 0 if it must be in RAM or saves none."""
    panels = store.embedding_panels
    if panels is None:
        return 0
    held_bytes = EMBEDDING_BATCH * _row_bytes(panels) + 4 * panels.count + READER_THREADS * panels.staging_bytes
    return max(0, store.dense_bytes() - store.dense_bytes(embedding=False) - held_bytes)


def table_bytes(store: Store) -> int:
    """Bytes of memory that reading rows of a store's tables takes: their checksums, and buffers.

    Of neurons, the pages of which are in slots, it is their checksums and the table of these pages.
    """
    if not store.tables:
        return 0
    panels = [Panels(store.dense_path, table) for table in store.tables]
    checksums = 4 * sum(part.count for part in panels)
    if store.neurons is not None:
        return checksums + 4 * store.neurons.pages
    return TABLE_BATCH * max(map(_row_bytes, panels)) + checksums


def _row_bytes(panels: DiskPanels) -> int:
    """Bytes of the buffers of `DiskRows` for each row that is read at a time."""
    return 2 * panels.landing_bytes + 4 * panels.columns


def embedding_rows(store: Store, direct: bool, copies: int = 1) -> DiskRows:
    """The rows of a store's embedding, each repeated `copies` times.

    Where it has a checksum, reads the embedding once to verify it, keeping only checksums. Raises StoreError where it
    cannot be read, or differs from its checksum; BudgetError, ReadError.
    """
    panels = store.embedding_panels
    assert panels is not None

    def name(row: int) -> str:
        return f"The embedding of tokens {row} to {row + PANEL_ROWS - 1}"

    return DiskRows([panels], panels.checksums(direct), direct, EMBEDDING_BATCH, name, copies)


class DiskRows:
    """Reads rows of the parts of a matrix from disk; all lie in one file, and have one format."""

    def __init__(
        self,
        parts: Sequence[DiskPanels],
        checksums: npt.NDArray[np.uint32] | None,
        direct: bool,
        batch: int,
        name: Callable[[int], str],
        copies: int = 1,
    ) -> None:
        """`checksums` has that of each panel, part by part, or is None where there are none; `name` names the rows of
        the panel that begins with a row.

        Raises ReadError where the file cannot be opened; BudgetError.
        """
        first = parts[0]
        assert all((part.path, part.panel_bytes) == (first.path, first.panel_bytes) for part in parts)
        self._parts = parts
        self._first_rows = np.cumsum([0, *(part.rows for part in parts[:-1])])
        self._first_panels = np.cumsum([0, *(part.count for part in parts[:-1])])
        self._checksums = checksums
        self._batch = batch
        self._name = name
        self.wait_ns = 0
        """Time for which it has waited for rows."""
        self._landing = _allocate_rows(batch, first.landing_bytes)
        self._taken = _allocate_rows(batch, first.panel_bytes)
        self.matrix = Matrix(self._taken.reshape(-1), first.format, batch * PANEL_ROWS, first.columns)
        """The panels read last, as a matrix."""
        self.ids: Integers = np.zeros(batch, np.int32)
        """The rows to take from `matrix`, `(B,)`."""
        self.rows: Floats = np.zeros((batch, copies * first.columns), np.float32)
        """The buffer to which the program writes these rows, `(B, D)`."""
        self._reading: dict[int, int] = {}  # panels by the tickets of pending reads
        self._submitting = False
        self._staging_bytes = max(part.staging_bytes for part in parts)
        self._reader = self._new_reader()
        try:
            self._descriptor, _ = open_direct(first.path, direct)
        except OSError as problem:
            self._reader.close()
            raise ReadError(f"{first.path}: cannot be opened for reading ({problem.strerror}).") from problem

    def write(self, numbers: npt.NDArray[np.int64], program: Program, output: Floats) -> None:
        """Write the rows of these numbers `(T,)` to the output `(T, D)`.

        `program` copies the rows `ids` of `matrix` to `rows`. Raises ReadError where one cannot be read, or differs
        from its checksum.
        """
        for first in range(0, len(numbers), self._batch):
            wanted = numbers[first : first + self._batch]
            part = np.searchsorted(self._first_rows, wanted, "right") - 1
            within = wanted - self._first_rows[part]
            panels, places = np.unique(self._first_panels[part] + within // PANEL_ROWS, return_inverse=True)
            self._read(panels.tolist())
            self.ids[: len(wanted)] = places * PANEL_ROWS + within % PANEL_ROWS
            program.run(len(wanted))
            output[first : first + len(wanted)] = self.rows[: len(wanted)]

    def close(self) -> None:
        """Stop the readers; nothing can be read afterwards."""
        self._reader.close()
        os.close(self._descriptor)

    def _read(self, panels: list[int]) -> None:
        began_ns = time.perf_counter_ns()
        try:
            self._settle()
            self._submitting = True
            reads = [self._panel_read(panel, self._landing[row]) for row, panel in enumerate(panels)]
            self._reading = dict(zip(self._reader.submit(reads, demand=True), panels, strict=True))
            self._submitting = False
            self._await()
        finally:
            self.wait_ns += time.perf_counter_ns() - began_ns
        for row, panel in enumerate(panels):
            part, own = self._place(panel)
            found = self._parts[part].landed(own, self._landing[row])
            if self._checksums is not None and not as_written(found, int(self._checksums[panel])):
                message, hint = NOT_AS_WRITTEN
                raise ReadError(f"{self._named(panel)}: {message}", hint)
            self._taken[row] = found

    def _settle(self) -> None:
        """Wait for reads left by an interrupt or a stalled disk, which would overwrite the rows that are read next."""
        if self._submitting:  # tickets may have been lost; closing the reader waits for their reads
            self._reader.close()
            self._reader = self._new_reader()
            self._reading.clear()
        self._await()

    def _await(self) -> None:
        """Wait for all reads. One that does not end in time stays pending, since it may still write to its buffer."""
        failure = None
        for ticket, panel in list(self._reading.items()):
            try:
                self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
            except ReadError as error:
                failure = failure or ReadError(f"{self._named(panel)}: {error.message}", error.hint)
            if self._reader.done(ticket):
                del self._reading[ticket]
                self._reader.release(ticket)
        if failure is not None:
            raise failure

    def _place(self, panel: int) -> tuple[int, int]:
        """The number of a panel's part, and its own number there."""
        part = int(np.searchsorted(self._first_panels, panel, "right")) - 1
        return part, panel - int(self._first_panels[part])

    def _named(self, panel: int) -> str:
        part, own = self._place(panel)
        return self._name(int(self._first_rows[part]) + own * PANEL_ROWS)

    def _panel_read(self, panel: int, landing: npt.NDArray[np.uint8]) -> RecordRead:
        part, own = self._place(panel)
        return self._parts[part].read(own, self._descriptor, landing.ctypes.data)

    def _new_reader(self) -> RecordReader:
        return open_reader(self._landing, READER_THREADS, staging_bytes=self._staging_bytes)


def _allocate_rows(batch: int, row_bytes: int) -> npt.NDArray[np.uint8]:
    """Page-aligned memory `(B, row_bytes)`."""
    memory = np.frombuffer(allocate_pages(batch * row_bytes), np.uint8)
    return memory.reshape(batch, row_bytes)
