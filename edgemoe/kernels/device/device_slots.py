"""Device slots: a tier of routed experts in a device's own memory, above the slots in RAM.

An expert that the processor computed is copied to the device beside what that computes; once the copy has arrived, the
device computes the expert for the tokens that choose it, while the processor computes the others (`split.py`). Which of
the two did it shows in no bit. What is computed often stays: the coldest expert leaves for one that is hotter.

The slots have what the device's budget leaves once all programs are bound. Two settings may change between any two
runs: `share`, of the chosen experts that are there, how many the device computes; and `fills`, whether experts are
copied there. With `exclusive` an expert that the device computes gives its slot in RAM up; it is so where both tiers
together have room for all experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Program
from edgemoe.kernels.device.expert_launches import can_run_experts
from edgemoe.kernels.device.memory import DeviceMemory, Key, Mirror, address_of, key_of
from edgemoe.kernels.device.places import FUNCTIONS
from edgemoe.kernels.device.runtime import Block, DeviceMemoryError, Place
from edgemoe.kernels.device.segment import Segment

MOST_ROWS = 16
"""The most tokens of a run whose experts are shared out; those of longer ones are mostly used once."""
UPLOADS = 2
"""The most experts of a layer that are copied to the device after a run."""
DECAY = 0.98
"""The factor of an expert's heat at each run of its layer; a use adds 1."""
LEAST_GAIN = 1.0
"""An expert takes the place of another that is colder by more than this, so that two do not take turns."""
SPARE_SHARE = 64
"""One of so many parts of the budget stays free for programs that are made later."""


class _Arena(Mirror):
    """All device slots, which no array of the host mirrors: an array without memory stands for them."""

    def __init__(self, most_slots: int, slot_bytes: int) -> None:
        self.block = Block(())  # of no memory yet, but nobody makes room for it
        self.host = np.broadcast_to(np.zeros(1, np.uint8), (most_slots, slot_bytes))
        self.shared = self.repeatable = True  # so that nobody copies it

    def forget(self, begin: int, end: int) -> None:
        """Forget nothing: records never change."""


class _Rows(NamedTuple):
    """The rows of a run that the device computes, for layers of the same sizes."""

    input: op.Floats
    experts: op.Integers
    output: op.Floats


@dataclass(eq=False)
class SlotLayer:
    """The routed experts of a layer."""

    operation: ex.Experts
    number: int
    left: op.Integers
    """The choices of a run, without those that the device computes: they are -1."""
    rows: _Rows
    table: op.Integers
    """The device slot of each expert, or -1."""
    row: int = field(init=False)
    """Its row in arrays of all layers."""
    heat: npt.NDArray[np.float32] = field(init=False)
    coming: npt.NDArray[np.bool_] = field(init=False)
    """Which experts are being copied to the device."""
    segment: Segment = field(init=False)
    here: npt.NDArray[np.bool_] | None = None
    """Which choices of the run under way the device computes; None without any."""
    fetch: Program | None = None
    """Asks the pager for the experts in `left`, where there is one."""


class _Coming(NamedTuple):
    copy: Any
    layer: SlotLayer
    expert: int
    slot: int


