"""POST /v1/responses: answers to conversations, in OpenAI's newer form."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered
from edgemoe.server.exchange import Exchange, event
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Figures, Finished, Piece
from edgemoe.server.kept_responses import KeptResponses
from edgemoe.server.messages import Conversation, messages_of
from edgemoe.server.openai_chat import effort_variable
from edgemoe.server.refusals import RefusalError, refusal_of
from edgemoe.server.settings import AnswerSettings, sampling_of

WITHOUT_EFFECT = (
    "model", "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "include",
    "max_tool_calls", "parallel_tool_calls", "client_metadata",
)  # fmt: skip
UNSUPPORTED = {
    "tools": "tools are not supported yet",
    "background": "an answer in the background is not supported",
    "conversation": "conversations are not kept under a name: use previous_response_id",
    "prompt": "prompts are not kept under a name",
    "top_logprobs": "logprobs are asked for at /v1/chat/completions",
}


class Responses:
    """Answers requests, and keeps the latest conversations for those that continue them."""

    def __init__(self) -> None:
        self._kept = KeptResponses()

    async def respond(self, exchange: Exchange) -> Response:
        """Answer a conversation."""
        fields = await exchange.fields()
        service = exchange.service
        exchange.check_model(fields)
        _check(fields)
        before = self._kept.find(fields.text("previous_response_id"))
        conversation = _conversation(fields, before)
        reasoning = fields.object("reasoning")
        effort = None if reasoning is None else reasoning.text("effort")
        variables = await effort_variable(effort, fields, service)
        settings = AnswerSettings(
            sampling_of(fields, service.defaults.sampling),
            fields.whole("max_output_tokens", 1) or service.defaults.max_tokens,
            stream=fields.flag("stream"),
        )
        ids = await exchange.chat_ids(conversation, variables)
        answers = service.begin([ids], settings)
        form = _Form(exchange, fields, settings)
        keeps = fields.flag("store", True)

        def keep(whole: Whole) -> None:
            if keeps:
                answer = {"role": "assistant", "content": whole.text}
                self._kept.add(form.id, [*_without_instructions(conversation, fields), answer])

        if settings.stream:
            return exchange.stream(_events(answers, form, keep), fields)
        (whole,) = await exchange.whole(gathered(answers))
        keep(whole)
        return exchange.answer(form.resource(whole), fields)


def _check(fields: Fields) -> None:
    """Raise RefusalError for known fields that cannot be honoured."""
    fields.ignore(*WITHOUT_EFFECT)
    for name, why in UNSUPPORTED.items():
        fields.refuse(name, why, (0,))
    fields.refuse("tool_choice", "tools are not supported yet", ("auto", "none"))
    fields.refuse("truncation", "a conversation that does not fit is refused, never cut", ("disabled",))
    options = fields.object("stream_options")
    if options is not None:
        options.ignore("include_obfuscation")
    text = fields.object("text")
    if text is not None:
        text.refuse("format", "answers in a given form are not supported yet", ({"type": "text"},))


def _conversation(fields: Fields, before: list[dict[str, str]]) -> Conversation:
    """The conversation: instructions, what was said before, and the input. An empty input is a probe."""
    value = fields.any("input")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if isinstance(items, list):
        items = [item for item in items if not (isinstance(item, dict) and item.get("type") == "reasoning")]
        for number, item in enumerate(items):
            kind = item.get("type", "message") if isinstance(item, dict) else "message"
            if kind != "message":
                problem = f"input[{number}]: items of type {str(kind)[:40]} are not supported."
                raise RefusalError(problem, param=f"input[{number}]", code="unsupported")
    found = [*before, *messages_of(items, "input")] or [{"role": "user", "content": ""}]
    if instructions := fields.text("instructions"):
        found.insert(0, {"role": "system", "content": instructions})
    while len(found) > 1 and found[0]["role"] == found[1]["role"] == "system":  # templates know one
        first, second = found[:2]
        found[:2] = [{"role": "system", "content": f"{first['content']}\n\n{second['content']}"}]
    return Conversation.of(found)


def _without_instructions(conversation: Conversation, fields: Fields) -> list[dict[str, str]]:
    """The messages to keep: the instructions of one response are not those of the next."""
    kept = list(conversation.messages)
    instructions = fields.text("instructions")
    if instructions and kept[0]["role"] == "system":
        rest = kept[0]["content"].removeprefix(instructions).removeprefix("\n\n")
        kept[:1] = [{"role": "system", "content": rest}] if rest else []
    return kept


class _Form:
    """Makes the objects of one response."""

    def __init__(self, exchange: Exchange, fields: Fields, settings: AnswerSettings) -> None:
        self.id = f"resp_{exchange.id}"
        self.message_id = f"msg_{exchange.id}"
        self.thought_id = f"rs_{exchange.id}"
        sampling = settings.sampling
        self._fixed: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": exchange.service.name,
            "background": False,
            "frequency_penalty": sampling.frequency_penalty,
            "instructions": fields.text("instructions"),
            "max_output_tokens": settings.max_tokens,
            "max_tool_calls": None,
            "metadata": fields.any("metadata") or {},
            "parallel_tool_calls": True,
            "presence_penalty": sampling.presence_penalty,
            "previous_response_id": fields.text("previous_response_id"),
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": fields.flag("store", True),
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
        }

    def begun(self) -> dict[str, Any]:
        """The response before anything was written."""
        return {
            **self._fixed,
            "status": "in_progress",
            "completed_at": None,
            "incomplete_details": None,
            "error": None,
            "output": [],
            "usage": None,
        }

    def resource(self, whole: Whole) -> dict[str, Any]:
        """The response at its end."""
        complete = whole.finished.reason == "stop"
        status = "completed" if complete else "incomplete"
        return {
            **self.begun(),
            "status": status,
            "completed_at": int(time.time()),
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": self.output(whole, status),
            "usage": _usage(whole.finished.figures),
        }

    def failed(self, refusal: RefusalError) -> dict[str, Any]:
        """The response that an error has ended."""
        error = {"code": refusal.code or "server_error", "message": str(refusal)}
        return {**self.begun(), "status": "failed", "error": error}

    def output(self, whole: Whole, status: str) -> list[dict[str, Any]]:
        """The items of an answer."""
        thought = [self.thought(whole.thought)] if whole.thought else []
        return [*thought, self.message(status, [text_part(whole.text)])]

    def thought(self, text: str) -> dict[str, Any]:
        """The item of what the model said to itself."""
        content = [{"type": "reasoning_text", "text": text}]
        return {"type": "reasoning", "id": self.thought_id, "summary": [], "content": content if text else []}

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The item of what is said to the person."""
        return {
            "type": "message", "id": self.message_id, "status": status, "role": "assistant", "content": content
        }  # fmt: skip


