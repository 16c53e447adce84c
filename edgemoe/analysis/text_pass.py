"""Runs a text through a model layer by layer, and shows what its routed experts get and give.

All tokens go through a layer before the next one begins (`conversion/calibration/layers.py`), so one layer's weights
are in memory at a time, whatever the model's size. Of a GGUF file that is opened as it is, dense weights are in memory
as a whole, as in a run.

Letters: `N` tokens of the text, `E` experts of a layer, `K` of them for each token, `W` width of the rows that experts
read and write, `F` their intermediate size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.analysis.matrices import expert_parts, height_of, part_rows
from edgemoe.conversion.calibration.layers import LayerRun, layer_of, within
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.conversion.calibration.weights import DenseValue, StoreWeights
from edgemoe.errors import StoreError, UsageError
from edgemoe.experts.loading import load_experts
from edgemoe.io.checksum import crc32c
from edgemoe.io.direct import allocate_pages
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.expert_layouts import ExpertWeights
from edgemoe.kernels.formats import Matrix, panel_count
from edgemoe.kernels.reference.products import activate, weights_of_panels
from edgemoe.kernels.select import select_backend
from edgemoe.model.build import build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.model.graph import Section, Step
from edgemoe.store.manifest_parser import DAMAGED_HINT
from edgemoe.store.reader import Store

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

MOST_BYTES = 1 << 30
"""The memory of all tokens on their way: where it is short, fewer are used. Weights of a layer come to it."""
SLICE_BYTES = 1 << 27
"""The most memory of what is computed of experts at a time."""
_ROWS_AT_ONCE = 1024


class TextPass:
    """The pass of a text through a model."""

    def __init__(self, store: Store, windows: Windows, most_bytes: int = MOST_BYTES) -> None:
        """Raises UsageError for a model without routed experts, and for one whose text does not go layer by layer."""
        self._store = store
        self._graph = graph = build_graph(store_spec(store), build_options(store))
        if graph.encoder is not None or graph.has_rows_on_disk:
            what = "an encoder" if graph.encoder is not None else "tables of rows on disk"
            raise UsageError(
                f"{store.path}: expected a model without {what}, whose text goes through it layer by layer.",
                "Name another model.",
            )
        if not graph.spec.routed:
            raise UsageError(f"{store.path}: expected a model with routed experts, found none.", "Name another model.")
        self.windows = within(most_bytes, graph, windows)

    @property
    def count(self) -> int:
        """The number of layers with routed experts."""
        return len(self._graph.spec.routed)

    def layers(self) -> Iterator[LayerPass]:
        """The layers with routed experts; each is to be looked at before the next one is asked for.

        Raises ReadError for a damaged record, StoreError for a damaged tensor, and what running a model raises.
        """
        last = max(self._graph.spec.routed)
        with closing(select_backend()) as backend:
            run = _WholeRun(self._graph, _WholeWeights(self._store), self.windows, backend)
            for number, section in enumerate(islice(run.sections(), last + 1)):
                choice = _Choice(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32), False)
                for step in run.steps(section):
                    run.run(step)
                    operation: Any = step.operation
                    if isinstance(operation, (ex.Route, ex.TableRoute, ex.LevelRoute)) and operation.logits is not None:
                        logits = run.array(operation.logits)[run.counted].copy()
                        router = _router(run, section, operation)
                        if isinstance(operation, ex.LevelRoute):  # the rows of experts are those of the last level
                            router = router[-math.prod(level.size for level in operation.levels) :]
                        choice = _Choice(logits, router, isinstance(operation, ex.Route))
                    elif isinstance(operation, ex.Experts):
                        yield _layer(run, section, number, run.operation(step), choice, backend)


class _Choice(NamedTuple):
    """How a layer's experts were chosen."""

    logits: Floats
    router: Floats
    by_logits: bool


class _WholeWeights(StoreWeights):
    """The weights of a finished store, or of a GGUF file."""

    @cached_property
    def _tensors(self) -> Mapping[str, DenseValue]:
        return self.store.load_dense()

    def dense(self, name: str) -> DenseValue:
        if self.store.manifest.records.places is not None:
            return self._tensors[name]
        found = super().dense(name)
        data = found.data if isinstance(found, Matrix) else found.view(np.uint8)
        if self._dense[name].crc32c not in (None, crc32c(data)):
            raise StoreError(f"{self.store.path}: {name} differs from what was written.", DAMAGED_HINT)
        return found


class _WholeRun(LayerRun):
    """A run with all experts of a layer in memory at once, checked as they are read."""

    def _run_experts(self, step: Step) -> None:
        operation: Any = step.operation
        store, slots = self._source.store, self.memory(operation.slots)
        memory = allocate_pages(len(slots) * store.slot_bytes)
        self._arena = np.frombuffer(memory, np.uint8).reshape(len(slots), -1)
        layer = layer_of(operation)
        tables = [slots if number == layer else None for number in range(len(self._graph.layers))]
        loading = load_experts(self._arena, tables, store)
        try:
            loading.wait()
        finally:
            loading.close()
        self._backend.program([self.operation(step)]).run(self.tokens)


