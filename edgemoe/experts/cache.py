"""The expert cache: slots of equal size in one arena (`slots.py`), filled from disk as the router chooses experts.

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

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError, ReadError
from edgemoe.experts.policy import Policy, is_scan
from edgemoe.experts.slots import BEHIND, DEMANDED, GUESSED, RecordTable, Slots
from edgemoe.io.reads import ExpertFiles, RecordReader
from edgemoe.kernels.expert_operations import MOST_BEHIND
from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.paging import PROMPT, CacheStatistics


class Cache(Protocol):
    """The expert cache as the engine uses it: an `ExpertCache`, or the pager in C (`NativePager`), with its meaning.

    Operations ask either of them themselves (`kernels/expert_operations.py`: `Fetch`, `Experts`, `Prefetch`).
    """

    statistics: CacheStatistics
    residency: npt.NDArray[np.int32]
    """The slot of each expert, -1 if it is absent, `(L, E)`. Only the cache writes it."""
    tickets: npt.NDArray[np.int64]
    """The ticket of the pending read into each slot, or -1."""
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
        self.phase = PROMPT
        self.notes_residency = False
        self._experts = max(experts_per_layer)
        self.residency = np.full((len(experts_per_layer), self._experts), -1, np.int32)
        self.loaded_when_asked = np.ones(self.residency.shape, np.bool_)
        self._slots = Slots(arena, self.residency, table, files, reader, policy, self.statistics)
        self.tickets = self._slots.tickets
        """The ticket of the pending read into each slot, or -1."""
        self._routed_layers = sum(experts > 0 for experts in experts_per_layer)
        self._policy = policy
        self._latest_guess: tuple[int, frozenset[int]] | None = None
        self._fetched: _Fetched | None = None

    @property
    def wait_ns(self) -> int:
        """Time for which reads were waited for."""
        return self._slots.wait_ns

    def loaded(self, layer: int, expert: int) -> bool:
        """Whether the expert's bytes are in RAM, ready to use."""
        slot = int(self.residency[layer, expert])
        return slot >= 0 and not self._slots.is_loading(slot)

    def all_loaded(self) -> npt.NDArray[np.bool_]:
        """Which experts' bytes are in RAM, ready to use, `(L, E)`."""
        loaded = np.zeros(self.residency.shape, np.bool_)
        for layer, expert in np.argwhere(self.residency >= 0).tolist():
            loaded[layer, expert] = self.loaded(layer, expert)
        return loaded

    @property
    def slots(self) -> int:
        """The number of slots: the most experts that the cache holds."""
        return len(self._slots)

    def fetch(
        self,
        layer: int,
        experts: Integers,
        weights: Floats | None = None,
        drop_cold: float = 0.0,
        from_base: bool = False,
    ) -> None:
        """Begin a use of the experts that tokens are routed to, `(T, K)`; `Fetch` says what the last two mean.

        Experts of a prompt are taken by number, in which order records mostly lie on disk, others in the order of the
        router. It ends the use before it, which a run that failed may have left open.
        """
        self._end_use()
        asked = experts[experts != -1]  # in the order of the router
        wanted = np.unique(asked).tolist() if self.phase == PROMPT else list(dict.fromkeys(asked.tolist()))
        if self.notes_residency:
            self.loaded_when_asked[layer, wanted] = [self.loaded(layer, expert) for expert in wanted]
        left_out: list[int] = []
        if weights is not None and drop_cold > 0:
            cold = [expert for expert in wanted if self.residency[layer, expert] < 0]
            left_out = droppable(experts, weights, cold, drop_cold)
            weights[np.isin(experts, left_out)] = 0
            self.statistics.dropped += len(left_out)
            wanted = [expert for expert in wanted if expert not in left_out]
        aside: list[int] = []
        if from_base and self.phase != PROMPT:
            aside = [expert for expert in wanted if self._is_missed(layer, expert)]
            wanted = [expert for expert in wanted if expert not in aside]
        scan = self.phase == PROMPT and is_scan(len(wanted), self._routed_layers, self.slots)
        waves = self.stream(layer, wanted, scan, aside)
        self._fetched = _Fetched(layer, left_out, aside, waves, next(waves, None))
        self._read_behind([layer * self._experts + expert for expert in aside])

    def _is_missed(self, layer: int, expert: int) -> bool:
        """Whether an expert's record is not in RAM; one whose read has failed is not missed, so that it is told."""
        slot = int(self.residency[layer, expert])
        return slot < 0 or self._slots.is_loading(slot)

    def _read_behind(self, aside: Sequence[int]) -> None:
        """Begin the reads of experts that are computed from their bases, for later uses."""
        absent = [key for key in aside if self._slots.slot_of[key] < 0]
        room = MOST_BEHIND - sum(map(self._slots.is_loading, self._slots.loading)) if absent else 0
        reading = self._slots.read(absent[: max(room, 0)], BEHIND)
        self._slots.pinned[[self._slots.slot_of[key] for key in reading]] = False

    def left_out(self, layer: int) -> Sequence[int]:
        """The experts that the latest fetch of this layer left out. Raises KernelError where nothing was fetched."""
        return self._fetched_of(layer).left_out

    def set_aside(self, layer: int) -> Sequence[int]:
        """The experts that are computed from their bases, by the latest fetch of this layer. Raises KernelError."""
        return self._fetched_of(layer).aside

    def _fetched_of(self, layer: int) -> _Fetched:
        if self._fetched is None or self._fetched.layer != layer:
            raise KernelError(f"Layer {layer}: its experts were not fetched.", "Please report it.")
        return self._fetched

    def landings(self, layer: int) -> Generator[tuple[int, int], None, None]:
        """Yield each expert of the use with its slot, once its record is there, and end the use.

        Raises ReadError naming layer and expert; that expert is absent afterwards, unless its read is still going on.
        """
        fetched = self._fetched_of(layer)
        wave, waves = fetched.first, fetched.waves
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
            landed = [expert for expert, slot in left.items() if not self._slots.is_loading(slot)]
            for expert in landed or list(left)[:1]:
                try:
                    self._slots.land(left[expert])
                except ReadError as error:
                    raise self.failure(wave, error) from error
                yield expert, left.pop(expert)

    def _end_use(self) -> None:
        if self._fetched is not None:
            self._fetched.waves.close()
            self._fetched = None

    def stream(
        self, layer: int, experts: Sequence[int], scan: bool = False, aside: Sequence[int] = ()
    ) -> Generator[dict[int, int], None, None]:
        """Yield the experts of a layer with their slots, `{expert: slot}`: all at once if there are enough slots.

        Reads of missing experts begin at once, as far as slots are available; the caller waits for those of a wave.
        Where slots are few, experts come in waves, each about half of those that have a slot, so that one half is read
        while the other is computed. A wave's experts are pinned until the caller takes the next one; a caller that
        stops before the end must close the generator, which unpins them. `scan`: this use does not predict the next
        one, so experts that are read for it leave before all others. Those set `aside` are used, but not waited for.
        Raises ReadError naming the layer and expert.
        """
        wanted = [layer * self._experts + expert for expert in experts]
        others = [layer * self._experts + expert for expert in aside]
        for key in others:
            if self._slots.slot_of[key] >= 0:
                self._policy.use(key, int(self._slots.slot_of[key]))
        self.statistics.misses += len(others)
        self.statistics.from_base += len(others)
        self._count_recall(layer, experts)
        self._cancel_wrong_guesses(layer, [*wanted, *others])
        try:
            begun, absent = self._pin_present(wanted, scan)
            while begun or absent:
                self._begin_reads(begun, absent, scan)
                if not begun:
                    self._await_a_slot()
                    continue
                wave = begun[: -(-len(begun) // 2)] if absent else begun
                begun = begun[len(wave) :]
                slots = {key % self._experts: int(self._slots.slot_of[key]) for key in wave}
                yield slots
                self._slots.leave_loading(slots.values())
                self._slots.pinned[list(slots.values())] = False
        finally:
            self._slots.pinned[[self._slots.slot_of[key] for key in wanted if self._slots.slot_of[key] >= 0]] = False

    def failure(self, wave: Mapping[int, int], error: ReadError) -> ReadError:
        """The error of a read of this wave that kernels waited for, naming layer and expert."""
        return self._slots.failure(list(wave.values()), error)

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that a layer will probably use; demand reads go first."""
        self._latest_guess = (layer, frozenset(experts))
        keys = [layer * self._experts + expert for expert in experts]
        present = [int(self._slots.slot_of[key]) for key in keys if self._slots.slot_of[key] >= 0]
        pinned_before = self._slots.pinned[present]
        self._slots.pinned[present] = True  # so that one guess does not push out another
        try:
            reading = self._slots.read([key for key in keys if self._slots.slot_of[key] < 0], GUESSED)
        finally:
            self._slots.pinned[present] = pinned_before
        self._slots.pinned[[self._slots.slot_of[key] for key in reading]] = False

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        """Begin to read experts (layer, expert) into free slots, in their order, while there are no other reads."""
        self._slots.warm([layer * self._experts + expert for layer, expert in experts])

    def give_up(self, layer: int, expert: int) -> None:
        """Make an expert absent whose record a device has, unless it is in use or being read."""
        self._slots.give_up(layer * self._experts + expert)

    def _count_recall(self, layer: int, experts: Sequence[int]) -> None:
        if self._latest_guess is not None and self._latest_guess[0] == layer:
            named = self._latest_guess[1]
            self.statistics.guessable_uses += len(experts)
            self.statistics.guessed_uses += sum(expert in named for expert in experts)
        self._latest_guess = None

    def _cancel_wrong_guesses(self, layer: int, wanted: Sequence[int]) -> None:
        """Cancel prefetched reads of this layer that have not begun and turned out to be wrong."""
        for slot in list(self._slots.loading):
            key = self._slots.key_of[slot]
            if self._slots.prefetched[slot] and key // self._experts == layer and key not in wanted:
                self._slots.cancel(slot)

    def _pin_present(self, wanted: Sequence[int], scan: bool) -> tuple[list[int], list[int]]:
        """Pin experts that have a slot, and count hits and misses; returns the keys with a slot and those without."""
        present, absent = [], []
        for key in wanted:
            slot = self._slots.enter(key)
            if slot is None:
                self.statistics.misses += 1
                absent.append(key)
                continue
            self._slots.pinned[slot] = True
            if not scan:
                self._policy.use(key, slot)
            prefetched = self._slots.prefetched[slot]
            if prefetched:
                self._slots.prefetched[slot] = False
                self.statistics.useful_prefetches += 1
            present.append(key)
            if slot in self._slots.loading:
                self._slots.promote(slot)
                self.statistics.misses += 1
                self.statistics.late_prefetches += prefetched
            else:
                self.statistics.hits += 1
        return present, absent

    def _begin_reads(self, begun: list[int], absent: list[int], scan: bool) -> None:
        """Start the reads of absent experts as far as slots are available, moving their keys to `begun`."""
        reading = self._slots.read(absent, DEMANDED, scan)
        begun += reading
        del absent[: len(reading)]

    def _await_a_slot(self) -> None:
        """Wait for one loading read to end, where reads that no kernel waits for have taken every slot."""
        self._slots.settle(next(iter(self._slots.loading)))


class _Fetched(NamedTuple):
    """A use that a fetch began: what it leaves out, its waves, and the first of them, whose reads have begun."""

    layer: int
    left_out: Sequence[int]
    aside: Sequence[int]
    waves: Generator[dict[int, int], None, None]
    first: dict[int, int] | None


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
