"""POST /v1/chat/completions: answers to conversations, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered, timings
from edgemoe.server.exchange import Exchange, TextEvents, event
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Figures, Finished, Piece, Progress
from edgemoe.server.messages import Conversation, messages_of
from edgemoe.server.openai_common import (
    FINISH_REASONS,
    WITHOUT_EFFECT,
    answer_settings,
    chat_logprobs,
    figures_of,
    shown_prompt,
    thought_limit,
    timings_of,
    top_logprobs_of,
    usage_of,
    wants_usage,
)
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service
from edgemoe.server.settings import AnswerSettings
from edgemoe.server.tool_fields import (
    function_of,
    note_budget,
    one_structure,
    own_structure,
    structure_of_format,
    tool_list,
    wishes_of,
)
from edgemoe.session.response.parts import CallArguments, CallBegun, Part, Said, Thought
from edgemoe.session.token_bytes import TokenBytes
from edgemoe.session.tools import ToolWishes

UNSUPPORTED = {
    "functions": "functions are not supported: use tools",
    "audio": "answers are text",
    "web_search_options": "this server searches nothing",
}


async def chat_completions(exchange: Exchange) -> Response:
    """Answer a conversation."""
    fields = await exchange.fields()
    service = exchange.service
    exchange.check_model(fields)
    spelled = TokenBytes(service.model.tokenizer)
    conversation = Conversation.of(messages_of(fields.any("messages")))
    limit = fields.whole("max_completion_tokens", 1)
    older = fields.whole("max_tokens", 1)
    settings = answer_settings(fields, exchange, limit or older or service.defaults.max_tokens, top_logprobs_of(fields))
    settings = replace(settings, thought_tokens=thought_limit(fields), timed=fields.flag("timings_per_token"))
    variables = await template_variables(fields, service)
    wishes = tool_wishes(fields)
    structure = structure_of_format(fields.object("response_format"), "response_format")
    structure = one_structure(structure, own_structure(fields))
    usage, progress = wants_usage(fields), fields.flag("return_progress")
    ping_s = fields.whole("sse_ping_interval", 1)
    chat = await exchange.chat(conversation, variables, wishes, structure)
    note_budget(fields, settings, chat)
    prompt = shown_prompt(fields, service, chat.ids)
    answers = service.begin([chat.ids], replace(settings, chat=chat))
    head = {
        "id": f"chatcmpl-{exchange.id}", "created": int(time.time()), "model": service.name,
        "system_fingerprint": service.fingerprint,
    }  # fmt: skip
    if settings.stream:
        return exchange.stream(_chunks(answers, head, spelled, usage, progress, settings.timed), fields, ping_s)
    wholes = await exchange.whole(gathered(answers))
    return exchange.answer(
        {
            **head,
            "object": "chat.completion",
            "choices": [_choice(number, whole, spelled, settings) for number, whole in enumerate(wholes)],
            "usage": usage_of(figures_of(wholes), settings.choices),
            **timings_of(figures_of(wholes)),
            **prompt,
        },
        fields,
    )


async def input_tokens(exchange: Exchange) -> Response:
    """Count the tokens of a conversation, which need not fit the context."""
    fields = await exchange.fields()
    service = exchange.service
    fields.ignore(*WITHOUT_EFFECT)
    conversation = Conversation.of(messages_of(fields.any("messages")))
    chat = await service.chat(
        conversation, await template_variables(fields, service), tool_wishes(fields), answers=False
    )
    return exchange.answer({"object": "chat.completion.input_tokens", "input_tokens": len(chat.ids)}, fields)


async def template_variables(fields: Fields, service: Service) -> dict[str, Any]:
    """Variables of the chat template; what cannot be honoured is refused."""
    for name, why in UNSUPPORTED.items():
        fields.refuse(name, why)
    if fields.flag("add_generation_prompt") and fields.flag("continue_final_message"):
        raise RefusalError(
            "continue_final_message: an answer either continues the last message or begins a new one"
            " (add_generation_prompt).",
            "Leave one of them out.",
            param="continue_final_message",
        )
    fields.ignore("add_generation_prompt", "continue_final_message", "prediction")
    fields.refuse("function_call", "functions are not supported: use tools", ("none", "auto"))
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
    if effort == "none" and (switch := await service.thinking_variable(False)) is not None:
        return switch
    fields.remarks.append("reasoning_effort has no effect with this model's chat template")
    return {}


def tool_wishes(fields: Fields) -> ToolWishes:
    """The tools that may be called. Raises RefusalError."""
    tools = []
    for one, where in tool_list(fields):
        kind, function = one.text("type", "function"), one.object("function")
        if kind != "function" or function is None:
            raise RefusalError(f"{where}: expected a tool of type function.", param=where, code="unsupported")
        tools.append(function_of(function, f"{where}.function"))
    choice, name = fields.any("tool_choice"), None
    if isinstance(choice, dict):
        named = Fields(choice, "tool_choice.").object("function")
        name = None if named is None else named.text("name")
    if choice is not None and name is None and choice not in ("auto", "none", "required"):
        raise fields.wrong("tool_choice", "auto, none, required or a function", choice)
    return wishes_of(tools, None if name else choice, name, fields.flag("parallel_tool_calls", True))


def calls_of(whole: Whole) -> list[dict[str, Any]]:
    """The calls of an answer."""
    return [
        {"id": whole.call_id(place), "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        for place, one in enumerate(whole.calls)
    ]


def finish_reason(whole: Whole) -> str:
    """Why an answer ended."""
    return "tool_calls" if whole.calls_tools else FINISH_REASONS[whole.finished.reason]


def _choice(number: int, whole: Whole, spelled: TokenBytes, settings: AnswerSettings) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.thought:
        message["reasoning_content"] = whole.thought
    if whole.calls:
        message |= {"content": whole.text or None, "tool_calls": calls_of(whole)}
    return {
        "index": number,
        "message": message,
        "logprobs": None if settings.top_logprobs is None else chat_logprobs(spelled, whole.logprobs),
        "finish_reason": finish_reason(whole),
    }


async def _chunks(
    answers: Answers, head: dict[str, Any], spelled: TokenBytes, usage: bool, progress: bool, timed: bool
) -> AsyncGenerator[bytes, None]:
    """The stream: a chunk that names the role, pieces, the reason of the end, and counts of tokens where asked."""
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(number: int, delta: dict[str, Any], figures: Figures | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        times = {"timings": timings(figures)} if timed and figures is not None else {}
        return {**head, "choices": [choice], **({"usage": None} if usage else {}), **times}

    texts = TextEvents(lambda number, field, text: chunk(number, {field: text}))
    ends: dict[int, Figures] = {}
    deltas = [_Deltas(whole) for whole in answers.wholes]
    async with answers:
        for number in range(len(answers.jobs)):
            yield event(chunk(number, {"role": "assistant", "content": None}))
        async for number, one in answers.events():
            if isinstance(one, Progress) and progress:
                told = {"total": one.total, "cache": one.cached, "processed": one.processed}
                times = {"timings": timings(one.figures)} if timed else {}
                yield event({**head, "choices": [], "prompt_progress": told, **times})
            elif isinstance(one, Finished):
                ends[number] = one.figures
                yield event(chunk(number, {}, finish_reason=finish_reason(answers.wholes[number])))
            elif isinstance(one, Piece):
                scores = one.logprobs
                for delta in deltas[number].of(one):
                    ((field, value),) = delta.items()
                    if isinstance(value, str) and scores is None and not timed:
                        yield texts.of(value, number, field)
                        continue
                    more = {} if scores is None else {"logprobs": chat_logprobs(spelled, [scores])}
                    yield event(chunk(number, delta, one.figures, **more))
                    scores = None
    if usage:
        figures = [ends[number] for number in range(len(ends))]
        yield event({**head, "choices": [], "usage": usage_of(figures, len(figures)), **timings_of(figures)})
    yield event("[DONE]")


class _Deltas:
    """Makes the parts of one message that grow: the calls have numbers, and their ids stand in their first parts."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._calls = 0

    def of(self, one: Piece) -> list[dict[str, Any]]:
        """The parts that a piece brings; an empty text carries the logprobs of a token that brings none."""
        found = [delta for part in one.parts if (delta := self._delta(part)) is not None]
        return found or [{"content": ""}] * (one.logprobs is not None)

    def _delta(self, part: Part) -> dict[str, Any] | None:
        if isinstance(part, Said):
            return {"content": part.text}
        if isinstance(part, Thought):
            return {"reasoning_content": part.text}
        if isinstance(part, CallBegun):
            self._calls += 1
            place = self._calls - 1
            function = {"name": part.name, "arguments": ""}
            return self._call({"id": self._whole.call_id(place), "type": "function", "function": function})
        if isinstance(part, CallArguments):
            return self._call({"function": {"arguments": part.json}})
        return None

    def _call(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": self._calls - 1, **told}]}