@dataclass(frozen=True, eq=False)
class LayerPass:
    """The routed experts of a layer, while a text is there."""

    number: int
    """The layer's."""
    inputs: Floats
    """Rows that experts read, of all tokens of the text `(N, W)`."""
    chosen: Integers
    """The experts of each token `(N, K)`; -1 for a choice of none."""
    weights: Floats
    """Their weights `(N, K)`; 1 where weights multiply what experts read."""
    norms: Floats
    """Norms of what the chosen experts give `(N, K)`."""
    logits: Floats | None
    """The router's `(N, E)`, of experts alone; None where a table chooses."""
    router: Floats
    """The rows of the router's matrix `(E, D)`, of experts alone."""
    operation: ex.Experts
    """The layer's, with the weights of all experts."""
    backend: Backend

    @property
    def num_experts(self) -> int:
        return len(self.operation.layout_of)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How often each expert is chosen `(E,)`."""
        return np.bincount(self.chosen[self.chosen >= 0], minlength=self.num_experts)

    def sample(self, most: int) -> npt.NDArray[np.int64]:
        """The numbers of at most so many tokens, evenly over the text."""
        count = len(self.inputs)
        return np.arange(0, count, max(1, -(-count // most)))

    def outputs(self, tokens: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """Yield the outputs of every expert for these tokens, `(n, E, W)` for a few at a time, with their numbers."""
        total, width = self.num_experts, self.inputs.shape[1]
        at_once = max(1, SLICE_BYTES // (4 * total * width))
        for start in range(0, len(tokens), at_once):
            some = tokens[start : start + at_once]
            output = np.zeros((len(some), total, width), np.float32)
            every = np.ascontiguousarray(np.broadcast_to(np.arange(total, dtype=np.int32), (len(some), total)))
            inputs = np.ascontiguousarray(self.inputs[some])
            self.backend.program([replace(self.operation, input=inputs, experts=every, output=output)]).run(len(some))
            yield some, output

    def rows(self, expert: int, part: str, start: int, stop: int) -> Floats:
        """Rows of an expert's `gate`, `up` or `down`, of whole panels: from a multiple of 16 to another, or the end."""
        layout = self.operation.layouts[int(self.operation.layout_of[expert])]
        own = self.operation.weights(expert, int(self.operation.slots[expert]))
        found = part_rows(layout.gated, own, part, start, stop)
        if self.operation.bases is not None:
            first, down = self.operation.base_weights(expert)
            found = found + part_rows(layout.gated, ExpertWeights(first, down, None, None), part, start, stop)
        return found

    def height(self, part: str) -> int:
        """The number of rows of `gate`, `up` or `down`."""
        return height_of(self.operation.layouts[0], part)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of an expert's matrices."""
        return expert_parts(self.operation.layouts[0])

    def matrix(self, expert: int, part: str) -> Floats:
        """An expert's `gate`, `up` or `down`."""
        return self.rows(expert, part, 0, self.height(part))

    def hidden(self, expert: int, inputs: Floats) -> Floats:
        """The hidden values of an expert `(n, F)`."""
        biases = self.operation.weights(expert, int(self.operation.slots[expert])).biases
        products = []
        for part in self.parts[:-1]:
            bias = None if biases is None else getattr(biases, part)
            own = inputs @ self.matrix(expert, part).T
            products.append(own if bias is None else own + bias)
        up = products[1] if len(products) > 1 else np.ones_like(products[0])
        return activate(products[0], up, self.operation.activation)


def _router(run: LayerRun, section: Section, route: ex.Route | ex.TableRoute | ex.LevelRoute) -> Floats:
    """The matrix that gives a router's logits."""
    for step in section.steps:
        operation: Any = step.operation
        for number, part in enumerate(operation.parts if isinstance(operation, op.Linear) else ()):
            if part.output is route.logits:
                matrix = run.operation(step).parts[number].matrix
                return weights_of_panels(matrix, 0, panel_count(matrix.rows))
    raise AssertionError("logits that no product gives")


def _layer(
    run: LayerRun, section: Section, number: int, operation: ex.Experts, choice: _Choice, backend: Backend
) -> LayerPass:
    """Look at a layer whose experts have just run."""
    routing = section.routing
    assert routing is not None
    of_inputs = any(
        isinstance(step.operation, op.Gate) and step.operation.gate is routing.weights for step in section.steps
    )
    counted, total = run.counted, len(operation.layout_of)
    weights = run.array(routing.weights)[counted].copy()
    norms = np.empty((len(counted), weights.shape[1]), np.float32)
    for start in range(0, len(counted), _ROWS_AT_ONCE):
        some = slice(start, min(start + _ROWS_AT_ONCE, len(counted)))
        norms[some] = np.linalg.norm(operation.output[some], axis=2)
    return LayerPass(
        number=number,
        inputs=operation.input[: len(counted)][counted].copy(),
        chosen=run.array(routing.experts)[counted].copy(),
        weights=np.ones_like(weights) if of_inputs else weights,
        norms=norms[counted],
        logits=choice.logits[:, :total] if choice.by_logits else None,
        router=choice.router[:total],
        operation=operation,
        backend=backend,
    )
