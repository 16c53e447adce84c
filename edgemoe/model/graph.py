"""The symbolic program of a model: named values, and operations on them, before any array exists.

A block (`edgemoe/model/blocks`) writes its operations over named values with a `Builder` (`builder.py`). Everything
that depends on sizes is derived from the graph: the workspace, the state that a sequence keeps, the scratch of kernels,
the bytes that a token reads, the parts of the ledger, and a listing for people (`listing.py`).
`edgemoe/engine/workspace.py` binds the values to arrays, and a backend turns the bound operations into programs.

An operation in the graph is an object of the same class as a bound one (`kernels/operations.py`), with a `Value` or
`Weight` in the place of each array. So blocks read like the mathematics of their papers, and there is one definition of
each operation.

Letters in shapes: `T` rows of a run (one for each token), `C` positions of the context (and rows of a run of an
encoder, which takes a whole input), `S` sequences; of the KV cache `N` pages (fewer for layers with a window) and `P`
pages of each sequence; numbers are sizes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels import tree_operations as tr
from edgemoe.model.ngrams import NgramRows
from edgemoe.model.relative import RelativeBias
from edgemoe.model.rope import LogTemperature, RopeSpec, Temperature

Part = Literal[
    "embedding",
    "attention",
    "mixer",
    "router",
    "experts",
    "shared_expert",
    "dense_ffn",
    "combine",
    "head",
    "prefetch",
    "disk_wait",
    "synchronisation",
    "python",
    "drafting",
    "sampling",
    "text",
]
"""The parts of a token's time, in the order of reports.

attention: with its norms, projections, positions and KV cache. mixer: whatever else mixes tokens, such as a
convolution, with its norm and projections. router: with the norm before the FFN. prefetch: the guess at the next
layer's routing. drafting: guesses at the next tokens, and all that a draft model does. text: from token ids to pieces
of text.
"""

Stage = Literal["attend", "fetch", "guess", "beside", "experts", "combine"]
"""The stages of a layer, in the order in which they run. A program of a step leaves some out (`engine/stepper.py`).

attend: everything up to the routing of an MoE layer. fetch: only where not all experts are in RAM, the reads of those
that are missing begin. guess: only on demand, the guess at the next layer's routing, and the reads that it names.
beside: the FFNs without routed experts, and attention of a layer whose routing is known before it. experts: the routed
experts. combine: the sum, added to the residual stream.
"""
STAGES: tuple[Stage, ...] = ("attend", "fetch", "guess", "beside", "experts", "combine")

GUESSED_ROWS = 8
"""The most rows of a run with a guess at the next layer's routing.

Every run has room for this number of rows (`engine/memory.py`), so guesses raise no floor. More rows are worth less:
eight that choose an eighth of the experts each name two thirds of a layer already, and then its demands keep the disk
busy anyway.
"""

Dimension = Union[int, Literal["T", "C", "S", "P", "N"]]
Home = Literal["work", "kept", "state", "written_once", "rope"]
"""Where the memory of a value lies.

work: memory that values of a layer share when they are not alive at the same time. kept: memory of its own. state: what
a sequence keeps of its tokens, of every layer. written_once: what it keeps of an encoder's input, in pages that no
token of its own changes. rope: tables of positions, shared by layers with equal rules.
"""


@dataclass(frozen=True)
class Window:
    """How far back the pages of a layer with a window are needed."""

    size: int
    """How many tokens a token sees, itself included."""
    undo: int
    """How many of its latest tokens a sequence can take back, so that the pages which these see are kept too."""


@dataclass(frozen=True)
class RowTable:
    """A table on disk whose rows a value holds, those of a token one after the other."""

    rule: NgramRows
    layer: int
    width: int
    """The width of all rows of a token together."""
    parts: int
    """How many matrices of the store it is."""

    @property
    def names(self) -> list[str]:
        """The names of these matrices."""
        return [f"layers.{self.layer}.row_table.{part}" for part in range(self.parts)]


@dataclass(frozen=True, eq=False)
class Value:
    """A named array that does not exist yet."""

    name: str
    shape: tuple[Dimension, ...]
    dtype: Literal["f32", "i32", "kv"] = "f32"
    """float32, int32, or the format that was chosen for keys and values."""
    home: Home = "work"
    rope: RopeSpec | None = None
    """The rule whose cosines or sines it holds."""
    relative: tuple[RelativeBias, bool] | None = None
    """The rule of relative positions whose buckets it holds, and whether attention is causal."""
    temperature: Temperature | LogTemperature | None = None
    """The rule whose factors it holds."""
    numbers: tuple[float, ...] = ()
    """The numbers that it holds, if they are the model's own and in no tensor."""
    table: RowTable | None = None
    """The table whose rows it holds; the engine reads them before a run."""
    undo: int | None = None
    """How many of its latest tokens fixed state, which has a row for each sequence, can take back by itself.

    Above 0 the second extent is a ring that has `undo` places more than the next token needs: what a token at position
    `p` adds lies at `p % extent`. None: state in pages, in which every position has a place of its own.
    """
    window: Window | None = None
    """The window of the layers that have these pages, or this table of pages; None: they see the whole context."""

    @property
    def needed(self) -> int:
        """How much of the second extent of fixed state the next token needs; a snapshot keeps that and no more."""
        extent = self.shape[1]
        assert isinstance(extent, int)
        assert self.undo is not None
        return extent - self.undo


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the store by its stored name, `(rows, columns)` or `(elements,)`."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ExpertRecords:
    """The layouts of the records of a layer's experts, or for each expert the number of its own."""

    layer: int
    field: Literal["layouts", "layout_of"]
    """The field of `operations.RecordLayouts`."""


