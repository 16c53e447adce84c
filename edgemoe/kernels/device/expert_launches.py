"""The router's choice and the routed experts as launches."""

from __future__ import annotations

import typing

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.device.places import FUNCTIONS, Memory, float32, optional, quantised
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.device.table import has_products, product_kernel
from edgemoe.kernels.formats import PANEL_ROWS, Format, group_count, panel_count

_SCORES = typing.get_args(ex.Score)
"""In the order of their numbers in route.c."""


def route(o: ex.Route, memory: Memory) -> list[Launch]:
    """Return the launch of a router's choice."""
    count, top_k = o.logits.shape[1], o.experts.shape[1]
    scratch = memory.scratch(4 * count), memory.scratch(4 * o.groups)
    given = (memory.place(o.logits), optional(o.choice_bias, memory), optional(o.expert_scales, memory))
    flags = (int(o.choose_by == "logit"), int(o.renormalise), int(given[1] is not None), int(given[2] is not None))
    numbers = (count, top_k, o.groups, o.kept_groups, o.group_best, _SCORES.index(o.score), *flags, o.passing)
    floats = (float32(o.epsilon), float32(o.scale), float32(o.least_sum), 2 * float32(o.jitter))
    places = (*given, memory.place(o.experts), memory.place(o.weights), *scratch)
    return [Launch("route", (*places, *numbers, *floats), 1)]


def table_route(o: ex.TableRoute, memory: Memory) -> list[Launch]:
    """Return the launch that looks up the experts of a token's id."""
    places = (memory.place(o.ids), memory.place(o.table), optional(o.logits, memory))
    results = memory.place(o.experts), memory.place(o.weights)
    numbers = (o.num_experts, o.experts.shape[1], int(o.logits is not None), float32(o.epsilon), float32(o.scale))
    return [Launch("table_route", (*places, *results, *numbers), 1)]


def nothing(o: ex.Fetch | ex.Prefetch, memory: Memory) -> list[Launch]:
    """Return no launch: all experts are in memory."""
    return []


def can_run_experts(o: ex.Experts) -> bool:
    """Whether the device has a text for the formats of all experts, which it can have where no pager changes them."""
    formats = [fmt for one in o.layouts for fmt in (one.gate_format, one.up_format, one.down_format)]
    return o.paged is None and o.bases is None and all(map(has_products, formats))


def experts(o: ex.Experts, memory: Memory) -> list[Launch]:
    """Return the launch of choices that pass on, and for each layout those of gate and up, activation, and down."""
    top_k, width = o.output.shape[1:]
    places = memory.place(o.input), memory.place(o.experts), memory.place(o.output)
    pairs = _Pairs(o, memory)
    launches = [Launch("pass_on", (*places, top_k, width), top_k * width), *pairs.inputs]
    for number in range(len(o.layouts)):
        launches += pairs.launches(number)
    return launches


class _Pairs:
    """Pairs of a token and one of its experts: what the launches of all layouts share."""

    def __init__(self, o: ex.Experts, memory: Memory) -> None:
        self._o = o
        self._place = memory.place
        self._top_k, columns = o.output.shape[1], o.layouts[0].intermediate_size
        self.inputs: list[Launch] = []
        """Launches that come before those of the layouts."""
        self._input: tuple[Place, ...] = ()
        if any(one.gate_format.quantised or one.up_format.quantised for one in o.layouts):
            launch, self._input = quantised(memory.place(o.input), o.input.shape[1], 1, memory)
            self.inputs.append(launch)
        size = 4 * self._top_k * PANEL_ROWS * panel_count(columns)
        self._gate, self._up, self._hidden = (memory.scratch(size * many) for many in (2, 1, 1))
        self._quantising: tuple[Launch, tuple[Place, ...]] | None = None
        if any(one.down_format.quantised for one in o.layouts):
            self._quantising = quantised(self._hidden, columns, self._top_k, memory)

    def launches(self, number: int) -> list[Launch]:
        """Return the launches of one layout."""
        o, layout = self._o, self._o.layouts[number]
        columns, width = layout.intermediate_size, layout.hidden_size
        padded = PANEL_ROWS * panel_count(columns)
        gate: Place | None = self._gate
        up, rows, step = Place(self._gate.block, self._gate.at + 4 * PANEL_ROWS), 2 * padded, 2 * PANEL_ROWS
        first = [(layout.gate_format, 0, self._gate)]
        if layout.up_offset or not layout.gated:
            gate, up = (self._gate, self._up) if layout.gated else (None, self._up)
            rows, step = columns, PANEL_ROWS
            first = [(layout.up_format, layout.up_offset, self._up)]
            if layout.gated:
                first.append((layout.gate_format, 0, self._gate))
        given = self._place(o.input)
        launches = []
        for fmt, begin, to in first:
            inputs = self._input if fmt.quantised else (given,)
            launches.append(self._product(fmt, begin, number, inputs, to, rows, width, self._top_k))
        launches.append(self._activate(number, gate, up, rows, step))
        inputs = (self._hidden,)
        if layout.down_format.quantised:
            assert self._quantising is not None
            launches.append(self._quantising[0])
            inputs = self._quantising[1]
        bias = layout.bias_offsets()["down"] if layout.biases_offset else 0
        output = self._place(o.output)
        down = (layout.down_format, layout.down_offset, number, inputs, output, width, columns, 1, bias)
        return [*launches, self._product(*down)]

    def _in_record(self, offset: int) -> Place:
        arena = self._place(self._o.arena)
        return Place(arena.block, arena.at + offset)

    def _pair(self) -> list[Place]:
        return [self._place(one) for one in (self._o.experts, self._o.slots, self._o.layout_of)]

    def _product(
        self, fmt: Format, begin: int, layout: int, inputs: tuple[Place, ...], output: Place, rows: int, columns: int,
        sharing: int, bias: int = 0,
    ) -> Launch:  # fmt: skip
        """Return the products of a matrix of each record, where so many pairs share an input."""
        biases = self._in_record(bias) if bias else None
        depth = group_count(columns) if fmt.quantised else columns
        slot_bytes = self._o.arena.shape[1]
        numbers = (rows, depth, fmt.panel_bytes(columns), slot_bytes, layout, sharing, int(bias > 0))
        places = (self._in_record(begin), *inputs, biases, *self._pair(), output)
        return Launch(product_kernel(fmt, of_experts=True), (*places, *numbers), rows * self._top_k)

    def _activate(self, number: int, gate: Place | None, up: Place, stride: int, step: int) -> Launch:
        o, layout, activation = self._o, self._o.layouts[number], self._o.activation
        columns, biased = layout.intermediate_size, bool(layout.biases_offset)
        starts = layout.bias_offsets() if biased else {}
        biases = [self._in_record(starts[name]) if name in starts else None for name in ("gate", "up")]
        numbers = (columns, stride, step, o.arena.shape[1], number, int(layout.gated), int(biased))
        function = FUNCTIONS.index(activation.function)
        limits = (float32(activation.alpha), float32(activation.limit or 0), float32(activation.offset or 0))
        places = (gate, up, *biases, *self._pair(), self._hidden)
        return Launch("expert_activate", (*places, *numbers, function, *limits), columns * self._top_k)
