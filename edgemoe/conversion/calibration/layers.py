"""Runs a model through a text, operation by operation, with weights that are read when an operation needs them.

All tokens go through a layer before the next one begins, so the weights of one layer are in memory at a time, and of
its experts those that fit `ARENA_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.calibration.settings import Windows
from edgemoe.conversion.calibration.weights import Weights, aligned_bytes
from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.sequence import Sequences
from edgemoe.engine.workspace import Workspace, kept_bytes, state_bytes, work_bytes
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.formats import Matrix
from edgemoe.model.build import HEAD_ROWS, Graph
from edgemoe.model.graph import STAGES, Arena, ExpertRecords, Paging, Section, Step, Weight, bound

Floats = npt.NDArray[np.float32]

MOST_BYTES = 2 << 30
"""The memory of all tokens on their way: where it is short, fewer are used. Weights of a layer come to it."""
ARENA_BYTES = 1 << 29
"""The memory of experts that run at once: at least one of them."""

_LEFT_OUT = ("fetch", "guess")


class LayerRun:
    """The text's tokens on their way through a model."""

    def __init__(self, graph: Graph, weights: Weights, windows: Windows, backend: Backend) -> None:
        self._graph = graph
        self._source = weights
        self._backend = backend
        self._weights: dict[str, Matrix | op.Floats] = {}
        self._arena = aligned_bytes(0).reshape(0, 0)
        count, length = windows.ids.shape
        self.tokens = windows.ids.size
        self.counted = np.tile(np.arange(length) >= windows.head, count)
        """Which rows count: those of the text itself, in windows that are not held out, `(T,)`."""
        self.counted[: windows.held * length] = False
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
            self._run_experts(step)
            return
        operation = self.operation(step)
        if isinstance(operation, ex.Capacity):  # it counts the tokens of one sequence
            for start, end in zip(self._starts, (*self._starts[1:], self.tokens), strict=True):
                rows = {name: getattr(operation, name)[start:end] for name in ("experts", "weights")}
                self._backend.program([replace(operation, **rows)]).run(end - start)
            return
        self._backend.program([operation]).run(self.tokens)

    def operation(self, step: Step) -> Any:
        """The operation of a step with the arrays that it works on: experts have those weights that were read last."""
        return bound(step.operation, self._leaf)

    def residual(self, rows: int) -> Floats:
        """A copy of the residual stream of the first rows, as it is after the layers that have run."""
        return self._space.residual[:rows].copy()

    def logits(self, stream: Floats, backend: Backend) -> Iterator[Floats]:
        """Yield the logits of rows of a residual stream, some at a time, which are valid until the next ones.

        This run's own backend may be closed by then.
        """
        program = backend.program([self.operation(step) for step in self._graph.head.steps])
        for first in range(0, len(stream), HEAD_ROWS):
            count = min(HEAD_ROWS, len(stream) - first)
            self._space.head_input[:count] = stream[first : first + count]
            program.run(count)
            yield self._space.logits[:count]
        self._weights.clear()

    def _leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            if leaf.name not in self._weights:
                self._weights[leaf.name] = self._source.dense(leaf.name)
            return self._weights[leaf.name]
        if isinstance(leaf, ExpertRecords):
            return getattr(self._source.store.record_layouts[leaf.layer], leaf.field)
        if isinstance(leaf, Arena):
            return self._arena
        return None if isinstance(leaf, Paging) else self._space.array(leaf)

    def _run_experts(self, step: Step) -> None:
        """Run the experts that some token chose, as many at once as have room."""
        experts: Any = step.operation
        layer, slot_bytes = layer_of(experts), self._source.store.slot_bytes
        slots = self._space.array(experts.slots)
        chosen = np.unique(self.array(experts.experts))
        numbers: Sequence[int] = chosen[chosen >= 0].tolist()
        most = max(1, ARENA_BYTES // slot_bytes)
        for first in range(0, max(1, len(numbers)), most):  # once at least: choices of no expert pass rows on
            some = numbers[first : first + most]
            if len(self._arena) != len(some):
                self._arena = aligned_bytes(len(some) * slot_bytes).reshape(len(some), -1)
            slots[:] = -1
            slots[some] = np.arange(len(some))
            for expert, slot in zip(some, self._arena, strict=True):
                self._source.load_record(layer, expert, slot)
            self._backend.program([self.operation(step)]).run(self.tokens)


def within(most_bytes: int, graph: Graph, windows: Windows) -> Windows:
    """The first windows whose values and state take at most this memory: those held out, and one at least."""

    def size(count: int) -> int:
        length = windows.ids.shape[1]
        tokens = count * length
        sizes = work_bytes(graph, tokens), kept_bytes(graph, tokens, length, count)
        return sum(sizes) + state_bytes(graph, tokens, length, "f16", count)

    count = len(windows.ids)
    while count > windows.held + 1 and size(count) > most_bytes:
        count -= max(1, (count - windows.held) // 8)
    return replace(windows, ids=windows.ids[:count])


def layer_of(experts: Any) -> int:
    """The number of the layer whose experts a symbolic operation runs."""
    assert isinstance(experts.layouts, ExpertRecords)
    return experts.layouts.layer