class DeviceSlots:
    """The device slots of one model, whose experts lie in one arena in RAM."""

    most_rows = MOST_ROWS

    def __init__(self, memory: DeviceMemory, arena: op.Bytes, claim_others: Callable[[], object]) -> None:
        """Takes no memory yet: `choose` does, at the first run, after what others claim of what is left."""
        self._claim_others = claim_others
        self.share = 0.0
        self.fills = True
        self.exclusive = False
        self.hits = 0
        """Choices of tokens that the device has computed."""
        self.uploads = 0
        self.count = 0
        """How many slots there are, once it has chosen for the first time."""
        self.interrupted = False
        """Whether a run has ended while the device was at work."""
        self.lost = False
        """Whether the device has failed: then the processor computes all."""
        self.arena = arena
        self._memory = memory
        self._layers: dict[Key, SlotLayer] = {}
        self._shared: dict[Any, Any] = {}
        self._opened = False
        self._rows: list[SlotLayer] = []
        self._coming: list[_Coming] = []

    def layer(self, operation: ex.Experts) -> SlotLayer | None:
        """Return the layer of an operation; None for a new one after the first run."""
        key, experts = key_of(operation.slots), operation.experts
        if key not in self._layers and not self._opened:
            top_k, width = operation.output.shape[1:]
            if (top_k, width) not in self._shared:
                rows, chosen = np.zeros((MOST_ROWS, width), np.float32), np.zeros((MOST_ROWS, top_k), np.int32)
                self._shared[top_k, width] = _Rows(rows, chosen, np.zeros((MOST_ROWS, top_k, width), np.float32))
            number = len(self._layers) if operation.paged is None else operation.paged.layer
            table = np.full(len(operation.slots), -1, np.int32)
            left = self.copy_of("left", experts)
            self._layers[key] = SlotLayer(operation, number, left, self._shared[top_k, width], table)
        found = self._layers.get(key)
        return found if found is not None and address_of(found.operation.experts) == address_of(experts) else None

    def copy_of(self, use: str, choices: op.Integers) -> op.Integers:
        """Return an array like some choices, which all layers share for a use."""
        copied: op.Integers = self._shared.setdefault((use, choices.shape), np.full(choices.shape, -1, np.int32))
        return copied

    def choose(self, layer: SlotLayer, tokens: int) -> None:
        """Choose which experts of a run the device computes. Raises DeviceError if it has failed."""
        chosen = layer.operation.experts[:tokens]
        layer.left[:tokens], layer.here = chosen, None
        if not self._serves(tokens):
            return
        if not self._opened:
            self._open()
        self._land()
        if not (self.share and self.count):
            return
        here = _there(layer.table, chosen)
        if self.share < 1:
            found = np.unique(chosen[here])
            kept = found[: math.ceil(self.share * len(found))]
            here &= np.isin(chosen, kept) | ~_there(layer.operation.slots, chosen)
        if here.any():
            layer.here = here
            layer.left[:tokens][here] = -1
            if layer.operation.paged is not None:
                self._tell(layer.operation.paged, layer.operation.slots, np.unique(chosen[here]))

    def without(self, number: int, choices: op.Integers, left: op.Integers) -> None:
        """Write choices of experts of a layer, without those in device slots."""
        left[:] = choices
        for layer in self._layers.values() if self.share and self.count and not self.lost else ():
            if layer.number == number:
                left[_there(layer.table, choices)] = -1

    def begin(self, layer: SlotLayer, tokens: int) -> bool:
        """Let the device begin with its experts, and return whether it did. Raises DeviceError."""
        assert layer.here is not None
        rows, operation = layer.rows, layer.operation
        rows.input[:tokens] = operation.input[:tokens]
        rows.experts[:tokens] = np.where(layer.here, operation.experts[:tokens], -1)
        return layer.segment.begin(tokens)

    def take(self, layer: SlotLayer, tokens: int) -> None:
        """Wait for the device, and put its results among those of the processor. Raises DeviceError."""
        assert layer.here is not None
        layer.segment.end(tokens)
        layer.operation.output[:tokens][layer.here] = layer.rows.output[:tokens][layer.here]
        self.hits += int(layer.here.sum())

    def learn(self, layer: SlotLayer, tokens: int) -> None:
        """Note what a run used, and begin to copy experts to the device that the processor computed.

        Raises DeviceError.
        """
        if not self._serves(tokens):
            return
        if self.interrupted:  # kernels may yet read slots that would be written to
            self._memory.runtime.finish()
            self.interrupted = False
        layer.heat *= DECAY
        for expert in set(layer.operation.experts[:tokens].reshape(-1).tolist()) - {-1}:
            layer.heat[expert] += 1
        if not self.fills:
            return
        left = sorted(set(layer.left[:tokens].reshape(-1).tolist()) - {-1})
        able = [expert for expert in left if self._is_in_ram(layer, expert)]
        for expert in sorted(able, key=lambda expert: -layer.heat[expert])[:UPLOADS]:
            self._upload(layer, expert)

    def holds(self, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return which experts are in device slots, `(L, E)`."""
        held = np.zeros(shape, np.bool_)
        for layer in self._layers.values():
            held[layer.number, : len(layer.table)] |= layer.table >= 0
        return held

    def close(self) -> None:
        """Let go of the arena in RAM, and of all slots."""
        self._layers.clear()
        self._coming.clear()
        self._rows.clear()
        self._opened, self.count = True, 0

    def _open(self) -> None:
        """Take the memory that the budget leaves, as many slots as the device can give in one piece."""
        memory, slot_bytes = self._memory, self.arena.shape[1]
        self._rows = layers = list(self._layers.values())
        self._opened = True
        self._claim_others()
        most_bytes = memory.most_bytes or 0
        self._arena = arena = _Arena(max(1, most_bytes // slot_bytes), slot_bytes)
        memory.keep(arena)
        self._heat = np.zeros((len(layers), max(len(one.table) for one in layers)), np.float32)
        coming = np.zeros(self._heat.shape, np.bool_)
        try:
            for number, one in enumerate(layers):
                width = len(one.table)
                one.row, one.heat, one.coming = number, self._heat[number, :width], coming[number, :width]
                one.segment = Segment([self._part(one)], memory, MOST_ROWS)
        except DeviceMemoryError:
            return  # with no room for what is small, none for slots
        experts = [one.operation for one in layers]
        count = slot_count(experts, most_bytes - memory.used_bytes, most_bytes)
        while count:
            try:
                memory.take(arena, count * slot_bytes)
                break
            except DeviceMemoryError:
                count //= 2
        self.count = count
        self._owners = np.full(self.count, -1, np.int64)
        """The place in `heat` of the expert in each slot; -1 of none, or of one that is coming."""
        self._free = list(range(self.count))[::-1]
        total = sum(len(one.table) for one in layers)
        self.exclusive = experts[0].paged is not None and self.count + len(self.arena) >= total

    def _tell(self, paged: ex.Paged, slots: op.Integers, experts: op.Integers) -> None:
        """Tell a pager which experts of a run it is not asked for."""
        if paged.pager.notes_residency:
            paged.pager.loaded_when_asked[paged.layer, experts] = True
        for expert in experts[slots[experts] >= 0].tolist() if self.exclusive and self.share == 1 else ():
            paged.pager.give_up(paged.layer, expert)

    def _serves(self, tokens: int) -> bool:
        """Whether it has to do with a run of so many tokens."""
        able = not self.lost and bool(self.count or not self._opened)
        return able and tokens <= MOST_ROWS and bool(self.share or self.fills)

    def _part(self, layer: SlotLayer) -> ex.Experts:
        """Return the operation of the device."""
        o, rows = layer.operation, layer.rows
        given = rows.input, rows.experts, layer.table, self._arena.host
        return ex.Experts(*given, o.layouts, o.layout_of, rows.output, activation=o.activation)

    def _is_in_ram(self, layer: SlotLayer, expert: int) -> bool:
        """Whether an expert can be copied to the device, and has not been."""
        slot, paged = layer.operation.slots[expert], layer.operation.paged
        if slot < 0 or layer.table[expert] >= 0 or layer.coming[expert]:
            return False
        return paged is None or bool(paged.pager.tickets[slot] < 0)

    def _upload(self, layer: SlotLayer, expert: int) -> None:
        """Begin to copy an expert to a free slot, or to that of the coldest expert, unless this one is as cold."""
        slot, old = (self._free[-1], -1) if self._free else self._coldest()
        if old >= 0 and not self._heat.flat[old] + LEAST_GAIN < layer.heat[expert]:
            return
        if not self._free and old < 0:
            return  # all are coming
        o = layer.operation
        place = Place(self._arena.block, slot * o.arena.shape[1])
        copy = self._memory.runtime.upload_beside(place, o.arena[o.slots[expert]])
        if copy is None:
            return
        if old >= 0:
            number, other = divmod(old, self._heat.shape[1])
            self._rows[number].table[other] = -1
            self._owners[slot] = -1
        else:
            self._free.pop()
        layer.coming[expert] = True
        self._coming.append(_Coming(copy, layer, expert, slot))
        self.uploads += 1

    def _coldest(self) -> tuple[int, int]:
        """Return the slot of the coldest expert, and its place in `heat`; -1 without any."""
        heat = np.where(self._owners >= 0, self._heat.reshape(-1)[self._owners], np.inf)
        slot = int(np.argmin(heat))
        return slot, int(self._owners[slot])

    def _land(self) -> None:
        """Let experts be used whose copies have arrived."""
        for one in self._coming[:]:
            if not self._memory.runtime.arrived(one.copy):
                continue
            self._coming.remove(one)
            layer = one.layer
            layer.coming[one.expert], layer.table[one.expert] = False, one.slot
            self._owners[one.slot] = layer.row * self._heat.shape[1] + one.expert


def _there(table: op.Integers, choices: op.Integers) -> npt.NDArray[np.bool_]:
    """Return which choices have a slot in a table. A kernel refuses those of an expert that there is not."""
    there: npt.NDArray[np.bool_] = table.take(choices, mode="clip") >= 0
    return there & (choices >= 0) & (choices < len(table))


def can_have_slots(o: ex.Experts) -> bool:
    """Whether a device can compute some of the experts of an operation, wherever the others are."""
    return can_run_experts(replace(o, paged=None)) and o.activation.function in FUNCTIONS


def slot_count(experts: Sequence[ex.Experts], left_bytes: int, most_bytes: int) -> int:
    """Return how many slots for some layers' experts fit what is left of a budget, tables and spare bytes apart."""
    total: int = sum(one.slots.shape[0] for one in experts)
    tables: int = sum(5 * one.slots.shape[0] + 4 for one in experts)
    slot_bytes: int = experts[0].arena.shape[1]
    count = (left_bytes - tables - most_bytes // SPARE_SHARE) // slot_bytes
    return max(0, min(total, count))


def planned_row_bytes(operation: ex.Experts) -> int:
    """Return the bytes in RAM, of rows and of copies under way, that device slots of such experts take."""
    top_k: int
    width: int
    top_k, width = operation.output.shape[1:]
    choices: int = operation.experts.shape[0] * top_k
    copies: int = UPLOADS * operation.arena.shape[1]
    return copies + 4 * (MOST_ROWS * (width + top_k + top_k * width) + 2 * choices)
