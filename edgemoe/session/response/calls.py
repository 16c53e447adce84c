"""Writers of calls: the text of a call comes in as the model writes it, and goes out as a name and JSON arguments.

What a form writes as JSON goes out as it stands, so that pieces can follow each other at once. Arguments in tags become
JSON by the types of the tool's schema; texts among them go out as they come. Where a form is neither, a call goes out
whole at its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edgemoe.session.response.form import Field, tag_markers
from edgemoe.session.response.parts import CallArguments, CallBegun, CallEnded, Part
from edgemoe.session.response.scan import JsonScanner, find
from edgemoe.session.response.types import argument_types, typed
from edgemoe.session.response.values import nested_value, place, strict_json, value_of

if TYPE_CHECKING:
    import regex

Tools = Mapping[str, Mapping[str, Any]]
"""The functions that were offered, by their names, each with its `parameters`."""

ARGUMENTS = ("arguments", "parameters")
"""Keys of the arguments of a call that is an object; models of some families write the one for the other."""

to_json: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Writer(Protocol):
    """Writes the calls of one field's text."""

    @property
    def in_string(self) -> bool:
        """Whether the text so far ends within a string or a tag, in which a closing marker is text."""

    @property
    def failed(self) -> bool:
        """Whether the text so far is no call, whatever follows."""

    def push(self, text: str) -> list[Part]:
        """The parts that have become certain."""

    def finish(self) -> list[Part]:
        """The rest of the parts. Raises ValueError where the text is no call."""


def writer_of(field: Field, captures: Mapping[str, str], tools: Tools) -> Writer:
    """The writer for a field that has been opened, whose opening marker had these named groups."""
    function = _function(field.transform)
    if field.each or function is None:
        return WholeWriter(field, captures, tools)
    name, arguments = function
    plain = field.content == "json" and not (field.arguments.get("unquoted_keys") or "string_delims" in field.arguments)
    if len(name) == 1 and name[0] in captures and arguments == ("content",):
        if plain:
            return JsonWriter(captures[name[0]].strip())
        if field.content == "xml-inline":
            return TaggedWriter(captures[name[0]].strip(), field.arguments, tools)
    if plain and len(name) == len(arguments) == 2 and name[0] == arguments[0] == "content":
        return NestedWriter(name[1], (arguments[1],) if field.transform.get("function") != "{content}" else ARGUMENTS)
    return WholeWriter(field, captures, tools)


def _function(transform: Any) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The places of the name and the arguments in a transform; None where they do not stand alone."""
    function = transform.get("function", transform) if isinstance(transform, Mapping) else None
    whole = place(function)
    if whole is not None:
        return (*whole, "name"), (*whole, "arguments")
    if not isinstance(function, Mapping):
        return None
    name, arguments = place(function.get("name")), place(function.get("arguments"))
    return None if name is None or arguments is None else (name, arguments)


class WholeWriter:
    """Writes calls at their end."""

    failed = False

    def __init__(self, field: Field, captures: Mapping[str, str], tools: Tools) -> None:
        self._field = field
        self._captures = captures
        self._tools = tools
        self._text = ""

    @property
    def in_string(self) -> bool:
        delimiters = self._field.arguments.get("string_delims", [])
        return any(self._text.count(opening) > self._text.count(closing) for opening, closing in delimiters) or any(
            opening == closing and self._text.count(opening) % 2 for opening, closing in delimiters
        )

    def push(self, text: str) -> list[Part]:
        self._text += text
        return []

    def finish(self) -> list[Part]:
        found = value_of(self._text, self._field, self._captures)
        parts: list[Part] = []
        for one in found if isinstance(found, list) else [found]:
            function = one.get("function", one) if isinstance(one, Mapping) else {}
            name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
            arguments = strict_json(arguments) if isinstance(arguments, str) else {} if arguments is None else arguments
            if not isinstance(name, str) or not name.strip() or not isinstance(arguments, Mapping):
                raise ValueError("expected a name and arguments")
            if self._field.offered_only and name.strip() not in self._tools:
                raise ValueError(f"no tool has the name {name}")
            parts += [CallBegun(name.strip()), CallArguments(to_json(arguments)), CallEnded()]
        if not parts:
            raise ValueError("expected a call")
        return parts


class JsonWriter:
    """Writes a call whose text is the JSON of its arguments."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._scanner = JsonScanner()
        self._sent: int | None = None

    @property
    def in_string(self) -> bool:
        return self._scanner.in_string

    @property
    def failed(self) -> bool:
        return self._scanner.failed

    def push(self, text: str) -> list[Part]:
        scanner = self._scanner
        scanner.push(text)
        begin = len(scanner.text) - len(scanner.text.lstrip())
        end = scanner.read if scanner.end is None else scanner.end
        if begin >= end:
            return []
        begun: list[Part] = [CallBegun(self._name)] if self._sent is None else []
        piece = scanner.text[begin if self._sent is None else self._sent : end]
        self._sent = end
        return begun + [CallArguments(piece)] * bool(piece)

    def finish(self) -> list[Part]:
        if not self._name:
            raise ValueError("expected a name")
        if self._sent is None:
            return [CallBegun(self._name), CallArguments("{}"), CallEnded()]
        strict_json(self._scanner.text)
        return [CallEnded()]


