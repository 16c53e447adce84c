"""A job: one answer that the engine thread is asked for, and the events by which it reports how that goes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.constraint import Constraint
from edgemoe.session.continuation import FinishReason
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.response.parts import Part, Said, Thought
from edgemoe.session.response.reader import ResponseReader
from edgemoe.session.tools import ThoughtBudget


class QueueFullError(EdgemoeError):
    """A job that was refused because as many are waiting as may."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"the queue is full: {waiting} answers are waiting.", "Ask again in a moment.")


class StoppingError(EdgemoeError):
    """A job that ends, or does not begin, because the server is being stopped."""

    def __init__(self) -> None:
        super().__init__("the server is stopping.", "Ask again when it has been started again.")


@dataclass
class Figures:
    """Counts and times of one answer."""

    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    thought_tokens: int = 0
    """Tokens of thoughts among them, with the markers around these."""
    queue_s: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    decode_tokens: int = 0
    """Tokens that were run after the prompt: the first one comes out of the prompt's logits. Drafts count if chosen."""
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    """Drafted tokens that were chosen."""
    step_tokens: int = 0
    """Tokens of all steps in which this answer took part, those of other answers included."""
    expert_hits: int = 0
    expert_misses: int = 0
    disk_bytes: int = 0
    """The last three are those of the same steps."""


@dataclass(frozen=True)
class Progress:
    """How far the prompt has come, in tokens."""

    total: int
    cached: int
    """Tokens at its beginning that were computed before, for this or another prompt."""
    processed: int
    """Tokens that are done, those included."""
    figures: Figures
    """Counts and times up to here."""


@dataclass(frozen=True)
class Piece:
    """A token, with the parts of the answer that have become certain with it; the last parts come without a token."""

    parts: Sequence[Part]
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    figures: Figures | None = None
    """Counts and times up to here, of a token; None where the job is not `timed`."""

    @property
    def text(self) -> str:
        """Text that is said to the person."""
        return "".join(part.text for part in self.parts if isinstance(part, Said))

    @property
    def thought(self) -> str:
        """Text that the model says to itself, or to a tool in a channel of its own."""
        return "".join(part.text for part in self.parts if isinstance(part, Thought))


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
    reader: ResponseReader | None = None
    """Takes the answer apart; without one it is text, but for channels."""
    constraint: Constraint | None = None
    """Says which tokens may come."""
    name: str = ""
    """The id of the request."""
    thoughts: ThoughtBudget | None = None
    """How many tokens the answer may think."""
    timed: bool = False
    """Whether each token is to come with the counts and times up to it."""
    number: int = field(default_factory=itertools.count(1).__next__, init=False)
    """The number by which the watch names the answer."""
    cancelled: bool = field(default=False, init=False)
    """Set from any thread once nobody wants the answer any more."""

    @cached_property
    def id_array(self) -> npt.NDArray[np.int32]:
        """The prompt's ids, to be compared with those of others."""
        return np.asarray(self.prompt_ids, np.int32)
