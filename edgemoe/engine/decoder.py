"""A model's operations bound to their arrays, layer by layer.

`model/build.py` made the symbolic program; here every value in it gets its array, and every weight its matrix. The
operations of a layer are kept by their stages (`model/graph.py`), some of which a program leaves out (`stepper.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.engine.workspace import Workspace
from edgemoe.experts import neuron_pages
from edgemoe.experts.cache import Cache
from edgemoe.experts.disk_rows import DiskRows
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import Matrix
from edgemoe.model.build import Graph
from edgemoe.model.graph import (
    STAGES,
    Arena,
    ExpertRecords,
    NeuronPages,
    Paging,
    Part,
    RoutingValues,
    Section,
    Stage,
    Step,
    Weight,
    bound,
)

Weights = Mapping[str, "Matrix | op.Floats"]


@dataclass(frozen=True, eq=False)
class LayerRouting:
    """The output of one layer's router for the tokens of the latest run, and the slots of its experts."""

    experts: op.Integers  # (T, K)
    weights: op.Floats  # (T, K)
    guess: op.Integers  # (GUESSED_ROWS, K): the guess at this layer's routing, made one layer earlier
    guess_weights: op.Floats  # (GUESSED_ROWS, K)
    slots: op.Integers  # (E,): slot of each expert, or -1
    residency: npt.NDArray[np.bool_]  # (E,): whether each requested expert was in RAM; kept only while recording


@dataclass(frozen=True, eq=False)
class LayerOperations:
    """The operations of one layer by stage; `experts` is empty in a dense layer."""

    attend: list[op.Operation]
    fetch: list[op.Operation]
    guess: list[op.Operation]
    beside: list[op.Operation]
    experts: list[op.Operation]
    combine: list[op.Operation]


