"""Operations as launches of a device's kernels. An operation that is not here runs on the processor."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as st
from edgemoe.kernels import stream_operations as streams
from edgemoe.kernels.device import expert_launches, page_launches, state_launches
from edgemoe.kernels.device.places import FUNCTIONS, LANES, Memory, float32, optional, quantised
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.device.table import has_products, product_kernel
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, group_count

_GATINGS = typing.get_args(op.GateFunction)
"""In the order of their numbers in rows.c."""


def can_run(operation: op.Operation) -> bool:
    """Whether the device has a text for an operation, for its activation, and for the formats of all its matrices."""
    if type(operation) not in LOWERINGS:
        return False
    if isinstance(operation, (ex.Fetch, ex.Prefetch)) and operation.paged is not None:
        return False
    if isinstance(operation, ex.Route) and operation.slots is not None:
        return False
    if isinstance(operation, ex.Experts) and not expert_launches.can_run_experts(operation):
        return False
    activation = getattr(operation, "activation", None)
    return (activation is None or activation.function in FUNCTIONS) and all(
        has_products(member.format) for _, member in op.members_of(operation) if isinstance(member, Matrix)
    )


def lower(operation: op.Operation, memory: Memory) -> list[Launch]:
    """Return the launches of an operation that the device can run, in order."""
    launches: list[Launch] = LOWERINGS[type(operation)](operation, memory)
    return launches


def _inputs(matrices: Sequence[Matrix], given: Place, memory: Memory) -> tuple[list[Launch], tuple[Place, ...]]:
    """Return what products of some matrices take: the places of quantised values and groups, if any matrix wants them.

    A launch that quantises comes before such products.
    """
    if not any(matrix.format.quantised for matrix in matrices):
        return [], ()
    launch, places = quantised(given, matrices[0].columns, 1, memory)
    return [launch], places


def _product(
    matrix: Matrix, given: Place, taken: tuple[Place, ...], bias: Any, output: Place, memory: Memory,
    scale: float = 1.0, accumulate: bool = False, heads: int = 1, stride: int = 0,
) -> Launch:  # fmt: skip
    """Return a product, whose rows are shared out to heads, and which leaves the results of these `stride` apart."""
    fmt, columns, rows = matrix.format, matrix.columns, matrix.rows // heads
    inputs = taken if fmt.quantised else (given,)
    depth = group_count(columns) if fmt.quantised else columns
    numbers = (rows, depth, fmt.panel_bytes(columns), int(bias is not None), scale, int(accumulate))
    places = (memory.place(matrix.data), *inputs, optional(bias, memory), output)
    return Launch(product_kernel(fmt), (*places, *numbers, heads, stride or rows), matrix.rows)


def _linear(o: op.Linear, memory: Memory) -> list[Launch]:
    given, scale = memory.place(o.input), float32(o.scale)
    launches, taken = _inputs([part.matrix for part in o.parts], given, memory)
    for part in o.parts:
        output = memory.place(part.output)
        launches.append(_product(part.matrix, given, taken, part.bias, output, memory, scale, o.accumulate))
    return launches


def _gated_ffn(o: op.GatedFfn, memory: Memory) -> list[Launch]:
    given = memory.place(o.input)
    if o.apart is not None:
        matrices = [o.apart.gate, o.apart.up]
    else:
        assert o.gate_up is not None
        matrices = [o.gate_up]
    launches, taken = _inputs(matrices, given, memory)
    products = []
    for matrix in matrices:
        products.append(memory.scratch(4 * matrix.rows))
        launches.append(_product(matrix, given, taken, None, products[-1], memory))
    gate, up = products[0], products[-1]
    step = PANEL_ROWS
    if o.apart is None:  # a panel of gate, then one of up
        up, step = Place(gate.block, gate.at + 4 * PANEL_ROWS), 2 * PANEL_ROWS
    return launches + _down(o, gate, up, matrices[0].rows, step, memory)


def _plain_ffn(o: op.PlainFfn, memory: Memory) -> list[Launch]:
    given = memory.place(o.input)
    launches, taken = _inputs([o.up], given, memory)
    up = memory.scratch(4 * o.up.rows)
    launches.append(_product(o.up, given, taken, None, up, memory))
    return launches + _down(o, None, up, o.up.rows, PANEL_ROWS, memory)


def _down(
    o: op.GatedFfn | op.PlainFfn, gate: Place | None, up: Place, stride: int, step: int, memory: Memory
) -> list[Launch]:
    """Return what comes after the first products of an FFN, which lie `stride` numbers from row to row."""
    activation, biases, columns = o.activation, o.biases, o.down.columns
    hidden = memory.scratch(4 * columns)
    given = (None, None) if biases is None else (optional(biases.gate, memory), memory.place(biases.up))
    limits = (float32(activation.alpha), float32(activation.limit or 0), float32(activation.offset or 0))
    flags = (int(gate is not None), int(biases is not None), FUNCTIONS.index(activation.function))
    activate = Launch("activate", (gate, up, *given, hidden, columns, stride, step, *flags, *limits), columns)
    launches, taken = _inputs([o.down], hidden, memory)
    bias = None if biases is None else biases.down
    product = _product(o.down, hidden, taken, bias, memory.place(o.output), memory)
    return [activate, *launches, product]


def _rms_norm(o: op.RmsNorm, memory: Memory) -> list[Launch]:
    row = o.input.shape[1]
    width = row // o.heads
    given, lanes = memory.place(o.input), memory.scratch(4 * LANES * o.heads)
    flags = (int(o.weight is not None), o.own_weights, int(o.gate is not None), float32(o.epsilon))
    places = (given, lanes, optional(o.weight, memory), optional(o.gate, memory), memory.place(o.output))
    return [
        Launch("square_lanes", (given, lanes, width), LANES * o.heads),
        Launch("rms_norm", (*places, width, *flags), row),
    ]


def _layer_norm(o: op.LayerNorm, memory: Memory) -> list[Launch]:
    width = o.input.shape[1]
    given, sums, squares = memory.place(o.input), memory.scratch(4 * LANES), memory.scratch(4 * LANES)
    places = (given, sums, squares, memory.place(o.weight), optional(o.bias, memory), memory.place(o.output))
    return [
        Launch("sum_lanes", (given, sums, width), LANES),
        Launch("centred_lanes", (given, sums, squares, width), LANES),
        Launch("layer_norm", (*places, width, int(o.bias is not None), float32(o.epsilon)), width),
    ]


def _head_linear(o: op.HeadLinear, memory: Memory) -> list[Launch]:
    given, output, rows = memory.place(o.input), memory.place(o.output), o.matrix.rows // o.heads
    width, launches = o.output.shape[1] // o.heads, []
    taken: tuple[Place, ...] = ()
    if o.matrix.format.quantised:
        launch, taken = quantised(given, o.matrix.columns, o.heads, memory)
        launches.append(launch)
    launches.append(_product(o.matrix, given, taken, None, output, memory, heads=o.heads, stride=width))
    if o.passed is not None:
        numbers = (o.passed.shape[1] // o.heads, rows, width)
        launches.append(Launch("pass_channels", (memory.place(o.passed), output, *numbers), o.passed.shape[1]))
    return launches


def _gate(o: op.Gate, memory: Memory) -> list[Launch]:
    width = o.values.shape[1]
    numbers = (width // o.gate.shape[1], _GATINGS.index(o.gating))
    return [Launch("gate", (memory.place(o.gate), memory.place(o.values), *numbers), width)]


def _soft_cap(o: op.SoftCap, memory: Memory) -> list[Launch]:
    return [Launch("soft_cap", (memory.place(o.values), float32(o.limit)), o.values.shape[1])]


def _read_streams(o: streams.ReadStreams, memory: Memory) -> list[Launch]:
    width = o.output.shape[1]
    places = (memory.place(one) for one in (o.streams, o.shares, o.output))
    return [Launch("read_streams", (*places, o.streams.shape[1] // width, width), width)]


def _write_streams(o: streams.WriteStreams, memory: Memory) -> list[Launch]:
    places = (memory.place(one) for one in (o.shares, o.result, o.streams))
    numbers = (o.shares.shape[1], o.result.shape[1])
    return [Launch("write_streams", (*places, *numbers), o.streams.shape[1])]


def _gate_by_agreement(o: streams.GateByAgreement, memory: Memory) -> list[Launch]:
    width, row = o.value.shape[1], o.output.shape[1]
    count = row // width
    lanes = memory.scratch(4 * LANES * count)
    products = (memory.place(o.key), memory.place(o.query), lanes, width)
    numbers = (count, width, float32(o.least))
    return [
        Launch("product_lanes", products, LANES * count),
        Launch("gate_by_agreement", (lanes, memory.place(o.value), memory.place(o.output), *numbers), row),
    ]


def _clip(o: op.Clip, memory: Memory) -> list[Launch]:
    return [Launch("clip", (memory.place(o.values), float32(o.limit)), o.values.shape[1])]


def _mix(o: op.Mix, memory: Memory) -> list[Launch]:
    width, own = o.base.shape[1], (o.keep, o.share, o.shift, o.factor)
    places = (memory.place(o.base), memory.place(o.result), *(optional(one, memory) for one in own))
    flags = (int(one is not None) for one in own)
    return [Launch("join_stream", (*places, memory.place(o.output), width, float32(o.scale), *flags), width)]


def _combine(o: ex.Combine, memory: Memory) -> list[Launch]:
    width, top_k = o.output.shape[1], 0 if o.routed is None else o.routed.shape[1]
    places = [optional(one, memory) for one in (o.routed, o.weights, o.shared, o.shared_gate)]
    flags = (int(one is not None) for one in (o.weights, o.shared, o.shared_gate))
    numbers = (width, top_k, *flags, float32(o.scale), int(o.accumulate))
    return [Launch("combine", (*places, memory.place(o.output), *numbers), width)]


LOWERINGS: dict[type[op.Operation], Callable[[Any, Memory], list[Launch]]] = {
    op.Linear: _linear,
    op.GatedFfn: _gated_ffn,
    op.PlainFfn: _plain_ffn,
    op.RmsNorm: _rms_norm,
    op.LayerNorm: _layer_norm,
    op.Clip: _clip,
    op.Mix: _mix,
    op.HeadLinear: _head_linear,
    op.Rope: page_launches.rope,
    op.ScaleByPosition: page_launches.scale_by_position,
    op.Gate: _gate,
    op.SoftCap: _soft_cap,
    st.StoreKv: page_launches.store_kv,
    st.StoreLatent: page_launches.store_latent,
    st.Attention: page_launches.attention,
    st.ShortConv: state_launches.short_conv,
    st.DeltaRule: state_launches.delta_rule,
    st.SelectiveScan: state_launches.selective_scan,
    st.ChannelScan: state_launches.channel_scan,
    streams.ReadStreams: _read_streams,
    streams.WriteStreams: _write_streams,
    streams.GateByAgreement: _gate_by_agreement,
    ex.Route: expert_launches.route,
    ex.TableRoute: expert_launches.table_route,
    ex.Fetch: expert_launches.nothing,
    ex.Prefetch: expert_launches.nothing,
    ex.Experts: expert_launches.experts,
    ex.Combine: _combine,
}
