"""Operations as launches of a device's kernels. An operation that is not here runs on the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.device.table import has_products, product_kernel
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Matrix, group_count

LANES = 8
FUNCTIONS = ("silu", "clamped_silu", "gelu_tanh", "relu", "relu2", "capped_silu")
"""The activations in the order of their numbers in ffn.c."""
GROUP_BYTES = 16
"""Size of a `group` in dialect.h."""


class Memory(Protocol):
    """Where the arrays of an operation lie on the device."""

    def place(self, array: Any) -> Place:
        """Return the place of an array of the operation, or of the data of a matrix."""

    def scratch(self, bytes_per_token: int) -> Place:
        """Return memory for the operation alone, with whatever in it."""


def can_run(operation: op.Operation) -> bool:
    """Whether the device has a text for an operation, for its activation, and for the formats of all its matrices."""
    if type(operation) not in LOWERINGS:
        return False
    activation = getattr(operation, "activation", None)
    return (activation is None or activation.function in FUNCTIONS) and all(
        has_products(member.format) for _, member in op.members_of(operation) if isinstance(member, Matrix)
    )


def lower(operation: op.Operation, memory: Memory) -> list[Launch]:
    """Return the launches of an operation that the device can run, in order."""
    launches: list[Launch] = LOWERINGS[type(operation)](operation, memory)
    return launches


def _optional(array: Any, memory: Memory) -> Place | None:
    return None if array is None else memory.place(array)


def _quantised(input_place: Place, columns: int, memory: Memory) -> tuple[Launch, Place, Place]:
    """Return the launch that quantises rows, and the places of their values and groups."""
    groups = group_count(columns)
    values, group_places = memory.scratch(groups * GROUP_COLUMNS), memory.scratch(groups * GROUP_BYTES)
    return Launch("quantise", (input_place, values, group_places, columns, groups), groups), values, group_places


def _inputs(matrices: Sequence[Matrix], given: Place, memory: Memory) -> tuple[list[Launch], tuple[Place, ...]]:
    """Return what products of some matrices take: the places of quantised values and groups, if any matrix wants them.

    A launch that quantises comes before such products.
    """
    if not any(matrix.format.quantised for matrix in matrices):
        return [], ()
    launch, values, groups = _quantised(given, matrices[0].columns, memory)
    return [launch], (values, groups)


def _product(
    matrix: Matrix, given: Place, quantised: tuple[Place, ...], bias: Any, output: Place, memory: Memory,
    scale: float = 1.0, accumulate: bool = False,
) -> Launch:  # fmt: skip
    fmt, columns = matrix.format, matrix.columns
    inputs = quantised if fmt.quantised else (given,)
    depth = group_count(columns) if fmt.quantised else columns
    numbers = (matrix.rows, depth, fmt.panel_bytes(columns), int(bias is not None), scale, int(accumulate))
    places = (memory.place(matrix.data), *inputs, _optional(bias, memory), output)
    return Launch(product_kernel(fmt), (*places, *numbers), matrix.rows)


def _linear(o: op.Linear, memory: Memory) -> list[Launch]:
    given, scale = memory.place(o.input), _float32(o.scale)
    launches, quantised = _inputs([part.matrix for part in o.parts], given, memory)
    for part in o.parts:
        output = memory.place(part.output)
        launches.append(_product(part.matrix, given, quantised, part.bias, output, memory, scale, o.accumulate))
    return launches


def _gated_ffn(o: op.GatedFfn, memory: Memory) -> list[Launch]:
    given = memory.place(o.input)
    if o.apart is not None:
        matrices = [o.apart.gate, o.apart.up]
    else:
        assert o.gate_up is not None
        matrices = [o.gate_up]
    launches, quantised = _inputs(matrices, given, memory)
    products = []
    for matrix in matrices:
        products.append(memory.scratch(4 * matrix.rows))
        launches.append(_product(matrix, given, quantised, None, products[-1], memory))
    gate, up = products[0], products[-1]
    step = PANEL_ROWS
    if o.apart is None:  # a panel of gate, then one of up
        up, step = Place(gate.block, gate.at + 4 * PANEL_ROWS), 2 * PANEL_ROWS
    return launches + _down(o, gate, up, matrices[0].rows, step, memory)


def _plain_ffn(o: op.PlainFfn, memory: Memory) -> list[Launch]:
    given = memory.place(o.input)
    launches, quantised = _inputs([o.up], given, memory)
    up = memory.scratch(4 * o.up.rows)
    launches.append(_product(o.up, given, quantised, None, up, memory))
    return launches + _down(o, None, up, o.up.rows, PANEL_ROWS, memory)


def _down(
    o: op.GatedFfn | op.PlainFfn, gate: Place | None, up: Place, stride: int, step: int, memory: Memory
) -> list[Launch]:
    """Return what comes after the first products of an FFN, which lie `stride` numbers from row to row."""
    activation, biases, columns = o.activation, o.biases, o.down.columns
    hidden = memory.scratch(4 * columns)
    given = (None, None) if biases is None else (_optional(biases.gate, memory), memory.place(biases.up))
    limits = (_float32(activation.alpha), _float32(activation.limit or 0), _float32(activation.offset or 0))
    flags = (int(gate is not None), int(biases is not None), FUNCTIONS.index(activation.function))
    activate = Launch("activate", (gate, up, *given, hidden, columns, stride, step, *flags, *limits), columns)
    launches, quantised = _inputs([o.down], hidden, memory)
    bias = None if biases is None else biases.down
    product = _product(o.down, hidden, quantised, bias, memory.place(o.output), memory)
    return [activate, *launches, product]


def _rms_norm(o: op.RmsNorm, memory: Memory) -> list[Launch]:
    row = o.input.shape[1]
    width = row // o.heads
    given, lanes = memory.place(o.input), memory.scratch(4 * LANES * o.heads)
    flags = (int(o.weight is not None), o.own_weights, int(o.gate is not None), _float32(o.epsilon))
    places = (given, lanes, _optional(o.weight, memory), _optional(o.gate, memory), memory.place(o.output))
    return [
        Launch("square_lanes", (given, lanes, width), LANES * o.heads),
        Launch("rms_norm", (*places, width, *flags), row),
    ]


def _layer_norm(o: op.LayerNorm, memory: Memory) -> list[Launch]:
    width = o.input.shape[1]
    given, sums, squares = memory.place(o.input), memory.scratch(4 * LANES), memory.scratch(4 * LANES)
    places = (given, sums, squares, memory.place(o.weight), _optional(o.bias, memory), memory.place(o.output))
    return [
        Launch("sum_lanes", (given, sums, width), LANES),
        Launch("centred_lanes", (given, sums, squares, width), LANES),
        Launch("layer_norm", (*places, width, int(o.bias is not None), _float32(o.epsilon)), width),
    ]


def _clip(o: op.Clip, memory: Memory) -> list[Launch]:
    return [Launch("clip", (memory.place(o.values), _float32(o.limit)), o.values.shape[1])]


def _mix(o: op.Mix, memory: Memory) -> list[Launch]:
    width, own = o.base.shape[1], (o.keep, o.share, o.shift, o.factor)
    places = (memory.place(o.base), memory.place(o.result), *(_optional(one, memory) for one in own))
    flags = (int(one is not None) for one in own)
    return [Launch("join_stream", (*places, memory.place(o.output), width, _float32(o.scale), *flags), width)]


def _combine(o: ex.Combine, memory: Memory) -> list[Launch]:
    width, top_k = o.output.shape[1], 0 if o.routed is None else o.routed.shape[1]
    places = [_optional(one, memory) for one in (o.routed, o.weights, o.shared, o.shared_gate)]
    flags = (int(one is not None) for one in (o.weights, o.shared, o.shared_gate))
    numbers = (width, top_k, *flags, _float32(o.scale), int(o.accumulate))
    return [Launch("combine", (*places, memory.place(o.output), *numbers), width)]


def _float32(number: float) -> float:
    return float(np.float32(number))


LOWERINGS: dict[type[op.Operation], Callable[[Any, Memory], list[Launch]]] = {
    op.Linear: _linear,
    op.GatedFfn: _gated_ffn,
    op.PlainFfn: _plain_ffn,
    op.RmsNorm: _rms_norm,
    op.LayerNorm: _layer_norm,
    op.Clip: _clip,
    op.Mix: _mix,
    ex.Combine: _combine,
}
