"""POST /v1/messages and /v1/messages/count_tokens: answers to conversations, in Anthropic's form."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered
from edgemoe.server.exchange import Dialect, Exchange, event
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Figures, Finished, Piece
from edgemoe.server.messages import Conversation, content_of, messages_of, without_billing
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service
from edgemoe.server.settings import AnswerSettings, sampling_of
from edgemoe.session.continuation import FinishReason

WITHOUT_EFFECT = ("model", "metadata", "service_tier", "context_management", "inference_geo", "speed")
STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn", "length": "max_tokens", "context": "model_context_window_exceeded"
}  # fmt: skip

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
    conversation, variables = await _conversation(fields, service)
    limit = fields.whole("max_tokens", 1)
    settings = AnswerSettings(
        sampling_of(fields, service.defaults.sampling, "stop_sequences"),
        limit or service.defaults.max_tokens,
        stream=fields.flag("stream"),
    )
    ids = await exchange.chat_ids(conversation, variables)
    answers = service.begin([ids], settings)
    head = {"id": f"msg_{exchange.id}", "type": "message", "role": "assistant", "model": service.name}
    if settings.stream:
        return exchange.stream(_events(answers, head), fields)
    (whole,) = await exchange.whole(gathered(answers))
    return exchange.answer(
        {**head, "content": _content(whole), **_stop(whole.finished), "usage": usage_of(whole.finished.figures)}, fields
    )


async def count_tokens(exchange: Exchange) -> Response:
    """Count the tokens of a conversation, which need not fit the context."""
    fields = await exchange.fields()
    conversation, variables = await _conversation(fields, exchange.service)
    ids = await exchange.service.chat_ids(conversation, variables, answers=False)
    return exchange.answer({"input_tokens": len(ids)}, fields)


async def _conversation(fields: Fields, service: Service) -> tuple[Conversation, dict[str, Any]]:
    """The conversation, and variables of the template. Raises RefusalError for what cannot be honoured."""
    fields.ignore(*WITHOUT_EFFECT)
    for name, why in (
        ("tools", "tools are not supported yet"),
        ("mcp_servers", "this server calls no other servers"),
        ("container", "this server runs no programs"),
    ):
        fields.refuse(name, why)
    choice = fields.object("tool_choice")
    if choice is not None and choice.text("type") not in ("auto", "none"):
        raise RefusalError("tool_choice: tools are not supported yet.", param="tool_choice", code="unsupported")
    output = fields.object("output_config")
    if output is not None:
        output.refuse("format", "answers in a given form are not supported yet")
        output.ignore("effort")
    system = without_billing(content_of(fields.any("system"), "system"))
    found = messages_of(fields.any("messages"))
    if system:
        found.insert(0, {"role": "system", "content": system})
    return Conversation.of(found), await _thinking(fields, service)


async def _thinking(fields: Fields, service: Service) -> dict[str, Any]:
    """The variable that switches thinking on or off, where the template reads one; else a remark."""
    thinking = fields.object("thinking")
    kind = None if thinking is None else thinking.text("type")
    if kind is None:
        return {}
    for name in ("enable_thinking", "thinking"):
        if await service.template_reads(name):
            return {name: kind != "disabled"}
    if kind != "disabled":
        fields.remarks.append("thinking has no effect with this model's chat template")
    return {}


def usage_of(figures: Figures) -> dict[str, Any]:
    """Counts of tokens: cached ones are not among `input_tokens`."""
    return {
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": "standard",
        "input_tokens": figures.prompt_tokens - figures.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached_tokens,
        "output_tokens": figures.generated_tokens,
    }


def _stop(end: Finished) -> dict[str, Any]:
    reason = "stop_sequence" if end.stop_text is not None else STOP_REASONS[end.reason]
    return {"stop_reason": reason, "stop_sequence": end.stop_text, "stop_details": None, "container": None}


def _content(whole: Whole) -> list[dict[str, Any]]:
    thought = {"type": "thinking", "thinking": whole.thought, "signature": ""}
    text = {"type": "text", "text": whole.text, "citations": None}
    return [thought] * bool(whole.thought) + [text] * bool(whole.text)


class _Blocks:
    """The blocks of a stream's content, one after another."""

    def __init__(self) -> None:
        self._kind: str | None = None
        self._index = -1

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
                for kind, field, text in (("thinking", "thinking", one.thought), ("text", "text", one.text)):
                    if text:
                        for part in blocks.add(kind, field, text):
                            yield part
            elif isinstance(one, Finished):
                for part in blocks.end():
                    yield part
                told = {"type": "message_delta", "delta": _stop(one), "usage": usage_of(one.figures)}
                yield event(told, "message_delta")
                yield event({"type": "message_stop"}, "message_stop")


def _start(head: dict[str, Any], answers: Answers, cached: int) -> bytes:
    usage = usage_of(Figures(len(answers.jobs[0].prompt_ids), cached))
    message = {**head, "content": [], **dict.fromkeys(NOT_STOPPED), "usage": usage}
    return event({"type": "message_start", "message": message}, "message_start")
