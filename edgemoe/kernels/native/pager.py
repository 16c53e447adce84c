"""The expert cache in C, beside the reader: it takes the same decisions as `ExpertCache`, which says what they mean.

Letters: `L` layers, `E` experts of the layer that has most.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError, ReadError
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.library import Status, load_library, status_text
from edgemoe.kernels.paging import RECORD, CacheStatistics, Records


class Source(Protocol):
    """Where a pager reads records from (a `NativeReader`)."""

    def source(self) -> st.SourceStruct: ...
    @property
    def closed(self) -> bool: ...
    def read_error(self, status: int, detail: int) -> ReadError: ...


class NativePager:
    """Experts in the slots of an arena, filled by a reader; see `ExpertCache` for what each method means."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        records: Records,
        reader: Source,
        policy: tuple[int, float, float],
        timeout_seconds: float,
    ) -> None:
        """`arena` is `(slots, slot bytes)`; `policy` is that of `policy_numbers`.

        Raises KernelError for records that do not fit a slot, or a policy that only a replay has.
        """
        layers, experts = records.shape
        self.statistics = CacheStatistics()
        self.residency = np.full((layers, experts), -1, np.int32)
        """The slot of each expert, -1 if it is absent, `(L, E)`. Only the pager writes it."""
        self.tickets = np.full(len(arena), -1, np.int64)
        """The ticket of the pending read into each slot, or -1; kernels reset it after waiting for the read."""
        self._kept = (arena, records)  # C points to them
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
            policy=st.PolicySettingsStruct(None, rate, weight, kind),
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

    @property
    def slots(self) -> int:
        """The number of slots: the most experts that the cache holds."""
        return len(self.tickets)

    def holds(self, layer: int, expert: int) -> bool:
        """Whether the expert has a slot, though its read may still be under way."""
        return bool(self.residency[layer, expert] >= 0)

    def loaded(self, layer: int, expert: int) -> bool:
        """Whether the expert's bytes are in RAM, ready to use."""
        found = ctypes.c_uint8()
        first = layer * self.residency.shape[1] + expert
        self._check(self._library.em_pager_loaded(self._open(), first, 1, ctypes.byref(found)))
        return bool(found.value)

    def stream(
        self, layer: int, experts: Sequence[int], in_passing: bool = False
    ) -> Generator[dict[int, int], None, None]:
        """Yield the experts of a layer with their slots, `{expert: slot}`, in waves; the caller waits for their reads.

        A caller that stops before the end must close the generator. Raises ReadError naming the layer and expert.
        """
        wanted = np.array(experts, np.int32)
        self._check(self._library.em_pager_request(self._open(), layer, wanted.ctypes.data, len(wanted), in_passing))
        wave, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_int32()
        row = self.residency[layer]
        try:
            while True:
                self._check(self._library.em_pager_wave(self._open(), ctypes.byref(wave), ctypes.byref(count)))
                if not count.value:
                    return
                yield {expert: int(row[expert]) for expert in wave[: count.value]}
        finally:
            self._library.em_pager_end(self._address)

    def failure(self, wave: Mapping[int, int], error: ReadError) -> ReadError:
        """The error of a read that kernels waited for, naming layer and expert; that expert is absent afterwards."""
        status = self._library.em_pager_blame(self._open())
        return self._error(status) if status else error

    def predict(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that the next layer will probably use; demand reads go first."""
        wanted = np.array(experts, np.int32)
        self._check(self._library.em_pager_prefetch(self._open(), layer, wanted.ctypes.data, len(wanted)))

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        """Begin to read experts (layer, expert) into free slots, in their order, while there are no other reads."""
        keys = np.array([layer * self.residency.shape[1] + expert for layer, expert in experts], np.int32)
        self._check(self._library.em_pager_warm(self._open(), keys.ctypes.data, len(keys)))

    def _open(self) -> int | None:
        """The address of the C pager. Raises ReadError where its reader is closed, which C would read from."""
        if self._reader.closed:
            raise ReadError("The reader is closed.", "Make a new one.")
        return self._address

    def _check(self, status: int) -> None:
        if status != Status.OK:
            raise self._error(status)

    def _error(self, status: int) -> ReadError:
        failed, self._failure.status = self._failure.status, Status.OK
        if status != failed:
            return ReadError(f"The pager refused a use of experts: {status_text(status)}.", "Please report it.")
        name = f"Layer {self._failure.layer}, expert {self._failure.expert}"
        if status == Status.TIMEOUT:
            return ReadError(
                f"{name}: its read did not end within {self._timeout_seconds:g} s.",
                "The disk may be failing or far away; copy the store to a local disk.",
            )
        error = self._reader.read_error(status, self._failure.detail)
        return ReadError(f"{name}: {error.message}", error.hint)
