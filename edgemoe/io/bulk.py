"""Long reads from files into memory, by reader threads: begun at once, awaited later.

Meanwhile the caller can compute. The reader (`io/reads.py`) is the one that also reads experts while tokens are
computed: with the native library its threads copy, and verify checksums, without Python's lock.

What the page cache has is read from there, which costs less than the disk; all else is read past it, and where the file
system refuses direct reads it is dropped from the page cache again. Spans that follow one another are one request,
which the reader verifies by the checksum of all of them. `wait` verifies span by span where there is none: without the
native library, and where several requests take the spans, as direct reads need whole pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import MachineError, ReadError
from edgemoe.io.checksum import as_written, combined_crc32c
from edgemoe.io.direct import PageFile, PageReadError
from edgemoe.io.reads import RecordReader, open_reader
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.reads import RecordRead

THREADS = 2
RUN_BYTES = 64 << 20
RUN_BYTES_LEAST = 1 << 20
"""Threads share all bytes evenly, in requests within these bounds, or of one longer span. So each works at a place of
its own, as two that touch the same huge page for the first time both clear it: with a request for each expert of the
bundled model the threads took 1.5 times the processor time."""
CAPACITY = 64
STALL_SECONDS = 120.0
"""Reading is given up when a request of at most `RUN_BYTES` takes longer than this, or a longer one in proportion."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Span:
    """`size` bytes from `offset` of a file, for `place` in memory; verified where their CRC-32C is known.

    Direct reads need a place as far behind a page's beginning as `offset`; for others plain reads do.
    """

    path: Path
    offset: int
    size: int
    place: int
    crc32c: int | None = None

    @property
    def end(self) -> int:
        """The offset in the file where the span ends."""
        return self.offset + self.size


class SpanAlteredError(Exception):
    """Bytes that are not those that were written: the span or request that differs from its checksum."""

    def __init__(self, path: Path, offset: int) -> None:
        super().__init__(f"{path}: byte {offset}: the checksum differs")
        self.path, self.offset = path, offset


class OpenReader(Protocol):
    """A function that makes a reader, as `open_reader` does."""

    def __call__(self, arena: Bytes, threads: int, capacity: int, piece_bytes: int) -> RecordReader: ...


@dataclass
class _Run:
    """Requests for spans that follow one another in a file and in memory."""

    file: PageFile
    spans: Sequence[Span]
    requests: list[RecordRead] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)
    verified: bool = False
    """Whether the reader verifies the spans."""
    forget: list[tuple[int, int]] = field(default_factory=list)
    """Begins and ends of the parts that plain reads bring into the page cache."""