class NestedWriter:
    """Writes a call whose text is a JSON object with the name and the arguments among its values."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self._key = name
        self._keys = arguments
        self._scanner = JsonScanner()
        self._name: str | None = None
        self._sent: int | None = None
        self._nameless = False

    @property
    def in_string(self) -> bool:
        return self._scanner.in_string

    @property
    def failed(self) -> bool:
        return self._nameless or self._scanner.failed

    def push(self, text: str) -> list[Part]:
        scanner = self._scanner
        scanner.push(text)
        parts: list[Part] = []
        begin, end = scanner.values.get(self._key, (0, None))
        if self._name is None and end is not None and not self._nameless:
            self._name = _name(scanner.text[begin:end])
            self._nameless = self._name is None
            if self._name is not None:
                parts.append(CallBegun(self._name))
        found = (scanner.values[key] for key in self._keys if key in scanner.values)
        begin, end = next(found, (len(scanner.text), None))
        if self._name is None or begin == len(scanner.text) or scanner.text[begin] != "{":
            return parts
        end = scanner.read if end is None else end
        piece = scanner.text[begin if self._sent is None else self._sent : end]
        self._sent = end
        return parts + [CallArguments(piece)] * bool(piece)

    def finish(self) -> list[Part]:
        whole = strict_json(self._scanner.text)
        arguments = next((whole[key] for key in self._keys if key in whole), None)
        if self._name is None:
            raise ValueError("expected a name")
        if self._sent is not None:
            return [CallEnded()]
        arguments = strict_json(arguments) if isinstance(arguments, str) else {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            raise ValueError("expected arguments")
        return [CallArguments(to_json(arguments)), CallEnded()]


def _name(text: str) -> str | None:
    """The name that a JSON text is; None for other texts."""
    try:
        found = strict_json(text)
    except ValueError:
        return None
    return (found.strip() or None) if isinstance(found, str) else None


class TaggedWriter:
    """Writes a call whose arguments stand in tags, one after another."""

    def __init__(self, name: str, form: Mapping[str, Any], tools: Tools) -> None:
        if not name:
            raise ValueError("expected a name")
        self.failed = False
        self._name = name
        self._head, self._tail = tag_markers(str(form.get("tag_pattern", "")))
        self._parser = form.get("value_parser")
        self._tool = tools.get(name)
        self._buffer = ""
        self._keys: set[str] = set()
        self._tag: regex.Match[str] | None = None
        self._value = ""
        self._begun = False

    @property
    def in_string(self) -> bool:
        return self._tag is not None and find(self._tail, self._buffer, 0, True)[0] is None

    def push(self, text: str) -> list[Part]:
        self._buffer += text
        return self._begin() + self._parts(False)

    def finish(self) -> list[Part]:
        parts = self._begin() + self._parts(True)
        if self.failed:
            raise ValueError("text between the tags, or a name twice")
        if self._tag is not None:  # the closing tag is missing
            rest, self._buffer = self._buffer.removesuffix("\n"), ""
            parts += self._add(rest) + self._end_value()
        return [*parts, CallArguments("}" if self._keys else "{}"), CallEnded()]

    def _begin(self) -> list[Part]:
        begun, self._begun = self._begun, True
        return [] if begun else [CallBegun(self._name)]

    def _parts(self, ended: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            if self._tag is None:
                self._buffer = self._buffer.lstrip()
                match, place = find(self._head, self._buffer, 0, ended)
                if match is None:
                    self.failed = bool(self._buffer) and (place > 0 or ended)
                    return parts
                if match.start() or str(match["key"]).strip() in self._keys:
                    self.failed = True
                    return parts
                parts += self._begin_value(match)
                self._buffer = self._buffer[match.end() :]
            else:
                match, place = find(self._tail, self._buffer, 0, ended)
                if match is None and ended:
                    return parts
                parts += self._add(self._buffer[:place])
                self._buffer = self._buffer[place:] if match is None else self._buffer[match.end() :]
                if match is None:
                    return parts
                parts += self._end_value()

    def _begin_value(self, match: regex.Match[str]) -> list[Part]:
        key = str(match["key"]).strip()
        before = ", " if self._keys else "{"
        self._keys.add(key)
        self._tag, self._value = match, ""
        spelled = f"{before}{to_json(key)}: "
        return [CallArguments(spelled + '"' * self._streams)]

    @property
    def _types(self) -> tuple[str, ...]:
        return argument_types(self._tool, str(self._tag["key"]).strip()) if self._tag is not None else ()

    @property
    def _mark(self) -> str | None:
        """The mark of the tag itself that its value is text, where it has one."""
        groups = {} if self._tag is None else self._tag.groupdict()
        return groups.get("string") or "false" if "string" in groups else None

    @property
    def _streams(self) -> bool:
        """Whether the value is text for certain, before it has ended."""
        if self._mark is not None:
            return self._mark != "false"
        return self._types == ("string",) or (not self._types and self._parser is None)

    def _add(self, text: str) -> list[Part]:
        if not self._streams:
            self._value += text
            return []
        return [CallArguments(to_json(text)[1:-1])] if text else []

    def _end_value(self) -> list[Part]:
        if self._streams:
            end = '"'
        elif self._mark is not None:
            end = to_json(nested_value(self._value, {"name": "json", "args": {"allow_non_json": True}}))
        elif self._types:
            end = to_json(typed(self._value, self._types))
        else:
            end = to_json(nested_value(self._value, self._parser))
        self._tag = None
        return [CallArguments(end)]
