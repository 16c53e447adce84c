"""Tools and structures of answers, from the fields in which clients ask for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgemoe.errors import EdgemoeError
from edgemoe.server.fields import Fields, is_text
from edgemoe.server.refusals import RefusalError, refusal_of
from edgemoe.server.settings import AnswerSettings
from edgemoe.session.constraint import Structure
from edgemoe.session.tools import ToolPrompt, ToolWishes

MOST_TOOLS = 512
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def tool_list(fields: Fields, where: str = "") -> list[tuple[Fields, str]]:
    """The objects of the field `tools`, each with its place. `where`: that of the field. Raises RefusalError."""
    value = fields.any("tools")
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST_TOOLS or not all(isinstance(one, dict) for one in value):
        raise fields.wrong("tools", f"a list of at most {MOST_TOOLS} tools", value)
    places = [f"{where}tools[{number}]" for number in range(len(value))]
    return [(Fields(one, f"{place}."), place) for one, place in zip(value, places, strict=True)]


def function_of(fields: Fields, where: str, schema: str = "parameters") -> dict[str, Any]:
    """A function with its name, description and parameters. `schema`: the field of these. Raises RefusalError."""
    name = fields.text("name")
    if name is None or not NAME.fullmatch(name):
        raise fields.wrong("name", "a name of letters, digits, _ and -", name)
    found: dict[str, Any] = {"name": name}
    if description := fields.text("description"):
        found["description"] = description
    parameters = fields.object(schema)
    found["parameters"] = (
        {"type": "object", "properties": {}}
        if parameters is None
        else {key: parameters.any(key) for key in parameters.names()}
    )
    fields.ignore("strict")
    return found


def wishes_of(tools: Sequence[Mapping[str, Any]], choice: str | None, name: str | None, several: bool) -> ToolWishes:
    """The wishes of a request. Raises RefusalError for a name twice, and for the choice of what is not there."""
    names = [tool["name"] for tool in tools]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise RefusalError(f"tools: the name {twice!r} stands twice.", "Give each its own.", param="tools")
    if name is not None and name not in names:
        raise RefusalError(f"tool_choice: there is no tool {name!r:.80} among tools.", param="tool_choice")
    if choice == "required" and not tools:
        raise RefusalError("tool_choice: expected tools beside it.", param="tool_choice")
    if name is not None:
        return ToolWishes(tools, "auto", name, several)
    return ToolWishes(tools, choice or "auto", None, several)  # type: ignore[arg-type]


def call_arguments(value: Any, where: str) -> Any:
    """The arguments of an earlier call, as an object where they are one: templates want them so."""
    if isinstance(value, dict):
        return value
    if not is_text(value):
        raise Fields({}).wrong(where, "the text of a JSON object", value)
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def note_budget(fields: Fields, settings: AnswerSettings, chat: ToolPrompt) -> None:
    """Remark that a limit of thoughts has no effect, where it has none."""
    if settings.thought_tokens is not None and not chat.thought_end:
        fields.remarks.append("a limit of thoughts has no effect with this model's chat template")


def structure_of_format(fields: Fields | None, place: str) -> Structure | None:
    """The structure that a field such as `response_format` asks for. `place`: its name. Raises RefusalError."""
    if fields is None:
        return None
    kind = fields.text("type")
    if kind is None or kind == "text":
        return None
    nested = fields.object("json_schema") if "json_schema" in fields else fields
    assert nested is not None
    schema = nested.object("schema")
    if kind not in ("json_schema", "json_object"):
        raise fields.wrong("type", "text, json_object or json_schema", kind)
    if schema is None and kind == "json_schema":
        raise nested.wrong("schema", "a JSON schema", None)
    for one in (fields, nested):
        one.ignore("name", "strict", "description")
    wanted = {"type": "object"} if schema is None else {key: schema.any(key) for key in schema.names()}
    return _made(lambda: Structure.of_schema(wanted, place))


def own_structure(fields: Fields) -> Structure | None:
    """The structure that llama-server's fields ask for, or a pattern: one of them. Raises RefusalError."""
    schema, grammar, pattern = fields.object("json_schema"), fields.text("grammar"), fields.text("regex")
    fields.ignore("grammar_lazy", "grammar_triggers", "preserved_tokens")
    given = [
        name
        for name, one in (("json_schema", schema), ("grammar", grammar or None), ("regex", pattern))
        if one is not None
    ]
    if len(given) > 1:
        raise RefusalError(f"{given[0]}: it excludes {given[1]}.", "Leave out one of them.", param=given[0])
    if schema is not None:
        wanted = {key: schema.any(key) for key in schema.names()}
        return _made(lambda: Structure.of_schema(wanted, "json_schema"))
    if grammar:
        return _made(lambda: Structure.of_grammar(grammar, "grammar"))
    return _made(lambda: Structure.of_pattern(pattern, "regex")) if pattern is not None else None


def one_structure(first: Structure | None, second: Structure | None) -> Structure | None:
    """The structure that was asked for. Raises RefusalError for two."""
    if first is not None and second is not None:
        raise RefusalError(f"{first.where}: it excludes {second.where}.", "Leave out one of them.", param=first.where)
    return first or second


def _made(make: Any) -> Structure:
    try:
        found: Structure = make()
        return found
    except EdgemoeError as error:
        raise refusal_of(error) from None
