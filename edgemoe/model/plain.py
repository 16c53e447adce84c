"""Specifications as plain JSON data, and back: one reader and one writer for every dataclass of a specification.

The reader treats the data as untrusted: it checks the type and the range of every value by the field's annotation.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Spec = TypeVar("Spec")

LARGEST_COUNT = 1 << 30
LARGEST_NUMBER = 1e12
SMALLEST_NUMBER = 1e-12

ZERO_ALLOWED: Mapping[str, bool] = types.MappingProxyType({"zero_allowed": True})
"""Metadata of a field whose number may be 0; all other numbers are above 0."""


def to_plain(spec: Any) -> Any:
    """Plain JSON data of a specification: every field by its name, and the kind of a body first."""
    if dataclasses.is_dataclass(spec):
        plain = {field.name: to_plain(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        return {"kind": spec.kind, **plain} if hasattr(spec, "kind") else plain
    if isinstance(spec, Mapping):
        return {name: to_plain(value) for name, value in spec.items()}
    if isinstance(spec, (list, tuple)):
        return [to_plain(value) for value in spec]
    return spec


def from_plain(kind: type[Spec], data: Any, where: str, kinds: Mapping[str, type] | None = None) -> Spec:
    """Read a dataclass from plain data. `where` names the place for messages.

    A field whose annotation is a protocol is read by the `kind` that its data names; `kinds` has the classes. Raises
    ValueError for a missing or unknown field, a wrong type, or a number out of range.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is {str(data)[:80]!r}")
    readers = _readers(kind)  # type: ignore[arg-type]  # a class is hashable
    unknown = sorted(map(str, data.keys() - readers.keys()))
    if unknown:
        raise ValueError(f"{where} has an unknown field {unknown[0][:80]!r}")
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in data:
            values[field.name] = readers[field.name](data[field.name], f"{where}.{field.name}", kinds or {})
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{field.name} is missing")
    return kind(**values)


_Reader = Callable[[Any, str, Mapping[str, type]], Any]


@functools.cache
def _readers(kind: type) -> dict[str, _Reader]:
    """A reader for each field of a dataclass, by its annotation."""
    hints = get_type_hints(kind)
    return {
        field.name: _reader(hints[field.name], bool(field.metadata.get("zero_allowed")))
        for field in dataclasses.fields(kind)
    }


def _reader(hint: Any, zero_allowed: bool) -> _Reader:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        read = _reader(inner, zero_allowed)
        return lambda value, where, kinds: None if value is None else read(value, where, kinds)
    if origin is tuple:
        item = _reader(arguments[0], zero_allowed)
        return functools.partial(_read_items, item)
    if origin is Mapping:
        return functools.partial(_read_numbers, _reader(float, True))
    if dataclasses.is_dataclass(hint):
        return lambda value, where, kinds: from_plain(hint, value, where, kinds)  # type: ignore[arg-type]
    if getattr(hint, "_is_protocol", False):
        return _read_kind
    return functools.partial(_read_value, hint, 0 if zero_allowed else SMALLEST_NUMBER)


def _read_items(item: _Reader, value: Any, where: str, kinds: Mapping[str, type]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} is {str(value)[:80]!r}")
    return tuple(item(part, f"{where}[{number}]", kinds) for number, part in enumerate(value))


def _read_numbers(number: _Reader, value: Any, where: str, kinds: Mapping[str, type]) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {str(value)[:80]!r}")
    return {str(name): number(part, f"{where}.{str(name)[:80]}", kinds) for name, part in value.items()}


def _read_kind(value: Any, where: str, kinds: Mapping[str, type]) -> Any:
    name = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"{where}.kind is {str(name)[:80]!r}")
    return from_plain(kinds[name], {key: part for key, part in value.items() if key != "kind"}, where, kinds)


def _read_value(kind: Any, least: float, value: Any, where: str, kinds: Mapping[str, type]) -> Any:
    if kind is int:
        valid = type(value) is int and least <= value <= LARGEST_COUNT
    elif kind is float:
        valid = type(value) in (int, float) and least <= value <= LARGEST_NUMBER
    elif get_origin(kind) is Literal:
        valid = isinstance(value, str) and value in get_args(kind)
    else:
        valid = type(value) is kind
    if not valid:
        raise ValueError(f"{where} is {str(value)[:80]!r}")
    return value
