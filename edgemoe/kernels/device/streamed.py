"""Routed experts that have no room on the device, computed there for chunks of many rows: their weights pass through.

The weights of a layer's experts go to the device for the chunk alone, from the slots in RAM, in waves as large as a
buffer of the staging area (`staging.py`). As one wave is computed the next is copied; as a layer's last is, experts of
the next layer are, of which a chunk of many rows uses nearly all. The trial (`chunk_trial.py`) says which chunks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Nanoseconds, Pause, Program, ProgramTimes
from edgemoe.kernels.device.chunk_trial import ChunkTrial
from edgemoe.kernels.device.lowering import lower
from edgemoe.kernels.device.memory import DeviceMemory, address_of
from edgemoe.kernels.device.runtime import Block, DeviceMemoryError, Place
from edgemoe.kernels.device.segment import aligned, spans_of
from edgemoe.kernels.device.staging import Half, Staging
from edgemoe.kernels.device.uses import within
from edgemoe.kernels.expert_operations import Experts

_NEARLY_ALL = 4
"""From so many choices for each expert of a layer on, a chunk is expected to use nearly all of them (49 of 50)."""


class Streaming:
    """The staging area, the trial and the budget of all layers whose experts pass through a device."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.staging = Staging(memory)
        self.trial = ChunkTrial()
        self.streamed = 0
        """How many layers' runs have been computed on the device."""
        self._on = False
        self._end_ns: float | None = None
        self._latest: StreamedExperts | None = None

    def bind(self, operations: Sequence[op.Operation], tokens_max: int) -> InTurn:
        """Bind routed experts, each those of a layer. Raises DeviceMemoryError where activations have no room."""
        made = []
        for operation in operations:
            assert isinstance(operation, Experts)
            made.append(StreamedExperts(operation, self, tokens_max))
            if self._latest is not None:
                self._latest.next = made[-1]
            self._latest = made[-1]
        return InTurn(made)

    def watched(self, program: Program) -> Program:
        """Return a program all of whose operations have been bound; one that streams is timed for the trial."""
        streams, self._latest = self._latest is not None, None
        return _Watched(program, self) if streams else program

    def begin(self, rows: int) -> None:
        """Choose for a chunk."""
        self._on, patience_ns = self.trial.open(rows), self.trial.most_ns(rows)
        self._end_ns = None if patience_ns is None else time.perf_counter_ns() + patience_ns

    @property
    def on(self) -> bool:
        """Whether the chunk that runs is streamed: one that is tried, only while that is not hopeless."""
        if self._on and self._end_ns is not None and time.perf_counter_ns() > self._end_ns:
            self._on = False
        return self._on

    def halves(self) -> tuple[Half, Half] | None:
        """Return the buffers, or None where they have no room: then nothing is streamed any more."""
        try:
            found = self.staging.halves()
        except DeviceMemoryError:
            found = None
        if found is None:
            self.trial = ChunkTrial("off")
        return found


class _Watched:
    """A program of which every run is a chunk."""

    def __init__(self, program: Program, streaming: Streaming) -> None:
        self._program, self._streaming = program, streaming
        self.time_runs = program.time_runs

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        began_ns = time.perf_counter_ns()
        self._streaming.begin(tokens)
        self._program.run(tokens, pause)
        self._streaming.trial.record(tokens, time.perf_counter_ns() - began_ns)

    def times(self) -> ProgramTimes:
        return self._program.times()


class InTurn:
    """The routed experts of layers that follow one another without anything between them: of one, as a rule."""

    def __init__(self, layers: Sequence[StreamedExperts]) -> None:
        self._layers = layers

    def run(self, tokens: int, operations_ns: Nanoseconds | None = None) -> bool:
        """Compute a chunk, and return whether all of it was: if not, the processor may compute it again."""
        for number, layer in enumerate(self._layers):
            began_ns = time.perf_counter_ns()
            if not layer.run(tokens):
                return False
            if operations_ns is not None:
                operations_ns[number] += time.perf_counter_ns() - began_ns
        return True


