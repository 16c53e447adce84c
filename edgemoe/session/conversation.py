"""From messages to ids, with the markers in the messages as tokens or as text.

A person may write `<|im_end|>` in a message. As in transformers (`sanitize_control_tokens=False`) that is the token,
unless the prompt is literal: then special tokens in a message's text are text, and only those of the template are
tokens. To this end the first character of each is replaced before the template sees the message, and put back after the
template's own have got the names of their twins (see `Twins`). So the template sees texts of the same length, and the
tokenizer sees the whole rendered text, in which special tokens merely have other names: it cuts and normalises it with
the same rules.

Three things are beyond this: a marker that a template makes of a message's text and its own, a template that looks into
messages for special tokens, and added tokens that are not special (such as `<think>` of some models), which are tokens
in every text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgemoe.errors import UsageError
from edgemoe.session.template import ChatTemplate, Message
from edgemoe.session.tokenizer import Tokenizer

TOLD = ("tools",)
"""Variables whose texts are a client's, as those of messages are."""
FIRST_COVER = 0xF0000
"""First of 65,534 characters for private use; those that stand in a message or in the template are passed over."""


def check_message(content: object) -> None:
    """Raises UsageError for a message that is no text, such as a list of parts with an image."""
    if isinstance(content, str):
        return
    parts = content if isinstance(content, list) else [content]
    kinds = {str(part.get("type"))[:40] for part in parts if isinstance(part, Mapping)} - {"text"}
    found = f"a part of type {min(kinds)}: edgemoe reads text alone" if kinds else str(content)[:80]
    raise UsageError(f"the message: expected text, found {found}.", "Give a string.")


class ConversationEncoder:
    """Makes the ids of conversations by one model's template, with the variables that a person gave it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        template_variables: Mapping[str, Any] | None = None,
        literal: bool = False,
    ) -> None:
        """Raises UsageError for variables that this template does not read."""
        self._tokenizer = tokenizer
        self._template = template
        self._variables = dict(template_variables or {})
        self._literal = literal
        tokenizer.require()
        template.check_variables(self._variables)

    def encode(self, messages: Sequence[Message], continues: bool = False) -> list[int]:
        """The ids of a conversation, up to where the assistant's answer begins or, with `continues`, to the end of the
        last message, which the answer continues. Raises EdgemoeError.
        """
        for message in messages:
            check_message(message["content"])
        if not self._literal:
            return self._tokenizer.encode(self.render(messages, continues))
        markers = self._tokenizer.special_texts
        said = [{name: value for name, value in message.items() if name != "role"} for message in messages]
        tools = {name: self._variables[name] for name in TOLD if name in self._variables}
        covers = _covers({marker[0] for marker in markers}, [*_texts([said, tools]), self._template.source])

        def cover(text: str) -> str:
            return _cover(text, markers, covers)

        covered = [{**message, **_mapped(one, cover)} for message, one in zip(messages, said, strict=True)]
        variables = {**self._variables, **_mapped(tools, cover)}
        text = self._tokenizer.with_twins(self._render(covered, continues, variables))
        uncovered = text.translate({ord(cover): character for character, cover in covers.items()})
        return self._tokenizer.encode(uncovered, literal=True)

    def render_past(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to the end of its last message. Raises EdgemoeError."""
        return self._template.render(messages, False, self._variables)

    def render(self, messages: Sequence[Message], continues: bool = False) -> str:
        """The text of a conversation, up to the same place. Raises EdgemoeError."""
        return self._render(messages, continues, self._variables)

    def _render(self, messages: Sequence[Message], continues: bool, variables: Mapping[str, Any]) -> str:
        text = self._template.render(messages, not continues, variables)
        if not continues:
            return text
        last = messages[-1]["content"]
        for spelled in (last, last.rstrip(), last.strip()):
            place = text.rfind(spelled)
            if spelled and place >= 0:
                return text[: place + len(spelled)]
        raise UsageError(
            "the last message cannot be continued: this model's chat template leaves its text out.",
            "End the conversation with a message of the user.",
        )


def _texts(value: Any) -> Iterator[str]:
    """All texts within a value, but the names in objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for one in value.values() for text in _texts(one))
    elif isinstance(value, (list, tuple)):
        yield from (text for one in value for text in _texts(one))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with all those texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(one, change) for name, one in value.items()}
    return [_mapped(one, change) for one in value] if isinstance(value, (list, tuple)) else value


def _covers(characters: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """A character for private use for each of these characters, none of which is in the texts."""
    used = {character for text in texts for character in text if ord(character) >= FIRST_COVER}
    free = (chr(code) for code in itertools.count(FIRST_COVER) if chr(code) not in used)
    return dict(zip(sorted(characters), free, strict=False))


def _cover(text: str, markers: Sequence[str], covers: Mapping[str, str]) -> str:
    """The text with the first character of each marker covered, also where markers overlap."""
    if not markers:
        return text
    begins = re.compile(f"(?=(?:{'|'.join(map(re.escape, markers))}))(.)", re.DOTALL)
    return begins.sub(lambda match: covers[match[1]], text)
