"""Long reads from files into memory on threads of their own: begun at once, awaited later.

Meanwhile the caller can compute: the threads release the GIL while they read.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemoe.io.direct import PageFile, PageReadError
from edgemoe.io.pages import PAGE_BYTES, round_up
from edgemoe.process import start_threads

THREADS = 2
PIECE_BYTES = 64 << 20
PIECE_BYTES_LEAST = 1 << 20
"""Threads share all spans evenly, in pieces within these bounds. After each piece a thread must take the GIL again,
which may take 5 ms while the caller computes, or 100 ms while a library holds it."""
STALL_SECONDS = 120.0
"""Reading is given up when the disk finishes no piece for this long."""


@dataclass(frozen=True)
class Span:
    """`size` bytes from `offset`, a multiple of 4096, into page-aligned memory with room for whole pages."""

    path: Path
    offset: int
    size: int
    into: memoryview
    finish: Callable[[], None] | None = None
    """Called when the whole span is read, by the thread that read its last piece; `wait` raises its errors."""


@dataclass(frozen=True)
class _Piece:
    file: PageFile
    span: Span
    number: int  # of the span
    first: int  # byte of the span
    size: int


def share_bytes(size: int) -> int:
    """The size of a piece when reading `size` bytes in all: a thread's share, in whole pages, within bounds."""
    return min(PIECE_BYTES, max(PIECE_BYTES_LEAST, round_up(-(-size // THREADS), PAGE_BYTES)))


class BulkRead:
    """Reads spans in the background. Call `wait` once for the result, or `close` to give up."""

    def __init__(self, spans: Sequence[Span], direct: bool = True, stall_seconds: float = STALL_SECONDS) -> None:
        """Begins to read. Raises OSError where a file cannot be opened."""
        self._stall_seconds = stall_seconds
        self._files: dict[Path, PageFile] = {}
        self._pieces: deque[_Piece] = deque()
        self._reading: dict[int, _Piece] = {}  # by thread
        self._failures: list[tuple[int, int, Exception]] = []  # number of the span, byte of it
        self._change = threading.Condition()
        self._threads: list[threading.Thread] = []
        piece_bytes = share_bytes(sum(span.size for span in spans))
        try:
            for number, span in enumerate(spans):
                file = self._files.get(span.path) or self._files.setdefault(span.path, PageFile(span.path, direct))
                self._pieces.extend(
                    _Piece(file, span, number, first, min(piece_bytes, span.size - first))
                    for first in range(0, span.size, piece_bytes)
                )
            self._unfinished = len(self._pieces)
            self._left = Counter(piece.number for piece in self._pieces)
            self._threads += start_threads(min(THREADS, len(self._pieces)), self._work)
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Return when all spans are read and finished. Raises PageReadError, or the error of a span's `finish`.

        Of several errors it raises the first in the order of spans.
        """
        if not self._threads:
            self._work()  # the system started no thread
        with self._change:
            while self._unfinished and not self._failures:
                in_time = self._change.wait(self._stall_seconds)  # some piece ended
                if not in_time and self._unfinished and not self._failures:
                    self._abandon()
        self.close()
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[:2])[2]

    def close(self) -> None:
        """Begin no further piece, and wait for those under way."""
        self._pieces.clear()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _abandon(self) -> None:
        """Abandon hanging threads, and keep the memory and files that the system may still use for their reads."""
        stuck = min(self._reading.values(), key=lambda piece: (piece.number, piece.first))
        reason = f"no read ended within {self._stall_seconds:.0f} s"
        error = PageReadError(stuck.file.path, stuck.span.offset + stuck.first, reason)
        self._failures.append((stuck.number, stuck.first, error))
        self._threads.clear()
        self._files.clear()

    def _work(self) -> None:
        while True:
            failure = None
            with self._change:
                if not self._pieces:
                    return
                piece = self._reading[threading.get_ident()] = self._pieces.popleft()
            try:
                self._read(piece)
            except Exception as error:
                failure = error
            with self._change:
                del self._reading[threading.get_ident()]
                self._unfinished -= 1
                if failure is not None:
                    self._failures.append((piece.number, piece.first, failure))
                    self._pieces.clear()
                self._change.notify()

    def _read(self, piece: _Piece) -> None:
        into = piece.span.into[piece.first :]
        piece.file.read(piece.span.offset + piece.first, piece.size, into)
        with self._change:
            self._left[piece.number] -= 1
            last = self._left[piece.number] == 0
        if last and piece.span.finish is not None:
            piece.span.finish()
