"""Operations as launches of a device's kernels. An operation that is not here runs on the processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.device.table import has_products, product_kernel
from edgemoe.kernels.formats import GROUP_COLUMNS, Matrix, group_count

LANES = 8
GROUP_BYTES = 16
"""Size of a `group` in dialect.h."""


class Memory(Protocol):
    """Where the arrays of an operation lie on the device."""

    def place(self, array: Any) -> Place:
        """Return the place of an array of the operation, or of the data of a matrix."""

    def scratch(self, bytes_per_token: int) -> Place:
        """Return memory for the operation alone, with whatever in it."""


def can_run(operation: op.Operation) -> bool:
    """Whether the device has a text for an operation, and for the formats of all its matrices."""
    lowering = LOWERINGS.get(type(operation))
    return lowering is not None and all(
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


def _linear(o: op.Linear, memory: Memory) -> list[Launch]:
    columns = o.parts[0].matrix.columns
    given = memory.place(o.input)
    launches = []
    if any(part.matrix.format.quantised for part in o.parts):
        launch, values, groups = _quantised(given, columns, memory)
        launches.append(launch)
    scale = float(np.float32(o.scale))
    for part in o.parts:
        matrix, fmt = part.matrix, part.matrix.format
        inputs = (values, groups) if fmt.quantised else (given,)
        depth = group_count(columns) if fmt.quantised else columns
        numbers = (matrix.rows, depth, fmt.panel_bytes(columns), int(part.bias is not None), scale, int(o.accumulate))
        places = (memory.place(matrix.data), *inputs, _optional(part.bias, memory), memory.place(part.output))
        launches.append(Launch(product_kernel(fmt), (*places, *numbers), matrix.rows))
    return launches


def _rms_norm(o: op.RmsNorm, memory: Memory) -> list[Launch]:
    row = o.input.shape[1]
    width = row // o.heads
    given, lanes = memory.place(o.input), memory.scratch(4 * LANES * o.heads)
    flags = (int(o.weight is not None), o.own_weights, int(o.gate is not None), float(np.float32(o.epsilon)))
    places = (given, lanes, _optional(o.weight, memory), _optional(o.gate, memory), memory.place(o.output))
    return [
        Launch("square_lanes", (given, lanes, width), LANES * o.heads),
        Launch("rms_norm", (*places, width, *flags), row),
    ]


LOWERINGS: dict[type[op.Operation], Callable[[Any, Memory], list[Launch]]] = {
    op.Linear: _linear,
    op.RmsNorm: _rms_norm,
}
