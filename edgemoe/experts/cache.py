"""The expert cache: equal slots in one arena, filled from disk as the router asks.

Letters: `E` experts of a layer. A slot holds one expert's record exactly as it lies on disk; kernels
compute on it there. States of an expert: absent, loading (a read into its slot is under way) and
loaded. An expert is pinned while kernels may be computing on it.

Invariants:
- There are never more slots than the arena was made with; nothing is allocated after construction.
- A pinned or loading expert never leaves. A slot's bytes are used only after its read has ended well.
- What the cache holds changes when an answer comes, never what it is.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.policy import ExpertKey, Policy
from edgemoe.experts.prediction import PredictionSwitch
from edgemoe.experts.reads import ExpertFiles, RecordReader

READ_TIMEOUT_SECONDS = 60.0


class Record(Protocol):
    """Where an expert lies on disk (a store's `ExpertRecord`)."""

    @property
    def path(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class RecordTable(Protocol):
    """Finds records (a `Store`)."""

    def record(self, layer: int, expert: int) -> Record: ...


@dataclass
class CacheStatistics:
    """Counters since the cache was made. A hit is an expert that was loaded when the router asked for it."""

    hits: int = 0
    misses: int = 0
    late_predictions: int = 0
    """Misses whose predicted read had begun but not ended."""
    demand_bytes: int = 0
    predicted_bytes: int = 0
    predicted_reads: int = 0
    useful_predictions: int = 0
    """Predicted reads whose expert was used before it left."""
    predictable_uses: int = 0
    """Routed experts for which a prediction had been made (one token at a time)."""
    predicted_uses: int = 0
    """Those of them that the prediction had named: recall = predicted_uses / predictable_uses."""
    wait_ns: int = 0
    """Time for which compute waited for reads."""

    @property
    def read_bytes(self) -> int:
        return self.demand_bytes + self.predicted_bytes


@dataclass
class _Entry:
    slot: int
    ticket: int | None
    predicted: bool
    pinned: bool = False


class ExpertCache:
    """Experts in RAM, by (layer, expert); see the module's docstring."""

    def __init__(
        self,
        arena: npt.NDArray[np.uint8],
        table: RecordTable,
        files: ExpertFiles,
        reader: RecordReader,
        policy: Policy,
    ) -> None:
        self.statistics = CacheStatistics()
        self.switch = PredictionSwitch()
        self._table = table
        self._files = files
        self._reader = reader
        self._policy = policy
        self._base_address = arena.ctypes.data
        self._slot_bytes = arena.shape[1]
        self._free_slots = list(range(arena.shape[0]))[::-1]
        self._entries: dict[ExpertKey, _Entry] = {}
        self._loading: dict[ExpertKey, _Entry] = {}
        self._latest_prediction: tuple[int, frozenset[int]] | None = None

    def __contains__(self, key: ExpertKey) -> bool:
        return key in self._entries

    def loaded(self, key: ExpertKey) -> bool:
        """Whether the expert's bytes are there, ready to use."""
        entry = self._entries.get(key)
        return entry is not None and (entry.ticket is None or self._reader.done(entry.ticket))

    def stream(self, layer: int, experts: Sequence[int]) -> Generator[dict[int, int], None, None]:
        """Yield the experts of a layer in waves `{expert: slot}`, loaded ones first, others as they land.

        Reads of missing experts begin at once, as far as slots can be had. A wave's experts are
        pinned until the next one is asked for; whoever stops before the end closes the generator, which unpins
        them. Raises ReadError naming the layer and expert.
        """
        wanted = [(layer, expert) for expert in experts]
        self._count_recall(layer, experts)
        try:
            wave = self._take_loaded(wanted)
            waiting = [key for key in wanted if key not in wave]
            self._begin_reads(waiting)
            if wave:
                yield self._slots(wave)
            while waiting:
                self._unpin(wave)
                self._begin_reads(waiting)
                wave = self._await_some([key for key in waiting if key in self._entries])
                waiting = [key for key in waiting if key not in wave]
                if wave:
                    yield self._slots(wave)
        finally:
            self._unpin([key for key in wanted if key in self._entries])

    def reader_is_idle(self) -> bool:
        """Whether no read is queued or under way."""
        for key, entry in list(self._loading.items()):
            if entry.ticket is not None and not self._reader.done(entry.ticket):
                return False
            self._settle(key, entry)
        return True

    def predict(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that the next layer will probably want, if the reader has nothing else to do."""
        self._latest_prediction = (layer, frozenset(experts))
        self.switch.tick()
        if not self.switch.open or not self.reader_is_idle():
            return
        for expert in experts:
            key = (layer, expert)
            if key not in self._entries:
                slot = self._free_slot()
                if slot is None:
                    return
                self._read(key, slot, predicted=True)
                self.statistics.predicted_reads += 1

    def _count_recall(self, layer: int, experts: Sequence[int]) -> None:
        if self._latest_prediction is not None and self._latest_prediction[0] == layer:
            named = self._latest_prediction[1]
            self.statistics.predictable_uses += len(experts)
            self.statistics.predicted_uses += sum(expert in named for expert in experts)
        self._latest_prediction = None

    def _take_loaded(self, wanted: Sequence[ExpertKey]) -> list[ExpertKey]:
        """Pin what is there, and count hits and misses; returns what is loaded."""
        wave = []
        for key in wanted:
            entry = self._entries.get(key)
            if entry is not None and entry.ticket is not None and self._reader.done(entry.ticket):
                self._settle(key, entry)
                entry = self._entries.get(key)
            if entry is None:
                self.statistics.misses += 1
                continue
            entry.pinned = True
            self._policy.touch(key)
            self._count_use(entry)
            if entry.ticket is None:
                self.statistics.hits += 1
                wave.append(key)
            else:
                self._reader.promote(entry.ticket)
                self.statistics.misses += 1
                self.statistics.late_predictions += 1
        return wave

    def _begin_reads(self, waiting: Sequence[ExpertKey]) -> None:
        """Start the reads of experts that are absent, as far as slots can be had."""
        for key in waiting:
            if key not in self._entries:
                slot = self._free_slot()
                if slot is None:
                    return
                self._read(key, slot, predicted=False)
                self._entries[key].pinned = True

    def _await_some(self, in_flight: Sequence[ExpertKey]) -> list[ExpertKey]:
        """Wait for the first read in flight; returns it and all others that have landed by then.

        With none of ours in flight every slot is taken by a prediction that is still being read: waits
        for one of those, so that its slot can be had, and returns nothing.
        """
        wave: list[ExpertKey] = []
        for key in in_flight:
            entry = self._entries[key]
            if not wave or entry.ticket is None or self._reader.done(entry.ticket):
                self._finish(key, entry)
                wave.append(key)
        if not in_flight:
            self._settle(*next(iter(self._loading.items())))
        return wave

    def _settle(self, key: ExpertKey, entry: _Entry) -> None:
        """Wait for a predicted read. Where it failed its expert is absent; a demand read will tell why."""
        try:
            self._finish(key, entry)
        except ReadError:
            if key in self._entries:  # stuck, not failed: its slot cannot be had
                raise

    def _read(self, key: ExpertKey, slot: int, predicted: bool) -> None:
        record = self._table.record(*key)
        ticket = self._reader.submit(
            self._files.descriptor(record.path),
            record.offset,
            record.length,
            self._base_address + slot * self._slot_bytes,
            not predicted,
        )
        self._entries[key] = self._loading[key] = _Entry(slot, ticket, predicted)
        self._policy.insert(key)
        if predicted:
            self.statistics.predicted_bytes += record.length
        else:
            self.statistics.demand_bytes += record.length

    def _finish(self, key: ExpertKey, entry: _Entry) -> None:
        """Wait for the expert's read if it has one. A failed read leaves the expert absent.

        A read that is still going on after the time limit keeps its slot, since it may yet write there.
        """
        if entry.ticket is None:
            return
        began_ns = time.perf_counter_ns()
        try:
            self._reader.wait(entry.ticket, READ_TIMEOUT_SECONDS)
        except ReadError as error:
            if self._reader.done(entry.ticket):
                self._drop(key)
            raise ReadError(f"Layer {key[0]}, expert {key[1]}: {error.message}", error.hint) from error
        finally:
            self.statistics.wait_ns += time.perf_counter_ns() - began_ns
        # In this order: a KeyboardInterrupt between two of these lines may lose a ticket, but never one in use.
        self._loading.pop(key, None)
        ticket, entry.ticket = entry.ticket, None
        self._reader.release(ticket)

    def _free_slot(self) -> int | None:
        if self._free_slots:
            return self._free_slots.pop()
        victim = self._policy.victim(self._may_leave)
        if victim is None:
            return None
        self._drop(victim)
        return self._free_slots.pop()

    def _may_leave(self, key: ExpertKey) -> bool:
        entry = self._entries[key]
        if entry.pinned:
            return False
        return entry.ticket is None or self._reader.done(entry.ticket)

    def _drop(self, key: ExpertKey) -> None:
        entry = self._entries.pop(key)
        if entry.ticket is not None:
            self._reader.release(entry.ticket)
            self._loading.pop(key, None)
        if entry.predicted:
            self.switch.record(useful=False)
        self._policy.remove(key)
        self._free_slots.append(entry.slot)

    def _count_use(self, entry: _Entry) -> None:
        if entry.predicted:
            entry.predicted = False
            self.statistics.useful_predictions += 1
            self.switch.record(useful=True)

    def _slots(self, wave: Sequence[ExpertKey]) -> dict[int, int]:
        return {key[1]: self._entries[key].slot for key in wave}

    def _unpin(self, wave: Sequence[ExpertKey]) -> None:
        for key in wave:
            self._entries[key].pinned = False
