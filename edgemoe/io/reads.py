"""Reads of expert records: open files for direct reads, and reader threads that fill slots.

A record's start and length and a slot's address are multiples of 4096, so a direct read (O_DIRECT) goes
from the disk into the slot without passing through the page cache. Where a file system refuses direct
reads plain ones are used, and `ExpertFiles.direct` says so. A record in parts (`kernels/landing.py`) lies anywhere
in its files: the whole pages around each part are read into a staging buffer, from which it lands in the slot.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError, ReadError
from edgemoe.io.checksum import as_written, crc32c
from edgemoe.io.direct import allocate_pages, open_direct
from edgemoe.kernels.landing import land, steps, time_mark
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.reads import (
    CHANGED_FILE,
    CHECK_THE_FILE,
    MAKE_ANEW,
    NOT_AS_WRITTEN,
    NOT_FINITE,
    PIECE_BYTES,
    RecordRead,
)
from edgemoe.process import no_threads, start_threads, thread_limit


class ExpertFiles:
    """The expert files of a store, open for reading; directly where the file system allows it."""

    def __init__(self, paths: Iterable[Path], direct: bool = True) -> None:
        self._descriptors: dict[Path, int] = {}
        self.direct = True
        try:
            for path in sorted(set(paths)):
                self._descriptors[path], granted = open_direct(path, direct)
                self.direct = self.direct and granted
        except OSError as error:
            self.close()
            raise ReadError(
                f"{error.filename}: cannot be opened for reading ({error.strerror}).",
                CHECK_THE_FILE,
            ) from error

    def descriptor(self, path: Path) -> int:
        return self._descriptors[path]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class RecordReader(Protocol):
    """Reads records into memory in the background. Demand reads go before prefetched ones."""

    def submit(self, reads: Sequence[RecordRead], demand: bool) -> list[int]:
        """Queue reads; returns their tickets. Raises ReadError, and queues none, if one is invalid."""

    def done(self, ticket: int) -> bool:
        """Whether the read has ended, successfully or not."""

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        """Wait for the read.

        Raises ReadError where it failed, returned too few bytes, took too long, or differs from its checksum.
        """

    def promote(self, ticket: int) -> None:
        """Turn a prefetched read into a demand read."""

    def cancel(self, ticket: int) -> bool:
        """Cancel a read that has not begun; returns whether it was cancelled. Its ticket must still be released."""

    def release(self, ticket: int) -> None:
        """Forget a read that has ended."""

    def close(self) -> None:
        """Stop the threads when the reads that have begun are finished."""

    def abandon(self) -> None:
        """Leave the reads that have begun to themselves, without waiting for them; their memory must stay.

        Nothing else can be called afterwards.
        """


def open_reader(
    arena: npt.NDArray[np.uint8],
    threads: int,
    capacity: int = 4096,
    piece_bytes: int = PIECE_BYTES,
    staging_bytes: int = 0,
) -> RecordReader:
    """The native reader, or the portable one where the native library is not available.

    The native one has room for `capacity` requests that are not released, and its threads share out a request in
    pieces of `piece_bytes`. Records in parts need `staging_bytes` for each thread.

    Raises MachineError where the system starts no thread for it. Where few threads are left it takes half of them, so
    that the rest of the program can start some too.
    """
    left = thread_limit()
    if left is not None:
        threads = max(1, min(threads, int(left.amount) // 2))
    try:
        from edgemoe.kernels.native.reader import NativeReader

        return NativeReader(threads, capacity, piece_bytes, staging_bytes)
    except KernelError:
        return ThreadedReader(arena, threads, staging_bytes)


Failure = tuple[str, str]
"""Why a read failed, and the way out."""
_CANCELLED: Failure = ("The read was cancelled.", "")


class _Read:
    def __init__(self, asked: RecordRead, destination: memoryview) -> None:
        self.asked = asked
        self.destination = destination
        self.failure: Failure | None = None
        self.ended = threading.Event()


class ThreadedReader:
    """The portable reader: Python threads, as many as the system starts, and `preadv`, which releases the GIL.

    Destinations must lie within `arena`, the uint8 array given here.
    """

    def __init__(self, arena: npt.NDArray[np.uint8], threads: int, staging_bytes: int = 0) -> None:
        """Raises MachineError where the system starts no thread, and BudgetError where it has no staging buffers."""
        self._staging = [allocate_pages(staging_bytes) for _ in range(threads)] if staging_bytes else []
        self._bytes = arena.reshape(-1).data
        self._base_address = arena.ctypes.data
        self._reads: dict[int, _Read] = {}
        self._queues: tuple[deque[int], deque[int]] = (deque(), deque())  # demand, prefetched
        self._next_ticket = 1
        self._closing = False
        self._change = threading.Condition()
        self._threads = start_threads(threads, self._work)
        if not self._threads:
            raise no_threads("Not one thread can be had to read experts")

    def submit(self, reads: Sequence[RecordRead], demand: bool) -> list[int]:
        with self._change:
            tickets = list(range(self._next_ticket, self._next_ticket + len(reads)))
            self._next_ticket += len(reads)
            for ticket, asked in zip(tickets, reads, strict=True):
                start = asked.address - self._base_address
                end = start + asked.length if asked.parts is None else None  # parts end where the slot does, or before
                self._reads[ticket] = _Read(asked, self._bytes[start:end])
            self._queues[0 if demand else 1].extend(tickets)
            self._change.notify(len(reads))
        return tickets

    def done(self, ticket: int) -> bool:
        return self._reads[ticket].ended.is_set()

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        read = self._reads[ticket]
        if not read.ended.wait(timeout_seconds):
            raise ReadError(
                f"A read of {read.asked.length} bytes did not end within {timeout_seconds} s.",
                "The disk may be failing or far away; copy the store to a local disk.",
            )
        if read.failure is not None:
            raise ReadError(*read.failure)

    def promote(self, ticket: int) -> None:
        with self._change:
            if ticket in self._queues[1]:
                self._queues[1].remove(ticket)
                self._queues[0].append(ticket)

    def cancel(self, ticket: int) -> bool:
        with self._change:
            for queue in self._queues:
                if ticket in queue:
                    queue.remove(ticket)
                    read = self._reads[ticket]
                    read.failure = _CANCELLED
                    read.ended.set()
                    return True
        return False

    def release(self, ticket: int) -> None:
        self._reads.pop(ticket, None)

    def close(self) -> None:
        with self._change:
            self._closing = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        with self._change:
            self._closing = True
            self._change.notify_all()

    def _work(self) -> None:
        staging = memoryview(self._staging.pop() if self._staging else b"")
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closing or any(self._queues))
                if self._closing:
                    return
                read = self._reads[(self._queues[0] or self._queues[1]).popleft()]
            read.failure = _fill(read, staging)
            read.ended.set()


def _fill(read: _Read, staging: memoryview) -> Failure | None:
    """Read one whole record; returns why that failed, or None."""
    if read.asked.parts is not None:
        return _land(read, staging)
    asked, filled, wanted = read.asked, 0, len(read.destination)
    try:
        while filled < wanted:
            count = os.preadv(asked.descriptor, [read.destination[filled:]], asked.offset + filled)
            if count == 0:
                return (
                    f"A read at offset {asked.offset} ended after {filled} of {wanted} bytes.",
                    MAKE_ANEW,
                )
            filled += count
    except OSError as error:
        return f"A read of {wanted} bytes at offset {asked.offset} failed: {error.strerror}.", CHECK_THE_FILE
    return None if as_written(read.destination, asked.crc32c) else NOT_AS_WRITTEN


def _land(read: _Read, staging: memoryview) -> Failure | None:
    """Read and land the parts of one record, as the reader in C does; returns why that failed, or None."""
    asked, slot = read.asked, np.frombuffer(read.destination, np.uint8)
    assert asked.parts is not None
    assert asked.places is not None
    done = crc = 0
    for part, place in zip(asked.parts, asked.places, strict=True):
        for begin, size in steps(part, len(staging)):
            offset = int(place["offset"]) + begin
            skipped = offset % PAGE_BYTES
            try:
                found = _read_pages(int(place["descriptor"]), offset - skipped, staging, skipped + size) - skipped
                modified = time_mark(os.fstat(int(place["descriptor"])).st_mtime_ns)
            except OSError as error:
                return f"A read of {size} bytes at offset {offset} failed: {error.strerror}.", CHECK_THE_FILE
            if found < size:
                return (
                    f"The file ended after {done + max(0, found)} of an expert's {asked.length} bytes.",
                    MAKE_ANEW,
                )
            if place["modified_ns"] not in (-1, modified):
                return CHANGED_FILE
            data = np.frombuffer(staging, np.uint8)[skipped : skipped + size]
            if asked.crc32c is not None:
                crc = crc32c(data, crc)
            if not land(part, begin, data, slot, float(place["scale"])):
                return NOT_FINITE
            done += size
    return None if asked.crc32c in (None, crc) else NOT_AS_WRITTEN


def _read_pages(descriptor: int, offset: int, into: memoryview, least: int) -> int:
    """Read whole pages that hold `least` bytes from `offset` on; returns how many bytes of them there were."""
    most, filled = round_up(least, PAGE_BYTES), 0
    while filled < least:
        try:
            count = os.preadv(descriptor, [into[filled:most]], offset + filled)
        except OSError as error:
            if error.errno == errno.EINVAL and filled:  # a direct read that goes on at an unaligned end of the file
                break
            raise
        if not count:
            break
        filled += count
    return filled