def text_part(text: str) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(figures: Figures) -> dict[str, Any]:
    return {
        "input_tokens": figures.prompt_tokens,
        "input_tokens_details": {"cached_tokens": figures.cached_tokens},
        "output_tokens": figures.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": figures.prompt_tokens + figures.generated_tokens,
    }


class _Numbered:
    """Events with their numbers."""

    def __init__(self) -> None:
        self._number = -1

    def event(self, name: str, **more: Any) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number, **more}, name)


async def _events(answers: Answers, form: _Form, keep: Any) -> AsyncGenerator[bytes, None]:
    """The stream: the response, its items and their parts are begun, grow, and are ended, each by an event."""
    numbered, whole = _Numbered(), Whole()
    yield numbered.event("response.created", response=form.begun())
    yield numbered.event("response.in_progress", response=form.begun())
    try:
        async with answers:
            message_begun = False
            async for _, one in answers.events():
                if isinstance(one, Piece):
                    if one.thought:
                        if not whole.thought:
                            yield numbered.event("response.output_item.added", output_index=0, item=form.thought(""))
                        place = {"item_id": form.thought_id, "output_index": 0, "content_index": 0}
                        yield numbered.event("response.reasoning_text.delta", **place, delta=one.thought)
                    if one.text and not message_begun:
                        message_begun = True
                        for part in _message_begun(numbered, form, whole.thought + one.thought):
                            yield part
                    if one.text:
                        place = _message_place(form, whole.thought + one.thought)
                        yield numbered.event("response.output_text.delta", **place, delta=one.text, logprobs=[])
                whole.add(one)
                if isinstance(one, Finished):
                    if not message_begun:
                        for part in _message_begun(numbered, form, whole.thought):
                            yield part
                    for part in _ended(numbered, form, whole):
                        yield part
        keep(whole)
    except Exception as error:
        yield numbered.event("response.failed", response=form.failed(refusal_of(error)))


def _message_place(form: _Form, thought: str) -> dict[str, Any]:
    return {"item_id": form.message_id, "output_index": int(bool(thought)), "content_index": 0}


def _message_begun(numbered: _Numbered, form: _Form, thought: str) -> list[bytes]:
    """The events that end a thought, if there was one, and begin the message."""
    events = []
    if thought:
        place = {"item_id": form.thought_id, "output_index": 0, "content_index": 0}
        events.append(numbered.event("response.reasoning_text.done", **place, text=thought))
        events.append(numbered.event("response.output_item.done", output_index=0, item=form.thought(thought)))
    place = _message_place(form, thought)
    item = form.message("in_progress", [])
    events.append(numbered.event("response.output_item.added", output_index=place["output_index"], item=item))
    return [*events, numbered.event("response.content_part.added", **place, part=text_part(""))]


def _ended(numbered: _Numbered, form: _Form, whole: Whole) -> list[bytes]:
    """The events that end the message and the response."""
    place, resource = _message_place(form, whole.thought), form.resource(whole)
    message = form.message(resource["status"], [text_part(whole.text)])
    return [
        numbered.event("response.output_text.done", **place, text=whole.text, logprobs=[]),
        numbered.event("response.content_part.done", **place, part=text_part(whole.text)),
        numbered.event("response.output_item.done", output_index=place["output_index"], item=message),
        numbered.event(f"response.{resource['status']}", response=resource),
    ]