class BulkRead:
    """Reads spans into one block of memory. After `wait` more can be begun; `close` ends it.

    The memory lives until `close` returns; where reading was given up it is kept, as the system may still write there.
    """

    def __init__(
        self,
        memory: Bytes,
        direct: bool = True,
        stall_seconds: float = STALL_SECONDS,
        open_reader: OpenReader = open_reader,
    ) -> None:
        self._memory = memory
        self._address = memory.ctypes.data
        self._direct = direct
        self._stall_seconds = stall_seconds
        self._open_reader = open_reader
        self._files: dict[Path, PageFile] = {}
        self._reader: RecordReader | None = None
        self._runs: list[_Run] = []

    def begin(self, spans: Sequence[Span]) -> None:
        """Begin to read. Raises OSError where a file cannot be opened.

        If it is not the first call, its spans may take as many requests as those of the first, or `CAPACITY`.
        """
        self._runs = [self._plan(self._file(run[0].path), run) for run in _runs(spans)]
        requests = [request for run in self._runs for request in run.requests]
        if not requests:
            return
        if self._reader is None:
            try:
                self._reader = self._open_reader(self._memory, THREADS, max(len(requests), CAPACITY), RUN_BYTES)
            except MachineError:
                return  # the system starts no thread: `wait` reads by itself
        tickets = iter(self._reader.submit(requests, demand=True))
        for run in self._runs:
            run.tickets = [next(tickets) for _ in run.requests]

    def wait(self) -> None:
        """Return when all spans are read and verified.

        Raises PageReadError where the system cannot read, and SpanAlteredError; of several errors the first in the
        order of spans.
        """
        try:
            for run in self._runs:
                for number, request in enumerate(run.requests):
                    self._await(run, request, run.tickets[number] if run.tickets else None)
                for span in () if run.verified else run.spans:
                    if not as_written(self._memory[span.place : span.place + span.size], span.crc32c):
                        raise SpanAlteredError(span.path, span.offset)
                for begin, end in run.forget:
                    run.file.forget(begin, end)
        except BaseException:
            self.close()
            raise
        self._runs = []

    def close(self) -> None:
        """Begin no further request, wait for those under way, and close the files."""
        self._runs = []
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __del__(self) -> None:
        self.close()  # or the memory could go before the threads that write there

    def _await(self, run: _Run, request: RecordRead, ticket: int | None) -> None:
        if self._reader is not None and ticket is not None:
            try:
                self._reader.wait(ticket, self._stall_seconds * -(-request.length // RUN_BYTES))
                self._reader.release(ticket)
                return
            except ReadError:
                if not self._reader.done(ticket):
                    raise self._abandon(run.file.path, request.offset) from None
                self._reader.release(ticket)
        # Whatever a reader could not do is tried once more: some file systems refuse a single direct read, and the
        # error of a plain read has its place.
        place = request.address - self._address
        into = self._memory[place : place + request.length]
        run.file.read(request.offset, into.data)
        if request.descriptor != run.file.plain:
            run.forget.append((request.offset, request.offset + request.length))
        run.verified = False  # now `wait` verifies each span by itself, so that the error names it

    def _abandon(self, path: Path, offset: int) -> PageReadError:
        """Leave hanging threads behind, with the memory and the files that they may still use; returns the error."""
        assert self._reader is not None
        self._reader.abandon()
        _abandoned.append((self._reader, self._memory, self._files))
        self._reader, self._files = None, {}
        return PageReadError(path, offset, f"no read ended within {self._stall_seconds:.0f} s")

    def _file(self, path: Path) -> PageFile:
        return self._files.get(path) or self._files.setdefault(path, PageFile(path, self._direct))

    def _plan(self, file: PageFile, spans: Sequence[Span]) -> _Run:
        begin, end, run = spans[0].offset, spans[-1].end, _Run(file, spans)
        cached_end = begin + file.cached_bytes(begin, end - begin)
        if file.direct:
            pages_begin = min(round_up(cached_end, PAGE_BYTES), end)
            pages_end = max(end // PAGE_BYTES * PAGE_BYTES, pages_begin)
            parts = [
                (file.plain, begin, pages_begin),
                (file.descriptor, pages_begin, pages_end),
                (file.plain, pages_end, end),
            ]
            run.forget = [part for part in ((cached_end, pages_begin), (pages_end, end)) if part[0] < part[1]]
        else:
            parts = [(file.plain, begin, end)]
            run.forget = [(cached_end, end)] if cached_end < end else []
        parts = [part for part in parts if part[1] < part[2]]
        crc32c = combined_crc32c([(span.size, span.crc32c) for span in spans]) if len(parts) == 1 else None
        run.verified = crc32c is not None
        address = self._address + spans[0].place - begin
        run.requests = [RecordRead(part[0], part[1], part[2] - part[1], address + part[1], crc32c) for part in parts]
        return run


_abandoned: list[object] = []
"""Readers, memory and files of reads that were given up: they stay for the rest of the process."""


def _runs(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Group spans that follow one another both in a file and in memory, up to a thread's share of all bytes."""
    share_bytes = -(-sum(span.size for span in spans) // THREADS)
    most_bytes = min(RUN_BYTES, max(RUN_BYTES_LEAST, share_bytes))
    run: list[Span] = []
    for span in spans:
        if run:
            last = run[-1]
            follows = (span.path, span.offset, span.place) == (last.path, last.end, last.place + last.size)
            if not follows or span.end - run[0].offset > most_bytes:
                yield run
                run = []
        run.append(span)
    if run:
        yield run
