"""The continuation of a prompt: its tokens and their text, one token at a time, until something ends it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.channels import ChannelTexts, texts_of
from edgemoe.session.logprobs import LogprobReader, TokenLogprobs
from edgemoe.session.sampler import Sampler
from edgemoe.session.stop_texts import StopTexts
from edgemoe.session.tokenizer import Tokenizer, check_token_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgemoe.session.constraint import Constraint

FinishReason = Literal["stop", "length", "context", "interrupted"]


class Continuation:
    """The tokens and the text so far. It knows no engine: logits go in, tokens and pieces of text come out.

    finish_reason: `stop` (the model ended its answer, or a stop text appeared), `length` (max_tokens reached),
    `context` (no room left), `interrupted` (stopped from outside), or None where the next token is to be chosen.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int],
        options: SamplingOptions,
        max_tokens: int | None = None,
        context_length: int = sys.maxsize,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        spelled: bool = False,
    ) -> None:
        """`before`: the ids before the answer; `top_logprobs`: how many likeliest tokens to name, None for no logprobs.

        `constraint` says which tokens may come; `spelled`: the text has special tokens by their names.
        Raises UsageError for a bias of a token that the model does not have, StoreError for stop texts where the model
        has no tokenizer.
        """
        check_token_ids(list(dict(options.logit_bias)), tokenizer.vocabulary)
        self.token_ids: list[int] = []
        """The chosen tokens, without the one that ended the answer."""
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprobs] = []
        """The logprobs of `token_ids`, where they were asked for."""
        self._stop_ids = tokenizer.stop_ids | _special_ids(options.stop, tokenizer)
        self._stop_texts = StopTexts(options.stop)
        self._sampler = Sampler(options, before, self._stop_ids)
        self._texts = texts_of(tokenizer, before, spelled)
        self._constraint = constraint
        self._most = sys.maxsize if max_tokens is None else max_tokens
        self._room = context_length - len(before) + 1  # the last token need not be run
        self._top_logprobs = top_logprobs
        self._next: list[int] = []
        """Tokens that come next, whatever the logits say."""

    @property
    def stop_text(self) -> str | None:
        """The stop text that ended the answer, if one did."""
        return self._stop_texts.first

    @property
    def left(self) -> int:
        """How many tokens may still be chosen."""
        return min(self._most, self._room) - len(self.token_ids)

    @property
    def final_start(self) -> int | None:
        """The place in `text` at which what is said to the person begins; None while all of it are thoughts."""
        return self._texts.final_start if isinstance(self._texts, ChannelTexts) else 0

    def force(self, token_ids: Sequence[int]) -> bool:
        """Let these tokens come next, whatever the logits say. False where the answer's structure forbids it."""
        if self._constraint is not None and not self._constraint.allows(token_ids):
            return False
        self._next += token_ids
        return True

    def choose(self, logits: npt.NDArray[np.float32]) -> int | None:
        """The next token, whose text `take` gives; None where it ends the answer.

        Shapes: logits `(V,)`, which penalties change in place. Raises UsageError where the options leave no token.
        """
        reader = None if self._top_logprobs is None else LogprobReader(logits, self._top_logprobs)
        constraint, token = self._constraint, self._forced
        if token is not None:
            self._sampler.add(token)
        else:
            if constraint is not None:
                constraint.apply(logits)
            token = self._sampler.sample(logits)
        if token in self._stop_ids:
            self.finish_reason = "stop"
            return None
        self._chosen(token)
        if reader is not None:
            self.logprobs.append(reader.of(token))
        return token

    def forced(self) -> int | None:
        """The next token, where it needs no logits, since there is no choice; `take` gives its text."""
        if self._top_logprobs is not None or self.finish_reason is not None:
            return None
        token = self._forced
        if token is None or token in self._stop_ids:
            return None
        self._sampler.add(token)
        self._chosen(token)
        return token

    @property
    def _forced(self) -> int | None:
        if self._next:
            return self._next[0]
        return None if self._constraint is None else self._constraint.forced

    def _chosen(self, token: int) -> None:
        self.token_ids.append(token)
        del self._next[:1]
        if self._constraint is not None:
            self._constraint.add(token)

    def take(self, token: int) -> str:
        """The text that has become certain with a chosen token; may be empty."""
        piece = self._stop_texts.push(self._texts.push(token))
        if self._stop_texts.first is not None or (self._constraint is not None and self._constraint.ended):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._most:
            self.finish_reason = "length"
        elif len(self.token_ids) >= self._room:
            self.finish_reason = "context"
        self.text += piece
        return piece

    def finish(self) -> str:
        """The text that was held back, once no token follows."""
        piece = self._stop_texts.push(self._texts.finish()) + self._stop_texts.finish()
        self.text += piece
        return piece


def _special_ids(texts: Sequence[str], tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens among stop texts: they produce no text in which they could be found."""
    found: set[int] = set()
    for text in texts:
        ids = tokenizer.encode(text)
        if len(ids) == 1 and not tokenizer.decode(ids):
            found.add(ids[0])
    return frozenset(found)
