"""The panels of a matrix that stays on disk: their places in the file, and their checksums.

A panel is 16 rows (`kernels/formats.py`). It is read with the whole pages that contain it, as direct reads need.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.io.bulk import BulkRead, Span
from edgemoe.io.checksum import crc32c
from edgemoe.io.direct import PageReadError, allocate_pages
from edgemoe.kernels.formats import panel_count
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.store.dense import not_as_written, not_read, unreadable
from edgemoe.store.manifest import DenseTensor

PIECE_PANELS = 64
"""Panels read at a time for checksums."""


class Panels:
    """The panels of one dense matrix."""

    def __init__(self, path: Path, tensor: DenseTensor) -> None:
        assert tensor.format is not None
        assert not tensor.format.head_bytes, tensor.name
        self.path = path
        self.tensor = tensor
        self.format = tensor.format
        self.count = panel_count(tensor.rows)
        self.panel_bytes = tensor.format.panel_bytes(tensor.columns)
        self.most_read_bytes = round_up(self.panel_bytes, PAGE_BYTES) + PAGE_BYTES
        """The most bytes that the pages of one panel take."""

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
