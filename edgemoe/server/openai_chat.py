"""POST /v1/chat/completions: answers to conversations, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered
from edgemoe.server.exchange import Exchange, event
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Event, Figures, Finished, Piece, Progress
from edgemoe.server.messages import Conversation, messages_of
from edgemoe.server.openai_common import (
    FINISH_REASONS,
    answer_settings,
    chat_logprobs,
    figures_of,
    timings_of,
    top_logprobs_of,
    usage_of,
    wants_usage,
)
from edgemoe.server.service import Service
from edgemoe.server.settings import AnswerSettings
from edgemoe.session.token_bytes import TokenBytes

UNSUPPORTED = {
    "tools": "tools are not supported yet",
    "functions": "functions are not supported yet",
    "audio": "answers are text",
    "web_search_options": "this server searches nothing",
}


async def chat_completions(exchange: Exchange) -> Response:
    """Answer a conversation."""
    fields = await exchange.fields()
    service = exchange.service
    spelled = TokenBytes(service.model.tokenizer)
    conversation = Conversation.of(messages_of(fields.any("messages")))
    limit = fields.whole("max_completion_tokens", 1)
    older = fields.whole("max_tokens", 1)
    settings = answer_settings(fields, exchange, limit or older or service.defaults.max_tokens, top_logprobs_of(fields))
    variables = await template_variables(fields, service)
    usage, progress = wants_usage(fields), fields.flag("return_progress")
    ping_s = fields.whole("sse_ping_interval", 1)
    ids = await exchange.chat_ids(conversation, variables)
    answers = service.begin([ids], settings)
    head = {"id": f"chatcmpl-{exchange.id}", "created": int(time.time()), "model": service.name}
    if settings.stream:
        return exchange.stream(_chunks(answers, head, spelled, usage, progress), fields, ping_s)
    wholes = await exchange.whole(gathered(answers))
    return exchange.answer(
        {
            **head,
            "object": "chat.completion",
            "choices": [_choice(number, whole, spelled, settings) for number, whole in enumerate(wholes)],
            "usage": usage_of(figures_of(wholes), settings.choices),
            **timings_of(figures_of(wholes)),
        },
        fields,
    )


async def template_variables(fields: Fields, service: Service) -> dict[str, Any]:
    """Variables of the chat template; what cannot be honoured is refused."""
    for name, why in UNSUPPORTED.items():
        fields.refuse(name, why)
    fields.ignore("parallel_tool_calls", "add_generation_prompt", "continue_final_message", "prediction")
    fields.refuse("tool_choice", "tools are not supported yet", ("none", "auto"))
    fields.refuse("function_call", "functions are not supported yet", ("none", "auto"))
    fields.refuse("response_format", "answers in a given form are not supported yet", ({"type": "text"},))
    fields.refuse("modalities", "answers are text", (["text"],))
    own = fields.object("chat_template_kwargs")
    variables = {} if own is None else {name: own.any(name) for name in own.names()}
    effort = fields.text("reasoning_effort")
    return {**await effort_variable(effort, fields, service), **variables}


async def effort_variable(effort: str | None, fields: Fields, service: Service) -> dict[str, Any]:
    """The variable for how much to think, where the template reads one; else a remark, as clients send it always."""
    if effort is None:
        return {}
    if await service.template_reads("reasoning_effort"):
        return {"reasoning_effort": effort}
    fields.remarks.append("reasoning_effort has no effect with this model's chat template")
    return {}


def _choice(number: int, whole: Whole, spelled: TokenBytes, settings: AnswerSettings) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.thought:
        message["reasoning_content"] = whole.thought
    return {
        "index": number,
        "message": message,
        "logprobs": None if settings.top_logprobs is None else chat_logprobs(spelled, whole.logprobs),
        "finish_reason": FINISH_REASONS[whole.finished.reason],
    }


async def _chunks(
    answers: Answers, head: dict[str, Any], spelled: TokenBytes, usage: bool, progress: bool
) -> AsyncGenerator[bytes, None]:
    """The stream: a chunk that names the role, pieces, the reason of the end, and counts of tokens where asked."""
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(number: int, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return event({**head, "choices": [choice], **({"usage": None} if usage else {})})

    ends: dict[int, Figures] = {}
    async with answers:
        for number in range(len(answers.jobs)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async for number, one in answers.events():
            if isinstance(one, Progress) and progress:
                told = {"total": one.total, "cache": one.cached, "processed": one.processed}
                yield event({**head, "choices": [], "prompt_progress": told})
            elif isinstance(one, Finished):
                ends[number] = one.figures
                yield chunk(number, {}, finish_reason=FINISH_REASONS[one.reason])
            elif delta := delta_of(one):
                logprobs = one.logprobs if isinstance(one, Piece) else None
                yield chunk(number, delta, **({"logprobs": chat_logprobs(spelled, [logprobs])} if logprobs else {}))
    if usage:
        figures = [ends[number] for number in range(len(ends))]
        yield event({**head, "choices": [], "usage": usage_of(figures, len(figures)), **timings_of(figures)})
    yield event("[DONE]")


def delta_of(one: Event) -> dict[str, Any]:
    """The part of a message that an event brings; empty for none."""
    if not isinstance(one, Piece):
        return {}
    delta = {"content": one.text} if one.text or (one.logprobs and not one.thought) else {}
    return {**({"reasoning_content": one.thought} if one.thought else {}), **delta}
