"""The time that a prompt will take, told as soon as its first layers have shown it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_SHARE = 1 / 20
"""The share of a prompt that must have been run: what its first layers take says less of all than a few more do."""
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

    def passed(self, tokens: float) -> None:
        """Note that so many tokens have been run; a part of a run counts as a part of its tokens."""
        if self._listener is None or tokens < self._tokens * LEAST_SHARE:
            return
        seconds = (time.perf_counter() - self._began_s) * self._tokens / tokens
        listener, self._listener = self._listener, None
        if seconds >= LONG_SECONDS:
            listener(PromptEstimate(self._tokens, seconds))
