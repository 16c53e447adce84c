"""Decides by trial for which chunks of a prompt experts are streamed through a device, as no rule holds for every one.

The more rows a chunk has, the more each copied expert is used; from how many on copying pays depends on the device, on
the way to it and on the processor. So chunks of about one size are timed in turn with and without, and the faster way
is kept for a while. Neither changes a bit.
"""

from __future__ import annotations

from collections import defaultdict

LEAST_ROWS = 64
"""Chunks of fewer rows are the processor's."""
CHUNKS = 2
"""Chunks of each way in a trial; the fastest of a way counts, as the first may meet what later ones do not."""
HOLD_CHUNKS = (16, 256)
"""Chunks for which a verdict holds: at first, and at most; doubled each time that the verdict is the same."""
LEAST_GAIN = 0.02
"""Streaming is kept where it saves at least this share of a chunk's time."""
HOPELESS = 1.5
"""A trial ends at once where a chunk takes so many times as long with streaming as one without."""
PATIENCE = 2
"""A chunk in a trial streams no further after so many times the time of one without."""


class ChunkTrial:
    """A switch for each size of chunks, from a power of two rows to the next, that is open while streaming pays."""

    def __init__(self, mode: str = "auto", least_rows: int = LEAST_ROWS) -> None:
        """`mode` is `auto`, or `on` or `off` for all chunks of at least so many rows."""
        self.mode = mode
        self.least_rows = least_rows
        self._sizes: defaultdict[int, _Size] = defaultdict(_Size)

    def open(self, rows: int) -> bool:
        """Return whether the next chunk of so many rows is to be streamed."""
        if rows < self.least_rows or self.mode == "off":
            return False
        return self.mode == "on" or self._sizes[rows.bit_length()].open

    def most_ns(self, rows: int) -> float | None:
        """Return the nanoseconds after which a chunk that is tried streams no further; None while none are known."""
        if self.mode != "auto":
            return None
        return self._sizes[rows.bit_length()].patience_ns(rows)

    def record(self, rows: int, chunk_ns: int) -> None:
        """Take in the time of a chunk, streamed if the switch was open."""
        if self.mode == "auto" and rows >= self.least_rows:
            self._sizes[rows.bit_length()].record(chunk_ns / rows)


class _Size:
    """Chunks of about one size."""

    def __init__(self) -> None:
        self._verdict = False
        self._left = 0
        self._hold_chunks = HOLD_CHUNKS[0]
        self._times: tuple[list[float], list[float]] = ([], [])  # for a row, without and with streaming

    @property
    def open(self) -> bool:
        if self._left:
            return self._verdict
        without, streamed = self._times
        return len(streamed) < len(without)

    def patience_ns(self, rows: int) -> float | None:
        without = self._times[0]
        return PATIENCE * rows * min(without) if without else None

    def record(self, row_ns: float) -> None:
        if self._left:
            self._left -= 1
            return
        without, streamed = self._times
        self._times[self.open].append(row_ns)
        if streamed and (len(streamed) == CHUNKS or min(streamed) > HOPELESS * min(without)):
            self._decide(min(streamed) <= (1 - LEAST_GAIN) * min(without))

    def _decide(self, pays: bool) -> None:
        again = pays == self._verdict
        self._hold_chunks = min(2 * self._hold_chunks, HOLD_CHUNKS[1]) if again else HOLD_CHUNKS[0]
        self._verdict, self._left, self._times = pays, self._hold_chunks, ([], [])
