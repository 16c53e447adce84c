"""The slots of the expert cache: which expert each holds, the reads into them, and the choice of one that leaves.

Letters, keys and states as in `cache.py`. The same part of the pager in C is `native/src/pager_slots.c`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.policy import Policy
from edgemoe.io.reads import ExpertFiles, RecordReader
from edgemoe.kernels.landing import PLACE, Parts
from edgemoe.kernels.paging import MOST_WARM_READS, CacheStatistics
from edgemoe.kernels.reads import RecordRead

READ_TIMEOUT_SECONDS = 60.0

ReadReason = Literal["demanded", "guessed", "behind"]
DEMANDED, GUESSED, BEHIND = get_args(ReadReason)
"""Why absent experts are read: a use waits for them, a guess names them, or later uses may want them."""


class Record(Protocol):
    """Where an expert lies on disk (a store's `ExpertRecord`)."""

    @property
    def path(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def crc32c(self) -> int | None: ...
    @property
    def parts(self) -> Parts | None: ...
    @property
    def places(self) -> Sequence[PartPlace]: ...


class PartPlace(Protocol):
    """Where a part of a record lies (a store's `PartPlace`)."""

    @property
    def path(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def modified_ns(self) -> int: ...
    @property
    def scale(self) -> float: ...


class RecordTable(Protocol):
    """Finds records (a `Store`)."""

    def record(self, layer: int, expert: int) -> Record: ...


class Slots:
    """The slots of one arena, and the reads of records into them."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        residency: npt.NDArray[np.int32],
        table: RecordTable,
        files: ExpertFiles,
        reader: RecordReader,
        policy: Policy,
        statistics: CacheStatistics,
    ) -> None:
        """`residency` `(L, E)` receives the slot of each expert; it holds -1 everywhere."""
        count = len(arena)
        self.tickets = np.full(count, -1, np.int64)
        """The ticket of the pending read into each slot, or -1."""
        self.wait_ns = 0
        """Time for which reads were waited for."""
        self.slot_of: npt.NDArray[np.int32] = residency.reshape(-1)
        """The slot of each key, -1 if its expert is absent."""
        self.key_of = [-1] * count
        self.pinned = np.zeros(count, np.bool_)
        self.prefetched = [False] * count
        """Whether a slot's expert was read on a guess, and has not been used since."""
        self.loading: dict[int, None] = {}
        """Slots that had a ticket when last checked, in the order of their reads."""
        self.warming: dict[int, None] = {}
        """Slots of a warm start not used yet, the hottest first."""
        self._experts = residency.shape[1]
        self._table = table
        self._files = files
        self._reader = reader
        self._policy = policy
        self._statistics = statistics
        self._base_address = arena.ctypes.data
        self._slot_bytes = arena.shape[1]
        self._free = list(range(count))[::-1]

    def __len__(self) -> int:
        return len(self.key_of)

    def is_loading(self, slot: int) -> bool:
        """Whether a read into a slot is under way."""
        ticket = int(self.tickets[slot])
        return ticket >= 0 and not self._reader.done(ticket)

    def read(self, keys: Sequence[int], reason: ReadReason, scan: bool = False) -> Sequence[int]:
        """Begin the reads of absent experts, in order, while slots are available; returns the keys begun, pinned."""
        slots: list[int] = []
        try:
            while len(slots) < len(keys) and (slot := self._take()) is not None:
                slots.append(slot)
                self.pinned[slot] = True  # so that the next one cannot evict it
        except BaseException:
            self._give_back(slots)
            raise
        keys = keys[: len(slots)]
        length = self._submit(keys, slots, demand=reason == DEMANDED)
        self.loading.update(dict.fromkeys(slots))
        for key, slot in zip(keys, slots, strict=True):
            self.prefetched[slot] = reason == GUESSED
            if scan:
                self._policy.scan(slot)
            else:
                self._policy.use(key, slot)
        if reason == GUESSED:
            self._statistics.prefetched_reads += len(keys)
            self._statistics.prefetched_bytes += length
        else:
            self._statistics.demand_bytes += length
        return keys

    def warm(self, keys: Sequence[int]) -> None:
        """Begin to read experts into free slots, in their order, while there are no other reads."""
        keys = keys[:MOST_WARM_READS]
        absent = [key for key in dict.fromkeys(keys) if self.slot_of[key] < 0]
        slots = [self._free.pop() for _ in absent[: len(self._free)]]
        self._statistics.warm_bytes += self._submit(absent[: len(slots)], slots, demand=False)
        self.pinned[slots] = False
        self.warming.update(dict.fromkeys(slots))
        for slot in reversed(self.warming):  # so that the hottest counts as used last
            self._policy.use(self.key_of[slot], slot)

    def land(self, slot: int) -> None:
        """Wait for the read into a slot, as kernels do, and release its ticket."""
        ticket = int(self.tickets[slot])
        if ticket < 0:
            return
        began_ns = time.perf_counter_ns()
        try:
            self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
        finally:
            self.wait_ns += time.perf_counter_ns() - began_ns
        self.tickets[slot] = -1
        self._reader.release(ticket)

    def enter(self, key: int) -> int | None:
        """Return the slot of an expert that is to be used, None if it is absent.

        What has become of its read is known then: one that has failed leaves its expert absent. A read of a warm start
        counts as any other from now on.
        """
        slot = self._of(key)
        if slot in self.warming:
            del self.warming[slot]
            self.loading[slot] = None
        if slot is not None and slot in self.loading and not self.is_loading(slot):
            self.settle(slot)
            slot = self._of(key)
        return slot

    def cancel(self, slot: int) -> None:
        """Take back a prefetched read, if it has not begun."""
        ticket = int(self.tickets[slot])
        if ticket >= 0 and self._reader.cancel(ticket):
            self._statistics.prefetched_reads -= 1
            self._statistics.prefetched_bytes -= self._length(slot)
            self._drop(slot)

    def failure(self, slots: Sequence[int], error: ReadError) -> ReadError:
        """Return the error of one of these reads, which kernels waited for, naming layer and expert; else `error`."""
        for slot in slots:
            if self.is_loading(slot):
                continue
            try:
                self._finish(slot)
            except ReadError as named:
                return named
        stalled = [self._name(slot) for slot in slots if self.tickets[slot] >= 0]
        if not stalled:
            return error
        return ReadError(
            f"{stalled[0]}: its read did not end within {READ_TIMEOUT_SECONDS:g} s.",
            "The disk may be failing or far away; copy the store to a local disk.",
        )

    def promote(self, slot: int) -> None:
        """Read into a slot before all that was only guessed."""
        self._reader.promote(int(self.tickets[slot]))

    def settle(self, slot: int) -> None:
        """Wait for a read that no kernel waits for. If it failed its expert is absent; a demand read reports why."""
        try:
            self._finish(slot)
        except ReadError:
            if self.tickets[slot] >= 0:  # stuck, not failed: its slot is not available
                raise

    def _finish(self, slot: int) -> None:
        """Wait for the read into a slot if there is one. A failed read leaves its expert absent.

        A read that is still going on after the time limit keeps its slot, since it may yet write there.
        """
        ticket = int(self.tickets[slot])
        if ticket < 0:
            self.leave_loading((slot,))
            return
        began_ns = time.perf_counter_ns()
        try:
            self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
        except ReadError as error:
            name = self._name(slot)
            if self._reader.done(ticket):
                self._drop(slot)
            raise ReadError(f"{name}: {error.message}", error.hint) from error
        finally:
            self.wait_ns += time.perf_counter_ns() - began_ns
        # In this order a KeyboardInterrupt between two of these lines may lose a ticket, but never one in use.
        self.leave_loading((slot,))
        self.tickets[slot] = -1
        self._reader.release(ticket)

    def leave_loading(self, slots: Iterable[int]) -> None:
        """Note that the reads into these slots need no further check."""
        for slot in slots:
            self.loading.pop(slot, None)

    def give_up(self, key: int) -> None:
        """Make an expert absent, unless it is pinned or loading."""
        slot = int(self.slot_of[key])
        if slot >= 0 and not self.pinned[slot] and self.tickets[slot] < 0:
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        """Make the expert in a slot absent; its read, if it had one, has ended."""
        ticket = int(self.tickets[slot])
        if ticket >= 0:
            self.tickets[slot] = -1
            self._reader.release(ticket)
        self.leave_loading((slot,))
        if self.key_of[slot] >= 0:  # absent after an interrupt while the slot was taken
            self.slot_of[self.key_of[slot]] = -1
        self.key_of[slot] = -1
        self.prefetched[slot] = self.pinned[slot] = False
        self._free.append(slot)

    def _of(self, key: int) -> int | None:
        """Return the slot of an expert; None if it is absent."""
        slot = int(self.slot_of[key])
        return None if slot < 0 else slot

    def _name(self, slot: int) -> str:
        """Name the expert in a slot, for an error."""
        layer, expert = divmod(self.key_of[slot], self._experts)
        return f"Layer {layer}, expert {expert}"

    def _submit(self, keys: Sequence[int], slots: list[int], demand: bool) -> int:
        """Give slots to experts and begin their reads; returns the bytes of their records. The slots end up pinned.

        All reads go in one call: each call wakes reader threads, which compete with all other threads for processors.
        """
        if not keys:
            return 0
        reads = [self._record_read(key, slot) for key, slot in zip(keys, slots, strict=True)]
        # Pinned first: a KeyboardInterrupt before the tickets are known may lose slots, but no slot that is being read
        # into is given to another expert.
        self.pinned[slots] = True
        try:
            self.tickets[slots] = self._reader.submit(reads, demand)
        except ReadError:
            self._give_back(slots)
            raise
        for key, slot in zip(keys, slots, strict=True):
            self.slot_of[key] = slot
            self.key_of[slot] = key
        return sum(read.length for read in reads)

    def _length(self, slot: int) -> int:
        """Return the bytes of the record of the expert in a slot."""
        return self._table.record(*divmod(self.key_of[slot], self._experts)).length

    def _record_read(self, key: int, slot: int) -> RecordRead:
        record = self._table.record(*divmod(key, self._experts))
        return record_read(record, self._base_address + slot * self._slot_bytes, self._files.descriptor)

    def _give_back(self, slots: list[int]) -> None:
        """Return slots that were taken but are not being read into."""
        self.pinned[slots] = False
        self._free += slots

    def _take(self) -> int | None:
        """Return a slot for another expert: a free one, or that of the policy's victim; None if all are in use."""
        if not self._free:
            for slot in [slot for slot in self.loading if not self.pinned[slot] and not self.is_loading(slot)]:
                self.settle(slot)
        while self.warming and not self._free:
            self._take_from_warming()
        if not self._free:
            victim = self._policy.victim(~self.pinned & (self.tickets < 0))
            if victim < 0:
                return None
            self._drop(victim)
        return self._free.pop()

    def _take_from_warming(self) -> None:
        """Give up the coldest read of a warm start if it has not begun; else treat it as an ordinary read."""
        slot, _ = self.warming.popitem()
        ticket = int(self.tickets[slot])
        if self.pinned[slot]:
            self.loading[slot] = None
        elif self._reader.cancel(ticket):
            self._statistics.warm_bytes -= self._length(slot)
            self._drop(slot)
        elif self._reader.done(ticket):
            self.settle(slot)
        else:
            self.loading[slot] = None


def record_read(record: Record, address: int, descriptor: Callable[[Path], int]) -> RecordRead:
    """The request for a record, which lands at an address; `descriptor` is that of an open file."""
    if record.parts is None:
        return RecordRead(descriptor(record.path), record.offset, record.length, address, record.crc32c)
    rows = [(place.offset, place.modified_ns, descriptor(place.path), place.scale) for place in record.places]
    return RecordRead(-1, 0, record.length, address, record.crc32c, record.parts, np.array(rows, PLACE))
