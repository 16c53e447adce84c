"""/v1/responses: answers to conversations, in OpenAI's newer form, which are kept for a while."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered, timings
from edgemoe.server.exchange import Exchange, event, json_response
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Figures, Finished, Piece, Progress
from edgemoe.server.kept_responses import Kept, KeptResponses
from edgemoe.server.messages import Conversation, Message, earlier_call, messages_of
from edgemoe.server.openai_chat import effort_variable
from edgemoe.server.openai_common import thought_limit
from edgemoe.server.refusals import RefusalError, refusal_of
from edgemoe.server.responses_input import items_as_messages, tools_of_response
from edgemoe.server.responses_items import Items, Told
from edgemoe.server.service import Service
from edgemoe.server.settings import AnswerSettings, sampling_of
from edgemoe.server.tool_fields import call_arguments, note_budget, structure_of_format

WITHOUT_EFFECT = (
    "model", "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "include",
    "max_tool_calls", "client_metadata",
)  # fmt: skip
UNSUPPORTED = {
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
        conversation = _conversation(fields, self._before(fields))
        variables = await _effort(fields, service)
        settings = AnswerSettings(
            sampling_of(fields, service.defaults.sampling),
            fields.whole("max_output_tokens", 1) or service.defaults.max_tokens,
            stream=fields.flag("stream"),
            thought_tokens=thought_limit(fields),
        )
        tools = tools_of_response(fields)
        text = fields.object("text")
        wanted = None if text is None else text.object("format")
        structure = structure_of_format(wanted, "text.format")
        chat = await exchange.chat(conversation, variables, tools.wishes, structure)
        note_budget(fields, settings, chat)
        extras = _Extras(fields.flag("return_progress"), fields.flag("timings_per_token"))
        answers = service.begin([chat.ids], replace(settings, chat=chat, timed=extras.timings))
        form = _Form(exchange, fields, settings, Items(exchange.id, answers.wholes[0], tools.custom, tools.homes))
        keeps = fields.flag("store", True)

        def keep(whole: Whole) -> None:
            if keeps:
                messages = [*_without_instructions(conversation, fields), _answer(whole)]
                self._kept.add(form.id, Kept(messages, form.resource(whole)))

        if settings.stream:
            return exchange.stream(_events(answers, form, keep, extras), fields)
        (whole,) = await exchange.whole(gathered(answers))
        form.items.add_whole()
        form.items.finish(status_of(whole))
        keep(whole)
        return exchange.answer(form.resource(whole), fields)

    async def input_tokens(self, exchange: Exchange) -> Response:
        """Count the tokens of a conversation, which need not fit the context."""
        fields = await exchange.fields()
        service = exchange.service
        _check(fields)
        conversation = _conversation(fields, self._before(fields))
        wishes = tools_of_response(fields).wishes
        chat = await service.chat(conversation, await _effort(fields, service), wishes, answers=False)
        return exchange.answer({"object": "response.input_tokens", "input_tokens": len(chat.ids)}, fields)

    async def retrieve(self, exchange: Exchange) -> Response:
        """Tell a response again. Raises RefusalError for one that is not kept."""
        return json_response(self._kept.find(exchange.request.path_params["name"]).resource)

    async def delete(self, exchange: Exchange) -> Response:
        """Forget a response. Raises RefusalError for one that is not kept."""
        name = exchange.request.path_params["name"]
        self._kept.remove(name)
        return json_response({"id": name, "object": "response.deleted", "deleted": True})

    async def compact(self, exchange: Exchange) -> Response:
        """Refuse to compact a conversation."""
        raise RefusalError(
            f"{exchange.request.url.path}: edgemoe compacts no conversations.", "Ask for a summary.", 404, "unsupported"
        )

    def _before(self, fields: Fields) -> list[Message]:
        """The conversation that a request continues; none where it names no response."""
        name = fields.text("previous_response_id")
        return [] if name is None else list(self._kept.find(name, "previous_response_id").messages)


async def _effort(fields: Fields, service: Service) -> dict[str, Any]:
    reasoning = fields.object("reasoning")
    return await effort_variable(None if reasoning is None else reasoning.text("effort"), fields, service)


def _check(fields: Fields) -> None:
    """Raise RefusalError for known fields that cannot be honoured."""
    fields.ignore(*WITHOUT_EFFECT)
    for name, why in UNSUPPORTED.items():
        fields.refuse(name, why, (0,))
    fields.refuse("truncation", "a conversation that does not fit is refused, never cut", ("disabled",))
    options = fields.object("stream_options")
    if options is not None:
        options.ignore("include_obfuscation")


def _answer(whole: Whole) -> dict[str, Any]:
    """An answer as a message of the conversation that goes on."""
    made: dict[str, Any] = {"role": "assistant", "content": whole.text}
    if whole.thought:
        made["reasoning_content"] = whole.thought
    calls = [
        earlier_call(whole.call_id(place), one.name, call_arguments(one.arguments, "arguments"))
        for place, one in enumerate(whole.calls)
    ]
    return {**made, "tool_calls": calls} if calls else made


def _conversation(fields: Fields, before: list[Message]) -> Conversation:
    """The conversation: instructions, what was said before, and the input. An empty input is a probe."""
    items = items_as_messages(fields.any("input"))
    found = [*before, *messages_of(items, "input")] or [{"role": "user", "content": ""}]
    if instructions := fields.text("instructions"):
        found.insert(0, {"role": "system", "content": instructions})
    while len(found) > 1 and found[0]["role"] == found[1]["role"] == "system":  # templates know one
        first, second = found[:2]
        found[:2] = [{"role": "system", "content": f"{first['content']}\n\n{second['content']}"}]
    return Conversation.of(found)


def _without_instructions(conversation: Conversation, fields: Fields) -> list[Message]:
    """The messages to keep: the instructions of one response are not those of the next."""
    kept = list(conversation.messages)
    instructions = fields.text("instructions")
    if instructions and kept[0]["role"] == "system":
        rest = kept[0]["content"].removeprefix(instructions).removeprefix("\n\n")
        kept[:1] = [{"role": "system", "content": rest}] if rest else []
    return kept


class _Form:
    """Makes the objects of one response."""

    def __init__(self, exchange: Exchange, fields: Fields, settings: AnswerSettings, items: Items) -> None:
        self.id = f"resp_{exchange.id}"
        self.items = items
        text = fields.object("text")
        wanted = None if text is None else text.any("format")
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
            "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
            "presence_penalty": sampling.presence_penalty,
            "previous_response_id": fields.text("previous_response_id"),
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": fields.flag("store", True),
            "temperature": sampling.temperature,
            "text": {"format": wanted or {"type": "text"}},
            "tool_choice": fields.any("tool_choice") or "auto",
            "tools": [_tool(one) for one in fields.any("tools") or ()],
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
        """The response at its end, whose items have been ended."""
        status = status_of(whole)
        return {
            **self.begun(),
            "status": status,
            "completed_at": int(time.time()),
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "output": self.items.done,
            "usage": _usage(whole.finished.figures),
        }

    def failed(self, refusal: RefusalError) -> dict[str, Any]:
        """The response that an error has ended."""
        error = {"code": refusal.code or "server_error", "message": str(refusal)}
        return {**self.begun(), "status": "failed", "error": error}


def status_of(whole: Whole) -> str:
    """Whether an answer came to its own end."""
    return "completed" if whole.finished.reason == "stop" else "incomplete"


def _tool(tool: Any) -> Any:
    """A tool as it is told back, with the fields that are there in any case."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def _usage(figures: Figures) -> dict[str, Any]:
    return {
        "input_tokens": figures.prompt_tokens,
        "input_tokens_details": {"cached_tokens": figures.cached_tokens},
        "output_tokens": figures.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": figures.thought_tokens},
        "total_tokens": figures.prompt_tokens + figures.generated_tokens,
    }


