"""POST /v1/messages and /v1/messages/count_tokens: answers to conversations, in Anthropic's form."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered
from edgemoe.server.anthropic_messages import anthropic_messages
from edgemoe.server.exchange import Dialect, Exchange, event
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Figures, Finished, Piece
from edgemoe.server.messages import Conversation, content_of, messages_of, without_billing
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service
from edgemoe.server.settings import AnswerSettings, sampling_of
from edgemoe.server.tool_fields import (
    function_of,
    note_budget,
    one_structure,
    structure_of_format,
    tool_list,
    wishes_of,
)
from edgemoe.session.constraint import Structure
from edgemoe.session.continuation import FinishReason
from edgemoe.session.response.parts import CallArguments, CallBegun, Part, Said, Thought
from edgemoe.session.tools import ToolWishes

WITHOUT_EFFECT = ("model", "metadata", "service_tier", "context_management", "inference_geo", "speed")
STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn", "length": "max_tokens", "context": "model_context_window_exceeded"
}  # fmt: skip

CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "auto"}
NOT_STOPPED = ("stop_reason", "stop_sequence", "stop_details", "container")


def error_body(refusal: RefusalError, request_id: str) -> dict[str, Any]:
    """An error in Anthropic's form."""
    kind = "api_error" if refusal.kind == "server_error" else refusal.kind
    return {"type": "error", "error": {"type": kind, "message": str(refusal)}, "request_id": f"req_{request_id}"}


ANTHROPIC = Dialect(error_body, "error", event({"type": "ping"}, "ping"))


async def messages(exchange: Exchange) -> Response:
    """Answer a conversation."""
    fields = await exchange.fields()
    service = exchange.service
    conversation, variables, wishes, structure = await _conversation(fields, service)
    limit = fields.whole("max_tokens", 1)
    settings = AnswerSettings(
        sampling_of(fields, service.defaults.sampling, "stop_sequences"),
        limit or service.defaults.max_tokens,
        stream=fields.flag("stream"),
        thought_tokens=_budget(fields),
    )
    chat = await exchange.chat(conversation, variables, wishes, structure)
    note_budget(fields, settings, chat)
    answers = service.begin([chat.ids], replace(settings, chat=chat))
    head = {"id": f"msg_{exchange.id}", "type": "message", "role": "assistant", "model": service.name}
    if settings.stream:
        return exchange.stream(_events(answers, head), fields)
    (whole,) = await exchange.whole(gathered(answers))
    return exchange.answer(
        {**head, "content": _content(whole), **_stop(whole), "usage": usage_of(whole.finished.figures)}, fields
    )


async def count_tokens(exchange: Exchange) -> Response:
    """Count the tokens of a conversation, which need not fit the context."""
    fields = await exchange.fields()
    conversation, variables, wishes, _ = await _conversation(fields, exchange.service)
    chat = await exchange.service.chat(conversation, variables, wishes, answers=False)
    return exchange.answer({"input_tokens": len(chat.ids)}, fields)


async def _conversation(
    fields: Fields, service: Service
) -> tuple[Conversation, dict[str, Any], ToolWishes, Structure | None]:
    """The conversation, variables of the template, tools, and the structure of the answer.

    Raises RefusalError for what cannot be honoured.
    """
    fields.ignore(*WITHOUT_EFFECT)
    for name, why in (
        ("mcp_servers", "this server calls no other servers"),
        ("container", "this server runs no programs"),
    ):
        fields.refuse(name, why)
    output = fields.object("output_config")
    structure = structure_of_format(fields.object("output_format"), "output_format")
    if output is not None:
        wanted = structure_of_format(output.object("format"), "output_config.format")
        structure = one_structure(structure, wanted)
        output.ignore("effort")
    system = without_billing(content_of(fields.any("system"), "system"))
    found = messages_of(anthropic_messages(fields.any("messages")))
    if system:
        found.insert(0, {"role": "system", "content": system})
    return Conversation.of(found), await _thinking(fields, service), _wishes(fields), structure


def _wishes(fields: Fields) -> ToolWishes:
    """The tools that may be called. Raises RefusalError."""
    tools = []
    for one, where in tool_list(fields):
        kind = one.text("type", "custom")
        if kind != "custom":
            raise RefusalError(
                f"{where}: this server has no tool of type {kind!s:.40}.",
                "Leave it out.",
                param=where,
                code="unsupported",
            )
        one.ignore("cache_control", "eager_input_streaming", "defer_loading", "allowed_callers", "input_examples")
        tools.append(function_of(one, where, "input_schema"))
    choice = fields.object("tool_choice")
    if choice is None:
        return wishes_of(tools, None, None, True)
    kind = choice.text("type")
    if kind not in CHOICES:
        raise choice.wrong("type", "auto, any, tool or none", kind)
    name = choice.text("name")
    if (kind == "tool") != (name is not None):
        raise choice.wrong("name", "the name of a tool beside type tool alone", name)
    return wishes_of(tools, CHOICES[kind], name, not choice.flag("disable_parallel_tool_use"))


