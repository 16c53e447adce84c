"""From the text of a field to its value, by the ways that a response form names."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgemoe.session.response.form import Field

DEEPEST = 100
"""Lists and objects within each other."""


def value_of(text: str, field: Field, captures: Mapping[str, str]) -> Any:
    """The value of a field's text, after its transform. Raises ValueError where the text is none."""
    value = content_value(text, field.content, field.arguments)
    if field.transform is None:
        return value
    if not field.each:
        return _transformed(field.transform, {**captures, "content": value})
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("expected a list of objects")
    return [_transformed(field.transform, {**captures, **one}) for one in value]


def content_value(text: str, kind: str, arguments: Mapping[str, Any]) -> Any:
    """The value of a text. Raises ValueError where it is none."""
    stripped = text.strip() if arguments.get("strip", True) else text
    if kind in ("int", "float"):
        return int(stripped) if kind == "int" else float(stripped)
    if kind == "bool":
        return stripped.lower() in ("true", "1")
    if kind == "json":
        return _json_value(text, arguments)
    if kind == "kv-lines":
        return _lines(text, arguments)
    if kind == "python-call-list":
        return python_calls(stripped)
    return stripped


def nested_value(text: str, parser: Mapping[str, Any] | None) -> Any:
    """The value of a text within a field, by the form's `value_parser`."""
    if parser is None:
        return text
    return content_value(text, parser.get("name", "text"), parser.get("args", {}))


def strict_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for other texts, such as NaN, or an object with a name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    def no_number(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, parse_constant=no_number, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _json_value(text: str, arguments: Mapping[str, Any]) -> Any:
    try:
        if arguments.get("unquoted_keys") or arguments.get("string_delims"):
            return _LooseJson(text, arguments.get("string_delims", [])).whole()
        return strict_json(text)
    except ValueError:
        if arguments.get("allow_non_json"):
            return text.strip()
        raise


class _LooseJson:
    """Reads JSON whose keys may stand without quotes, and whose strings may stand between other delimiters."""

    def __init__(self, text: str, delimiters: Sequence[Sequence[str]]) -> None:
        self._text = text
        self._at = 0
        self._delimiters = [(str(opening), str(closing)) for opening, closing in delimiters]

    def whole(self) -> Any:
        found = self._value(0)
        self._skip()
        if self._at < len(self._text):
            raise ValueError("text after the value")
        return found

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1

    def _take(self, expected: str) -> bool:
        self._skip()
        taken = self._text.startswith(expected, self._at)
        self._at += len(expected) * taken
        return taken

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if self._take("{"):
            found: dict[str, Any] = {}
            while not self._take("}"):
                if found and not self._take(","):
                    raise ValueError("expected a comma")
                key = self._string()
                key = self._bare(":") if key is None else key
                if not self._take(":") or key in found:
                    raise ValueError("expected a colon, and each key once")
                found[key] = self._value(depth + 1)
            return found
        if self._take("["):
            listed: list[Any] = []
            while not self._take("]"):
                if listed and not self._take(","):
                    raise ValueError("expected a comma")
                listed.append(self._value(depth + 1))
            return listed
        text = self._string()
        return strict_json(self._bare(",]}")) if text is None else text

    def _string(self) -> str | None:
        self._skip()
        for opening, closing in self._delimiters:
            if self._take(opening):
                end = self._text.find(closing, self._at)
                if end < 0:
                    raise ValueError("a string has no end")
                found, self._at = self._text[self._at : end], end + len(closing)
                return found
        if not self._text.startswith('"', self._at):
            return None
        text, length = json.JSONDecoder().raw_decode(self._text[self._at :])
        self._at += length
        return str(text)

    def _bare(self, ends: str) -> str:
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] not in ends:
            self._at += 1
        return self._text[begin : self._at].strip()


def _lines(text: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    separator = arguments.get("kv_sep", ":")
    for line in text.split(arguments.get("line_sep", "\n")):
        key, there, value = line.strip().partition(separator)
        if there:
            found[key.strip()] = nested_value(value.strip(), arguments.get("value_parser"))
    return found


def python_calls(text: str) -> list[dict[str, Any]]:
    """The calls of a list such as `[get_weather(city="Paris")]`. Raises ValueError for other texts."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.List):
            raise ValueError("expected a list of calls")
        return [_python_call(one) for one in tree.elts]
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no list of calls: {error}") from None


def _python_call(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or node.args or any(one.arg is None for one in node.keywords):
        raise ValueError("expected a call with named arguments")
    named = {str(one.arg): _python_value(one.value) for one in node.keywords}
    if len(named) < len(node.keywords):
        raise ValueError("a name stands twice")
    return {"name": ast.unparse(node.func), "arguments": named}


def _python_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _python_value(node.operand)
        if isinstance(number, (int, float)):
            return -number
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_python_value(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, map(_python_value, node.values), strict=True))
    raise ValueError("expected a literal")


def _transformed(transform: Any, scope: Mapping[str, Any]) -> Any:
    """A transform with its places (`{content.name}`) filled from a scope. Raises ValueError for an empty place."""
    if isinstance(transform, dict):
        return {key: _transformed(one, scope) for key, one in transform.items()}
    if isinstance(transform, list):
        return [_transformed(one, scope) for one in transform]
    path = place(transform)
    if path is None:
        return transform
    found: Any = scope
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            raise ValueError(f"nothing stands at {'.'.join(path)}")
        found = found[key]
    return found


def place(transform: Any) -> tuple[str, ...] | None:
    """The path of a place in a transform, such as `{content.name}`; None for anything else."""
    if not isinstance(transform, str) or not (transform.startswith("{") and transform.endswith("}")):
        return None
    path = tuple(transform[1:-1].split("."))
    return path if all(key.isidentifier() for key in path) else None
