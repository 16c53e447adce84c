"""Drafts: guesses at the next tokens of a text, from what followed the same tokens earlier in it.

Answers often repeat their prompt (code that is edited, quotations, names, lists) or themselves. The guess is what stood
after the latest place at which the text's last tokens stood before, compared over as many as `MOST_MATCHED` tokens: the
longer the two places agree, the likelier they go on alike. A draft never decides a token, it only lets several be run
at once; so any text would be right here, and a good one is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

MOST_MATCHED = 8
LEAST_MATCHED = 2
MOST_PLACES = 16
"""Places that are compared, of those at which the last token stood before: the latest ones."""


class Draft(NamedTuple):
    """A guess at the next tokens, and how many tokens before them agree with the place from which it was taken."""

    token_ids: list[int]
    matched: int


NO_DRAFT = Draft([], 0)


class Offer(NamedTuple):
    """How many tokens can be guessed, and how far the guess can be trusted: `matched`, or `BY_MODEL` of the gate."""

    tokens: int
    matched: int


NO_OFFER = Offer(0, 0)


class Guesses(Protocol):
    """A source of drafts for one text."""

    def add(self, token: int) -> None:
        """Append a token to the text."""

    def offer(self, most: int) -> Offer:
        """How many tokens can be guessed, of `most`; costs nothing that is worth measuring."""

    def take(self, count: int) -> list[int]:
        """Guess so many tokens of those that were offered, or fewer."""

    @property
    def unread_tokens(self) -> int:
        """How many tokens it has to read in steps of their own before it can guess."""

    def read_all(self, stopped: Callable[[], bool]) -> None:
        """Read the text so far, unless `stopped` says that nobody wants it any more."""

    def end(self) -> None:
        """Give back what it holds. Ending it twice is harmless."""


class Drafts:
    """The tokens of one text, to guess what follows them."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._ids = np.empty(max(256, 2 * len(token_ids)), np.int32)
        self._ids[: len(token_ids)] = token_ids
        self._length = len(token_ids)
        self._offered = NO_DRAFT

    def add(self, token: int) -> None:
        """Append a token."""
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[self._length] = token
        self._length += 1

    def offer(self, most: int) -> Offer:
        """How many tokens `draft` guesses now."""
        self._offered = self.draft(most)
        return Offer(len(self._offered.token_ids), self._offered.matched)

    def take(self, count: int) -> list[int]:
        """The first of the tokens that were offered."""
        return self._offered.token_ids[:count]

    @property
    def unread_tokens(self) -> int:
        return 0

    def read_all(self, stopped: Callable[[], bool]) -> None:
        """Nothing needs to be read."""

    def end(self) -> None:
        """Nothing needs to be given back."""

    def draft(self, most: int) -> Draft:
        """A guess at up to `most` next tokens; none where the last tokens have not stood together before."""
        length = self._length
        if most < 1 or length <= LEAST_MATCHED:
            return NO_DRAFT
        ids = self._ids[:length]
        places = np.flatnonzero(ids[:-1] == ids[-1])[-MOST_PLACES:]
        best, matched = -1, LEAST_MATCHED - 1
        for place in places[::-1].tolist():
            agree = 1
            while agree < MOST_MATCHED and agree <= place and ids[place - agree] == ids[length - 1 - agree]:
                agree += 1
            if agree > matched:
                best, matched = place, agree
                if agree == MOST_MATCHED:
                    break
        if best < 0:
            return NO_DRAFT
        period = length - 1 - best  # a text that goes on beyond its end repeats what it repeated last
        return Draft([int(ids[best + 1 + number % period]) for number in range(most)], matched)
