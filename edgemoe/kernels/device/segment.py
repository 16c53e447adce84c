"""A run of operations that follow one another on a device: what it copies there, launches, and copies back.

The arrays with a row for each token lie on the device as they do on the host, overlaps included, so that an array that
takes the place of another there does so on the device too. Weights are copied once, and stay as long as a program has
them.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Nanoseconds
from edgemoe.kernels.device.lowering import lower
from edgemoe.kernels.device.runtime import Block, DeviceError, DeviceMemoryError, Launch, Place, Runtime

ALIGNMENT_BYTES = 64


class Resident:
    """Weights on the device, and the array they are a copy of, whose memory so is no other array's."""

    def __init__(self, host: Any) -> None:
        self.block = Block(None)
        self.host = host
        self.there = False
        """Whether the block has the weights."""


class DeviceMemory:
    """The memory of a device: weights, and one block for the activations of whichever segment runs."""

    def __init__(self, runtime: Runtime, most_bytes: int | None = None) -> None:
        """`most_bytes` is the budget: no more is ever taken. What the device shares with the host does not count."""
        self.runtime = runtime
        self.shared = Block(None)
        self.most_bytes = most_bytes
        self.used_bytes = 0
        self._shared_bytes = 0
        self._resident: WeakValueDictionary[tuple[int, int], Resident] = WeakValueDictionary()

    def resident(self, array: Any) -> Resident:
        """Return weights, for which `make_room` has room on the device, and which `fill` copies there."""
        key = (address_of(array), array.nbytes)
        found = self._resident.get(key)
        if found is None:
            found = self._resident[key] = Resident(array)
        return found

    def make_room(self, weights: Resident) -> None:
        """Take memory for weights, unless they have some; what the device shares with the host is there at once."""
        if weights.block.buffer is not None:
            return
        size = weights.host.nbytes
        buffer = self.runtime.adopt(_flat(weights.host))
        weights.there = buffer is not None
        if buffer is None:
            self._claim(size)
            try:
                buffer = self.runtime.allocate(size)
            except DeviceError:
                self._give_back(size)
                raise
            weakref.finalize(weights, self._give_back, size)
        weights.block.buffer = buffer

    def fill(self, weights: Resident) -> None:
        """Copy weights to the device, unless they are there."""
        if not weights.there:
            self.runtime.upload(Place(weights.block, 0), _flat(weights.host))
            weights.there = True

    def reserve(self, size: int) -> None:
        """Make the block for activations at least so large."""
        if size <= self._shared_bytes:
            return
        more = size - self._shared_bytes
        self._claim(more)
        self.shared.buffer = None  # free the old one before there is a new one
        try:
            self.shared.buffer = self.runtime.allocate(size)
        except DeviceMemoryError as error:
            self._give_back(more)
            if not self._shared_bytes:
                raise
            raise DeviceError(error.message, error.hint) from error  # segments that are bound have lost their block
        self._shared_bytes = size

    def _claim(self, size: int) -> None:
        """Count bytes that are about to be taken. Raises DeviceMemoryError if they pass the budget."""
        if self.most_bytes is not None and self.used_bytes + size > self.most_bytes:
            raise DeviceMemoryError(f"The device {self.runtime.name} has no {size:,} bytes left of its budget.")
        self.used_bytes += size

    def _give_back(self, size: int) -> None:
        self.used_bytes -= size


class _Copy(NamedTuple):
    """Rows of an array, on the host and on the device."""

    host: op.Bytes
    row_bytes: int
    place: Place


