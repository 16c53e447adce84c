"""The time of a prompt, corrected as soon as its first layers have shown it."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgemoe.engine.prompt_times import LONG_SECONDS, PromptEstimate

FIRST_SHARE, SECOND_SHARE = 1 / 20, 1 / 10
"""The shares of a prompt between which it is timed: in the first layers, memory is first touched and kernels of Numba
are compiled."""
TOLERANCE = 1.25
"""A time that was told before the prompt is not told again where it is within this factor of what is found."""


class PromptClock:
    """Times a prompt by the share that has been run; tells a listener if it is long, unless that has been told."""

    def __init__(self, tokens: int, told: PromptEstimate | None, listener: Callable[[PromptEstimate], None]) -> None:
        """`told` is what the listener knows already."""
        self._tokens = tokens
        self._told = told
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
        if seconds >= LONG_SECONDS and not self._was_told(seconds):
            listener(PromptEstimate.about(self._tokens, seconds))

    def _was_told(self, seconds: float) -> bool:
        told = self._told
        return told is not None and told.least_seconds / TOLERANCE <= seconds <= told.most_seconds * TOLERANCE
