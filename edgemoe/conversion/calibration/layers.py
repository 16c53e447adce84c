"""Runs a model through a text, operation by operation, with weights that are read when an operation needs them.

All tokens go through a layer before the next one begins, so the weights of one layer are in memory at a time, and of
its experts those that fit `ARENA_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.calibration.settings import Calibration, Windows
from edgemoe.conversion.calibration.weights import Weights, aligned_bytes
from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.sequence import Sequences
from edgemoe.engine.workspace import (
    Workspace,
    encoder_work_bytes,
    kept_bytes,
    page_count,
    state_bytes,
    work_bytes,
    written_once_bytes,
)
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.formats import Matrix
from edgemoe.model.build import HEAD_ROWS, Graph
from edgemoe.model.graph import STAGES, Arena, ExpertRecords, Paging, Section, Step, Value, Weight, bound

Floats = npt.NDArray[np.float32]

MOST_BYTES = 2 << 30
"""The memory of all tokens on their way: where it is short, fewer are used. Weights of a layer come to it."""
ARENA_BYTES = 1 << 29
"""The memory of experts that run at once: at least one of them."""

_LEFT_OUT = ("fetch", "guess")


class _Side(NamedTuple):
    """The tokens that go through the layers of a decoder, or through those of an encoder."""

    windows: Windows
    residual: Floats

    @property
    def tokens(self) -> int:
        return self.windows.ids.size


class LayerRun:
    """The text's tokens on their way through a model: an encoder's layers first, if it has one."""

    def __init__(self, graph: Graph, weights: Weights, windows: Windows, backend: Backend) -> None:
        self._graph = graph
        self._source = weights
        self._backend = backend
        self._weights: dict[str, Matrix | op.Floats] = {}
        self._arena = aligned_bytes(0).reshape(0, 0)
        count, length = windows.ids.shape
        self._space = space = Workspace(graph, windows.ids.size, windows.longest, "f16", count)
        self._decoder = self._side = _Side(windows, space.residual)
        self._encoder: _Side | None = None
        self._encoder_space = space
        self._of_encoder: frozenset[Value] = frozenset()
        fixed = [(space.array(value), value.undo or 0) for value in graph.fixed_state]
        state = FixedState(fixed, 1) if fixed else None
        inputs = space.inputs(graph)
        sequences = Sequences(space.page_groups(graph), graph.spec.vocab_size, False, state, inputs)
        if windows.inputs is not None:
            self._enter_inputs(windows.inputs)
        for number, ids in enumerate(windows.ids):
            sequence = sequences.open()
            sequence.reserve(length)
            if sequences.forgetful:
                sequence.begin_run(length)
            if windows.inputs is not None and sequence.input is not None:
                sequence.input.begin(windows.inputs.ids[number])
            here = slice(number * length, (number + 1) * length)
            space.ids[here], space.positions[here], space.sequences[here] = ids, np.arange(length), sequence.row

    def _enter_inputs(self, windows: Windows) -> None:
        """Make room for an encoder's run on all inputs at once, each with pages of its own."""
        graph, encoder = self._graph, self._graph.encoder
        assert encoder is not None
        count, length = windows.ids.shape
        self._encoder_space = space = Workspace(graph, 1, _encoder_rows(windows), "f16", count)
        named = {value for section, _ in graph.encoder_kinds() for value in section.values}
        own = {value for value in named if value.home == "work" or value.shape[0] == "C"}
        self._of_encoder = frozenset({*own, encoder.own_pages})
        self._encoder = _Side(windows, space.input_residual)
        tokens = windows.ids.size
        space.input_ids[:tokens] = windows.ids.reshape(-1)
        space.input_positions[:tokens] = np.tile(np.arange(length), count)
        space.input_sequences[:tokens] = np.repeat(np.arange(count), length)
        pages = page_count(length)
        space.array(encoder.own_pages)[:, :pages] = np.arange(count * pages).reshape(count, pages)

    @property
    def tokens(self) -> int:
        """The number of tokens that go through the layers of this side."""
        return self._side.tokens

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Which of their rows count: those of the text itself, in windows that are not held out, `(T,)`."""
        windows = self._side.windows
        count, length = windows.ids.shape
        counted = np.tile(np.arange(length) >= windows.head, count)
        counted[: windows.held * length] = False
        return counted

    def sections(self) -> Iterator[Section]:
        """The sections between embedding and head, in their order; each is to be run before the next is asked for."""
        graph = self._graph
        if self._encoder is not None and graph.encoder is not None:
            self._side = self._encoder
            self._run_whole(graph.encoder.embed)
            yield from graph.layers[: graph.spec.encoder_layers]
            yield graph.encoder.end
        self._side = self._decoder
        self._run_whole(graph.embed)
        yield from graph.decoder_layers

    def _run_whole(self, section: Section) -> None:
        for step in section.steps:
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
        return self.memory(value)[: self.tokens]

    def memory(self, value: Any) -> Any:
        """The array of a value."""
        return (self._encoder_space if value in self._of_encoder else self._space).array(value)

    def run(self, step: Step) -> None:
        """Run one operation on all tokens."""
        if isinstance(step.operation, ex.Experts):
            self._run_experts(step)
            return
        operation = self.operation(step)
        if isinstance(operation, ex.Capacity):  # it counts the tokens of one sequence
            length = self._side.windows.ids.shape[1]
            for start in range(0, self.tokens, length):
                rows = {name: getattr(operation, name)[start : start + length] for name in ("experts", "weights")}
                self._backend.program([replace(operation, **rows)]).run(length)
            return
        self._backend.program([operation]).run(self.tokens)

    def operation(self, step: Step) -> Any:
        """The operation of a step with the arrays that it works on: experts have those weights that were read last."""
        return bound(step.operation, self._leaf)

    def residual(self, rows: int) -> Floats:
        """A copy of the residual stream of the first rows, as it is after the layers that have run."""
        return self._side.residual[:rows].copy()

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
        return None if isinstance(leaf, Paging) else self.memory(leaf)

    def _run_experts(self, step: Step) -> None:
        """Run the experts that some token chose, as many at once as have room."""
        experts: Any = step.operation
        layer, slot_bytes = layer_of(experts), self._source.store.slot_bytes
        slots = self.memory(experts.slots)
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


def windows_of(calibration: Calibration, files: Mapping[str, bytes], graph: Graph) -> Windows:
    """The windows of a text for a model, whose small files have its tokenizer. Raises UsageError for a short text."""
    spec = graph.spec
    start_token = None if spec.encoder is None else spec.encoder.start_token
    return Windows.of(calibration, files, spec.vocab_size, min(graph.longest_contexts), start_token)


def within(most_bytes: int, graph: Graph, windows: Windows) -> Windows:
    """The first windows whose values and state take at most this memory: those held out, and one at least."""

    def size(count: int) -> int:
        some = windows.first(count)
        tokens, longest = some.ids.size, some.longest
        sizes = [work_bytes(graph, tokens), kept_bytes(graph, tokens, longest, count)]
        sizes.append(state_bytes(graph, tokens, longest, "f16", count))
        if some.inputs is not None:
            rows = _encoder_rows(some.inputs)
            sizes += [encoder_work_bytes(graph, rows), kept_bytes(graph, 1, rows, count)]
            sizes.append(written_once_bytes(graph, longest, "f16", count))
        return sum(sizes)

    count = len(windows.ids)
    while count > windows.held + 1 and size(count) > most_bytes:
        count -= max(1, (count - windows.held) // 8)
    return windows.first(count)


def _encoder_rows(windows: Windows) -> int:
    """The rows of an encoder's run on all inputs at once, of whole pages for each."""
    count, length = windows.ids.shape
    rows: int = count * page_count(length) * op.PAGE_TOKENS
    return rows


def layer_of(experts: Any) -> int:
    """The number of the layer whose experts a symbolic operation runs."""
    assert isinstance(experts.layouts, ExpertRecords)
    return experts.layouts.layer
