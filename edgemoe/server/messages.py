"""Messages of a conversation, from the forms in which clients send them to those that a chat template reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemoe.server.fields import Fields, is_text
from edgemoe.server.refusals import RefusalError
from edgemoe.server.tool_fields import call_arguments

Message = dict[str, Any]
"""A message as templates read it: role, content, and for some what they called and thought, or whose result it is."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
TEXT_PARTS = ("text", "input_text", "output_text")
BILLING = "x-anthropic-billing-header:"
"""The first line of a system message of some clients, which changes with each request and says nothing to a model."""


@dataclass(frozen=True)
class Conversation:
    """Messages up to where an answer begins."""

    messages: list[Message]
    continues: bool
    """Whether the answer continues the last message, which is the assistant's."""

    @classmethod
    def of(cls, messages: list[Message]) -> Conversation:
        """The conversation of these messages; an empty one of the assistant at the end says only that it is next."""
        while messages and messages[-1] == {"role": "assistant", "content": ""}:
            messages = messages[:-1]
        if not messages:
            raise RefusalError("messages: expected at least one message with some text.", param="messages")
        last = messages[-1]
        return cls(_named(messages), last["role"] == "assistant" and "tool_calls" not in last)


def _named(messages: list[Message]) -> list[Message]:
    """The messages with the name of the tool in each result, which some templates read."""
    names = {call["id"]: call["function"]["name"] for one in messages for call in one.get("tool_calls", ())}
    return [
        {"name": names[one["tool_call_id"]], **one} if one.get("tool_call_id") in names else one for one in messages
    ]


def messages_of(value: Any, name: str = "messages") -> list[Message]:
    """The messages of a list of objects with role and content. Raises RefusalError, naming the one that is to blame."""
    if not isinstance(value, list):
        raise Fields({}).wrong(name, "a list of messages", value)
    return [_message(one, f"{name}[{number}]") for number, one in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise Fields({}).wrong(where, "an object with role and content", value)
    fields = Fields(value, f"{where}.")
    role = fields.text("role")
    if role not in ROLES:
        raise fields.wrong("role", "system, developer, user, assistant or tool", role)
    fields.refuse("function_call", "functions are not supported: use tools")
    made: Message = {"role": ROLES[role], "content": content_of(fields.any("content"), f"{where}.content")}
    if role == "tool":
        return {**made, "tool_call_id": fields.text("tool_call_id", "")}
    if role != "assistant":
        return made
    thought = fields.text("reasoning_content") or fields.text("reasoning") or thought_of(fields.any("content"))
    calls = [_call(one, f"{where}.tool_calls[{number}]") for number, one in enumerate(fields.any("tool_calls") or ())]
    return {**made, **({"reasoning_content": thought} if thought else {}), **({"tool_calls": calls} if calls else {})}


def _call(value: Any, where: str) -> dict[str, Any]:
    fields = Fields(value if isinstance(value, dict) else {}, f"{where}.")
    function = fields.object("function")
    if function is None:
        raise RefusalError(f"{where}: expected the call of a function.", param=where)
    name = function.text("name")
    if not name:
        raise function.wrong("name", "the name of a tool", name)
    arguments = call_arguments(function.any("arguments") or "", f"{where}.function.arguments")
    return earlier_call(fields.text("id", "") or "", name, arguments)


def earlier_call(name: str, function: str, arguments: Any) -> dict[str, Any]:
    """A call in the form in which templates read it. `name`: its id."""
    return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}


def thought_of(value: Any) -> str:
    """The text of thoughts among the parts of a message."""
    parts = value if isinstance(value, list) else []
    return "\n".join(str(one["thinking"]) for one in parts if _is_thought(one) and is_text(one.get("thinking")))


def content_of(value: Any, where: str) -> str:
    """The text of a message: a text, or a list of parts that are texts, which stand on lines of their own.

    Raises RefusalError for other parts, such as images.
    """
    if value is None:
        return ""
    if is_text(value):
        return str(value)
    if not isinstance(value, list):
        raise Fields({}).wrong(where, "text or a list of parts", value)
    said = [(number, one) for number, one in enumerate(value) if not _is_thought(one)]
    return "\n".join(_part(one, f"{where}[{number}]") for number, one in said)


def _is_thought(value: Any) -> bool:
    """Whether a part is what a model said to itself in an earlier turn."""
    return isinstance(value, dict) and value.get("type") in ("thinking", "redacted_thinking")


def _part(value: Any, where: str) -> str:
    if is_text(value):
        return str(value)
    kind = value.get("type", "text") if isinstance(value, dict) else None
    if kind not in TEXT_PARTS:
        raise RefusalError(
            f"{where}: expected a part of type text, found {str(kind)[:40]}: edgemoe reads text alone.",
            param=where,
            code="unsupported",
        )
    text = value.get("text")
    if not is_text(text):
        raise Fields({}).wrong(f"{where}.text", "text", text)
    return str(text)


def without_billing(system: str) -> str:
    """A system message without the line that would keep every prefix from being found again."""
    line, _, rest = system.partition("\n")
    return rest.lstrip("\n") if line.startswith(BILLING) else system


def text_of(messages: Sequence[Message]) -> str:
    """All text of a conversation, to tell whether it may fit the context."""
    said = [message["content"] for message in messages]
    calls = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
    return "\n".join([*said, *map(str, calls)])
