"""The time that a prompt will take, told as soon as its first layers have shown it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_SHARE, SECOND_SHARE = 1 / 20, 1 / 10
"""The shares of a prompt between which it is timed: in the first layers, memory is first touched and kernels of Numba
are compiled."""
LONG_SECONDS = 5.0
"""A prompt that takes less is over before anybody wonders."""


@dataclass(frozen=True)
class PromptEstimate:
    """The time of a prompt, from its beginning to the first token of the answer."""

    tokens: int
    """The prompt's new tokens, which are run."""
    seconds: float


class PromptClock:
    """Estimates the time of a prompt from the share that has been run, and tells a listener once if it is long."""

    def __init__(self, tokens: int, listener: Callable[[PromptEstimate], None]) -> None:
        self._tokens = tokens
        self._listener: Callable[[PromptEstimate], None] | None = listener
        self._began_s = time.perf_counter()
        self._first: tuple[float, float] | None = None

    def passed(self, tokens: float) -> None:
        """Note that so many tokens have been run; a part of a run counts as a part of its tokens."""
        if self._listener is None or tokens < self._tokens * FIRST_SHARE:
            return
        now_s = time.perf_counter()
        if self._first is None:
            self._first = tokens, now_s
            return
        first_tokens, first_s = self._first
        if tokens < self._tokens * SECOND_SHARE or tokens <= first_tokens:
            return
        left_s = (now_s - first_s) / (tokens - first_tokens) * (self._tokens - tokens)
        seconds = now_s - self._began_s + left_s
        listener, self._listener = self._listener, None
        if seconds >= LONG_SECONDS:
            listener(PromptEstimate(self._tokens, seconds))
