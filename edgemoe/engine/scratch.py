"""The scratch that a backend's kernels need for a step, measured on the graph before any array exists."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from edgemoe.engine.workspace import KvFormat, shape_of
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.expert_operations import RecordLayouts
from edgemoe.kernels.formats import Format, Matrix, group_count
from edgemoe.kernels.operations import Operation, Placeholder, QuantisedCache
from edgemoe.model.build import Graph
from edgemoe.model.graph import (
    Arena,
    ExpertRecords,
    Leaf,
    NeuronPages,
    Paging,
    Section,
    Value,
    Weight,
    bound,
)
from edgemoe.store.neurons import NeuronTable
from edgemoe.store.reader import Store

_FLOATS = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class WeightFormats:
    """The formats of a store's weights, which its manifest says before any of them is read."""

    matrices: Mapping[str, Format]
    """The format of each dense matrix, by its stored name."""
    layouts: Sequence[RecordLayouts | None]
    """The layouts of each layer's expert records; None for a layer without routed experts."""
    slot_bytes: int
    neurons: NeuronTable | None = None
    """The table of neurons; None for a model without such experts."""
    known: WeakKeyDictionary[Backend, dict[Any, int]] = field(
        default_factory=WeakKeyDictionary, compare=False, repr=False
    )
    """Sizes that were measured already; a plan asks for the same ones several times."""
    distinct: WeakKeyDictionary[Graph, list[Section]] = field(
        default_factory=WeakKeyDictionary, compare=False, repr=False
    )
    """The sections of a graph in which all sizes occur."""

    @classmethod
    def of(cls, store: Store) -> WeightFormats:
        """The formats of a store, which may be planned only."""
        matrices = {tensor.name: tensor.format for tensor in store.manifest.dense if tensor.format is not None}
        return cls(matrices, store.record_layouts, store.slot_bytes, store.neurons)


def step_scratch_bytes(
    graph: Graph, formats: WeightFormats, backend: Backend, tokens: int, context_length: int, kv_format: KvFormat
) -> int:
    """Bytes of scratch of the backend for any operation of a step of `tokens` tokens."""
    if not backend.scratch_grows_with_context and graph.encoder is None:  # an encoder's run is as long as its input
        context_length = 1
    known, key = formats.known.setdefault(backend, {}), (graph, tokens, context_length, kv_format)
    if key not in known:
        programs = planned_programs(graph, formats, tokens, context_length, kv_format)
        known[key] = max(backend.scratch_bytes(operations) for operations in programs)
    return known[key]


def planned_programs(
    graph: Graph, formats: WeightFormats, tokens: int, context_length: int, kv_format: KvFormat
) -> Iterator[list[Operation]]:
    """Yield operations over placeholders, as they are with all experts in memory: those of each section in which sizes
    or formats are others.
    """
    made: dict[int, Any] = {}  # by `id`, as operations share leaves, which the graph keeps

    def placeholder(leaf: Leaf) -> Any:
        if id(leaf) not in made:
            made[id(leaf)] = placeholder_of(leaf, formats, tokens, context_length, kv_format)
        return made[id(leaf)]

    for section in _distinct_sections(graph, formats):
        # The guess at a routing has room for few rows only, and so has a program with it.
        for guesses in (False, True):
            steps = [step for step in section.steps if (step.stage == "guess") == guesses]
            if steps:
                yield [bound(step.operation, placeholder) for step in steps]


def _distinct_sections(graph: Graph, formats: WeightFormats) -> list[Section]:
    """One section of each kind and choice of formats: the scratch of all others is that of one of them."""
    known = formats.distinct.get(graph)
    if known is None:
        of_layers: dict[str, list[Format]] = {}
        for name, fmt in formats.matrices.items():
            layer = name.split(".", 2)[1] if name.startswith("layers.") else ""
            of_layers.setdefault(layer, []).append(fmt)
        found: dict[Hashable, Section] = {}
        numbers = {section: number for number, section in enumerate(graph.layers)}
        for section, kind in itertools.chain(graph.kinds(), graph.encoder_kinds()):
            number = numbers.get(section)
            layouts = None if number is None else formats.layouts[number]
            choice = tuple(of_layers.get(str(number), ())), None if layouts is None else layouts.layouts
            found.setdefault((kind, choice), section)
        known = formats.distinct[graph] = list(found.values())
    return known


def placeholder_of(
    leaf: Leaf, formats: WeightFormats, tokens: int, context_length: int, kv_format: KvFormat,
    sequences: int = 1, slots: int = 1,
) -> Any:  # fmt: skip
    """Return an object of the size of a leaf of a symbolic operation, without memory."""
    if isinstance(leaf, Value):
        shape = shape_of(leaf, tokens, context_length, sequences)
        if leaf.dtype != "kv":
            return Placeholder(shape, np.int32 if leaf.dtype == "i32" else np.float32)
        if kv_format == "q8":
            scales = Placeholder((*shape[:-1], group_count(shape[-1])), np.float16)
            return QuantisedCache(Placeholder(shape, np.int8), scales)  # type: ignore[arg-type]  # stands for arrays
        return Placeholder(shape, _FLOATS[kv_format])
    if isinstance(leaf, Weight):
        if len(leaf.shape) == 1:
            return Placeholder(leaf.shape)
        return Matrix.planned(formats.matrices[leaf.name], *leaf.shape)
    if isinstance(leaf, ExpertRecords):
        return getattr(formats.layouts[leaf.layer], leaf.field)
    if isinstance(leaf, Arena):
        return Placeholder((slots, formats.slot_bytes), np.uint8)
    if isinstance(leaf, NeuronPages):
        assert formats.neurons is not None
        return _neuron_placeholder(leaf, formats.neurons)
    assert isinstance(leaf, Paging)
    return None


def _neuron_placeholder(leaf: NeuronPages, table: NeuronTable) -> Any:
    sizes: dict[str, Any] = {
        "arena": Placeholder((1, table.page_bytes), np.uint8),
        "slots": Placeholder((table.pages,), np.int32),
        "layout": table.layout,
        "first": table.first[leaf.layer],
    }
    return sizes.get(leaf.field)
