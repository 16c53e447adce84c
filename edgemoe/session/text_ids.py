"""A text as token ids, and the tokens that a tokenizer puts before every text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.session.tokenizer import Tokenizer

LIKELY_TOKEN_CHARACTERS = 4
"""A token has about four characters in most languages."""
SPARE_TOKENS = 16
"""Where a text was cut, as many tokens at its end may be others than those of the whole text."""


@dataclass(frozen=True)
class TextIds:
    """The ids of a text, and those that the tokenizer puts before it."""

    ids: npt.NDArray[np.int32]
    head: tuple[int, ...] = ()
    whole: bool = True
    """Whether the text has no more tokens."""

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, tokens: int) -> TextIds:
        """The ids of the first `tokens` tokens of a text, of which special tokens are text too.

        Of a long text not much more than these is looked at, since the library takes 600 bytes for each token.
        Raises UsageError as the tokenizer does.
        """
        characters = (tokens + SPARE_TOKENS) * LIKELY_TOKEN_CHARACTERS
        while True:
            ids = tokenizer.encode(text[:characters], literal=True)
            if characters >= len(text) or len(ids) >= tokens + SPARE_TOKENS:
                whole = characters >= len(text) and len(ids) <= tokens
                return cls(np.array(ids[:tokens], np.int32), head_of(tokenizer), whole)
            characters += characters // 2


def head_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before a text."""
    return ends_of(tokenizer)[0]


def ends_of(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that a tokenizer puts before a text, and those that it puts behind it."""
    some = tokenizer.encode("a")
    marked = tokenizer.encode("a", special_tokens=True)
    starts = [start for start in range(len(marked)) if marked[start : start + len(some)] == some]
    return (tuple(marked[: starts[0]]), tuple(marked[starts[0] + len(some) :])) if starts else ((), ())
