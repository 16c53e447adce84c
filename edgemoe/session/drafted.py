"""Decoding with drafts: the logits after each chosen token, several of which come from one run.

The tokens that are drafted (`drafts.py`, `draft_model.py`) are run behind the chosen one, and the logits after each row
are kept. As long as the tokens that are chosen from these are the drafted ones, the next logits are there already;
otherwise the rows of the other drafts are taken back. A token is always chosen from the logits after exactly the tokens
before it, which are the same to the bit in every cut, and each is chosen once: so the answer is that without drafts,
for every setting of the sampler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.session.draft_gate import DraftGate, StepCosts
from edgemoe.session.drafts import NO_DRAFT, Draft, Guesses
from edgemoe.session.held_tokens import HeldTokens, check_finite


class Drafted:
    """The logits of one answer, with drafts that the gate lets through."""

    def __init__(self, held: HeldTokens, costs: StepCosts, gate: DraftGate, guesses: Guesses, most: int) -> None:
        """`guesses`: those for the text so far; `most`: how many drafts there is memory for."""
        self._held = held
        self._gate, self._costs = gate, costs
        self._guesses = guesses
        self._most = most
        self._draft = NO_DRAFT
        self._right = 0
        self._rows = np.empty((1 + most, held.engine.spec.vocab_size), np.float32)
        """The logits after the chosen token, and after each draft."""
        self._ran = False
        self.drafting_ns = 0
        """The time in which tokens were guessed, and a draft model read the text."""

    def read(self, left: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Let what guesses read the text so far, if that may pay while at most `left` tokens follow.

        Ends early where `stopped` says that nobody wants the answer any more.
        """
        unread = self._guesses.unread_tokens
        if not unread or not self._gate.may_read(unread, left):
            return
        began_s = time.perf_counter()
        try:
            self._guesses.read_all(stopped)
        except EdgemoeError:  # a draft model must not fail what would succeed without it
            self._guesses.end()
        seconds = time.perf_counter() - began_s
        self.drafting_ns += int(1e9 * seconds)
        if read := unread - self._guesses.unread_tokens:
            self._gate.read(read, seconds)

    def begin(self, prompt_s: float, left: int, stopped: Callable[[], bool]) -> None:
        """As `read`, once the prompt has been read, which took so long."""
        self._gate.began(prompt_s)
        self.read(left, stopped)

    def after(self, token_ids: Sequence[int], left: int) -> npt.NDArray[np.float32]:
        """The logits after a chosen token and those that follow it without a choice `(V,)`, until the next call.


        At most `left` tokens may still follow them. Raises as `HeldTokens.forward`.
        """
        drafted, run = self._draft.token_ids, list(token_ids)
        for token in run:
            self._guesses.add(token)
        while run and self._right < len(drafted) and drafted[self._right] == run[0]:
            del run[0]
            self._right += 1
        if not run:
            return self._checked(self._rows[self._right])
        self.finish()
        if len(run) > 1:  # what leaves no choice is run at once already, in any number
            return self._held.forward(run, out=self._rows[0])
        offer = self._guesses.offer(min(self._most, left - 1, self._held.room - 1))
        self.read(left)
        count = 0 if self._guesses.unread_tokens else self._gate.drafts(offer.matched, offer.tokens)
        began_s = time.perf_counter()
        drafted = self._guesses.take(count)
        self.drafting_ns += int(1e9 * (time.perf_counter() - began_s))
        try:
            self._held.forward_unchecked([*run, *drafted], self._rows[: 1 + len(drafted)])
        except EdgemoeError:
            if not drafted:
                raise
            drafted = []  # a draft must not fail what would succeed without it
            self._held.forward_unchecked(run, self._rows[:1])
        self._costs.ran(1, len(drafted), time.perf_counter() - began_s)
        self._draft, self._right, self._ran = Draft(drafted, offer.matched), 0, True
        return self._checked(self._rows[0])

    def finish(self) -> None:
        """Take back the drafts that were not chosen."""
        drafted = len(self._draft.token_ids)
        if self._ran:
            self._gate.verified(self._draft.matched, drafted, self._right)
        self._held.take_back(drafted - self._right)
        self._draft, self._right, self._ran = NO_DRAFT, 0, False

    def _checked(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        try:
            check_finite(logits, self._held.engine.memory.kv_format)
        except EdgemoeError:
            self._held.take_back(len(self._draft.token_ids) - self._right + 1)
            self._draft = NO_DRAFT
            raise
        return logits
