"""The symbolic program of a model: named values, and operations on them, before any array exists.

A block (`edgemoe/model/blocks`) writes its operations over named values with a `Builder`. Everything that depends on
sizes is derived from the graph: the workspace, the state that a sequence keeps, the scratch of kernels, the bytes that
a token reads, the parts of the ledger, and a listing for people (`listing.py`). `edgemoe/engine/workspace.py`
binds the values to arrays, and a backend turns the bound operations into programs.

An operation in the graph is an object of the same class as a bound one (`kernels/operations.py`), with a `Value` or
`Weight` in the place of each array. So blocks read like the mathematics of their papers, and there is one definition of
each operation.

Letters in shapes: `T` rows of a run (one for each token), `C` positions of the context, `S` sequences; of the KV cache
`N` pages (fewer for layers with a window) and `P` pages of each sequence; numbers are sizes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, cast

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, panel_count
from edgemoe.model.rope import RopeSpec

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
    "sampling",
    "text",
]
"""The parts of a token's time, in the order of reports.

attention: with its norms, projections, positions and KV cache. mixer: whatever else mixes tokens, such as a
convolution, with its norm and projections. router: with the norm before the FFN. prefetch: the guess at the next
layer's routing. text: from token ids to pieces of text.
"""

Stage = Literal["attend", "fetch", "guess", "beside", "experts", "combine"]
"""The stages of a layer, in the order in which they run. A program of a step leaves some out (`engine/stepper.py`).

attend: everything up to the routing of an MoE layer. fetch: only where not all experts are in RAM, the reads of those
that are missing begin. guess: only on demand, the guess at the next layer's routing, and the reads that it names.
beside: the FFNs without routed experts. experts: the routed experts. combine: the sum, added to the residual stream.
"""
STAGES: tuple[Stage, ...] = ("attend", "fetch", "guess", "beside", "experts", "combine")

GUESSED_ROWS = 8
"""The most rows of a run with a guess at the next layer's routing.

Every run has room for this number of rows (`engine/memory.py`), so guesses raise no floor. More rows are worth less:
eight that choose an eighth of the experts each name two thirds of a layer already, and then its demands keep the disk
busy anyway.
"""

Dimension = Union[int, Literal["T", "C", "S", "P", "N"]]
Home = Literal["work", "kept", "state", "rope"]
"""Where the memory of a value lies.

work: memory that values of a layer share when they are not alive at the same time. kept: memory of its own. state: what
a sequence keeps of its tokens, of every layer. rope: tables of rotary positions, shared by layers with equal rules.
"""


@dataclass(frozen=True)
class Window:
    """How far back the pages of a layer with a window are needed."""

    size: int
    """How many tokens a token sees, itself included."""
    undo: int
    """How many of its latest tokens a sequence can take back, so that the pages which these see are kept too."""


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


Leaf = Union[Value, Weight, ExpertRecords, Arena, Paging]
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
    drop_cold: float = 0.0
    """The share of a token's weights below which absent experts are left out; 0: off."""
    undo_tokens: int = op.PAGE_TOKENS
    """How many of its latest tokens a sequence can take back without a snapshot, where its state can: windows, rings.

    A page of tokens: then the last page that a run fills can have its snapshot after the run, which need not be cut.
    """


PLAIN = BuildOptions()