@dataclass(frozen=True)
class _Extras:
    """The things that a stream tells beside OpenAI's events, in llama-server's words."""

    progress: bool
    timings: bool

    def times(self, figures: Figures | None) -> dict[str, Any]:
        """Times and counts up to an event."""
        return {"timings": timings(figures)} if self.timings and figures is not None else {}


class _Numbered:
    """Events with their numbers."""

    def __init__(self) -> None:
        self._number = -1

    def event(self, name: str, /, **more: Any) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number, **more}, name)


async def _events(answers: Answers, form: _Form, keep: Any, extras: _Extras) -> AsyncGenerator[bytes, None]:
    """The stream: the response, its items and their parts are begun, grow, and are ended, each by an event."""
    numbered, whole = _Numbered(), answers.wholes[0]
    yield numbered.event("response.created", response=form.begun())
    yield numbered.event("response.in_progress", response=form.begun())
    try:
        async with answers:
            async for _, one in answers.events():
                told: list[Told] = []
                if isinstance(one, Piece):
                    told = [event for part in one.parts for event in form.items.add(part)]
                    told = [(name, {**more, **extras.times(one.figures)}) for name, more in told]
                elif isinstance(one, Progress) and extras.progress:
                    progress = {"total": one.total, "cache": one.cached, "processed": one.processed}
                    more = {"prompt_progress": progress, **extras.times(one.figures)}
                    told = [("response.in_progress", {"response": form.begun(), **more})]
                elif isinstance(one, Finished):
                    told = form.items.finish(status_of(whole))
                for name, more in told:
                    yield numbered.event(name, **more)
        keep(whole)
        more = extras.times(whole.finished.figures)
        yield numbered.event(f"response.{status_of(whole)}", response=form.resource(whole), **more)
    except Exception as error:
        yield numbered.event("response.failed", response=form.failed(refusal_of(error)))
