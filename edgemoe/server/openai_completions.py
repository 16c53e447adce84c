"""POST /v1/completions: texts that go on, in OpenAI's older form."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, gathered
from edgemoe.server.exchange import Exchange, TextEvents, event
from edgemoe.server.fields import Fields, is_text
from edgemoe.server.jobs import Figures, Finished, Piece
from edgemoe.server.openai_common import FINISH_REASONS, answer_settings, figures_of, timings_of, usage_of, wants_usage
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service
from edgemoe.server.settings import AnswerSettings
from edgemoe.server.tool_fields import own_structure
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.token_bytes import TokenBytes

MAX_TOKENS = 16
"""The limit of an answer where a request says none: OpenAI's."""
MOST_PROMPTS = 256
MOST_LOGPROBS = 20


async def completions(exchange: Exchange) -> Response:
    """Continue texts."""
    fields = await exchange.fields()
    service = exchange.service
    spelled = TokenBytes(service.model.tokenizer)
    prompts = await prompt_ids(fields.any("prompt"), service)
    limit = fields.whole("max_tokens", 1, default=MAX_TOKENS)
    top = fields.whole("logprobs", 0, MOST_LOGPROBS)
    settings = answer_settings(fields, exchange, limit, top)
    fields.refuse("suffix", "text before a given end is not supported")
    fields.refuse("best_of", "the best of several answers is not supported", (settings.choices,))
    usage, echo = wants_usage(fields), fields.flag("echo")
    if echo and top is not None:
        raise RefusalError("echo: logprobs of a prompt are not supported.", "Leave one of them out.", param="echo")
    settings = replace(settings, constraint=await service.compiled(own_structure(fields)))
    answers = service.begin(prompts, settings)
    before = [service.model.decode(ids) if echo else "" for ids in prompts for _ in range(settings.choices)]
    head = {
        "id": f"cmpl-{exchange.id}", "object": "text_completion", "created": int(time.time()), "model": service.name,
        "system_fingerprint": service.fingerprint,
    }  # fmt: skip
    if settings.stream:
        return exchange.stream(_chunks(answers, head, spelled, before, settings, usage), fields)
    wholes = await exchange.whole(gathered(answers))
    choices = [
        {
            "index": number,
            "text": before[number] + whole.text,
            "logprobs": None if top is None else logprobs_of(spelled, whole.logprobs),
            "finish_reason": FINISH_REASONS[whole.finished.reason],
        }
        for number, whole in enumerate(wholes)
    ]
    figures = figures_of(wholes)
    usages = usage_of(figures, settings.choices)
    return exchange.answer({**head, "choices": choices, "usage": usages, **timings_of(figures)}, fields)


async def prompt_ids(value: Any, service: Service) -> list[list[int]]:
    """The ids of a prompt: a text, a list of ids, or a list of these. Raises RefusalError."""
    listed = value if isinstance(value, list) else [value]
    if listed and all(isinstance(one, int) and not isinstance(one, bool) for one in listed):
        listed = [listed]
    if not listed or len(listed) > MOST_PROMPTS:
        raise Fields({}).wrong("prompt", f"a text, token ids, or 1 to {MOST_PROMPTS} of these", value)
    found = []
    for one in listed:
        if is_text(one):
            found.append(await service.text_ids(one))
            continue
        if not isinstance(one, list):
            raise Fields({}).wrong("prompt", "a text, token ids, or a list of these", value)
        service.check_room(one)
        found.append(service.ids(one, "prompt"))
    return found


def logprobs_of(spelled: TokenBytes, logprobs: Sequence[TokenLogprobs], offset: int = 0) -> dict[str, Any]:
    """The logprobs of a text: lists side by side. `offset`: the characters before it."""
    texts = [spelled.text(one.token) for one in logprobs]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [{spelled.text(token): value for token, value in reversed(one.top)} for one in logprobs],
        "text_offset": offsets,
    }


async def _chunks(
    answers: Answers,
    head: dict[str, Any],
    spelled: TokenBytes,
    before: Sequence[str],
    settings: AnswerSettings,
    usage: bool,
) -> AsyncGenerator[bytes, None]:
    def chunk(number: int, text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **({"usage": None} if usage else {})}

    texts = TextEvents(chunk)

    ends: dict[int, Figures] = {}
    offsets = [0] * len(before)
    async with answers:
        for number, text in enumerate(before):
            if text:
                yield texts.of(text, number)
        async for number, one in answers.events():
            if isinstance(one, Finished):
                ends[number] = one.figures
                yield event(chunk(number, "", reason=FINISH_REASONS[one.reason]))
            elif isinstance(one, Piece) and one.logprobs:
                logprobs = logprobs_of(spelled, [one.logprobs], offsets[number])
                offsets[number] += len(logprobs["tokens"][0])
                yield event(chunk(number, one.text, logprobs))
            elif isinstance(one, Piece) and (text := one.text):
                yield texts.of(text, number)
    if usage:
        figures = [ends[number] for number in range(len(ends))]
        yield event({**head, "choices": [], "usage": usage_of(figures, settings.choices), **timings_of(figures)})
    yield event("[DONE]")
