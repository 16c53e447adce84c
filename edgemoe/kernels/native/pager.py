"""The expert cache in C, beside the reader: it takes the same decisions as `ExpertCache`, which says what they mean.

Letters: `L` layers, `E` experts of the layer that has most.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError, ReadError
from edgemoe.kernels.landing import PLACE
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.library import Status, load_library, status_text
from edgemoe.kernels.paging import MOST_WARM_READS, PROMPT, RECORD, CacheStatistics, Records


class Source(Protocol):
    """Where a pager reads records from (a `NativeReader`)."""

    def source(self) -> st.SourceStruct: ...
    @property
    def closed(self) -> bool: ...
    def read_error(self, status: int, detail: int) -> ReadError: ...


class NativePager:
    """Experts in the slots of an arena, filled by a reader. Operations in C ask it where it lies (`address`)."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        records: Records,
        reader: Source,
        policy: tuple[int, float, float],
        timeout_seconds: float,
        pointed_to: object = None,
    ) -> None:
        """`arena` is `(slots, slot bytes)`; `policy` is that of `policy_numbers`; `pointed_to` by records in parts.

        Raises KernelError for records that do not fit a slot, or a policy that only a replay has.
        """
        layers, experts = records.shape  # `planned_bytes` counts every array here
        self.statistics = CacheStatistics()
        self.residency = np.full((layers, experts), -1, np.int32)
        """The slot of each expert, -1 if it is absent, `(L, E)`. Only the pager writes it."""
        self.tickets = np.full(len(arena), -1, np.int64)
        """The ticket of the pending read into each slot, or -1."""
        self.loaded_when_asked = np.ones((layers, experts), np.bool_)
        """Whether each expert of the latest fetch of its layer was in RAM then, `(L, E)`; kept while asked for."""
        self._phase = PROMPT
        self._notes_residency = False
        self._kept = (arena, records, pointed_to)  # C points to them
        self._reader = reader
        self._timeout_seconds = timeout_seconds
        self._failure = st.ReadFailureStruct()
        self._library = load_library()
        kind, rate, weight = policy
        if records.dtype != RECORD or not records.flags.c_contiguous or not arena.flags.c_contiguous:
            raise KernelError("The pager's records and arena: expected contiguous arrays.", "Please report it.")
        setup = st.PagerSetupStruct(
            source=reader.source(),
            records=records.ctypes.data,
            arena=arena.ctypes.data,
            slots=self.residency.ctypes.data,
            tickets=self.tickets.ctypes.data,
            counters=self.statistics.counts.ctypes.data,
            failure=ctypes.addressof(self._failure),
            policy=st.PolicySettingsStruct(rate, weight, kind),
            slot_bytes=arena.shape[1],
            timeout_us=int(timeout_seconds * 1e6),
            slot_count=len(arena),
            layers=layers,
            experts=experts,
        )
        pager = ctypes.c_void_p()
        status = self._library.em_pager_create(ctypes.byref(setup), ctypes.byref(pager))
        if status != Status.OK:
            raise KernelError(
                f"A pager of {len(arena)} slots of {arena.shape[1]} bytes for {layers} layers of {experts} experts"
                f" could not be made: {status_text(status)}.",
                "This is a fault in how the model was put together; please report it.",
            )
        self._address = pager.value
        self._destroy = weakref.finalize(self, self._library.em_pager_destroy, pager.value)

    @staticmethod
    def planned_bytes(slots: int, layers: int, experts: int, parts: int = 0) -> int:
        """The bytes of a pager and of its table of records, besides the arena; a record lies in so many parts."""
        of_expert = np.dtype(np.int32).itemsize + np.dtype(np.bool_).itemsize + RECORD.itemsize + parts * PLACE.itemsize
        of_slot = np.dtype(np.int64).itemsize
        in_c: int = load_library().em_pager_bytes(slots, layers, experts)
        return layers * experts * of_expert + slots * of_slot + in_c

    @property
    def address(self) -> int | None:
        """Address of the C pager, for operations that ask it. Raises ReadError where its reader is closed."""
        return self._open()

    @property
    def phase(self) -> int:
        """The phase of the runs that follow."""
        return self._phase

    @phase.setter
    def phase(self, phase: int) -> None:
        if phase != self._phase:
            self._check(self._library.em_pager_set_phase(self._open(), phase))
            self._phase = phase

    @property
    def notes_residency(self) -> bool:
        """Whether a fetch notes what was in RAM, in `loaded_when_asked`."""
        return self._notes_residency

    @notes_residency.setter
    def notes_residency(self, on: bool) -> None:
        noted = self.loaded_when_asked.ctypes.data if on else None
        self._check(self._library.em_pager_note(self._open(), noted))
        self._notes_residency = on

    def all_loaded(self) -> npt.NDArray[np.bool_]:
        """Which experts' bytes are in RAM, ready to use, `(L, E)`."""
        loaded = np.zeros(self.residency.shape, np.bool_)
        self._check(self._library.em_pager_loaded(self._open(), 0, loaded.size, loaded.ctypes.data))
        return loaded

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        """Begin to read experts (layer, expert) into free slots, in their order, while there are no other reads."""
        keys = np.array(
            [layer * self.residency.shape[1] + expert for layer, expert in experts[:MOST_WARM_READS]], np.int32
        )
        self._check(self._library.em_pager_warm(self._open(), keys.ctypes.data, len(keys)))

    def give_up(self, layer: int, expert: int) -> None:
        """Make an expert absent whose record a device has, unless it is in use or being read."""
        self._check(self._library.em_pager_give_up(self._open(), layer, expert))

    def failure(self, status: int) -> ReadError | None:
        """The error of a read with which an operation failed, naming layer and expert; None if it is not of a read."""
        failed, self._failure.status = self._failure.status, Status.OK
        if status != failed:
            return None
        name = f"Layer {self._failure.layer}, expert {self._failure.expert}"
        if status == Status.TIMEOUT:
            return ReadError(
                f"{name}: its read did not end within {self._timeout_seconds:g} s.",
                "The disk may be failing or far away; copy the store to a local disk.",
            )
        error = self._reader.read_error(status, self._failure.detail)
        return ReadError(f"{name}: {error.message}", error.hint)

    def _open(self) -> int | None:
        """The address of the C pager. Raises ReadError where its reader is closed, which C would read from."""
        if self._reader.closed:
            raise ReadError("The reader is closed.", "Make a new one.")
        return self._address

    def _check(self, status: int) -> None:
        if status != Status.OK:
            raise self.failure(status) or KernelError(f"The pager: {status_text(status)}.", "Please report it.")
