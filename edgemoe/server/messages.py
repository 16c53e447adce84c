"""Messages of a conversation, from the forms in which clients send them to those that a chat template reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemoe.server.fields import Fields, is_text
from edgemoe.server.refusals import RefusalError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXT_PARTS = ("text", "input_text", "output_text")
BILLING = "x-anthropic-billing-header:"
"""The first line of a system message of some clients, which changes with each request and says nothing to a model."""


@dataclass(frozen=True)
class Conversation:
    """Messages up to where an answer begins."""

    messages: list[dict[str, str]]
    continues: bool
    """Whether the answer continues the last message, which is the assistant's."""

    @classmethod
    def of(cls, messages: list[dict[str, str]]) -> Conversation:
        """The conversation of these messages; an empty one of the assistant at the end says only that it is next."""
        while messages and messages[-1] == {"role": "assistant", "content": ""}:
            messages = messages[:-1]
        if not messages:
            raise RefusalError("messages: expected at least one message with some text.", param="messages")
        return cls(messages, messages[-1]["role"] == "assistant")


def messages_of(value: Any, name: str = "messages") -> list[dict[str, str]]:
    """The messages of a list of objects with role and content. Raises RefusalError, naming the one that is to blame."""
    if not isinstance(value, list):
        raise Fields({}).wrong(name, "a list of messages", value)
    return [_message(one, f"{name}[{number}]") for number, one in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Fields({}).wrong(where, "an object with role and content", value)
    fields = Fields(value, f"{where}.")
    role = fields.text("role")
    if role in ("tool", "function"):
        raise RefusalError(
            f"{where}: results of tools are not supported yet.", param=f"{where}.role", code="unsupported"
        )
    if role not in ROLES:
        raise fields.wrong("role", "system, developer, user or assistant", role)
    for calls in ("tool_calls", "function_call"):
        fields.refuse(calls, "calls of tools are not supported yet")
    return {"role": ROLES[role], "content": content_of(fields.any("content"), f"{where}.content")}


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
    """Whether a part is what a model said to itself in an earlier turn, which no template wants back."""
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


def text_of(messages: Sequence[dict[str, str]]) -> str:
    """All text of a conversation, to tell whether it may fit the context."""
    return "\n".join(message["content"] for message in messages)
