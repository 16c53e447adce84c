"""Answers of `edgemoe run` that keep to a JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgemoe.session.constraint import Constraint, Grammars, Structure
from edgemoe.session.generate import Generation, check_text_fits
from edgemoe.session.model import Model
from edgemoe.session.response.parts import Part, Said
from edgemoe.session.response.reader import ResponseReader
from edgemoe.session.tools import ToolPrompt, ToolTexts, ToolWishes


class Structured:
    """Makes the prompt, and what each answer to it needs. A thought before the JSON is not shown."""

    def __init__(self, model: Model, schema: Mapping[str, Any], literal: bool) -> None:
        self._model = model
        self._structure = Structure.of_schema(schema, "schema")
        self._literal = literal
        self._chat: ToolPrompt | None = None
        self._constraint: Constraint | None = None
        self._reader: ResponseReader | None = None

    def prompt(self, text: str, system: str | None, variables: Mapping[str, Any] | None, raw: bool) -> list[int]:
        """The ids of a prompt. Raises UsageError for a schema that cannot be enforced, and as `Model.encode_chat`."""
        model, grammars = self._model, Grammars(self._model.tokenizer)
        if raw:
            self._constraint = grammars.compile(self._structure)
            return model.encode(text, literal=self._literal)
        model.require_chat()
        check_text_fits(text, model.tokenizer, model.engine.context_length)
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]
        texts = ToolTexts(model.tokenizer, model.template, model.folder, grammars, self._literal)
        self._chat = texts.prompt(messages, ToolWishes(), variables, structure=self._structure)
        self._constraint = self._chat.constraint
        return self._chat.ids

    def next_answer(self) -> tuple[Constraint, bool]:
        """The constraint of a further answer, and whether its text is to have special tokens by their names."""
        assert self._constraint is not None
        self._reader = None if self._chat is None else self._chat.reader(eager=False)
        return self._constraint.copy(), self._reader is not None

    def said(self, generation: Generation) -> Iterator[str]:
        """The pieces of the answer without its thought."""
        if self._reader is None:
            yield from generation
            return
        for piece in generation:
            yield _text(self._reader.push(piece))
        yield _text(self._reader.finish(generation.finish_reason != "stop"))


def _text(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Said))
