"""The items of a response: what was thought, said and called, and the events that tell how they grow."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from edgemoe.server.answers import Whole
from edgemoe.session.response.parts import CallArguments, CallBegun, CallEnded, Part, Said, Thought

Told = tuple[str, dict[str, Any]]
"""The name of an event and its fields."""


class Items:
    """The items of one response. One is open at a time, and ends where another begins."""

    def __init__(
        self, response: str, whole: Whole, custom: Collection[str], homes: Mapping[str, tuple[str, str]]
    ) -> None:
        """`response`: the end of the response's id; `custom`: the tools that take a text.

        `homes`: the tools of a namespace, with that and their names in it.
        """
        self.done: list[dict[str, Any]] = []
        self._response = response
        self._whole = whole
        self._custom = custom
        self._homes = homes
        self._kind: str | None = None
        self._text = ""
        self._name = ""
        self._calls = 0

    def add(self, part: Part) -> list[Told]:
        """Add a part of the answer."""
        if isinstance(part, (Said, Thought)):
            kind = "message" if isinstance(part, Said) else "reasoning"
            begun = [] if self._kind == kind else [*self.end(), *self._begin(kind)]
            self._text += part.text
            if kind == "reasoning":
                return [*begun, ("response.reasoning_text.delta", {**self._part_place, "delta": part.text})]
            return [*begun, ("response.output_text.delta", {**self._part_place, "delta": part.text, "logprobs": []})]
        if isinstance(part, CallBegun):
            ended = self.end()
            self._name = part.name
            return [*ended, *self._begin("custom_tool_call" if part.name in self._custom else "function_call")]
        if isinstance(part, CallArguments):
            self._text += part.json
            if self._kind == "custom_tool_call":
                return []
            return [("response.function_call_arguments.delta", {**self._place, "delta": part.json})]
        return self.end("completed" if part.whole else "incomplete")

    def add_whole(self) -> None:
        """Add all of an answer that has come to its end."""
        whole = self._whole
        parts: list[Part] = [Thought(whole.thought)] * bool(whole.thought)
        parts += [Said(whole.text)] * bool(whole.text)
        for call in whole.calls:
            parts += [CallBegun(call.name), CallArguments(call.arguments), CallEnded()]
        for part in parts:
            self.add(part)

    def finish(self, status: str) -> list[Told]:
        """End the last item; an answer without any has an empty message."""
        begun = self._begin("message") if not self.done and self._kind is None else []
        if self._kind is None and self.done[-1]["type"] == "reasoning":
            begun = self._begin("message")
        if self._kind == "reasoning":
            begun = [*self.end(), *self._begin("message")]
        return [*begun, *self.end(status)]

    def end(self, status: str = "completed") -> list[Told]:
        """End the item that is open, if one is."""
        kind = self._kind
        if kind is None:
            return []
        item, place, part_place = self._item(status), self._place, self._part_place
        told: list[Told] = []
        if kind == "message":
            part = text_part(self._text)
            told.append(("response.output_text.done", {**part_place, "text": self._text, "logprobs": []}))
            told.append(("response.content_part.done", {**part_place, "part": part}))
        elif kind == "reasoning":
            told.append(("response.reasoning_text.done", {**part_place, "text": self._text}))
        elif kind == "function_call":
            named = {"name": item["name"], "arguments": self._text}
            told.append(("response.function_call_arguments.done", {**place, **named}))
        else:
            told.append(("response.custom_tool_call_input.delta", {**place, "delta": item["input"]}))
            told.append(("response.custom_tool_call_input.done", {**place, "input": item["input"]}))
        told.append(("response.output_item.done", {"output_index": len(self.done), "item": item}))
        self.done.append(item)
        self._calls += kind not in ("message", "reasoning")
        self._kind = None
        return told

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self.done)}

    @property
    def _part_place(self) -> dict[str, Any]:
        return {**self._place, "content_index": 0}

    @property
    def _item_id(self) -> str:
        start = {"message": "msg", "reasoning": "rs", "function_call": "fc"}.get(self._kind or "", "ctc")
        return f"{start}_{self._response}" + (f"_{len(self.done)}" if self.done else "")

    def _begin(self, kind: str) -> list[Told]:
        self._kind, self._text = kind, ""
        item = self._item("in_progress")
        if kind == "message":
            item["content"] = []
        told: list[Told] = [("response.output_item.added", {"output_index": len(self.done), "item": item})]
        if kind == "message":
            told.append(("response.content_part.added", {**self._part_place, "part": text_part("")}))
        return told

    def _item(self, status: str) -> dict[str, Any]:
        """The item that is open, as far as it has come."""
        kind, name = self._kind, self._item_id
        if kind == "message":
            content = [text_part(self._text)]
            return {"type": kind, "id": name, "status": status, "role": "assistant", "content": content}
        if kind == "reasoning":
            content = [{"type": "reasoning_text", "text": self._text}] if self._text else []
            return {"type": kind, "id": name, "summary": [], "content": content}
        call = {"type": kind, "id": name, "call_id": self._whole.call_id(self._calls), "name": self._name}
        if self._name in self._homes:
            space, tool = self._homes[self._name]
            call |= {"name": tool, "namespace": space}
        if kind == "function_call":
            return {**call, "arguments": self._text, "status": status}
        return {**call, "input": _input(self._text)}


def _input(arguments: str) -> str:
    """The text that a tool takes, from arguments with this text alone."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return str(found.get("input", arguments))


def text_part(text: str) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
