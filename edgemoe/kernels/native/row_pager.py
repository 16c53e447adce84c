"""The row pager in C, beside the reader: it brings pages of small rows to slots as operations need them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable

from edgemoe.errors import KernelError, ReadError
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.library import Status, load_library, status_text
from edgemoe.kernels.native.pager import Source
from edgemoe.kernels.operations import Bytes, Integers
from edgemoe.kernels.paging import CacheStatistics, RowFile


class NativeRowPager:
    """Pages of rows in the slots of an arena, filled by a reader. Operations in C ask it where it lies (`address`)."""

    def __init__(
        self,
        arena: Bytes,
        slots: Integers,
        rows: RowFile,
        reader: Source,
        timeout_seconds: float,
        name: Callable[[int], str],
    ) -> None:
        """`arena` is `(slots, page bytes)`; `slots` `(pages,)` becomes the slot of each page, -1 where it is absent.

        `name` names a row, for errors. Raises KernelError for rows that do not fit a slot.
        """
        self.statistics = CacheStatistics()
        self._kept = (arena, slots, rows)  # C points to them
        self._reader = reader
        self._timeout_seconds = timeout_seconds
        self._name = name
        self._failure = st.ReadFailureStruct()
        library = load_library()
        setup = st.RowPagerSetupStruct(
            source=reader.source(),
            arena=arena.ctypes.data,
            slots=slots.ctypes.data,
            crc32c=rows.crc32c.ctypes.data,
            counters=self.statistics.counts.ctypes.data,
            failure=ctypes.addressof(self._failure),
            offset=rows.offset,
            row_bytes=rows.row_bytes,
            timeout_us=int(timeout_seconds * 1e6),
            descriptor=rows.descriptor,
            row_count=len(rows.crc32c),
            rows_per_page=rows.per_page,
            slot_count=len(arena),
        )
        pager = ctypes.c_void_p()
        status = library.em_row_pager_create(ctypes.byref(setup), ctypes.byref(pager))
        if status != Status.OK:
            raise KernelError(
                f"A pager of {len(arena)} slots for {len(rows.crc32c)} rows of {rows.row_bytes} bytes could not be"
                f" made: {status_text(status)}.",
                "This is a fault in how the model was put together; please report it.",
            )
        self._address = pager.value
        self._destroy = weakref.finalize(self, library.em_row_pager_destroy, pager.value)

    @staticmethod
    def planned_bytes(slots: int) -> int:
        """The bytes of a pager with so many slots, besides the arena and the tables of pages and checksums."""
        size: int = load_library().em_row_pager_bytes(slots)
        return size

    @property
    def address(self) -> int | None:
        """Address of the C pager, for operations that ask it. Raises ReadError where its reader is closed."""
        if self._reader.closed:
            raise ReadError("The reader is closed.", "Make a new one.")
        return self._address

    def failure(self, status: int) -> ReadError | None:
        """The error of a read with which an operation failed, naming the row; None if it is not of a read."""
        failed, self._failure.status = self._failure.status, Status.OK
        if status != failed:
            return None
        name = self._name(self._failure.expert)
        if status == Status.TIMEOUT:
            return ReadError(
                f"{name}: its read did not end within {self._timeout_seconds:g} s.",
                "The disk may be failing or far away; copy the store to a local disk.",
            )
        error = self._reader.read_error(status, self._failure.detail)
        return ReadError(f"{name}: {error.message}", error.hint)
