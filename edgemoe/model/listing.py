"""Lists the operations of a layer with their shapes, one line for each, the way a paper writes a forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from edgemoe.kernels import operations as op
from edgemoe.kernels.definition import definition_of
from edgemoe.kernels.marks import Role
from edgemoe.model.build import Graph
from edgemoe.model.graph import ExpertRecords, Section, Step, Value, Weight


@dataclasses.dataclass(frozen=True)
class Line:
    """One operation: the stage and the part of the work it belongs to, and its text."""

    stage: str
    part: str
    text: str


def list_section(section: Section, records: Sequence[Weight] = ()) -> list[Line]:
    """The operations of a section, in the order in which they run; `records` are the weights in expert records."""
    return [Line(step.stage, step.part, _text(step, records)) for step in section.steps]


def list_layer(graph: Graph, number: int) -> list[Line]:
    """The operations of a layer."""
    routed = graph.spec.layers[number].routed
    tensors = {} if routed is None else routed.stacked(graph.spec.hidden_size)
    return list_section(graph.layers[number], [Weight(name, shape) for name, shape in tensors.items()])


def distinct_layers(graph: Graph) -> list[tuple[str, int]]:
    """The first of each run of layers of one kind, with the numbers of these layers (`3` or `1-47`)."""
    runs: list[list[int]] = []
    kinds = [(layer, _ffns_apart(section)) for layer, section in zip(graph.spec.layers, graph.layers, strict=True)]
    for number, kind in enumerate(kinds):
        if runs and kinds[runs[-1][-1]] == kind:
            runs[-1].append(number)
        else:
            runs.append([number])
    names = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return [(name, run[0]) for name, run in zip(names, runs, strict=True)]


def _ffns_apart(section: Section) -> list[bool]:
    """Whether gate and up are two matrices, for each gated FFN: it follows from the store, not from the layer."""
    return [step.operation.apart is not None for step in section.steps if isinstance(step.operation, op.GatedFfn)]


def _text(step: Step, records: Sequence[Weight]) -> str:
    """Write an operation as an equation."""
    named = list(_named(step.operation))
    written = [name for name, role in named if role.writes]
    call = f"{type(step.operation).__name__}({', '.join(_arguments(step.operation, records))})"
    if not written:
        return call
    sign = "+=" if any(_adds(step.operation, role) for _, role in named) else "="
    return f"{', '.join(written)} {sign} {call}"


def _adds(operation: op.Operation, role: Role) -> bool:
    return role.adds or bool(role.adds_if and getattr(operation, role.adds_if))


def _named(value: Any) -> Iterator[tuple[str, Role]]:
    """Yield the name and role of each value or weight of an operation, in the order of its definition."""
    for field in definition_of(type(value)).fields:
        member = getattr(value, field.name)
        if isinstance(member, tuple):
            for part in member:
                yield from _named(part)
        elif field.struct is not None and isinstance(member, field.struct):
            yield from _named(member)
        elif isinstance(member, (Value, Weight)):
            yield _name(member), field.role


def _arguments(operation: Any, records: Sequence[Weight]) -> Iterator[str]:
    """Yield what an operation, or a struct within it, reads, and those of its settings that are not the usual ones."""
    told = {role.adds_if for _, role in _named(operation)}
    for field in definition_of(type(operation)).fields:
        value = getattr(operation, field.name)
        if isinstance(value, tuple):
            for part in value:
                yield " + ".join(name for name, role in _named(part) if role.reads) or _numbers(part)
        elif field.struct is not None and isinstance(value, field.struct):
            yield from _arguments(value, records)
        elif isinstance(value, ExpertRecords):
            if value.field == "layouts":
                yield from map(_name, records)
        elif isinstance(value, (Value, Weight)):
            if field.role.reads and not field.role.adds:
                yield _name(value)
        elif isinstance(value, str):
            if value != field.default:
                yield value
        elif isinstance(value, (int, float)) and not (value is False or value == field.default or field.name in told):
            yield f"{field.name} {value:g}" if value is not True else field.name


def _numbers(part: Any) -> str:
    """The numbers of a struct without values."""
    return " ".join(f"{field.name} {getattr(part, field.name):g}" for field in definition_of(type(part)).fields)


def _name(leaf: Any) -> str:
    window = getattr(leaf, "window", None)
    shape = ", ".join(f"N_{window.size}" if size == "N" and window else str(size) for size in leaf.shape)
    own = leaf.name.split(".", 2)[2] if leaf.name.startswith("layers.") else leaf.name
    return f"{own} [{shape}]" if isinstance(leaf, Weight) else f"{own} ({shape})"
