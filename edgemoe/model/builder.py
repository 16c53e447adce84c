"""The builder: what a block writes its operations with, one section of the symbolic program at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, panel_count
from edgemoe.model.graph import (
    STAGES,
    Arena,
    BuildOptions,
    Dimension,
    ExpertRecords,
    NeuronPages,
    Paging,
    Part,
    RoutingValues,
    RowTable,
    Section,
    Stage,
    Step,
    Value,
    Weight,
    Window,
    values_of,
)
from edgemoe.model.planes import base_name, base_shape
from edgemoe.model.relative import RelativeBias
from edgemoe.model.rope import LogTemperature, RopeSpec, Temperature

_SCORED_ROWS = 16
"""Rows whose blocks are scored together: enough to keep all threads busy."""


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
    norms: Literal["rms", "layer"]
    """The kind of the norms of the stream."""
    norm_bias: bool
    """Whether they have biases."""
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
    letter: Literal["T", "C"] = "T"
    """The letter of a run's rows: `C` in an encoder, whose run takes a whole input."""
    ending: Builder | None = None
    """Collects what runs once for each input, at the encoder's end; None without an encoder, and within it."""
    only_stage: Stage | None = None
    """The stage of all work, whatever blocks say; None: they put theirs into stages, as a layer's last and late do."""
    routing: RoutingValues | None = None
    steps: list[Step] = field(default_factory=list)
    _born: dict[Value, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def doing(self, part: Part, stage: Stage | None = None) -> Iterator[None]:
        """Everything added within belongs to this part of the work, and to this stage if one is given."""
        before = self.part, self.stage
        self.part = part
        if stage is not None:
            self.stage = self.only_stage or stage
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
        return cast("op.Floats", self._work(Value(name, (self.letter, *row))))

    def rows_like(self, name: str, other: op.Floats, *row: int) -> op.Floats:
        """A value of the workspace with as many rows as another, `(T or a number, *row)`."""
        return cast("op.Floats", self._work(Value(name, (cast("Dimension", other.shape[0]), *row))))

    def fixed_rows(self, name: str, rows: int, *row: int) -> op.Floats:
        """A value of the workspace for a fixed number of tokens, `(rows, *row)`."""
        return cast("op.Floats", self._work(Value(name, (rows, *row))))

    def row_numbers(self, name: str, *row: int, rows: Dimension | None = None) -> op.Integers:
        """Integers of the workspace, `(T or rows, *row)`."""
        return cast("op.Integers", self._work(Value(name, (rows or self.letter, *row), "i32")))

    def kept(self, name: str, *shape: Dimension, dtype: Literal["f32", "i32"] = "f32") -> Any:
        """A value with memory of its own, which the engine reads or writes between runs."""
        return self._shared(Value(self.prefix + name, shape, dtype, "kept"))

    def table_rows(self, name: str, table: RowTable) -> op.Floats:
        """The rows that tokens have of a table on disk, `(T, width)`."""
        value = Value(self.prefix + name, (self.letter, table.width), "f32", "kept", table=table)
        return cast("op.Floats", self._shared(value))

    def state(self, name: str, *shape: Dimension, window: int = 0) -> op.Cache:
        """A value that a sequence keeps of its tokens in this layer, in pages, in the format of keys and values.

        With a window only the last tokens' pages are kept; their table is that which `pages` gives for the window.
        """
        self._require_decoder()
        value = Value(self.prefix + name, shape, "kv", "state", window=self._window(window))
        return cast("op.Cache", self._shared(value))

    def fixed_state(self, name: str, *row: int, undo: int = 0) -> op.Floats:
        """A value that a sequence keeps in this layer whatever the number of its tokens, `(S, *row)` (`Value.undo`).

        Its operation takes it to be empty where a token at position 0 comes, whatever it holds.
        """
        self._require_decoder()
        value = Value(self.prefix + name, ("S", *row), "f32", "state", undo=undo)
        return cast("op.Floats", self._shared(value))

    @contextlib.contextmanager
    def once(self) -> Iterator[Builder]:
        """The builder of what runs once for each input, when the encoder's result is its `residual` `(C, D)`.

        It names weights as this one does. Raises ValueError in a model without an encoder.
        """
        if self.ending is None:
            raise ValueError("a block of a decoder that reads an encoder's result, where there is none")
        self.ending.layer, self.ending.prefix = self.layer, self.prefix
        with self.ending.doing(self.part):
            yield self.ending

    def written_once(self, name: str, *shape: Dimension) -> op.Cache:
        """A value that a sequence keeps of its input in this layer, in pages, in the format of keys and values."""
        return cast("op.Cache", self._shared(Value(self.prefix + name, shape, "kv", "written_once")))

    def input_places(self) -> tuple[op.Integers, op.Integers]:
        """The pages of what sequences keep of their inputs `(S, P)`, and the lengths of these `(S,)`."""
        return cast("op.Integers", self.shared["input_pages"]), cast("op.Integers", self.shared["input_lengths"])

    def whole_input(self, name: str, kv_heads: int, width: int) -> op.Cache:
        """Room for the keys or values of a whole input in pages, `(P, kv_heads, 64, width)`, in one encoder layer.

        Their table is `encoder_pages`. Raises ValueError outside of an encoder.
        """
        self.require_encoder("attention over a whole input")
        return cast("op.Cache", self._work(Value(name, ("P", kv_heads, op.PAGE_TOKENS, width))))

    def require_encoder(self, what: str) -> None:
        """Raise ValueError unless this is a section of an encoder, whose run takes a whole input."""
        if self.letter != "C":
            raise ValueError(f"{what} outside of an encoder")

    def encoder_pages(self) -> op.Integers:
        """The pages of a layer's keys and values in an encoder, the same for every sequence `(S, P)`."""
        return cast("op.Integers", self.shared["encoder_pages"])

    def distance_bias(self, name: str, relative: RelativeBias, heads: int, causal: bool) -> so.DistanceBias:
        """A bias of attention's scores by distance, with a table of the store."""
        value = Value("bucket_of", (2 * relative.max_distance + 1,), "i32", "kept", relative=(relative, causal))
        bucket_of = self.shared.setdefault(("bucket_of", relative, causal), value)
        return so.DistanceBias(self.vector(name, relative.buckets * heads), cast("op.Integers", bucket_of))

    def places(self) -> tuple[op.Integers, op.Integers]:
        """The position and the sequence of each row, `(T,)` each."""
        side = "input_" if self.letter == "C" else ""
        positions, sequences = self.shared[f"{side}positions"], self.shared[f"{side}sequences"]
        return cast("op.Integers", positions), cast("op.Integers", sequences)

    def choose_blocks(
        self,
        query: op.Floats,
        keys: op.Cache,
        rate: int,
        scale: float,
        most: int,
        shares: op.Floats | None = None,
        own: bool = False,
    ) -> op.Integers:
        """Add a choice of blocks of `rate` tokens (`bo.ChooseBlocks`); returns the bits of those that tokens see.

        All layers share memory for bits, and for scores: a layer's choice is of no use to the next one.
        """
        blocks = bo.blocks_of_page(rate)
        scores: Any = self._shared(Value(f"scores_of_{blocks}", (_SCORED_ROWS, "P", blocks), "f32", "kept"))
        bits: Any = self._shared(Value("chosen_blocks", (self.letter, "P"), "i32", "kept"))
        places = (*self.places(), self.pages())
        self.add(bo.ChooseBlocks(query, *places, keys, rate, scale, most, scores, bits, shares, own))
        return cast("op.Integers", bits)

    def token_ids(self) -> op.Integers:
        """The token of each row, `(T,)`."""
        return cast("op.Integers", self.shared["input_ids" if self.letter == "C" else "ids"])

    def pages(self, window: int = 0) -> op.Integers:
        """The pages of each sequence `(S, P)` in layers with this window; 0: in those that see the whole context."""
        name = f"pages_{window}" if window else "pages"
        value = Value(name, ("S", "P"), "i32", "kept", window=self._window(window))
        return cast("op.Integers", self._shared(value))

    def experts(
        self,
        source: op.Floats,
        routing: RoutingValues,
        intermediate_size: int,
        activation: op.Activation,
        output: op.Floats,
    ) -> None:
        """Run the routed experts on rows of `source`, each in the slot that holds its record."""
        layouts: Any = ExpertRecords(self.layer, "layouts")
        layout_of: Any = ExpertRecords(self.layer, "layout_of")
        arena: Any = Arena()
        chosen, slots = routing.experts, routing.slots
        bases = None
        if self.options.planes:
            gated, sizes = activation.gated, (slots.shape[0], intermediate_size, row_size(source), activation.gated)
            first, down = (
                Weight(base_name(self.layer, part, gated), base_shape(part, *sizes)) for part in ("up", "down")
            )
            bases = ex.ExpertBases(cast("Matrix", first), cast("Matrix", down))
        self.add(ex.Experts(source, chosen, slots, arena, layouts, layout_of, output, self.paging(), activation, bases))

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

    def temperatures(self, temperature: Temperature | LogTemperature) -> op.Floats:
        """The factor of every position, `(C,)`."""
        value = Value("temperature", ("C",), "f32", "rope", temperature=temperature)
        return cast("op.Floats", self.shared.setdefault(("temperature", temperature), value))

    def numbers(self, *numbers: float) -> op.Floats:
        """A vector of numbers that follow from the specification."""
        value = Value("numbers", (len(numbers),), "f32", "kept", numbers=numbers)
        return cast("op.Floats", self.shared.setdefault(("numbers", numbers), value))

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

    def stream_norm(self, source: op.Floats, name: str, output: op.Floats) -> op.Floats:
        """Normalise rows as wide as the stream, in the way of the model; returns `output`."""
        if self.norms == "rms":
            return self.rms_norm(source, name, self.hidden_size, output)
        bias = self.vector(f"{name}_bias", self.hidden_size) if self.norm_bias else None
        self.add(op.LayerNorm(source, self.vector(name, self.hidden_size), self.epsilon, output, bias))
        return output

    def linear(
        self, source: op.Floats, name: str, output: op.Floats, bias: bool = False, scale: float = 1.0
    ) -> op.Floats:
        """Multiply rows by one matrix, add a vector if it has a bias, and multiply by `scale`; returns `output`."""
        rows, columns = row_size(output), row_size(source)
        added = self.vector(f"{name}_bias", rows) if bias else None
        part = op.LinearPart(self.matrix(name, rows, columns), added, output)
        self.add(op.Linear(source, (part,), scale=scale))
        return output

    def ffn(
        self, source: op.Floats, name: str, intermediate_size: int, activation: op.Activation, bias: bool
    ) -> op.Floats:
        """Compute `down (activation(gate x, up x))`, each product plus its bias if it has one; returns its output.

        Of an activation that is not gated it is `down (activation(up x))`.
        """
        F, D, gated = intermediate_size, self.hidden_size, activation.gated
        output = self.rows(name, D)
        down = self.matrix(f"{name}.down", D, F)
        biases = None
        if bias:
            of_gate = self.vector(f"{name}.gate_bias", F) if gated else None
            biases = op.FfnBiases(of_gate, self.vector(f"{name}.up_bias", F), self.vector(f"{name}.down_bias", D))
        if not gated:
            self.add(op.PlainFfn(source, self.matrix(f"{name}.up", F, D), down, output, activation, biases))
        elif self.prefix + name in self.options.ffns_apart:
            apart = op.UnlikeMatrices(self.matrix(f"{name}.gate", F, D), self.matrix(f"{name}.up", F, D))
            self.add(op.GatedFfn(source, None, down, output, activation, biases, apart))
        else:
            gate_up = self.matrix(f"{name}.gate_up", 2 * PANEL_ROWS * panel_count(F), D)
            self.add(op.GatedFfn(source, gate_up, down, output, activation, biases))
        return output

    def deliver(self, source: op.Floats, name: str, bias: bool = False, scale: float = 1.0) -> None:
        """Multiply rows by the last matrix of a body: the product, plus its bias, times `scale` is its result."""
        added = self.vector(f"{name}_bias", self.hidden_size) if bias else None
        target, adds = self._target()
        part = op.LinearPart(self.matrix(name, self.hidden_size, row_size(source)), added, target)
        self.add(op.Linear(source, (part,), scale=scale * self.result_scale, accumulate=adds))

    def deliver_sum(
        self,
        routed: op.Floats | None,
        weights: op.Floats | None,
        shared: op.Floats | None,
        shared_gate: op.Floats | None = None,
        scale: float = 1.0,
    ) -> None:
        """Sum the outputs of experts, and of an FFN that every token uses: `scale` times the sum is a body's result."""
        target, adds = self._target()
        self.add(ex.Combine(target, scale * self.result_scale, routed, weights, shared, shared_gate, adds))

    def deliver_neurons(
        self, source: op.Floats, experts: op.Integers, weights: op.Floats, count: int, activation: op.Activation
    ) -> None:
        """Sum the layer's neurons that each row has retrieved, of `count`: the sum is a body's result."""
        target, adds = self._target()
        arena, slots, layout, first, paging = (
            cast("Any", NeuronPages(self.layer, what)) for what in ("arena", "slots", "layout", "first", "paging")
        )
        scale = self.result_scale
        self.add(
            no.Neurons(
                *(source, experts, weights, arena, slots, layout, first, count, activation, target, scale, adds),
                paged=paging,
            )
        )

    def section(self) -> Section:
        """All that was added, stage after stage: parallel blocks take turns at each of them."""
        steps, born = tuple(sorted(self.steps, key=lambda step: STAGES.index(step.stage))), self._born
        if steps != tuple(self.steps):  # a value is born at its first use, which may have moved
            uses = ((value, number) for number, step in enumerate(steps) for value in values_of(step.operation))
            first_uses = dict(reversed(list(uses)))
            born = {value: first_uses.get(value, 0) for value in self._born}
        return Section(steps, born, self.routing)

    def _require_decoder(self) -> None:
        if self.letter == "C":
            raise ValueError("a block in an encoder that keeps state of a sequence's tokens")

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
