"""Lists the operations of a layer with their shapes, one line for each, the way a paper writes a forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from edgemoe.kernels import operations as op
from edgemoe.model.build import Graph
from edgemoe.model.graph import FirstRow, Section, Step, Value, Weight


@dataclasses.dataclass(frozen=True)
class Line:
    """One operation: the stage and the part of the work it belongs to, and its text."""

    stage: str
    part: str
    text: str


def list_section(section: Section) -> list[Line]:
    """The operations of a layer, of the embedding or of the head, in the order in which they run."""
    return [Line(step.stage, step.part, _text(step)) for step in section.steps]


def distinct_layers(graph: Graph) -> list[tuple[str, Section]]:
    """One section for each run of layers of one kind, with the numbers of these layers (`3` or `1-47`)."""
    runs: list[list[int]] = []
    for number, layer in enumerate(graph.spec.layers):
        if runs and graph.spec.layers[runs[-1][-1]] == layer:
            runs[-1].append(number)
        else:
            runs.append([number])
    names = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return [(name, graph.layers[run[0]]) for name, run in zip(names, runs, strict=True)]


def _text(step: Step) -> str:
    operation = step.operation
    written, read = list(_written(operation)), list(_read(operation))
    call = f"{type(operation).__name__}({', '.join(read)})"
    if not written:
        return call
    return f"{', '.join(written)} {'+=' if _accumulates(operation) else '='} {call}"


def _accumulates(operation: op.Operation) -> bool:
    return isinstance(operation, op.Combine) or bool(getattr(operation, "accumulate", False))


def _written(operation: op.Operation) -> Iterator[str]:
    if isinstance(operation, op.Linear):
        yield from (_name(part.output) for part in operation.parts)
        return
    for name in _written_fields(operation):
        yield _name(getattr(operation, name))


def _written_fields(operation: op.Operation) -> tuple[str, ...]:
    if isinstance(operation, op.Rope):
        return ("values",)
    if isinstance(operation, op.StoreKv):
        return ("key_cache", "value_cache")
    if isinstance(operation, op.Route):
        return ("experts", "weights")
    if isinstance(operation, (op.Fetch, op.Prefetch)):
        return ()
    return ("residual",) if isinstance(operation, op.Combine) else ("output",)


def _read(operation: op.Operation) -> Iterator[str]:
    written = () if isinstance(operation, op.Rope) else _written_fields(operation)
    for field in dataclasses.fields(operation):
        value = getattr(operation, field.name)
        if field.name in written or value is None or value is False or field.name == "accumulate":
            continue
        if isinstance(value, tuple):
            for part in value:
                yield _name(part.matrix) if part.bias is None else f"{_name(part.matrix)} + {_name(part.bias)}"
        elif isinstance(value, (Value, FirstRow, Weight)):
            yield _name(value)
        elif isinstance(value, (int, float)) and value != field.default:
            yield f"{field.name} {value:g}" if value is not True else field.name


def _name(leaf: Any) -> str:
    if isinstance(leaf, FirstRow):
        return f"first row of {_name(leaf.value)}"
    shape = ", ".join(map(str, leaf.shape))
    own = leaf.name.split(".", 2)[2] if leaf.name.startswith("layers.") else leaf.name
    return f"{own} [{shape}]" if isinstance(leaf, Weight) else f"{own} ({shape})"
