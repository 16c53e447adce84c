"""The expert cache: slots of equal size in one arena, filled from disk as the router chooses experts.

Operations ask the cache themselves: `Fetch` where a layer's routing is known, `Prefetch` on a guess at the next
layer's, `Experts` for the records as they land. Kernels in C ask the pager in C (`native/src/pager.c`), which takes
every decision as this file does: it is the meaning of both.

Letters: `L` layers, `E` experts of the layer that has most. An expert's key is `layer * E + expert`. A slot holds one
expert's record as it landed (`kernels/landing.py`); kernels compute on it in place. An expert is absent, loading (a
read into its slot is under way: the slot has a ticket) or loaded. An expert is pinned while kernels may be computing on
it, or waiting for it.

Invariants:
- There are never more slots than the arena was made with; nothing is allocated after construction.
- A pinned or loading expert never leaves. A slot's bytes are used only after its read has succeeded.
- The contents of the cache affect only the speed of an answer, never its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError, ReadError
from edgemoe.experts.policy import Policy, is_scan
from edgemoe.io.reads import ExpertFiles, RecordReader
from edgemoe.kernels.landing import PLACE, Parts
from edgemoe.kernels.operations import PROMPT, Floats, Integers
from edgemoe.kernels.paging import MOST_WARM_READS, CacheStatistics
from edgemoe.kernels.reads import RecordRead

READ_TIMEOUT_SECONDS = 60.0


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


class RecordTable(Protocol):
    """Finds records (a `Store`)."""

    def record(self, layer: int, expert: int) -> Record: ...


class Cache(Protocol):
    """The expert cache as the engine uses it: an `ExpertCache`, or the pager in C (`NativePager`), with its meaning.

    Operations ask either of them themselves (`kernels/operations.py`: `Fetch`, `Experts`, `Prefetch`).
    """

    statistics: CacheStatistics
    residency: npt.NDArray[np.int32]
    """The slot of each expert, -1 if it is absent, `(L, E)`. Only the cache writes it."""
    loaded_when_asked: npt.NDArray[np.bool_]
    """Whether each expert of the latest fetch of its layer was in RAM then, `(L, E)`; kept while `notes_residency`."""

    @property
    def notes_residency(self) -> bool: ...
    @notes_residency.setter
    def notes_residency(self, on: bool) -> None: ...
    @property
    def phase(self) -> int: ...
    @phase.setter
    def phase(self, phase: int) -> None:
        """Set the phase of the runs that follow."""

    def all_loaded(self) -> npt.NDArray[np.bool_]:
        """Which experts' bytes are in RAM, ready to use, `(L, E)`."""

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        """Begin to read experts (layer, expert) into free slots, in their order, while there are no other reads.

        They give up their slots to all other experts, and do not count as prefetches.
        """


