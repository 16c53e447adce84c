"""Runs a model through the text for calibration, operation by operation, with weights of the store as it is written.

All tokens go through a layer before the next one begins, so the weights of one layer are in memory at a time. What the
operations before a matrix compute comes from weights that are quantised already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.calibration.settings import Windows
from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.sequence import Sequences
from edgemoe.engine.workspace import Workspace, kept_bytes, state_bytes, work_bytes
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import Matrix
from edgemoe.model.build import Graph
from edgemoe.model.graph import STAGES, Arena, ExpertRecords, Paging, Section, Step, Weight, bound
from edgemoe.store.manifest import DenseTensor
from edgemoe.store.reader import Store

Bytes = npt.NDArray[np.uint8]

_LEFT_OUT = ("fetch", "guess")


class LayerRun:
    """The text's tokens on their way through a model."""

    def __init__(self, graph: Graph, store: Store, windows: Windows, backend: Backend) -> None:
        """`store` is the one that is being written: weights are read when an operation needs them."""
        self._graph = graph
        self._store = store
        self._backend = backend
        self._dense: Mapping[str, DenseTensor] = {tensor.name: tensor for tensor in store.manifest.dense}
        self._weights: dict[str, Matrix | op.Floats] = {}
        self._arena = aligned_bytes(0).reshape(0, 0)
        count, length = windows.ids.shape
        self.tokens = windows.ids.size
        self.counted = np.tile(np.arange(length) >= windows.head, count)
        """Which rows count: those of the text itself, `(T,)`."""
        self._starts = range(0, self.tokens, length)
        self._space = space = Workspace(graph, self.tokens, length, "f16", count)
        fixed = [(space.array(value), value.undo or 0) for value in graph.fixed_state]
        state = FixedState(fixed, 1) if fixed else None
        sequences = Sequences(space.page_groups(graph), graph.spec.vocab_size, False, state)
        for number, ids in enumerate(windows.ids):
            sequence = sequences.open()
            sequence.reserve(length)
            if sequences.forgetful:
                sequence.begin_run(length)
            here = slice(number * length, (number + 1) * length)
            space.ids[here], space.positions[here], space.sequences[here] = ids, np.arange(length), sequence.row

    def begin(self) -> None:
        """Write the embedding of all tokens to the residual stream."""
        for step in self._graph.embed.steps:
            self.run(step)
        self._weights.clear()

    def steps(self, section: Section) -> Iterator[Step]:
        """The steps of a layer in their order; each is to be run before the next one is asked for."""
        for stage in STAGES:
            if stage not in _LEFT_OUT:
                yield from (step for step in section.steps if step.stage == stage)
        self._weights.clear()
        self._arena = aligned_bytes(0).reshape(0, 0)

    def array(self, value: Any) -> Any:
        """The rows of a value for all tokens."""
        return self._space.array(value)[: self.tokens]

    def run(self, step: Step) -> None:
        """Run one operation on all tokens."""
        if isinstance(step.operation, ex.Experts):
            self._load_experts(step.operation)
        operation = self.operation(step)
        if isinstance(operation, ex.Capacity):  # it counts the tokens of one sequence
            for start, end in zip(self._starts, (*self._starts[1:], self.tokens), strict=True):
                rows = {name: getattr(operation, name)[start:end] for name in ("experts", "weights")}
                self._backend.program([replace(operation, **rows)]).run(end - start)
            return
        self._backend.program([operation]).run(self.tokens)

    def operation(self, step: Step) -> Any:
        """The operation of a step with the arrays that it works on: experts have their weights once they have run."""
        return bound(step.operation, self._leaf)

    def _leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            if leaf.name not in self._weights:
                self._weights[leaf.name] = self._read(self._dense[leaf.name])
            return self._weights[leaf.name]
        if isinstance(leaf, ExpertRecords):
            return getattr(self._store.record_layouts[leaf.layer], leaf.field)
        if isinstance(leaf, Arena):
            return self._arena
        return None if isinstance(leaf, Paging) else self._space.array(leaf)

    def _read(self, tensor: DenseTensor) -> Matrix | op.Floats:
        data = read_aligned(self._store.dense_path, tensor.offset, tensor.bytes)
        if tensor.format is None:
            return data.view(np.float32)
        return Matrix(data, tensor.format, tensor.rows, tensor.columns)

    def _load_experts(self, experts: ex.Experts) -> None:
        layer = layer_of(experts)
        slots = self._space.array(experts.slots)
        slots[:] = np.arange(len(slots))
        self._arena = aligned_bytes(len(slots) * self._store.slot_bytes).reshape(len(slots), -1)
        for expert, slot in enumerate(self._arena):
            record = self._store.record(layer, expert)
            slot[: record.length] = np.fromfile(record.path, np.uint8, record.length, offset=record.offset)


def within(most_bytes: int, graph: Graph, windows: Windows) -> Windows:
    """The first windows whose values and state take at most this memory: one at least."""

    def size(count: int) -> int:
        length = windows.ids.shape[1]
        tokens = count * length
        sizes = work_bytes(graph, tokens), kept_bytes(graph, tokens, length, count)
        return sum(sizes) + state_bytes(graph, tokens, length, "f16", count)

    count = len(windows.ids)
    while count > 1 and size(count) > most_bytes:
        count -= max(1, count // 8)
    return replace(windows, ids=windows.ids[:count])


def layer_of(experts: Any) -> int:
    """The number of the layer whose experts a symbolic operation runs."""
    assert isinstance(experts.layouts, ExpertRecords)
    return experts.layouts.layer


def aligned_bytes(size: int) -> Bytes:
    """Zeros that begin at a multiple of `MATRIX_ALIGNMENT_BYTES`."""
    memory = np.zeros(size + MATRIX_ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % MATRIX_ALIGNMENT_BYTES
    return memory[start : start + size]


def read_aligned(path: Path, offset: int, size: int) -> Bytes:
    """Bytes of a file, in memory of their own."""
    data = aligned_bytes(size)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        read = 0
        while read < size:
            count = file.readinto(memoryview(data.data)[read:])
            if not count:
                raise OSError(f"{path}: ends at byte {offset + read}")
            read += count
    return data
