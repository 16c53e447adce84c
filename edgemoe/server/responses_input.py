"""The input of a response: items of several types, as messages; and its tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgemoe.server.fields import Fields
from edgemoe.server.messages import content_of
from edgemoe.server.refusals import RefusalError
from edgemoe.server.tool_fields import function_of, tool_list, wishes_of
from edgemoe.session.tools import ToolWishes

HOSTED = (
    "web_search", "web_search_preview", "file_search", "image_generation", "code_interpreter", "local_shell", "shell",
    "computer_use_preview", "mcp", "apply_patch", "tool_search",
)  # fmt: skip
"""Tools that a server would have to have itself."""
TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""The parameters of a tool that takes a text."""


def items_as_messages(value: Any) -> Any:
    """The input as messages in the form of chat completions: calls and thoughts join the assistant's."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    found: list[Any] = []
    for number, item in enumerate(value):
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind == "message":
            thought = found.pop() if _is_open(found) and item.get("role") == "assistant" else {}
            found.append({**thought, **item} if isinstance(item, dict) else item)
        elif kind == "reasoning":
            found.append({"role": "assistant", "content": "", "reasoning_content": _thought(item)})
        elif kind in ("function_call", "custom_tool_call"):
            arguments = item.get("arguments", "{}") if kind == "function_call" else {"input": item.get("input", "")}
            space = item.get("namespace")
            name = full_name(space if isinstance(space, str) else None, item.get("name"))
            function = {"name": name, "arguments": arguments}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            last = found[-1] if found and isinstance(found[-1], dict) else {}
            if last.get("role") != "assistant":
                found.append({"role": "assistant", "content": ""})
            found[-1] = {**found[-1], "tool_calls": [*found[-1].get("tool_calls", ()), call]}
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = content_of(item.get("output"), f"input[{number}].output")
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        else:
            problem = f"input[{number}]: items of type {str(kind)[:40]} are not supported."
            raise RefusalError(problem, param=f"input[{number}]", code="unsupported")
    return [one for one in found if not _is_open([one])]


def _is_open(found: list[Any]) -> bool:
    """Whether the last message is a thought whose answer has not come yet."""
    last = found[-1] if found else None
    return isinstance(last, dict) and "reasoning_content" in last and not (last["content"] or "tool_calls" in last)


def _thought(item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and part.get("text"))


@dataclass(frozen=True)
class ResponseTools:
    """The tools of a response, by the names that the model knows them by."""

    wishes: ToolWishes
    custom: Collection[str]
    """Tools that take a text."""
    homes: Mapping[str, tuple[str, str]]
    """Tools of a namespace, with that and their names in it."""


def tools_of_response(fields: Fields) -> ResponseTools:
    """The tools that may be called. Raises RefusalError."""
    tools, custom, homes = list[dict[str, Any]](), set[str](), dict[str, tuple[str, str]]()

    def add(one: Fields, where: str, space: str | None = None, told: str | None = None) -> None:
        kind = one.text("type", "function")
        if kind in HOSTED:
            fields.remarks.append(f"{where}: this server has no tool of type {kind}")
            return
        if kind not in ("function", "custom"):
            expected = "function, custom or namespace" if space is None else "function or custom"
            raise one.wrong("type", expected, kind)
        tool = function_of(one, where)
        name = full_name(space, tool["name"])
        if space is not None:
            homes[name] = space, tool["name"]
        if kind == "custom":
            one.ignore("format")
            tool["parameters"] = TEXT
            custom.add(name)
        if told:
            tool["description"] = f"{told}\n\n{tool.get('description', '')}".rstrip()
        tools.append({**tool, "name": name})

    for one, where in tool_list(fields):
        if one.text("type") != "namespace":
            add(one, where)
            continue
        space = one.text("name")
        if not space:
            raise one.wrong("name", "the name of a namespace", space)
        for place, (inner, inner_where) in enumerate(tool_list(one, f"{where}.")):
            add(inner, inner_where, space, None if place else one.text("description"))  # told once
    choice, name = fields.any("tool_choice"), None
    if isinstance(choice, dict):
        chosen = Fields(choice, "tool_choice.")
        name = full_name(chosen.text("namespace"), chosen.text("name"))
    if choice is not None and name is None and choice not in ("auto", "none", "required"):
        raise fields.wrong("tool_choice", "auto, none, required or a function", choice)
    wishes = wishes_of(tools, None if name else choice, name, fields.flag("parallel_tool_calls", True))
    return ResponseTools(wishes, custom, homes)


def full_name(namespace: str | None, name: Any) -> Any:
    """The name by which the model knows a tool of a namespace."""
    return f"{namespace.rstrip('_')}__{name}" if namespace and name else name