class ExpertCache:
    """Experts in RAM; see the module's docstring."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        experts_per_layer: Sequence[int],
        table: RecordTable,
        files: ExpertFiles,
        reader: RecordReader,
        policy: Policy,
    ) -> None:
        """`experts_per_layer` is 0 for a layer without routed experts."""
        self.statistics = CacheStatistics()
        slots = len(arena)
        self.tickets = np.full(slots, -1, np.int64)
        """The ticket of the pending read into each slot, or -1."""
        self.wait_ns = 0
        self.phase = PROMPT
        self.notes_residency = False
        self._experts = max(experts_per_layer)
        self.residency = np.full((len(experts_per_layer), self._experts), -1, np.int32)
        self.loaded_when_asked = np.ones(self.residency.shape, np.bool_)
        self._slot_of: npt.NDArray[np.int32] = self.residency.reshape(-1)  # by key
        self._routed_layers = sum(experts > 0 for experts in experts_per_layer)
        self._table = table
        self._files = files
        self._reader = reader
        self._policy = policy
        self._base_address = arena.ctypes.data
        self._slot_bytes = arena.shape[1]
        self._free_slots = list(range(slots))[::-1]
        self._key_of = [-1] * slots
        self._pinned = np.zeros(slots, np.bool_)
        self._prefetched = [False] * slots
        self._loading: dict[int, None] = {}  # slots that had a ticket when last checked, in the order of their reads
        self._warming: dict[int, None] = {}  # slots of a warm start not used yet, the hottest first
        self._latest_guess: tuple[int, frozenset[int]] | None = None
        self._fetched: _Fetched | None = None

    def loaded(self, layer: int, expert: int) -> bool:
        """Whether the expert's bytes are in RAM, ready to use."""
        slot = int(self.residency[layer, expert])
        return slot >= 0 and not self._is_loading(slot)

    def all_loaded(self) -> npt.NDArray[np.bool_]:
        """Which experts' bytes are in RAM, ready to use, `(L, E)`."""
        loaded = np.zeros(self.residency.shape, np.bool_)
        for layer, expert in np.argwhere(self.residency >= 0).tolist():
            loaded[layer, expert] = self.loaded(layer, expert)
        return loaded

    @property
    def slots(self) -> int:
        """The number of slots: the most experts that the cache holds."""
        return len(self._key_of)

    def fetch(self, layer: int, experts: Integers, weights: Floats | None = None, drop_cold: float = 0.0) -> None:
        """Begin a use of the experts that tokens are routed to, `(T, K)`; `Fetch` says what `drop_cold` means.

        Experts of a prompt are taken by number, in which order records mostly lie on disk, others in the order of the
        router. It ends the use before it, which a run that failed may have left open.
        """
        self._end_use()
        wanted = (
            np.unique(experts).tolist() if self.phase == PROMPT else list(dict.fromkeys(experts.reshape(-1).tolist()))
        )
        if self.notes_residency:
            self.loaded_when_asked[layer, wanted] = [self.loaded(layer, expert) for expert in wanted]
        left_out: list[int] = []
        if weights is not None and drop_cold > 0:
            cold = [expert for expert in wanted if self.residency[layer, expert] < 0]
            left_out = droppable(experts, weights, cold, drop_cold)
            weights[np.isin(experts, left_out)] = 0
            self.statistics.dropped += len(left_out)
            wanted = [expert for expert in wanted if expert not in left_out]
        scan = self.phase == PROMPT and is_scan(len(wanted), self._routed_layers, self.slots)
        waves = self.stream(layer, wanted, scan)
        self._fetched = _Fetched(layer, left_out, waves, next(waves, None))

    def left_out(self, layer: int) -> Sequence[int]:
        """The experts that the latest fetch of this layer left out. Raises KernelError where nothing was fetched."""
        if self._fetched is None or self._fetched.layer != layer:
            raise KernelError(f"Layer {layer}: its experts were not fetched.", "Please report it.")
        return self._fetched.left_out

    def landings(self, layer: int) -> Generator[tuple[int, int], None, None]:
        """Yield each expert of the use with its slot, once its record is there, and end the use.

        Raises ReadError naming layer and expert; that expert is absent afterwards, unless its read is still going on.
        """
        self.left_out(layer)
        assert self._fetched is not None
        wave, waves = self._fetched.first, self._fetched.waves
        try:
            while wave is not None:
                yield from self._landings(wave)
                wave = next(waves, None)
        finally:
            self._end_use()

    def _landings(self, wave: Mapping[int, int]) -> Iterator[tuple[int, int]]:
        """Yield the experts of a wave: those whose records are there, then the others as they land."""
        left = dict(wave)
        while left:
            landed = [expert for expert, slot in left.items() if not self._is_loading(slot)]
            for expert in landed or list(left)[:1]:
                try:
                    self._await(left[expert])
                except ReadError as error:
                    raise self.failure(wave, error) from error
                yield expert, left.pop(expert)

    def _await(self, slot: int) -> None:
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

    def _end_use(self) -> None:
        if self._fetched is not None:
            self._fetched.waves.close()
            self._fetched = None

    def stream(self, layer: int, experts: Sequence[int], scan: bool = False) -> Generator[dict[int, int], None, None]:
        """Yield the experts of a layer with their slots, `{expert: slot}`: all at once if there are enough slots.

        Reads of missing experts begin at once, as far as slots are available; the caller waits for those of a wave.
        Where slots are few, experts come in waves, each about half of those that have a slot, so that one half is read
        while the other is computed. A wave's experts are pinned until the caller takes the next one; a caller that
        stops before the end must close the generator, which unpins them. `scan`: this use does not predict the next
        one, so experts that are read for it leave before all others. Raises ReadError naming the layer and expert.
        """
        wanted = [layer * self._experts + expert for expert in experts]
        self._count_recall(layer, experts)
        self._cancel_wrong_guesses(layer, wanted)
        try:
            begun, absent = self._pin_present(wanted, scan)
            while begun or absent:
                self._begin_reads(begun, absent, scan)
                if not begun:
                    self._await_a_slot()
                    continue
                wave = begun[: -(-len(begun) // 2)] if absent else begun
                begun = begun[len(wave) :]
                slots = {key % self._experts: int(self._slot_of[key]) for key in wave}
                yield slots
                self._leave_loading(slots.values())
                self._pinned[list(slots.values())] = False
        finally:
            self._pinned[[self._slot_of[key] for key in wanted if self._slot_of[key] >= 0]] = False

    def failure(self, wave: Mapping[int, int], error: ReadError) -> ReadError:
        """The error of a read of this wave that kernels waited for, naming layer and expert."""
        for slot in wave.values():
            if self._is_loading(slot):
                continue
            try:
                self._finish(slot)
            except ReadError as named:
                return named
        stalled = [self._name(slot) for slot in wave.values() if self.tickets[slot] >= 0]
        if not stalled:
            return error
        return ReadError(
            f"{stalled[0]}: its read did not end within {READ_TIMEOUT_SECONDS:g} s.",
            "The disk may be failing or far away; copy the store to a local disk.",
        )

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that a layer will probably use; demand reads go first."""
        self._latest_guess = (layer, frozenset(experts))
        keys = [layer * self._experts + expert for expert in experts]
        present = [int(self._slot_of[key]) for key in keys if self._slot_of[key] >= 0]
        pinned_before = self._pinned[present]
        self._pinned[present] = True  # so that one guess does not push out another
        try:
            reading = self._read([key for key in keys if self._slot_of[key] < 0], prefetched=True)
        finally:
            self._pinned[present] = pinned_before
        self._pinned[[self._slot_of[key] for key in reading]] = False

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        """Begin to read experts (layer, expert) into free slots, in their order, while there are no other reads."""
        keys = [layer * self._experts + expert for layer, expert in experts[:MOST_WARM_READS]]
        absent = [key for key in dict.fromkeys(keys) if self._slot_of[key] < 0]
        slots = [self._free_slots.pop() for _ in absent[: len(self._free_slots)]]
        self.statistics.warm_bytes += self._submit(absent[: len(slots)], slots, demand=False)
        self._pinned[slots] = False
        self._warming.update(dict.fromkeys(slots))
        for slot in reversed(self._warming):  # so that the hottest counts as used last
            self._policy.use(self._key_of[slot], slot)

    def _count_recall(self, layer: int, experts: Sequence[int]) -> None:
        if self._latest_guess is not None and self._latest_guess[0] == layer:
            named = self._latest_guess[1]
            self.statistics.guessable_uses += len(experts)
            self.statistics.guessed_uses += sum(expert in named for expert in experts)
        self._latest_guess = None

    def _cancel_wrong_guesses(self, layer: int, wanted: Sequence[int]) -> None:
        """Cancel prefetched reads of this layer that have not begun and turned out to be wrong."""
        for slot in list(self._loading):
            key = self._key_of[slot]
            if self._prefetched[slot] and key // self._experts == layer and key not in wanted:
                ticket = int(self.tickets[slot])
                if ticket >= 0 and self._reader.cancel(ticket):
                    self.statistics.prefetched_reads -= 1
                    self.statistics.prefetched_bytes -= self._table.record(layer, key % self._experts).length
                    self._drop(slot)

    def _pin_present(self, wanted: Sequence[int], scan: bool) -> tuple[list[int], list[int]]:
        """Pin experts that have a slot, and count hits and misses; returns the keys with a slot and those without."""
        present, absent = [], []
        for key in wanted:
            slot = self._slot(key)
            if slot in self._warming:
                del self._warming[slot]
                self._loading[slot] = None
            if slot is not None and slot in self._loading and not self._is_loading(slot):
                self._settle(slot)
                slot = self._slot(key)
            if slot is None:
                self.statistics.misses += 1
                absent.append(key)
                continue
            self._pinned[slot] = True
            if not scan:
                self._policy.use(key, slot)
            prefetched = self._prefetched[slot]
            if prefetched:
                self._prefetched[slot] = False
                self.statistics.useful_prefetches += 1
            present.append(key)
            if slot in self._loading:
                self._reader.promote(int(self.tickets[slot]))
                self.statistics.misses += 1
                self.statistics.late_prefetches += prefetched
            else:
                self.statistics.hits += 1
        return present, absent

    def _begin_reads(self, begun: list[int], absent: list[int], scan: bool) -> None:
        """Start the reads of absent experts as far as slots are available, moving their keys to `begun`."""
        reading = self._read(absent, prefetched=False, scan=scan)
        begun += reading
        del absent[: len(reading)]

    def _await_a_slot(self) -> None:
        """Wait for one loading read to end, where reads that no kernel waits for have taken every slot."""
        self._settle(next(iter(self._loading)))

    def _settle(self, slot: int) -> None:
        """Wait for a read that no kernel waits for. If it failed its expert is absent; a demand read reports why."""
        try:
            self._finish(slot)
        except ReadError:
            if self.tickets[slot] >= 0:  # stuck, not failed: its slot is not available
                raise

    def _read(self, keys: Sequence[int], prefetched: bool, scan: bool = False) -> Sequence[int]:
        """Begin the reads of absent experts, in order, while slots are available; returns the keys begun, pinned."""
        slots: list[int] = []
        try:
            while len(slots) < len(keys) and (slot := self._free_slot()) is not None:
                slots.append(slot)
                self._pinned[slot] = True  # so that the next one cannot evict it
        except BaseException:
            self._give_back(slots)
            raise
        keys = keys[: len(slots)]
        length = self._submit(keys, slots, demand=not prefetched)
        self._loading.update(dict.fromkeys(slots))
        for key, slot in zip(keys, slots, strict=True):
            self._prefetched[slot] = prefetched
            if scan:
                self._policy.use_in_passing(slot)
            else:
                self._policy.use(key, slot)
        if prefetched:
            self.statistics.prefetched_reads += len(keys)
            self.statistics.prefetched_bytes += length
        else:
            self.statistics.demand_bytes += length
        return keys

    def _submit(self, keys: Sequence[int], slots: list[int], demand: bool) -> int:
        """Give slots to experts and begin their reads; returns the bytes of their records. The slots end up pinned.

        All reads go in one call: each call wakes reader threads, which compete with all other threads for processors.
        """
        if not keys:
            return 0
        reads = [self._record_read(key, slot) for key, slot in zip(keys, slots, strict=True)]
        # Pinned first: a KeyboardInterrupt before the tickets are known may lose slots, but no slot that is being read
        # into is given to another expert.
        self._pinned[slots] = True
        try:
            self.tickets[slots] = self._reader.submit(reads, demand)
        except ReadError:
            self._give_back(slots)
            raise
        for key, slot in zip(keys, slots, strict=True):
            self._slot_of[key] = slot
            self._key_of[slot] = key
        return sum(read.length for read in reads)

    def _give_back(self, slots: list[int]) -> None:
        """Return slots that were taken but are not being read into."""
        self._pinned[slots] = False
        self._free_slots += slots

    def _record_read(self, key: int, slot: int) -> RecordRead:
        record = self._table.record(*divmod(key, self._experts))
        return record_read(record, self._base_address + slot * self._slot_bytes, self._files.descriptor)

    def _slot(self, key: int) -> int | None:
        slot = int(self._slot_of[key])
        return None if slot < 0 else slot

    def _leave_loading(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._loading.pop(slot, None)

    def _is_loading(self, slot: int) -> bool:
        ticket = int(self.tickets[slot])
        return ticket >= 0 and not self._reader.done(ticket)

    def _finish(self, slot: int) -> None:
        """Wait for the read into a slot if there is one. A failed read leaves its expert absent.

        A read that is still going on after the time limit keeps its slot, since it may yet write there.
        """
        ticket = int(self.tickets[slot])
        if ticket < 0:
            self._leave_loading((slot,))
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
        self._leave_loading((slot,))
        self.tickets[slot] = -1
        self._reader.release(ticket)

    def _free_slot(self) -> int | None:
        if not self._free_slots:
            for slot in [slot for slot in self._loading if not self._pinned[slot] and not self._is_loading(slot)]:
                self._settle(slot)
        while self._warming and not self._free_slots:
            self._take_from_warming()
        if not self._free_slots:
            victim = self._policy.victim(~self._pinned & (self.tickets < 0))
            if victim < 0:
                return None
            self._drop(victim)
        return self._free_slots.pop()

    def _take_from_warming(self) -> None:
        """Give up the coldest read of a warm start if it has not begun; else treat it as an ordinary read."""
        slot, _ = self._warming.popitem()
        ticket = int(self.tickets[slot])
        if self._pinned[slot]:
            self._loading[slot] = None
        elif self._reader.cancel(ticket):
            self.statistics.warm_bytes -= self._table.record(*divmod(self._key_of[slot], self._experts)).length
            self._drop(slot)
        elif self._reader.done(ticket):
            self._settle(slot)
        else:
            self._loading[slot] = None

    def _drop(self, slot: int) -> None:
        """Make the expert in a slot absent; its read, if it had one, has ended."""
        ticket = int(self.tickets[slot])
        if ticket >= 0:
            self.tickets[slot] = -1
            self._reader.release(ticket)
        self._leave_loading((slot,))
        if self._key_of[slot] >= 0:  # absent after an interrupt while the slot was taken
            self._slot_of[self._key_of[slot]] = -1
        self._key_of[slot] = -1
        self._prefetched[slot] = self._pinned[slot] = False
        self._free_slots.append(slot)

    def _name(self, slot: int) -> str:
        layer, expert = divmod(self._key_of[slot], self._experts)
        return f"Layer {layer}, expert {expert}"


class _Fetched(NamedTuple):
    """A use that a fetch began: what it leaves out, its waves, and the first of them, whose reads have begun."""

    layer: int
    left_out: Sequence[int]
    waves: Generator[dict[int, int], None, None]
    first: dict[int, int] | None


def record_read(record: Record, address: int, descriptor: Callable[[Path], int]) -> RecordRead:
    """The request for a record, which lands at an address; `descriptor` is that of an open file."""
    if record.parts is None:
        return RecordRead(descriptor(record.path), record.offset, record.length, address, record.crc32c)
    rows = [(place.offset, place.modified_ns, descriptor(place.path), 0) for place in record.places]
    return RecordRead(-1, 0, record.length, address, record.crc32c, record.parts, np.array(rows, PLACE))


def droppable(experts: Integers, weights: Floats, cold: Sequence[int], threshold: float) -> list[int]:
    """Select the `cold` experts whose share of the weights is below the threshold for every token that uses them.

    Shapes: experts and weights `(T, K)`. The threshold is a float32; a token's weights are summed in float64, in the
    router's order. A weight that is not a number keeps its expert.
    """
    if not cold:
        return []
    exact = weights.astype(np.float64)
    sums = np.add.accumulate(exact, axis=1)[:, -1:]
    small: npt.NDArray[np.bool_] = exact < float(np.float32(threshold)) * sums
    kept = set(experts[~small].tolist())
    return [expert for expert in cold if expert not in kept]