class Segment:
    """Operations, bound to their arrays."""

    def __init__(self, operations: Sequence[op.Operation], memory: DeviceMemory, tokens_max: int) -> None:
        """`tokens_max` is the longest run."""
        self._memory = memory
        self._tokens_max = tokens_max
        self._resident: dict[tuple[int, int], Resident] = {}
        self._uploads: dict[tuple[int, int], _Copy] = {}
        self._downloads: dict[tuple[int, int], _Copy] = {}
        rows = [member for o in operations for field, member in op.members_of(o) if field.mark.per_row]
        self._spans, self._end = _spans(rows)
        self._scratch_end = self._end
        self._launches: list[list[Launch]] = []
        for operation in operations:
            self._next_scratch = self._end
            self._note_copies(operation)
            self._launches.append(lower(operation, self))
        memory.reserve(max(1, self._scratch_end))  # before the weights, which would leave no room for it
        for resident in self._resident.values():
            memory.make_room(resident)
        self._filled = False

    def place(self, array: Any) -> Place:
        """Return the place of an array of one of its operations."""
        address = address_of(array)
        for begin, end, at in self._spans:
            if begin <= address < end:
                return Place(self._memory.shared, at + address - begin)
        key = (address, array.nbytes)
        if key not in self._resident:
            self._resident[key] = self._memory.resident(array)
        return Place(self._resident[key].block, 0)

    def scratch(self, bytes_per_token: int) -> Place:
        """Return memory that the operation which is lowered has for itself."""
        at = self._next_scratch
        self._next_scratch = _aligned(at + self._tokens_max * bytes_per_token)
        self._scratch_end = max(self._scratch_end, self._next_scratch)
        return Place(self._memory.shared, at)

    def run(self, tokens: int, operations_ns: Nanoseconds | None = None) -> None:
        """Copy inputs, launch, and copy results; the host's arrays change last, so an error leaves them as they were.

        With `operations_ns` the time of each operation is added to it, and the device is waited for after each.
        """
        runtime, before = self._memory.runtime, time.perf_counter_ns()
        if not self._filled:  # only now, as weights may still be read from the disk while programs are made
            for resident in self._resident.values():
                self._memory.fill(resident)
            self._filled = True
        for copy in self._uploads.values():
            runtime.upload(copy.place, copy.host[: tokens * copy.row_bytes])
        for number, launches in enumerate(self._launches):
            for launch in launches:
                runtime.launch(launch.kernel, launch.arguments, launch.items * tokens)
            if operations_ns is not None:
                runtime.finish()
                now = time.perf_counter_ns()
                operations_ns[number] += now - before
                before = now
        results = [runtime.download(copy.place, tokens * copy.row_bytes) for copy in self._downloads.values()]
        for copy, result in zip(self._downloads.values(), results, strict=True):
            copy.host[: result.size] = result
        if operations_ns is not None:
            operations_ns[-1] += time.perf_counter_ns() - before

    def _note_copies(self, operation: op.Operation) -> None:
        """Note what an operation reads that no operation before it wrote, and what it writes."""
        rows = [(field.role, array) for field, array in op.members_of(operation) if field.mark.per_row]
        written = set(self._downloads)
        for role, array in rows:
            row_bytes = array.nbytes // array.shape[0]
            key = (address_of(array), row_bytes)
            copy = _Copy(array.reshape(-1).view(np.uint8), row_bytes, self.place(array))
            adds = role.adds or (role.adds_if and getattr(operation, role.adds_if))
            if (role.reads or adds) and key not in written:
                self._uploads.setdefault(key, copy)
            if role.writes:
                self._downloads.setdefault(key, copy)


class _Planner:
    """The memory of operations whose arrays may be placeholders: it counts the scratch of one of them."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.bytes = 0

    def place(self, array: Any) -> Place:
        return Place(Block(None), 0)

    def scratch(self, bytes_per_token: int) -> Place:
        self.bytes += _aligned(self._tokens * bytes_per_token)
        return Place(Block(None), 0)


def planned_bytes(operations: Sequence[op.Operation]) -> int:
    """Return bytes that suffice for the activations of a segment, whose arrays may be placeholders.

    Arrays that several operations have, or that overlap, count each time.
    """
    arrays, scratch = 0, 0
    for operation in operations:
        rows = [member for field, member in op.members_of(operation) if field.mark.per_row]
        arrays += sum(_aligned(member.nbytes) + ALIGNMENT_BYTES for member in rows)
        planner = _Planner(operation.measure().rows)
        lower(operation, planner)
        scratch = max(scratch, planner.bytes)
    return arrays + scratch + ALIGNMENT_BYTES


class PlannedUse(NamedTuple):
    """Memory and operations of programs on a device."""

    weight_bytes: int
    activation_bytes: int
    """An upper bound: arrays that share memory are counted by themselves."""
    on_device: int
    """How many operations it runs."""
    others: int
    """How many it could run, if it had room for their weights."""


def planned_use(segments: Sequence[Sequence[op.Operation]], most_bytes: int | None) -> PlannedUse:
    """Return what segments would have on a device with such a budget, in the order in which they are bound.

    Their arrays may be placeholders.
    """
    resident: dict[int, int] = {}
    activations = on_device = others = 0
    for operations in segments:
        needed = max(activations, planned_bytes(operations))
        weights = {id(one): one.nbytes for o in operations for one in _weights(o) if id(one) not in resident}
        total = needed + sum(resident.values()) + sum(weights.values())
        if most_bytes is not None and total > most_bytes:
            others += len(operations)
            continue
        activations, on_device = needed, on_device + len(operations)
        resident |= weights
    return PlannedUse(sum(resident.values()), activations, on_device, others)


def _weights(operation: op.Operation) -> list[Any]:
    return [member for field, member in op.members_of(operation) if not field.mark.per_row]


def _flat(array: Any) -> op.Bytes:
    flat: op.Bytes = array.reshape(-1).view(np.uint8)
    return flat


def address_of(array: Any) -> int:
    """Return the address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _spans(arrays: Sequence[Any]) -> tuple[list[tuple[int, int, int]], int]:
    """Join arrays that overlap: begin and end of each span on the host, its place in a block; and the block's end."""
    ranges = sorted({(address_of(array), address_of(array) + array.nbytes) for array in arrays})
    joined: list[list[int]] = []
    for begin, end in ranges:
        if joined and begin < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    spans, at = [], 0
    for begin, end in joined:
        at = _aligned(at) + begin % ALIGNMENT_BYTES  # as aligned as on the host
        spans.append((begin, end, at))
        at += end - begin
    return spans, _aligned(at)