@dataclass(frozen=True)
class Arena:
    """The slots in memory that hold records of experts."""


@dataclass(frozen=True)
class Paging:
    """The pager and a layer's number for it; None in a model whose experts are all in RAM."""

    layer: int


@dataclass(frozen=True)
class NeuronPages:
    """One field of what an operation of a layer needs of the pages with the neurons of all layers."""

    layer: int
    field: Literal["arena", "slots", "layout", "first", "paging"]


Leaf = Union[Value, Weight, ExpertRecords, Arena, Paging, NeuronPages]
"""A stand-in for an array, or for another object of the engine, in a symbolic operation."""


@dataclass(frozen=True, eq=False)
class RoutingValues:
    """The output of one layer's router, as values; `engine/decoder.py` says what each holds."""

    experts: op.Integers  # (T, K)
    weights: op.Floats  # (T, K)
    guess: op.Integers  # (GUESSED_ROWS, K)
    guess_weights: op.Floats  # (GUESSED_ROWS, K)
    slots: op.Integers  # (E,)


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of the graph, with the part of the work and the stage of its layer that it belongs to."""

    operation: op.Operation
    part: Part
    stage: Stage


@dataclass(frozen=True, eq=False)
class Section:
    """The operations of one layer, of the beginning of a run, or of the head."""

    steps: tuple[Step, ...]
    born: Mapping[Value, int]
    """The step before which each value in shared memory is named: it may be written from there on."""
    routing: RoutingValues | None = None

    def stage(self, stage: Stage) -> list[op.Operation]:
        """The operations of one stage, in order."""
        return [step.operation for step in self.steps if step.stage == stage]

    @functools.cached_property
    def values(self) -> Mapping[Value, int]:
        """All values that its operations name, each with the last step that does."""
        return {value: number for number, step in enumerate(self.steps) for value in values_of(step.operation)}

    def lives(self) -> dict[Value, tuple[int, int]]:
        """The first and last step of each value in shared memory."""
        return {value: (born, self.values.get(value, born)) for value, born in self.born.items()}


@dataclass(frozen=True)
class BuildOptions:
    """Settings that change the operations of a model."""

    forced_routing: bool = False
    """The caller fills the routing before each step, in place of the routers."""
    forced_guesses: bool = False
    """The caller fills the guesses too; with `forced_routing` alone there are none."""
    cache_aware_routing: float = 0.0
    """The bonus of experts in RAM, as a share of each token's range of router logits; 0: off."""
    planes: bool = False
    """Whether experts have bases, which are weights of the store (`planes.py`); records are residuals then."""
    from_base: bool = False
    """Whether experts that generated tokens miss are computed from their bases."""
    drop_cold: float = 0.0
    """The share of a token's weights below which absent experts are left out; 0: off."""
    undo_tokens: int = op.PAGE_TOKENS
    """How many of its latest tokens a sequence can take back without a snapshot, where its state can: windows, rings.

    A page of tokens: then the last page that a run fills can have its snapshot after the run, which need not be cut.
    """
    ffns_apart: frozenset[str] = frozenset()
    """The dense FFNs whose gate and up are two matrices of the store, as they have two formats, by their names."""


PLAIN = BuildOptions()


def values_of(operation: Any) -> Iterator[Value]:
    """Every value that an operation names."""
    for part in leaves_of(operation):
        if isinstance(part, Value):
            yield part


def weights_of(operation: Any) -> Iterator[Weight]:
    """Every weight that an operation names."""
    return (part for part in leaves_of(operation) if isinstance(part, Weight))


def weights_read(operation: Any) -> Iterator[tuple[Weight, float]]:
    """Every weight that an operation names, with the share of it that a token reads of those with single rows."""
    if isinstance(operation, tr.TreeFfn):
        fields = ((name, getattr(operation, name)) for name in _field_names(tr.TreeFfn))
        yield from ((value, operation.share_read(name)) for name, value in fields if isinstance(value, Weight))
        return
    yield from ((weight, 1.0) for weight in weights_of(operation))


def leaves_of(operation: Any) -> Iterator[Any]:
    """The fields of an operation, those of the parts within it included."""
    for name in _field_names(type(operation)):  # type: ignore[arg-type]  # a class is hashable
        value = getattr(operation, name)
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) in _LEAVES or not dataclasses.is_dataclass(item):
                yield item
            else:
                yield from leaves_of(item)


def bound(operation: Any, array_of: Callable[[Leaf], Any]) -> Any:
    """The operation with every leaf replaced by what `array_of` returns for it."""

    def replaced(item: Any) -> Any:
        if type(item) in _LEAVES:
            return array_of(item)
        if isinstance(item, tuple):
            return tuple(map(replaced, item))
        return bound(item, array_of) if type(item) in _PARTS else item

    names = _field_names(type(operation))  # type: ignore[arg-type]  # a class is hashable
    return type(operation)(**{name: replaced(getattr(operation, name)) for name in names})


_LEAVES = frozenset({Value, Weight, ExpertRecords, Arena, Paging, NeuronPages})
_PARTS = frozenset({op.LinearPart, op.FfnBiases, op.UnlikeMatrices, so.DistanceBias, ex.ExpertBases})
"""The structs within operations that have leaves."""


@functools.cache
def _field_names(kind: type) -> Sequence[str]:
    return tuple(item.name for item in dataclasses.fields(kind))
