"""Messages in Anthropic's form, whose parts are calls and results too, as messages that stand on their own."""

from __future__ import annotations

import json
from typing import Any

from edgemoe.server.fields import Fields, is_text
from edgemoe.server.messages import content_of


def anthropic_messages(value: Any) -> Any:
    """The messages, with calls as a field, and results as messages of their own, before what else was said."""
    if not isinstance(value, list):
        return value
    return [made for number, one in enumerate(value) for made in _messages(one, f"messages[{number}]")]


def _messages(value: Any, where: str) -> list[Any]:
    parts = value.get("content") if isinstance(value, dict) else None
    if not isinstance(parts, list):
        return [value]
    calls, results, others = [], [], []
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        place = f"{where}.content[{number}]"
        if kind == "tool_use":
            calls.append(_call(Fields(part, f"{place}.")))
        elif kind == "tool_result":
            results.append(_result(Fields(part, f"{place}."), place))
        else:
            others.append(part)
    more = {"tool_calls": calls} if calls else {}
    own = [{**value, "content": others, **more}] if others or calls or not results else []
    return results + own


def _call(fields: Fields) -> dict[str, Any]:
    arguments = json.dumps(fields.any("input") or {}, ensure_ascii=False)
    name = fields.text("name", "")
    return {"id": fields.text("id", ""), "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(fields: Fields, where: str) -> dict[str, Any]:
    content = fields.any("content")
    text = content if is_text(content) else content_of(content, f"{where}.content")
    told = f"Error: {text}" if fields.flag("is_error") else text
    return {"role": "tool", "tool_call_id": fields.text("tool_use_id", ""), "content": told}
