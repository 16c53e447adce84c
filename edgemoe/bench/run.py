"""Records which steps of a trace one run of a worker took its routing from.

The class has a file of its own because workers import it: the replay for its report imports Numba, whose libraries
would take the memory of some experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.lab.forced_routing import ForcedRouting


@dataclass(frozen=True)
class Run:
    """The steps of a trace that one run of a worker took: first step and number of steps in each phase."""

    prompt_first: int
    prompt_tokens: int
    continuation_first: int
    continuation_tokens: int

    @classmethod
    def next(cls, routing: ForcedRouting, prompt_tokens: int, continuation_tokens: int) -> Run:
        """The run that would begin at the present position of the trace."""
        return cls(routing.taken(PROMPT), prompt_tokens, routing.taken(DECODE), continuation_tokens)
