"""The panels of a matrix that stays on disk: how each is read, and their checksums.

A panel is 16 rows (`kernels/formats.py`). In a store it lies as kernels take it, and is read with the whole pages that
contain it, as direct reads need. In a GGUF file it is rows of blocks, which land as they are read
(`kernels/landing.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.io.bulk import BulkRead, Span
from edgemoe.io.checksum import crc32c
from edgemoe.io.direct import PageReadError, allocate_pages
from edgemoe.kernels.formats import PANEL_ROWS, Format, panel_count
from edgemoe.kernels.landing import PLACE, part_of_matrix, row_staging_bytes
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.reads import RecordRead
from edgemoe.kernels.row_types import row_bytes
from edgemoe.store.dense import not_as_written, not_read, unreadable
from edgemoe.store.manifest import DenseTensor

PIECE_PANELS = 64
"""Panels read at a time for checksums."""


class DiskPanels(Protocol):
    """The panels of one matrix, in one file, as `DiskRows` reads them."""

    path: Path
    format: Format
    rows: int
    columns: int
    count: int
    """How many panels there are."""
    panel_bytes: int
    landing_bytes: int
    """The most bytes of memory that a read of one panel fills."""
    staging_bytes: int
    """Bytes of the buffer that each reader thread needs for such a read; 0 for none."""

    def read(self, panel: int, descriptor: int, address: int) -> RecordRead:
        """The read that brings a panel of the open file to `landing_bytes` of memory at an address."""

    def landed(self, panel: int, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The panel's own bytes in the memory that its read has filled."""

    def checksums(self, direct: bool) -> npt.NDArray[np.uint32] | None:
        """The CRC-32C of each panel, after verifying the whole matrix; None where the file has no checksums."""


class FilePanels:
    """The panels of a matrix in a file as other programs write it: rows that follow one another."""

    def __init__(
        self,
        path: Path,
        modified_ns: int,
        row_type: str,
        offset: int,
        fmt: Format,
        rows: int,
        columns: int,
        scale: float,
    ) -> None:
        """`offset` is that of the first row; `modified_ns` the file's `time_mark`, which every read compares."""
        self.path, self.format, self.rows, self.columns = path, fmt, rows, columns
        self.count = panel_count(rows)
        self.panel_bytes = self.landing_bytes = fmt.panel_bytes(columns)
        self.staging_bytes = row_staging_bytes(row_type, columns)
        self._row_type, self._offset, self._modified_ns, self._scale = row_type, offset, modified_ns, scale

    def read(self, panel: int, descriptor: int, address: int) -> RecordRead:
        first = panel * PANEL_ROWS
        height = min(PANEL_ROWS, self.rows - first)
        parts = part_of_matrix(self._row_type, self.format.name, height, self.columns, 0, self.panel_bytes)
        offset = self._offset + first * row_bytes(self._row_type, self.columns)
        places = np.array([(offset, self._modified_ns, descriptor, self._scale)], PLACE)
        return RecordRead(descriptor, offset, int(parts["bytes"][0]), address, parts=parts, places=places)

    def landed(self, panel: int, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return memory[: self.panel_bytes]

    def checksums(self, direct: bool) -> None:
        return None


class Panels:
    """The panels of one dense matrix of a store."""

    staging_bytes = 0

    def __init__(self, path: Path, tensor: DenseTensor) -> None:
        assert tensor.format is not None
        assert not tensor.format.head_bytes, tensor.name
        self.path = path
        self.tensor = tensor
        self.format, self.rows, self.columns = tensor.format, tensor.rows, tensor.columns
        self.count = panel_count(tensor.rows)
        self.panel_bytes = tensor.format.panel_bytes(tensor.columns)
        self.landing_bytes = round_up(self.panel_bytes, PAGE_BYTES) + PAGE_BYTES

    def read(self, panel: int, descriptor: int, address: int) -> RecordRead:
        first, end = self.pages(panel)
        return RecordRead(descriptor, first, end - first, address)

    def landed(self, panel: int, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return memory[self.within_pages(panel)]

    def pages(self, panel: int) -> tuple[int, int]:
        """Begin and end of a panel's pages in the file. The last page may reach beyond the matrix."""
        first = self.tensor.offset + panel * self.panel_bytes
        return first // PAGE_BYTES * PAGE_BYTES, round_up(first + self.panel_bytes, PAGE_BYTES)

    def within_pages(self, panel: int) -> slice:
        """The place of a panel within its pages."""
        start = (self.tensor.offset + panel * self.panel_bytes) % PAGE_BYTES
        return slice(start, start + self.panel_bytes)

    def checksums(self, direct: bool) -> npt.NDArray[np.uint32]:
        """The CRC-32C of each panel, after verifying the whole matrix by its own.

        Raises StoreError where the file cannot be read, or the matrix differs from its checksum; BudgetError.
        """
        memory = np.frombuffer(allocate_pages(PIECE_PANELS * self.panel_bytes + 2 * PAGE_BYTES), np.uint8)
        reading = BulkRead(memory, direct)
        try:
            return self._checksums(reading, memory)
        except OSError as problem:
            raise unreadable(self.path, problem.strerror or str(problem)) from problem
        except PageReadError as problem:
            raise not_read(problem) from problem
        finally:
            reading.close()

    def _checksums(self, reading: BulkRead, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        whole, of_panels = 0, np.empty(self.count, np.uint32)
        for first_panel in range(0, self.count, PIECE_PANELS):
            panels = range(first_panel, min(first_panel + PIECE_PANELS, self.count))
            origin, end = self.pages(panels[0])[0], self.pages(panels[-1])[1]
            reading.begin([Span(self.path, origin, end - origin, 0)])
            reading.wait()
            first = self.within_pages(panels[0]).start
            whole = crc32c(memory[first : first + len(panels) * self.panel_bytes], whole)
            for number, panel in enumerate(panels):
                start = first + number * self.panel_bytes
                of_panels[panel] = crc32c(memory[start : start + self.panel_bytes])
        if self.tensor.crc32c not in (None, whole):
            raise not_as_written(self.path, self.tensor)
        return of_panels
