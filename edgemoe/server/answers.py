"""The answers to one request, as they come from the engine thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edgemoe.server.engine_thread import EngineThread
from edgemoe.server.jobs import Event, Failed, Figures, Finished, Job, Piece
from edgemoe.server.settings import AnswerSettings
from edgemoe.session.logprobs import TokenLogprobs


class Answers:
    """The answers to one request: the events of all its jobs as they come, each with the number of its job.

    Use it in an `async with`: its end cancels what is still running.
    """

    def __init__(self, engine: EngineThread, prompts: Sequence[Sequence[int]], settings: AnswerSettings) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, Event]] = deque()
        self._told = False
        """Whether the event loop knows of events that have arrived: it is woken once for several."""
        self._wake = asyncio.Event()
        self.jobs = [
            Job(
                ids,
                settings.sampling.of_answer(choice),
                settings.max_tokens,
                self._reporter(number),
                settings.top_logprobs,
                settings.request_id,
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
                self._wake.clear()
                await self._wake.wait()
            number, event = self._arrived.popleft()
            if isinstance(event, Failed):
                raise event.error
            left -= isinstance(event, Finished)
            yield number, event

    def _reporter(self, number: int) -> Callable[[Event], None]:
        def report(event: Event) -> None:
            self._arrived.append((number, event))
            if not self._told:
                self._told = True
                with suppress(RuntimeError):  # the loop is closed: nobody hears it any more
                    self._loop.call_soon_threadsafe(self._notice)

        return report

    def _notice(self) -> None:
        self._told = False  # before the events are taken: one that arrives meanwhile tells again
        self._wake.set()


@dataclass
class Whole:
    """A whole answer."""

    text: str = ""
    thought: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | None = None

    def add(self, event: Event) -> None:
        """Add what an event brings."""
        if isinstance(event, Piece):
            self.text += event.text
            self.thought += event.thought
            if event.token is not None:
                self.token_ids.append(event.token)
            if event.logprobs is not None:
                self.logprobs.append(event.logprobs)
        elif isinstance(event, Finished):
            self.end = event

    @property
    def finished(self) -> Finished:
        """The end of an answer that has come to it."""
        assert self.end is not None
        return self.end


async def gathered(answers: Answers) -> list[Whole]:
    """The whole answers, in the order of their jobs."""
    wholes = [Whole() for _ in answers.jobs]
    async with answers:
        async for number, event in answers.events():
            wholes[number].add(event)
    return wholes


def timings(figures: Figures) -> dict[str, Any]:
    """Times and counts of an answer, by the names that llama-server gave them; null where nothing was measured.

    `expert_hit_rate` and `disk_bytes_per_token` are those of the steps in which the answer took part: experts are read
    for all sequences of a step at once.
    """
    prompt_n = figures.prompt_tokens - figures.cached_tokens
    decoded = figures.decode_steps
    experts = figures.expert_hits + figures.expert_misses
    return {
        "cache_n": figures.cached_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": _ms(figures.prompt_s),
        "prompt_per_token_ms": _ms(figures.prompt_s / prompt_n) if prompt_n else None,
        "prompt_per_second": round(prompt_n / figures.prompt_s, 3) if figures.prompt_s > 0 else None,
        "predicted_n": figures.generated_tokens,
        "predicted_ms": _ms(figures.decode_s),
        "predicted_per_token_ms": _ms(figures.decode_s / decoded) if decoded else None,
        "predicted_per_second": round(decoded / figures.decode_s, 3) if decoded and figures.decode_s > 0 else None,
        "queue_ms": _ms(figures.queue_s),
        "expert_hit_rate": round(figures.expert_hits / experts, 4) if experts else None,
        "disk_bytes_per_token": round(figures.disk_bytes / figures.step_tokens) if figures.step_tokens else None,
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