@dataclass(eq=False)
class Builder:
    """Collects the operations of one section; blocks call its methods in the order of the computation.

    The methods that name values return them typed as the arrays that they stand for.
    """

    layer: int
    hidden_size: int
    epsilon: float
    residual: op.Floats
    """The residual stream `(T, D)`."""
    options: BuildOptions
    shared: dict[Hashable, Value]
    """The values that outlive a section, by what tells them apart."""
    prefix: str = ""
    """Precedes the names of weights."""
    part: Part = "attention"
    stage: Stage = "attend"
    guess_next: Callable[[Builder], None] | None = None
    """Adds the guess at the next layer's routing; None where that layer has none."""
    result: op.Floats | None = None
    """Receives the result of a body `(T, D)`; None where the body adds it to the stream."""
    result_scale: float = 1.0
    """Factor of what is added to the stream."""
    staged: bool = True
    """Whether blocks may put their work into stages after `attend`: only the last of a layer do."""
    routing: RoutingValues | None = None
    steps: list[Step] = field(default_factory=list)
    _born: dict[Value, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def doing(self, part: Part, stage: Stage | None = None) -> Iterator[None]:
        """Everything added within belongs to this part of the work, and to this stage if one is given."""
        before = self.part, self.stage
        self.part = part
        if stage is not None:
            self.stage = stage if self.staged else "attend"
        yield
        self.part, self.stage = before

    @contextlib.contextmanager
    def at(self, layer: int, prefix: str = "") -> Iterator[None]:
        """Everything named within belongs to this layer; `prefix` precedes the names of its weights in the layer."""
        before = self.layer, self.prefix
        self.layer, self.prefix = layer, f"layers.{layer}.{prefix}"
        yield
        self.layer, self.prefix = before

    def add(self, operation: op.Operation) -> None:
        """Append an operation."""
        self.steps.append(Step(operation, self.part, self.stage))

    def guess_next_routing(self) -> None:
        """Add the guess at the next layer's routing, at the place where this layer's routing is known."""
        if self.guess_next is not None:
            self.guess_next(self)

    def rows(self, name: str, *row: int) -> op.Floats:
        """A value of the workspace, `(T, *row)`, from this place in the section to its last use."""
        return cast("op.Floats", self._work(Value(name, ("T", *row))))

    def fixed_rows(self, name: str, rows: int, *row: int) -> op.Floats:
        """A value of the workspace for a fixed number of tokens, `(rows, *row)`."""
        return cast("op.Floats", self._work(Value(name, (rows, *row))))

    def row_numbers(self, name: str, *row: int, rows: Dimension = "T") -> op.Integers:
        """Integers of the workspace, `(rows, *row)`."""
        return cast("op.Integers", self._work(Value(name, (rows, *row), "i32")))

    def kept(self, name: str, *shape: Dimension, dtype: Literal["f32", "i32"] = "f32") -> Any:
        """A value with memory of its own, which the engine reads or writes between runs."""
        return self._shared(Value(self.prefix + name, shape, dtype, "kept"))

    def state(self, name: str, *shape: Dimension, window: int = 0) -> op.Cache:
        """A value that a sequence keeps of its tokens in this layer, in pages, in the format of keys and values.

        With a window only the last tokens' pages are kept; their table is that which `pages` gives for the window.
        """
        value = Value(self.prefix + name, shape, "kv", "state", window=self._window(window))
        return cast("op.Cache", self._shared(value))

    def fixed_state(self, name: str, *row: int, undo: int = 0) -> op.Floats:
        """A value that a sequence keeps in this layer whatever the number of its tokens, `(S, *row)` (`Value.undo`).

        Its operation takes it to be empty where a token at position 0 comes, whatever it holds.
        """
        value = Value(self.prefix + name, ("S", *row), "f32", "state", undo=undo)
        return cast("op.Floats", self._shared(value))

    def places(self) -> tuple[op.Integers, op.Integers]:
        """The position and the sequence of each row, `(T,)` each."""
        return cast("op.Integers", self.shared["positions"]), cast("op.Integers", self.shared["sequences"])

    def pages(self, window: int = 0) -> op.Integers:
        """The pages of each sequence `(S, P)` in layers with this window; 0: in those that see the whole context."""
        name = f"pages_{window}" if window else "pages"
        value = Value(name, ("S", "P"), "i32", "kept", window=self._window(window))
        return cast("op.Integers", self._shared(value))

    def experts(self, source: op.Floats, routing: RoutingValues, activation: op.Activation, output: op.Floats) -> None:
        """Run the routed experts on rows of `source`, each in the slot that holds its record."""
        layouts: Any = ExpertRecords(self.layer, "layouts")
        layout_of: Any = ExpertRecords(self.layer, "layout_of")
        arena: Any = Arena()
        chosen, slots = routing.experts, routing.slots
        self.add(ex.Experts(source, chosen, slots, arena, layouts, layout_of, output, self.paging(), activation))

    def paging(self) -> Any:
        """The pager, for operations that ask it for experts of this layer."""
        return Paging(self.layer)

    def rope_tables(self, rope: RopeSpec) -> tuple[op.Floats, op.Floats]:
        """The cosines and sines of every position, `(C, rotated / 2)` each."""
        shape: tuple[Dimension, ...] = ("C", rope.rotated // 2)
        cosine, sine = (
            self.shared.setdefault((name, rope), Value(name, shape, "f32", "rope", rope)) for name in ("cosine", "sine")
        )
        return cast("op.Floats", cosine), cast("op.Floats", sine)

    def vector(self, name: str, size: int) -> op.Floats:
        """A vector of the store."""
        return cast("op.Floats", Weight(self.prefix + name, (size,)))

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """A matrix of the store."""
        return cast("Matrix", Weight(self.prefix + name, (rows, columns)))

    def rms_norm(self, source: op.Floats, name: str, size: int, output: op.Floats, heads: int = 1) -> op.Floats:
        """Normalise rows, or each of `heads` runs of `size` within a row; returns `output`."""
        self.add(op.RmsNorm(source, self.vector(name, size), self.epsilon, output, heads))
        return output

    def linear(self, source: op.Floats, name: str, output: op.Floats, bias: bool = False) -> op.Floats:
        """Multiply rows by one matrix, and add a vector if it has a bias; returns `output`."""
        rows, columns = row_size(output), row_size(source)
        added = self.vector(f"{name}_bias", rows) if bias else None
        self.add(op.Linear(source, (op.LinearPart(self.matrix(name, rows, columns), added, output),)))
        return output

    def gated_ffn(
        self, source: op.Floats, name: str, intermediate_size: int, activation: op.Activation, bias: bool
    ) -> op.Floats:
        """Compute `down (activation(gate x, up x))`, each product plus its bias if it has one; returns its output."""
        F, D = intermediate_size, self.hidden_size
        output = self.rows(name, D)
        gate_up = self.matrix(f"{name}.gate_up", 2 * PANEL_ROWS * panel_count(F), D)
        down = self.matrix(f"{name}.down", D, F)
        biases = None
        if bias:
            vectors = (self.vector(f"{name}.{part}_bias", size) for part, size in (("gate", F), ("up", F), ("down", D)))
            biases = op.FfnBiases(*vectors)
        self.add(op.GatedFfn(source, gate_up, down, output, activation, biases))
        return output

    def deliver(self, source: op.Floats, name: str, bias: bool = False) -> None:
        """Multiply rows by the last matrix of a body: the product is its result."""
        added = self.vector(f"{name}_bias", self.hidden_size) if bias else None
        target, adds = self._target()
        part = op.LinearPart(self.matrix(name, self.hidden_size, row_size(source)), added, target)
        self.add(op.Linear(source, (part,), scale=self.result_scale, accumulate=adds))

    def deliver_sum(
        self,
        routed: op.Floats | None,
        weights: op.Floats | None,
        shared: op.Floats | None,
        shared_gate: op.Floats | None = None,
    ) -> None:
        """Sum the outputs of experts, and of an FFN that every token uses: the sum is the result of a body."""
        target, adds = self._target()
        self.add(ex.Combine(target, self.result_scale, routed, weights, shared, shared_gate, adds))

    def section(self) -> Section:
        """All that was added, stage after stage: parallel blocks take turns at each of them."""
        steps, born = tuple(sorted(self.steps, key=lambda step: STAGES.index(step.stage))), self._born
        if steps != tuple(self.steps):  # a value is born at its first use, which may have moved
            uses = ((value, number) for number, step in enumerate(steps) for value in values_of(step.operation))
            first_uses = dict(reversed(list(uses)))
            born = {value: first_uses.get(value, 0) for value in self._born}
        return Section(steps, born, self.routing)

    def _target(self) -> tuple[op.Floats, bool]:
        """The value that receives the result of a body, and whether the result is added to it."""
        return (self.residual, True) if self.result is None else (self.result, False)

    def _window(self, size: int) -> Window | None:
        return Window(size, self.options.undo_tokens) if size else None

    def _shared(self, value: Value) -> Value:
        return self.shared.setdefault(value.name, value)

    def _work(self, value: Value) -> Value:
        self._born[value] = len(self.steps)
        return value


def row_size(value: Any) -> int:
    """The number of elements in one row of a value."""
    size = 1
    for dimension in value.shape[1:]:
        size *= dimension
    return size


def values_of(operation: Any) -> Iterator[Value]:
    """Every value that an operation names."""
    for part in leaves_of(operation):
        if isinstance(part, Value):
            yield part


def weights_of(operation: Any) -> Iterator[Weight]:
    """Every weight that an operation names."""
    return (part for part in leaves_of(operation) if isinstance(part, Weight))


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


_LEAVES = frozenset({Value, Weight, ExpertRecords, Arena, Paging})
_PARTS = frozenset({op.LinearPart, op.FfnBiases})
"""The structs within operations that have leaves."""


@functools.cache
def _field_names(kind: type) -> Sequence[str]:
    return tuple(item.name for item in dataclasses.fields(kind))
