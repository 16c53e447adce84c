"""Settings that change logits before a token is chosen: penalties, and tokens that may not come.

They act in the order of transformers (`_get_logits_processor`): bias, repetition penalty, no repeated n-grams, bad
words, least length, suppressed tokens, suppressed first tokens. Presence and frequency penalty, which it does not have,
come right after the repetition penalty. All act on greedy decoding too, and before temperature and filters.

A processor keeps the state that it needs of the text so far, updated with each token: the work of a step grows with
the number of different tokens in the text, and never with the vocabulary. Logits are changed in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.model.sampling import SamplingOptions

Logits = npt.NDArray[np.float32]

LARGEST = np.finfo(np.float32).max


class Processor(Protocol):
    """Applies one setting to the logits of an answer."""

    def apply(self, logits: Logits) -> None:
        """Change the logits of the next token, in place. Shapes: `(V,)`."""

    def add(self, token: int) -> None:
        """Update the state with the chosen token."""


def processors(options: SamplingOptions, prompt_ids: Sequence[int], stop_ids: Collection[int]) -> list[Processor]:
    """The processors of the enabled settings, in the order in which they act."""
    found: list[Processor] = []
    if options.logit_bias:
        found.append(LogitBias(options.logit_bias))
    if options.repetition_penalty != 1.0:
        found.append(RepetitionPenalty(options.repetition_penalty, prompt_ids))
    if options.presence_penalty or options.frequency_penalty:
        found.append(CountPenalty(options.presence_penalty, options.frequency_penalty))
    if options.no_repeat_ngram_size:
        found.append(NoRepeatedNgrams(options.no_repeat_ngram_size, prompt_ids))
    if options.bad_words_ids:
        found.append(BadWords(options.bad_words_ids, prompt_ids, stop_ids))
    least = max(options.min_length - len(prompt_ids), options.min_new_tokens)
    if least > 0:
        found.append(Suppressed(stop_ids, until=least))
    if options.suppress_tokens:
        found.append(Suppressed(options.suppress_tokens))
    if options.begin_suppress_tokens:
        found.append(Suppressed(options.begin_suppress_tokens, until=1))
    return found


class _Counts:
    """Different tokens, with how often each was added. `ids` and `counts` run side by side."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        counted = Counter(ids)
        self._places = {token: place for place, token in enumerate(counted)}
        self.ids = np.array(list(counted), np.int64)
        self.counts = np.array(list(counted.values()), np.float32)

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self.ids))
        if place == len(self.ids):
            self.ids = np.append(self.ids, token)
            self.counts = np.append(self.counts, np.float32(0))
        self.counts[place] += 1


class LogitBias:
    """Adds to the logits of some tokens (SequenceBiasLogitsProcessor, whose sequences are single tokens here)."""

    def __init__(self, biases: Mapping[int, float] | Sequence[tuple[int, float]]) -> None:
        by_id = dict(biases)
        self._ids = np.array(list(by_id), np.int64)
        self._biases = np.array(list(by_id.values()), np.float32)

    def apply(self, logits: Logits) -> None:
        logits[self._ids] += self._biases

    def add(self, token: int) -> None:
        """Nothing to update: the bias is the same for every token of an answer."""


class RepetitionPenalty:
    """Makes all tokens of prompt and answer less likely (RepetitionPenaltyLogitsProcessor)."""

    def __init__(self, penalty: float, prompt_ids: Sequence[int]) -> None:
        self._penalty = np.float32(penalty)
        self._seen = _Counts(prompt_ids)

    def apply(self, logits: Logits) -> None:
        found = logits[self._seen.ids]
        with np.errstate(over="ignore"):
            changed = np.where(found < 0, found * self._penalty, found / self._penalty)
        logits[self._seen.ids] = np.clip(changed, -LARGEST, LARGEST)  # only forbidden tokens are infinite

    def add(self, token: int) -> None:
        self._seen.add(token)


class CountPenalty:
    """Presence and frequency penalty, over the tokens of the answer (OpenAI's API reference)."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence, self._frequency = np.float32(presence), np.float32(frequency)
        self._seen = _Counts()

    def apply(self, logits: Logits) -> None:
        changed = logits[self._seen.ids] - self._frequency * self._seen.counts
        logits[self._seen.ids] = changed - self._presence

    def add(self, token: int) -> None:
        self._seen.add(token)


class NoRepeatedNgrams:
    """Forbids the tokens that would complete a run of `size` tokens a second time (NoRepeatNGramLogitsProcessor)."""

    def __init__(self, size: int, prompt_ids: Sequence[int]) -> None:
        self._size = size
        self._last: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], set[int]] = {}
        for token in prompt_ids:
            self.add(token)

    def apply(self, logits: Logits) -> None:
        _forbid(logits, self._followers.get(self._last, ()))

    def add(self, token: int) -> None:
        if len(self._last) == self._size - 1:
            self._followers.setdefault(self._last, set()).add(token)
            self._last = self._last[1:]
        self._last = (*self._last, token)[: self._size - 1]


class BadWords:
    """Forbids the last token of each run where the others of it have just come (NoBadWordsLogitsProcessor)."""

    def __init__(self, words: Iterable[Sequence[int]], prompt_ids: Sequence[int], stop_ids: Collection[int]) -> None:
        self._lasts: dict[tuple[int, ...], set[int]] = {}
        for word in words:
            if len(word) > 1 or word[0] not in stop_ids:  # the end alone stays possible
                self._lasts.setdefault(tuple(word[:-1]), set()).add(word[-1])
        self._lengths = sorted({len(before) for before in self._lasts})
        self._longest = max(self._lengths, default=0)
        self._ids = list(prompt_ids[max(0, len(prompt_ids) - self._longest) :])

    def apply(self, logits: Logits) -> None:
        for length in self._lengths:
            if length <= len(self._ids):
                _forbid(logits, self._lasts.get(tuple(self._ids[len(self._ids) - length :]), ()))

    def add(self, token: int) -> None:
        self._ids.append(token)
        del self._ids[: len(self._ids) - self._longest]


class Suppressed:
    """Forbids some tokens, always or while the answer has fewer than `until` tokens."""

    def __init__(self, tokens: Collection[int], until: int | None = None) -> None:
        self._tokens = tokens
        self._until = until
        self._answered = 0

    def apply(self, logits: Logits) -> None:
        if self._until is None or self._answered < self._until:
            _forbid(logits, self._tokens)

    def add(self, token: int) -> None:
        self._answered += 1


def _forbid(logits: Logits, tokens: Collection[int]) -> None:
    ids = np.fromiter(tokens, np.int64, len(tokens))
    logits[ids[ids < len(logits)]] = -np.inf  # a file may name tokens that the vocabulary does not have