class Decoder:
    """The operations of a whole model."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        workspace: Workspace,
        arena: npt.NDArray[np.uint8],
        record_layouts: Sequence[ex.RecordLayouts | None],
        cache: Cache | None = None,
        embedding_rows: DiskRows | None = None,
        tables: Sequence[DiskRows] = (),
        neurons: neuron_pages.NeuronPages | None = None,
    ) -> None:
        """`weights` has all matrices and vectors of the model, except what `embedding_rows` and `tables` read.

        `cache`: where not all experts are in RAM, what the operations ask for them. `neurons`: the pages of experts
        that are single neurons.
        """
        self._weights = weights
        self._space = workspace
        self._arena = arena
        self._layouts = record_layouts
        self._cache = cache
        self._neurons = neurons
        self._parts: dict[op.Operation, Part] = {}
        self._layer_numbers: dict[op.Operation, int] = {}
        self._all_resident = np.ones((len(graph.spec.layers), graph.spec.most_experts), np.bool_)
        self._slot_tables: dict[Any, op.Integers] = {}  # by value, where the cache has them
        self.routing = [
            None if layer.routing is None else self._routing(number, layer.routing)
            for number, layer in enumerate(graph.layers)
        ]
        if embedding_rows is None:
            self.embed = self._bind(graph.embed)
            """Embeds all tokens of a step or, with `DiskRows`, only the batch of rows just read."""
        else:
            rows = embedding_rows
            scale, copies = graph.spec.embedding_scale, graph.spec.stream_count
            self.embed = [op.Embed(rows.ids, rows.matrix, scale, rows.rows, copies)]
            self._parts[self.embed[0]] = "embedding"
        self.read_tables: list[list[op.Operation]] = [
            [op.Embed(rows.ids, rows.matrix, 1.0, rows.rows)] for rows in tables
        ]
        """For each table on disk the operation that decodes rows which have been read."""
        self._parts |= {operations[0]: "mixer" for operations in self.read_tables}
        self.begin = self.embed if embedding_rows is None else []
        """Operations at the start of a step; empty if `DiskRows` fills the residual stream before it."""
        self.layers = [self._layer(number, section) for number, section in enumerate(graph.layers)]
        self.head = self._bind(graph.head)
        self.encoder_layers = graph.spec.encoder_layers
        """How many of the layers, from the first on, are an encoder's."""
        encoder = graph.encoder
        self._encode_begin = [] if encoder is None or embedding_rows else self._bind(encoder.embed)
        self._encode_end = [] if encoder is None else self._bind(encoder.end)

    def part_of(self, operation: op.Operation) -> Part:
        """The part of the work, for the ledger, to which one of these operations belongs."""
        return self._parts[operation]

    def layer_of(self, operation: op.Operation) -> int:
        """The layer to which one of these operations belongs; -1 for those before and after all layers."""
        return self._layer_numbers.get(operation, -1)

    def slot_tables(self) -> list[op.Integers | None]:
        """Each layer's table from expert to slot, which the caller fills in."""
        return [None if routing is None else routing.slots for routing in self.routing]

    def whole(self) -> list[op.Operation]:
        """Every operation of a step up to the head, for a model whose experts are all resident."""
        return self.step({"fetch", "guess"})

    def step(self, without: Collection[Stage]) -> list[op.Operation]:
        """The operations of a step up to the head, without some stages of each layer."""
        return self.begin + self._through(self.layers[self.encoder_layers :], without)

    def encode(self, without: Collection[Stage]) -> list[op.Operation]:
        """The operations of an encoder's run, without some stages of each layer; none without an encoder."""
        layers = self._through(self.layers[: self.encoder_layers], without)
        return self._encode_begin + layers + self._encode_end

    def _through(self, layers: Sequence[LayerOperations], without: Collection[Stage]) -> list[op.Operation]:
        operations: list[op.Operation] = []
        for layer in layers:
            for stage in STAGES:
                if stage not in without:
                    operations += getattr(layer, stage)
        return operations

    def _routing(self, layer: int, values: RoutingValues) -> LayerRouting:
        array = self._space.array
        experts = values.slots.shape[0]
        if self._cache is None:
            slots, residency = array(values.slots), self._all_resident[layer, :experts]
            slots.fill(-1)
        else:  # the cache's own tables, which have the width of the layer with most experts
            slots = self._slot_tables[values.slots] = self._cache.residency[layer, :experts]
            residency = self._cache.loaded_when_asked[layer, :experts]
        return LayerRouting(
            experts=array(values.experts),
            weights=array(values.weights),
            guess=array(values.guess),
            guess_weights=array(values.guess_weights),
            slots=slots,
            residency=residency,
        )

    def _layer(self, number: int, section: Section) -> LayerOperations:
        stages: dict[str, list[op.Operation]] = {stage: [] for stage in STAGES}
        for step in section.steps:
            operation = self._bound(step)
            self._layer_numbers[operation] = number
            stages[step.stage].append(operation)
        return LayerOperations(**stages)

    def _bind(self, section: Section) -> list[op.Operation]:
        return [self._bound(step) for step in section.steps]

    def _bound(self, step: Step) -> op.Operation:
        operation: op.Operation = bound(step.operation, self._array)
        self._parts[operation] = step.part
        return operation

    def _array(self, leaf: Any) -> Any:
        """Return the array, matrix or other object for a leaf of a symbolic operation."""
        if isinstance(leaf, Weight):
            weight = self._weights[leaf.name]
            assert isinstance(weight, Matrix) == (len(leaf.shape) == 2), leaf.name
            return weight
        if isinstance(leaf, ExpertRecords):
            return getattr(self._layouts[leaf.layer], leaf.field)
        if isinstance(leaf, Arena):
            return self._arena
        if isinstance(leaf, Paging):
            return None if self._cache is None else ex.Paged(self._cache, leaf.layer)
        if isinstance(leaf, NeuronPages):
            assert self._neurons is not None
            return self._neurons.leaf(leaf.layer, leaf.field)
        slots = self._slot_tables.get(leaf)
        return self._space.array(leaf) if slots is None else slots