async def _thinking(fields: Fields, service: Service) -> dict[str, Any]:
    """The variable that switches thinking on or off, where the template reads one; else a remark."""
    thinking = fields.object("thinking")
    kind = None if thinking is None else thinking.text("type")
    if kind is None:
        return {}
    variables = await service.thinking_variable(kind != "disabled")
    if variables is None and kind != "disabled":
        fields.remarks.append("thinking has no effect with this model's chat template")
    return variables or {}


def _budget(fields: Fields) -> int | None:
    """The most tokens of a thought."""
    thinking = fields.object("thinking")
    return None if thinking is None else thinking.whole("budget_tokens", 0)


def usage_of(figures: Figures) -> dict[str, Any]:
    """Counts of tokens: cached ones are not among `input_tokens`."""
    return {
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": {"thinking_tokens": figures.thought_tokens},
        "server_tool_use": None,
        "service_tier": "standard",
        "input_tokens": figures.prompt_tokens - figures.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached_tokens,
        "output_tokens": figures.generated_tokens,
    }


def _stop(whole: Whole) -> dict[str, Any]:
    end = whole.finished
    reason = "stop_sequence" if end.stop_text is not None else STOP_REASONS[end.reason]
    reason = "tool_use" if whole.calls_tools else reason
    return {"stop_reason": reason, "stop_sequence": end.stop_text, "stop_details": None, "container": None}


def _content(whole: Whole) -> list[dict[str, Any]]:
    thought = {"type": "thinking", "thinking": whole.thought, "signature": ""}
    text = {"type": "text", "text": whole.text, "citations": None}
    calls = [_call(whole.call_id(place), one.name, json.loads(one.arguments)) for place, one in enumerate(whole.calls)]
    return [thought] * bool(whole.thought) + [text] * bool(whole.text) + calls


def _call(name: str, tool: str, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": tool, "input": arguments, "caller": {"type": "direct"}}


class _Blocks:
    """The blocks of a stream's content, one after another."""

    def __init__(self) -> None:
        self._kind: str | None = None
        self._index = -1
        self._calls = 0

    def add(self, kind: str, field: str, text: str) -> list[bytes]:
        """The events that add text to the block of a kind, which is begun if the last one is of another."""
        events = []
        if kind != self._kind:
            events += self.end()
            self._kind, self._index = kind, self._index + 1
            block = {"type": kind, field: "", **({"signature": ""} if kind == "thinking" else {"citations": None})}
            events.append(self._event("content_block_start", content_block=block))
        events.append(self._event("content_block_delta", delta={"type": f"{field}_delta", field: text}))
        return events

    def add_part(self, part: Part, whole: Whole) -> list[bytes]:
        """The events that tell a part."""
        if isinstance(part, Said):
            return self.add("text", "text", part.text)
        if isinstance(part, Thought):
            return self.add("thinking", "thinking", part.text)
        if isinstance(part, CallBegun):
            ended = self.end()
            self._kind, self._index = "tool_use", self._index + 1
            block = _call(whole.call_id(self._calls), part.name, {})
            self._calls += 1
            return [*ended, self._event("content_block_start", content_block=block)]
        if isinstance(part, CallArguments):
            delta = {"type": "input_json_delta", "partial_json": part.json}
            return [self._event("content_block_delta", delta=delta)]
        return self.end()

    def end(self) -> list[bytes]:
        """The event that ends the last block, if there is one."""
        kind, self._kind = self._kind, None
        return [] if kind is None else [self._event("content_block_stop")]

    def _event(self, name: str, **more: Any) -> bytes:
        return event({"type": name, "index": self._index, **more}, name)


async def _events(answers: Answers, head: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The stream. It begins once the prompt's first tokens are done, when it is known how many were cached."""
    blocks = _Blocks()
    begun = False
    async with answers:
        async for _, one in answers.events():
            if not begun:
                begun = True
                yield _start(head, answers, getattr(one, "cached", 0))
            if isinstance(one, Piece):
                for told in one.parts:
                    for part in blocks.add_part(told, answers.wholes[0]):
                        yield part
            elif isinstance(one, Finished):
                for part in blocks.end():
                    yield part
                ended = {"type": "message_delta", "delta": _stop(answers.wholes[0]), "usage": usage_of(one.figures)}
                yield event(ended, "message_delta")
                yield event({"type": "message_stop"}, "message_stop")


def _start(head: dict[str, Any], answers: Answers, cached: int) -> bytes:
    usage = usage_of(Figures(len(answers.jobs[0].prompt_ids), cached))
    message = {**head, "content": [], **dict.fromkeys(NOT_STOPPED), "usage": usage}
    return event({"type": "message_start", "message": message}, "message_start")
