"""Decides by trial whether prefetching pays, since no rule holds for every disk, model and budget.

Where the disk is the limit, a wrong guess delays a demand read; where it is idle, a right one saves a wait. So tokens
with and without prefetched reads are timed in turn, and the faster way is kept for a while. Sequences that decode
together have a trial for each number of them: with their number grow the experts of a run and those that guesses name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgemoe.errors import UsageError

PREFETCH_MODES = ("auto", "on", "off")
"""Prefetch by trial, always, or never."""

WARM_UP_TOKENS = 16
"""Tokens before the first trial; while the cache fills their times are not typical."""
BLOCK_TOKENS = 4
TRIAL_BLOCKS = 8
"""Blocks of tokens in a trial, alternately with and without prefetched reads."""
HOLD_TOKENS = (256, 4096)
"""Tokens for which a verdict holds: at first, and at most; doubled each time that the verdict is the same."""
LEAST_GAIN = 0.01
"""Prefetching is kept where it saves at least this share of a token's time, and more than the scatter of the times,
which vary with the experts that tokens miss. Where the difference is smaller, useless reads are avoided."""


class PrefetchTrial:
    """A switch that is open while prefetched reads pay. `record` takes the time of every decoded token."""

    def __init__(self, mode: str = "auto") -> None:
        """Raises UsageError for a mode that is not in `PREFETCH_MODES`."""
        if mode not in PREFETCH_MODES:
            raise UsageError(f"prefetch: expected {', '.join(PREFETCH_MODES)}, found {mode!r}.", "Leave it out.")
        self.mode = mode
        self._left = WARM_UP_TOKENS
        self._hold_tokens = HOLD_TOKENS[0]
        self._verdict = False
        self._trial: list[list[int]] | None = None  # times of tokens without and with prefetched reads

    @property
    def open(self) -> bool:
        """Whether reads may be prefetched for the next token."""
        if self.mode != "auto":
            return self.mode == "on"
        if self._trial is None:
            return self._verdict
        return self._block() % 2 == 1

    @property
    def trying(self) -> bool:
        """Whether a trial is under way."""
        return self._trial is not None

    @property
    def verdict(self) -> bool:
        """Whether prefetch paid in the latest trial."""
        return self._verdict

    def record(self, token_ns: int) -> None:
        """Take in the time of a decoded token, in nanoseconds, with prefetched reads if the switch was open."""
        if self.mode != "auto":
            return
        if self._trial is None:
            self._left -= 1
            if self._left <= 0:
                self._trial = [[], []]
            return
        self._trial[self.open].append(token_ns)
        if self._block() == TRIAL_BLOCKS:
            self._decide(*self._trial)

    def _block(self) -> int:
        assert self._trial is not None
        return (len(self._trial[0]) + len(self._trial[1])) // BLOCK_TOKENS

    def _decide(self, without_ns: list[int], with_ns: list[int]) -> None:
        usual_ns = float(np.median(without_ns))
        gain_ns = usual_ns - float(np.median(with_ns))
        scatter_ns = math.hypot(_standard_error(without_ns), _standard_error(with_ns))
        pays = gain_ns >= max(LEAST_GAIN * usual_ns, scatter_ns)
        again = pays == self._verdict
        self._hold_tokens = min(2 * self._hold_tokens, HOLD_TOKENS[1]) if again else HOLD_TOKENS[0]
        self._left = self._hold_tokens
        self._verdict = pays
        self._trial = None


def _standard_error(times_ns: Sequence[int]) -> float:
    """Standard error of the median for normal times, estimated from the median absolute deviation (outliers)."""
    deviation = 1.4826 * float(np.median(np.abs(np.asarray(times_ns) - np.median(times_ns))))
    return deviation * math.sqrt(math.pi / 2 / len(times_ns))


def record_in_turn(trials: Sequence[PrefetchTrial], token_ns: int) -> None:
    """Give the time of a token to trials that must not be under way together, as each changes what the others measure.

    One that is under way has the time alone; otherwise all take it, up to the first that begins.
    """
    under_way = [one for one in trials if one.trying]
    for one in under_way[:1] or trials:
        one.record(token_ns)
        if one.trying:
            return
