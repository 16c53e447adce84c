"""Native reader threads: they read expert records from files into memory, demands before prefetches."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence

from edgemoe.errors import ReadError
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.library import Status, load_library, status_text
from edgemoe.kernels.reads import (
    BAD_RECORD,
    CHANGED_FILE,
    CHECK_THE_FILE,
    MAKE_ANEW,
    NOT_AS_WRITTEN,
    NOT_FINITE,
    PIECE_BYTES,
    RecordRead,
)
from edgemoe.process import no_threads


class NativeReader:
    """`threads` reader threads, or fewer if the system starts fewer, for up to `capacity` open requests.

    A request is read in pieces, by all threads that are free. With more than one thread, at most all but one read
    prefetches at a time, so that a demand finds a free thread. A descriptor may be opened with O_DIRECT if offsets,
    lengths and addresses are aligned for it. The caller keeps the destination alive until the request is done or
    cancelled, and releases every ticket. Each thread has a buffer of `staging_bytes` for records in parts
    (`kernels/landing.py`), which lie anywhere in their files.
    """

    def __init__(
        self, threads: int = 2, capacity: int = 4096, piece_bytes: int = PIECE_BYTES, staging_bytes: int = 0
    ) -> None:
        library = load_library()
        reader = ctypes.c_void_p()
        status = library.em_reader_create(threads, capacity, piece_bytes, staging_bytes, ctypes.byref(reader))
        if status == Status.NO_THREADS:
            raise no_threads("Not one thread can be had to read experts")
        if status != Status.OK:
            raise ReadError(
                f"A reader of {threads} threads, {capacity} requests and pieces of {piece_bytes} bytes could not be"
                f" made: {status_text(status)}.",
                "Ask for 1 to 64 threads, 1 to 1048576 requests and pieces of 1 byte to 1 GiB.",
            )
        self._library = library
        self._address: int | None = reader.value
        self._destroy = weakref.finalize(self, library.em_reader_destroy, reader.value)
        self._in_parts: dict[int, RecordRead] = {}
        """By ticket, the reads whose arrays the threads look at."""

    @property
    def address(self) -> int | None:
        """Address of the C reader, for operations that wait for its reads; None once closed."""
        return self._address

    def submit(self, reads: Sequence[RecordRead], demand: bool) -> list[int]:
        """Queue reads in one call and return their tickets. If one is refused, queues none and raises ReadError."""
        count = len(reads)
        tickets = (ctypes.c_int64 * count)()
        structs = (st.ReadStruct * count)(*map(_struct, reads))
        status = self._library.em_reader_submit(self._address, structs, count, demand, tickets)
        if status:
            asked = ", ".join(f"{r.length} bytes at {r.offset}" for r in reads)
            raise self._failure(status, f"a read of {asked}")
        self._in_parts.update(
            (ticket, read) for ticket, read in zip(tickets, reads, strict=True) if read.parts is not None
        )
        return list(tickets)

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        """Return when the read is done.

        Raises ReadError if it failed, ended early, was cancelled, exceeds the timeout, or has a wrong checksum.
        """
        detail = ctypes.c_int64()
        timeout_us = -1 if timeout_seconds is None else max(0, int(timeout_seconds * 1e6))
        status = self._library.em_reader_wait(self._address, ticket, timeout_us, ctypes.byref(detail))
        if status == Status.OK:
            return
        raise self.read_error(status, detail.value)

    def read_error(self, status: int, detail: int) -> ReadError:
        """The error of a read that ended with this status; `detail` as in `em_reader_wait`."""
        if status == Status.READ_FAILED:
            return ReadError(
                f"An expert could not be read: {os.strerror(detail)} (errno {detail}).",
                CHECK_THE_FILE,
            )
        if status == Status.SHORT_READ:
            return ReadError(
                f"An expert could not be read: the file ended after {detail} bytes of it.",
                MAKE_ANEW,
            )
        if status == Status.BAD_CHECKSUM:
            return ReadError(*NOT_AS_WRITTEN)
        if status == Status.NOT_FINITE:
            return ReadError(*NOT_FINITE)
        if status == Status.CHANGED_FILE:
            return ReadError(*CHANGED_FILE)
        if status == Status.BAD_RECORD:
            return ReadError(*BAD_RECORD)
        return self._failure(status, "a read")

    def source(self) -> st.SourceStruct:
        """The reader as a pager in C reads from it. Raises ReadError where it is closed."""
        if self._address is None:
            raise self._failure(Status.OK, "a pager")
        source = st.SourceStruct()
        self._library.em_reader_source(self._address, ctypes.byref(source))
        return source

    @property
    def closed(self) -> bool:
        return self._address is None

    def done(self, ticket: int) -> bool:
        """Whether the read succeeded, failed or was cancelled; `wait` then returns or raises at once."""
        result = self._library.em_reader_done(self._address, ticket)
        if result < 0:
            raise self._failure(-result, "a read")
        return bool(result)

    def promote(self, ticket: int) -> None:
        """Turn a queued prefetch into a demand; other requests are left unchanged."""
        status = self._library.em_reader_promote(self._address, ticket)
        if status:
            raise self._failure(status, "a promotion")

    def cancel(self, ticket: int) -> bool:
        """Cancel a request whose read has not begun; returns false if it has begun or is over."""
        status = self._library.em_reader_cancel(self._address, ticket)
        if status not in (Status.OK, Status.BUSY):
            raise self._failure(status, "a cancellation")
        return bool(status == Status.OK)

    def release(self, ticket: int) -> None:
        """Give back the ticket of a request that is over. Raises ReadError while it is queued or being read."""
        status = self._library.em_reader_release(self._address, ticket)
        if status:
            raise self._failure(status, "a release")
        self._in_parts.pop(ticket, None)

    def close(self) -> None:
        """Drop queued requests, wait for reads under way, and stop the threads."""
        self._address = None
        self._destroy()
        self._in_parts.clear()

    def abandon(self) -> None:
        """Leave the threads and their reads to themselves, as one of them hangs; the reader is never destroyed."""
        self._address = None
        self._destroy.detach()

    def _failure(self, status: int, what: str) -> ReadError:
        if self._address is None:
            return ReadError("The reader is closed.", "Make a new one.")
        return ReadError(f"The reader refused {what}: {status_text(status)}.")


def _struct(read: RecordRead) -> st.ReadStruct:
    expected = -1 if read.crc32c is None else read.crc32c
    if read.parts is None or read.places is None:
        return st.ReadStruct(read.offset, read.length, read.address, expected, read.descriptor)
    parts, places = read.parts.ctypes.data, read.places.ctypes.data
    return st.ReadStruct(0, read.length, read.address, expected, -1, len(read.parts), parts, places)
