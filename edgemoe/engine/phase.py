"""Where in a conversation a token belongs: which prompt or answer, and which of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

PROMPT, DECODE = 0, 1
"""Phases: tokens of a prompt, and generated ones."""


@dataclass
class Turn:
    """Where the tokens that follow belong: see the columns of `Trace`."""

    number: int = 0
    phase: int = PROMPT
    step: int = 0

    def begin(self) -> None:
        """What follows is a prompt: of the next turn, unless this one has no tokens yet."""
        if self.step:
            self.number += 1
            self.step = 0
        self.phase = PROMPT

    def begin_decoding(self) -> None:
        """What follows was generated."""
        self.phase = DECODE
