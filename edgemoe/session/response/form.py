"""The declarative form in which a checkpoint says how its answers are to be read: `response_template`.

The form is transformers' (`response_template` in tokenizer_config.json): fields of a message, each with the texts or
patterns that open and close it, the way in which its text is a value, and a rule that gives the value its place. One
field may have no opening: the text outside all others. Here the fields that matter are what is said (`content`), what
the model says to itself (`thinking`, `reasoning`, `reasoning_content`), and calls (`tool_calls`); text of any other
field is said, so that none is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgemoe.errors import StoreError

if TYPE_CHECKING:
    import regex

CALLS = "tool_calls"
THOUGHTS = ("thinking", "reasoning", "reasoning_content")
CONTENTS = ("text", "int", "float", "bool", "json", "xml-inline", "kv-lines", "python-call-list")
LAZY = r"[*+?}]\?"
KEYS = {"open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats", "join", "optional",
        "transform", "transform_each", "offered_only"}  # fmt: skip


@dataclass(frozen=True)
class Marker:
    """A text or a pattern that opens or closes a field."""

    pattern: regex.Pattern[str]
    literal: bool
    """Whether it is one of some texts, none of which begins another: a match is final once it is there."""
    lazy: bool = False
    """Whether it has quantifiers that take as little as they can, so that more text makes no match longer."""


@dataclass(frozen=True)
class Field:
    """A field of a message."""

    name: str
    open: Marker | None
    close: Marker | None
    content: str = "text"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: Any = None
    each: bool = False
    """Whether the value is a list to whose entries the transform applies."""
    offered_only: bool = False
    """Whether a call counts only with the name of a tool that was offered: its form is that of other texts too."""

    @property
    def is_call(self) -> bool:
        return self.name == CALLS

    @property
    def is_thought(self) -> bool:
        return self.name in THOUGHTS


@dataclass(frozen=True)
class ResponseForm:
    """The form of a model's answers."""

    fields: tuple[Field, ...]
    start: Marker
    """The end of the text before the answer in a prompt: what stands after the last one is the answer's beginning."""

    @property
    def outside(self) -> Field | None:
        """The field of the text outside all others."""
        return next((one for one in self.fields if one.open is None), None)

    @classmethod
    def read(cls, data: Any) -> ResponseForm:
        """The form that a file says. Raises StoreError for one that is damaged, or of another version."""
        if not isinstance(data, dict) or data.get("version", 1) != 1 or not isinstance(data.get("fields"), dict):
            raise _damaged("expected an object with fields, of version 1")
        fields = tuple(_field(name, value) for name, value in data["fields"].items())
        if sum(one.open is None for one in fields) > 1:
            raise _damaged("expected at most one field that nothing opens")
        start = _marker(data, "start_anchor", "start_anchor_pattern", "the answer's beginning")
        if start is None:
            raise _damaged("expected a start_anchor")
        return cls(fields, start)


def _field(name: str, data: Any) -> Field:
    if not isinstance(data, dict) or not data.keys() <= KEYS:
        raise _damaged(f"{name}: expected an object with the keys of a field")
    content = data.get("content", "text")
    arguments = data.get("content_args", {})
    if content not in CONTENTS or not isinstance(arguments, dict):
        raise _damaged(f"{name}: expected content to be one of {', '.join(CONTENTS)}, found {content!s:.40}")
    if content == "xml-inline":
        tag_markers(str(arguments.get("tag_pattern", "")))
    return Field(
        name,
        _marker(data, "open", "open_pattern", name),
        _marker(data, "close", "close_pattern", name),
        content,
        arguments,
        data.get("transform"),
        bool(data.get("transform_each")),
        bool(data.get("offered_only")),
    )


def _marker(data: Mapping[str, Any], literal: str, pattern: str, where: str) -> Marker | None:
    import regex

    if literal in data:
        texts = [data[literal]] if isinstance(data[literal], str) else data[literal]
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one for one in texts):
            raise _damaged(f"{where}: expected {literal} to be a text, or some")
        found = "|".join(regex.escape(one) for one in sorted(texts, key=len, reverse=True))
        final = not any(one != other and one.startswith(other) for one in texts for other in texts)
        return Marker(regex.compile(found, regex.DOTALL), final)
    if pattern not in data:
        return None
    try:
        return Marker(regex.compile(data[pattern], regex.DOTALL), False, regex.search(LAZY, data[pattern]) is not None)
    except (regex.error, TypeError) as error:
        raise _damaged(f"{where}: {pattern} is no pattern ({error})") from None


def tag_markers(pattern: str) -> tuple[Marker, Marker]:
    """The texts before and after the group `value` of a pattern. Raises StoreError without it."""
    import regex

    begin = pattern.find("(?P<value>")
    depth, at = 0, begin
    while 0 <= at < len(pattern):
        depth += {"(": 1, ")": -1}.get(pattern[at], 0)
        if depth == 0:
            break
        at += 2 if pattern[at] == "\\" else 1
    try:
        head, tail = (regex.compile(part, regex.DOTALL) for part in (pattern[:begin], pattern[at + 1 :]))
    except regex.error as error:
        raise _damaged(f"tag_pattern is no pattern ({error})") from None
    if begin < 0 or "key" not in head.groupindex:
        raise _damaged("tag_pattern: expected the groups key and value")
    return Marker(head, False, True), Marker(tail, False)


def _damaged(problem: str) -> StoreError:
    return StoreError(
        f"tokenizer_config.json: response_template: {problem}.",
        "Repair it, or remove it: edgemoe knows the answers of common families without one.",
    )
