"""The embedding left on disk: a token uses one row of it, so only the rows of a step's tokens are read.

When the model is opened the whole matrix is read once, to verify it and to take a checksum of each panel. Every later
read is verified against these checksums.

Letters: `D` model width, `B` tokens whose rows are read at a time.
"""

from __future__ import annotations

import os
import time

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS
from edgemoe.io.direct import allocate_pages, open_direct
from edgemoe.io.reads import open_reader
from edgemoe.kernels.backend import Program
from edgemoe.kernels.formats import PANEL_ROWS, Matrix
from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.reads import RecordRead
from edgemoe.store.panels import Panels
from edgemoe.store.reader import Store

BATCH_TOKENS = 16
READER_THREADS = 4
CHECKSUM_BYTES = 256
"""Memory of one panel's checksum as a Python object."""


def saved_bytes(store: Store) -> int:
    """Bytes saved by leaving a store's embedding on disk; 0 if it must be in RAM or saves none."""
    if store.embedding is None:
        return 0
    panels = Panels(store.dense_path, store.embedding)
    if panels.pages(panels.count - 1)[1] > store.manifest.dense_file.bytes:  # past the file's end
        return 0
    row_bytes = 2 * panels.most_read_bytes + 4 * panels.tensor.columns
    held_bytes = BATCH_TOKENS * row_bytes + CHECKSUM_BYTES * panels.count
    return max(0, store.dense_bytes() - store.dense_bytes(embedding=False) - held_bytes)


class EmbeddingRows:
    """Reads rows of an embedding from disk into the residual stream."""

    def __init__(self, store: Store, direct: bool, copies: int = 1) -> None:
        """Reads the embedding once to verify it, keeping only checksums; each row is repeated `copies` times.

        Raises StoreError where it cannot be read, or differs from its checksum; BudgetError.
        """
        assert store.embedding is not None
        self._panels = panels = Panels(store.dense_path, store.embedding)
        self._checksums = panels.checksums(direct)
        self.wait_ns = 0
        """Time for which it has waited for rows."""
        self._landing = _allocate_rows(panels.most_read_bytes)
        self._taken = _allocate_rows(panels.panel_bytes)
        self.matrix = Matrix(self._taken.reshape(-1), panels.format, BATCH_TOKENS * PANEL_ROWS, panels.tensor.columns)
        """The panels read last, as a matrix."""
        self.ids: Integers = np.zeros(BATCH_TOKENS, np.int32)
        """The rows to take from `matrix`, `(B,)`."""
        self.rows: Floats = np.zeros((BATCH_TOKENS, copies * panels.tensor.columns), np.float32)
        """The buffer to which the program writes these rows, `(B, D)`."""
        self._reading: dict[int, int] = {}  # panels by the tickets of pending reads
        self._submitting = False
        self._reader = open_reader(self._landing, READER_THREADS)
        try:
            self._descriptor, _ = open_direct(panels.path, direct)
        except OSError as problem:
            self._reader.close()
            raise ReadError(f"{panels.path}: cannot be opened for reading ({problem.strerror}).") from problem

    def write(self, ids: npt.NDArray[np.int64], program: Program, residual: Floats) -> None:
        """Write the rows of tokens `(T,)` to the residual stream `(T, D)`.

        `program` copies the rows `ids` of `matrix` to `rows`. Raises ReadError where one cannot be read, or differs
        from its checksum.
        """
        for first in range(0, len(ids), BATCH_TOKENS):
            part = ids[first : first + BATCH_TOKENS]
            panels, places = np.unique(part // PANEL_ROWS, return_inverse=True)
            self._read(panels.tolist())
            self.ids[: len(part)] = places * PANEL_ROWS + part % PANEL_ROWS
            program.run(len(part))
            residual[first : first + len(part)] = self.rows[: len(part)]

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
            self._taken[row] = self._landing[row, self._panels.within_pages(panel)]

    def _settle(self) -> None:
        """Wait for reads left by an interrupt or a stalled disk, which would overwrite the rows that are read next."""
        if self._submitting:  # tickets may have been lost; closing the reader waits for their reads
            self._reader.close()
            self._reader = open_reader(self._landing, READER_THREADS)
            self._reading.clear()
        self._await()

    def _await(self) -> None:
        """Wait for all reads. One that does not end in time stays pending, since it may still write to its buffer."""
        failure = None
        for ticket, panel in list(self._reading.items()):
            try:
                self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
            except ReadError as error:
                first = panel * PANEL_ROWS
                name = f"The embedding of tokens {first} to {first + PANEL_ROWS - 1}"
                failure = failure or ReadError(f"{name}: {error.message}", error.hint)
            if self._reader.done(ticket):
                del self._reading[ticket]
                self._reader.release(ticket)
        if failure is not None:
            raise failure

    def _panel_read(self, panel: int, landing: npt.NDArray[np.uint8]) -> RecordRead:
        first, end = self._panels.pages(panel)
        return RecordRead(self._descriptor, first, end - first, landing.ctypes.data, self._checksums[panel])


def _allocate_rows(row_bytes: int) -> npt.NDArray[np.uint8]:
    """Page-aligned memory `(B, row_bytes)`."""
    memory = np.frombuffer(allocate_pages(BATCH_TOKENS * row_bytes), np.uint8)
    return memory.reshape(BATCH_TOKENS, row_bytes)
