"""The panels of a matrix that stays on disk: where each lies, and its checksum.

A panel is 16 rows (`kernels/formats.py`). It is read with the whole pages that it lies in, so that direct reads can.
"""

from __future__ import annotations

from pathlib import Path

from edgemoe.io.checksum import Checksum
from edgemoe.io.direct import PageFile, PageReadError, allocate_pages
from edgemoe.io.pages import PAGE_BYTES, round_up
from edgemoe.kernels.formats import panel_count
from edgemoe.store.manifest import ResidentTensor
from edgemoe.store.resident import not_as_written, not_read, unreadable

PIECE_PANELS = 64
"""Read at a time for checksums: panels are multiples of 64 bytes, so that these are whole pages."""


class Panels:
    """Of one resident matrix that begins at a page."""

    def __init__(self, path: Path, tensor: ResidentTensor) -> None:
        assert tensor.format is not None
        assert tensor.offset % PAGE_BYTES == 0
        self.path = path
        self.tensor = tensor
        self.format = tensor.format
        self.count = panel_count(tensor.rows)
        self.panel_bytes = tensor.format.panel_bytes(tensor.columns)
        self.most_read_bytes = round_up(self.panel_bytes, PAGE_BYTES) + PAGE_BYTES
        """Of the pages that a panel can lie in."""

    def pages(self, panel: int) -> tuple[int, int]:
        """Where the pages of a panel begin and end in the file. The last ones may go on beyond the matrix."""
        first = self.tensor.offset + panel * self.panel_bytes
        return first // PAGE_BYTES * PAGE_BYTES, round_up(first + self.panel_bytes, PAGE_BYTES)

    def within_pages(self, panel: int) -> slice:
        """Where in its pages a panel lies."""
        start = panel * self.panel_bytes % PAGE_BYTES
        return slice(start, start + self.panel_bytes)

    def checksums(self, direct: bool) -> list[tuple[str | None, int | None]]:
        """Of the pages of each panel (`Checksum.values`), after holding the whole matrix against its own checksum.

        Raises StoreError where the file cannot be read, or the matrix is not what was written; BudgetError.
        """
        try:
            file = PageFile(self.path, direct)
        except OSError as problem:
            raise unreadable(self.path, problem.strerror or str(problem)) from problem
        try:
            return self._checksums(file)
        except PageReadError as problem:
            raise not_read(problem) from problem
        finally:
            file.close()

    def _checksums(self, file: PageFile) -> list[tuple[str | None, int | None]]:
        memory = memoryview(allocate_pages(PIECE_PANELS * self.panel_bytes + PAGE_BYTES))
        whole, of_panels = Checksum(), []
        for first_panel in range(0, self.count, PIECE_PANELS):
            panels = range(first_panel, min(first_panel + PIECE_PANELS, self.count))
            origin, end = self.pages(panels[0])[0], self.pages(panels[-1])[1]
            file.read(origin, end - origin, memory)
            whole.add(memory[: len(panels) * self.panel_bytes])
            for panel in panels:
                start, end = self.pages(panel)
                pages = Checksum()
                pages.add(memory[start - origin : end - origin])
                of_panels.append(pages.values)
        if not whole.agrees(self.tensor.sha256, self.tensor.crc32c):
            raise not_as_written(self.path, self.tensor)
        return of_panels
