"""The answers to one request, as they come from the engine thread to the event loop."""

from __future__ import annotations

import asyncio
import secrets
import string
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemoe.server.engine_thread import EngineThread
from edgemoe.server.jobs import Event, Failed, Figures, Finished, Job, Piece
from edgemoe.server.settings import AnswerSettings
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.response.parts import Call, Message
from edgemoe.session.response.replays import Replays

ID_CHARACTERS = string.ascii_letters + string.digits


class Answers:
    """The answers to one request: the events of all its jobs as they come, each with the number of its job.

    Use it in an `async with`: its end cancels what is still running.
    """

    def __init__(
        self,
        engine: EngineThread,
        prompts: Sequence[Sequence[int]],
        settings: AnswerSettings,
        replays: Replays | None = None,
    ) -> None:
        """`replays` keep answers with calls for later prompts."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, Event]] = deque()
        self._told = False
        """Whether the event loop knows of events that have arrived: it is woken once for several."""
        self._waiter: asyncio.Future[None] | None = None
        self.wholes = [Whole() for _ in range(len(prompts) * settings.choices)]
        """The answers as far as they have come."""
        self._chat = settings.chat
        self._replays = replays
        constraint = settings.constraint if settings.chat is None else settings.chat.constraint
        self.jobs = [
            Job(
                ids,
                settings.sampling.of_answer(choice),
                settings.max_tokens,
                self._reporter(number),
                settings.top_logprobs,
                None if settings.chat is None else settings.chat.reader(settings.stream),
                None if constraint is None else constraint.copy(),
                settings.request_id,
                None if settings.chat is None else settings.chat.budget(settings.thought_tokens),
                settings.timed,
            )
            for number, (ids, choice) in enumerate(
                (ids, choice) for ids in prompts for choice in range(settings.choices)
            )
        ]

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._engine.cancel(self.jobs)

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """All events, up to the end of the last answer. Raises the error of the first that fails."""
        left = len(self.jobs)
        while left:
            while not self._arrived:
                self._waiter = self._loop.create_future()
                await self._waiter
            number, event = self._arrived.popleft()
            if isinstance(event, Failed):
                raise event.error
            self.wholes[number].add(event)
            if isinstance(event, Finished):
                left -= 1
                self._keep(number)
            yield number, event

    def _keep(self, number: int) -> None:
        """Keep an answer with calls, so that it can stand in a later prompt as it was written."""
        whole, chat = self.wholes[number], self._chat
        if chat is not None and self._replays is not None and all(call.whole for call in whole.calls):
            names = [whole.call_id(place) for place in range(len(whole.calls))]
            self._replays.keep(names, chat.text, chat.before, chat.ids, whole.token_ids, whole.message)

    def _reporter(self, number: int) -> Callable[[Event], None]:
        def report(event: Event) -> None:
            self._arrived.append((number, event))
            if not self._told:
                self._told = True
                self._engine.notices.add(self._loop, self._notice)

        return report

    def _notice(self) -> None:
        self._told = False  # before the events are taken: one that arrives meanwhile tells again
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass
class Whole:
    """An answer as far as it has come."""

    message: Message = field(default_factory=Message)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | None = None
    _call_ids: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Add what an event brings."""
        if isinstance(event, Piece):
            self.message.add(event.parts)
            if event.token is not None:
                self.token_ids.append(event.token)
            if event.logprobs is not None:
                self.logprobs.append(event.logprobs)
        elif isinstance(event, Finished):
            self.end = event

    @property
    def text(self) -> str:
        return self.message.said

    @property
    def thought(self) -> str:
        return self.message.thought

    @property
    def calls(self) -> list[Call]:
        return self.message.calls

    def call_id(self, place: int) -> str:
        """The id of the call of a place: nine letters and digits, which all templates accept."""
        while len(self._call_ids) <= place:
            self._call_ids.append("".join(secrets.choice(ID_CHARACTERS) for _ in range(9)))
        return self._call_ids[place]

    @property
    def calls_tools(self) -> bool:
        """Whether the answer ends with calls, whose results are awaited."""
        return bool(self.calls) and self.end is not None and self.end.reason == "stop"

    @property
    def finished(self) -> Finished:
        """The end of an answer that has come to it."""
        assert self.end is not None
        return self.end


async def gathered(answers: Answers) -> list[Whole]:
    """The whole answers, in the order of their jobs."""
    async with answers:
        async for _ in answers.events():
            pass
    return answers.wholes


def timings(figures: Figures) -> dict[str, Any]:
    """Times and counts of an answer, by the names that llama-server gave them; 0 where nothing was measured.

    `expert_hit_rate` and `disk_bytes_per_token` are those of the steps in which the answer took part: experts are read
    for all sequences of a step at once. A model whose experts are all in RAM has none.
    """
    prompt_n = figures.prompt_tokens - figures.cached_tokens
    decoded = figures.decode_tokens
    experts = figures.expert_hits + figures.expert_misses
    found: dict[str, Any] = {
        "cache_n": figures.cached_tokens,
        "prompt_n": prompt_n if figures.prompt_s else 0,
        **_rates("prompt", figures.prompt_s, prompt_n),
        "predicted_n": figures.generated_tokens,
        **_rates("predicted", figures.decode_s, decoded),
        "queue_ms": 1000 * figures.queue_s,
    }
    if experts:
        found["expert_hit_rate"] = round(figures.expert_hits / experts, 4)
        found["disk_bytes_per_token"] = round(figures.disk_bytes / figures.step_tokens)
    return found


def _rates(name: str, seconds: float, count: int) -> dict[str, float]:
    """The time of something, and the rates in which it counted."""
    return {
        f"{name}_ms": 1000 * seconds,
        f"{name}_per_token_ms": 1000 * seconds / count if count else 0.0,
        f"{name}_per_second": count / seconds if seconds > 0 else 0.0,
    }
