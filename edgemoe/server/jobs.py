"""A job: one answer that the engine thread is asked for, and the events by which it reports how that goes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgemoe.errors import EdgemoeError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.continuation import FinishReason
from edgemoe.session.logprobs import TokenLogprobs


class QueueFullError(EdgemoeError):
    """A job that was refused because as many are waiting as may."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"the queue is full: {waiting} answers are waiting.", "Ask again in a moment.")


class StoppingError(EdgemoeError):
    """A job that ends, or does not begin, because the server is being stopped."""

    def __init__(self) -> None:
        super().__init__("the server is stopping.", "Ask again when it has been started again.")


@dataclass(frozen=True)
class Progress:
    """How far the prompt has come, in tokens."""

    total: int
    cached: int
    """Tokens at its beginning that were computed before, for this or another prompt."""
    processed: int
    """Tokens that are done, those included."""


@dataclass(frozen=True)
class Piece:
    """A token, with the text that has become certain with it, if any; the last text comes without a token."""

    text: str
    """Text that is said to the person."""
    thought: str = ""
    """Text that the model says to itself or to a tool, in channels of their own."""
    token: int | None = None
    logprobs: TokenLogprobs | None = None


@dataclass
class Figures:
    """Counts and times of one answer."""

    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_s: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0
    """Steps after the first token, which comes out of the prompt's logits."""
    step_tokens: int = 0
    """Tokens of all steps in which this answer took part, those of other answers included."""
    expert_hits: int = 0
    expert_misses: int = 0
    disk_bytes: int = 0
    """The last three are those of the same steps."""


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    stop_text: str | None
    figures: Figures


@dataclass(frozen=True)
class Failed:
    """The end of an answer by an error."""

    error: Exception


Event = Progress | Piece | Finished | Failed
"""Events of a job: any number of the first two, then one of the others; none after it was cancelled."""


@dataclass(eq=False)
class Job:
    """One answer to one prompt. `report` is called on the engine thread, and must return at once."""

    prompt_ids: Sequence[int]
    options: SamplingOptions
    max_tokens: int | None
    report: Callable[[Event], None]
    top_logprobs: int | None = None
    """How many likeliest tokens to name beside each token; None: no logprobs."""
    name: str = ""
    """The id of the request."""
    number: int = field(default_factory=itertools.count(1).__next__, init=False)
    """The number by which the watch names the answer."""
    cancelled: bool = field(default=False, init=False)
    """Set from any thread once nobody wants the answer any more."""
