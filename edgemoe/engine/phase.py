"""The place of a token in a conversation: its turn, whether it is of prompt or answer, and its number there."""

from __future__ import annotations

from dataclasses import dataclass

from edgemoe.kernels import paging

PROMPT, DECODE, VERIFY = paging.PROMPT, paging.DECODE, paging.VERIFY
"""Phases: tokens of a prompt, generated ones, and guessed ones that are verified."""


@dataclass
class Turn:
    """The turn, phase and step of the next token: see the columns of `Trace`."""

    number: int = 0
    phase: int = PROMPT
    step: int = 0

    def begin(self) -> None:
        """Begin a prompt: that of the next turn, unless the current turn has no tokens yet."""
        if self.step:
            self.number += 1
            self.step = 0
        self.phase = PROMPT

    def begin_decoding(self) -> None:
        """Begin the answer: the tokens that follow are generated."""
        self.phase = DECODE