class StreamedExperts:
    """The routed experts of a layer, bound to their arrays."""

    next: StreamedExperts | None = None
    """The experts of the layer whose turn is next."""

    def __init__(self, operation: Experts, streaming: Streaming, tokens_max: int) -> None:
        """`tokens_max` is the longest run. Raises DeviceMemoryError where activations and tables have no room."""
        self._operation, self._streaming, self._memory = operation, streaming, streaming.memory
        self.tokens, self.count = tokens_max, np.zeros(1, np.int32)
        self._slots = self._memory.resident(np.full(operation.slots.shape, -1, np.int32))
        """Where experts lie in the buffer that is used."""
        self._layout_of = self._memory.resident(operation.layout_of)
        self._arena = Block(None)
        self._spans, self._end = spans_of([operation.input, operation.experts, operation.output])
        self._launches = lower(operation, self)
        self._memory.reserve(self._end)
        for table in (self._slots, self._layout_of):
            self._memory.make_room(table)
        streaming.staging.want(operation.slots.size, operation.arena.shape[1])

    def place(self, array: Any) -> Place:
        """Return the place of an array of the operation."""
        if array is self._operation.arena:
            return Place(self._arena, 0)
        if array is self._operation.slots:
            return Place(self._slots.block, 0)
        if array is self._operation.layout_of:
            return Place(self._layout_of.block, 0)
        address = address_of(array)
        begin, _, at = next(span for span in self._spans if span[0] <= address < span[1])
        return Place(self._memory.shared, at + address - begin)

    def scratch(self, bytes_per_token: int) -> Place:
        """Return memory that the operation has for itself."""
        at = self._end
        self._end = aligned(at + self.tokens * bytes_per_token)
        return Place(self._memory.shared, at)

    def run(self, tokens: int) -> bool:
        """Compute a chunk; the host's rows change last, so an error leaves them as they were.

        Return whether it did: not a chunk that is not to be streamed, one that chose experts that are not in memory, or
        one in which something is not as it must be.
        """
        if not self._streaming.on:
            return False
        used = self._used(tokens)
        halves = None if used is None else self._streaming.halves()
        if used is None or halves is None:
            return False
        runtime, o = self._memory.runtime, self._operation
        runtime.upload(self.place(o.layout_of), self._layout_of.bytes)
        for rows in (o.input, o.experts):
            runtime.upload(self.place(rows), _bytes(rows, tokens))
        for half in self._waves(used, halves, tokens):
            half.wait(self._memory)
            self._slots.host[:] = -1
            self._slots.host[half.experts] = np.arange(half.experts.size)
            runtime.upload(self.place(o.slots), self._slots.bytes)
            self._arena.buffer = half.block.buffer
            for launch in self._launches:
                runtime.launch(launch.kernel, launch.arguments, launch.items * (1 if launch.once else tokens))
        output = _bytes(o.output, tokens)
        output[:] = runtime.download(self.place(o.output), output.size)
        self._streaming.streamed += 1
        return True

    def _used(self, tokens: int) -> op.Integers | None:
        """Return the experts that a chunk uses; None if any is not in memory, or not as it must be."""
        o, chosen = self._operation, self._operation.experts[:tokens]
        if not within(chosen, -1, o.slots.size) or not within(o.layout_of, 0, len(o.layouts)):
            return None
        used = np.unique(chosen[chosen >= 0])
        return used if used.size and within(o.slots[used], 0, o.arena.shape[0]) else None

    def _waves(self, used: op.Integers, halves: tuple[Half, Half], tokens: int) -> Iterator[Half]:
        """Yield buffers with the experts that are used, until each has been in one; copy the next one's meanwhile."""
        o = self._operation
        held = next((half for half in halves if half.owner is self), None)
        rest = used if held is None else np.setdiff1d(used, held.experts)
        room = halves[0].bytes // o.arena.shape[1]
        waves = [rest[at : at + room] for at in range(0, rest.size, room)]
        if held is None:
            held, first = halves[0], waves.pop(0)
            held.fill(self._memory, self, first, o.slots[first], o.arena)
        other = halves[held is halves[0]]
        for wave in waves:
            yield held
            other.fill(self._memory, self, wave, o.slots[wave], o.arena)
            self._memory.runtime.finish()  # before it is filled again, nothing may read what is held
            held, other = other, held
        yield held
        if self.next is not None and tokens * o.experts.shape[1] >= _NEARLY_ALL * o.slots.size:
            self.next.begin(other)

    def begin(self, half: Half) -> None:
        """Begin to copy as many of the layer's experts as a buffer has room for."""
        o = self._operation
        known = np.flatnonzero((o.slots >= 0) & (o.slots < o.arena.shape[0]))
        experts = known[: half.bytes // o.arena.shape[1]].astype(np.int32)
        if experts.size:
            half.fill(self._memory, self, experts, o.slots[experts], o.arena)


def _bytes(rows: Any, tokens: int) -> op.Bytes:
    """Return the bytes of the first rows of an array."""
    found: op.Bytes = rows[:tokens].reshape(-1).view(np.uint8)
    return found
