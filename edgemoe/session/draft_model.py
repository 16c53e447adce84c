"""A draft model: a second, smaller model with the same tokens, all in RAM, whose greedy continuations are the drafts.

An MTP head is a draft model too, of one layer, which reads what the model makes of the text besides.

It reads every text that it drafts for, and goes back to the text where its guesses were not chosen. Guesses for several
texts are made in common steps. Nothing that it computes becomes part of an answer: that depends on the other model
alone, so the draft model may be any, and a likelier one is faster.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgemoe.engine.beside import HIDDEN_TOKENS, BesideModel
from edgemoe.engine.engine import Engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.operations import Floats
from edgemoe.model.description import store_spec
from edgemoe.session.draft_gate import BY_MODEL
from edgemoe.session.drafts import Offer
from edgemoe.session.stores import open_store
from edgemoe.session.tokenizer import TOKENIZER_NAME, has_tokenizer, load_library_tokenizer
from edgemoe.store.reader import Store

MOST_BEHIND = 8
"""With more tokens to read before its guess, a draft model reads first, in a step of its own."""


class DraftModel:
    """The draft model of an open model. Not to be used from several threads at once."""

    def __init__(self, engine: Engine, forks: bool, model: Engine) -> None:
        """`forks`: guess in copies of sequences; `model`: the other model, whose tokens it may guess."""
        self.engine = engine
        self.model = model
        self._forks = forks
        self._guessable = min(model.spec.vocab_size, engine.spec.vocab_size)
        engine.sequences.close(engine.sequence)  # its place is for a text

    @classmethod
    def open(cls, beside: BesideModel, model: Engine) -> DraftModel:
        """Open it beside an open model. Raises as `open_engine`."""
        return cls(beside.open(model), beside.forks, model)

    def begin(self, token_ids: Sequence[int], sequence: TokenSequence) -> ModelDrafts:
        """A text to draft for, which begins with these tokens, as the model's `sequence` will. End it when it is
        written.
        """
        if self.engine.spec.mtp:
            return HeadDrafts(self, token_ids, self.engine.sequences.open(), sequence)
        readable = list(itertools.takewhile(lambda token: token < self.engine.spec.vocab_size, token_ids))
        return ModelDrafts(self, token_ids, self.engine.sequences.open(readable or None))

    def read(self, texts: Sequence[ModelDrafts], most: int | None = None) -> None:
        """Read the texts up to their last token, `most` tokens of each (None: a chunk)."""
        rows = self.engine.memory.chunk_tokens if most is None else most
        batch = {}
        for text in texts:
            unread = text.unread()[:-1]
            if unread:
                batch[text.sequence] = unread[:rows]
                text.sequence.turn.begin()
        if batch:
            self._step({text: batch[text.sequence] for text in texts if text.sequence in batch})

    def guess(self, counts: Mapping[ModelDrafts, int]) -> None:
        """Guess so many tokens after each of the texts."""
        counts = {text: count for text, count in counts.items() if count}
        if not counts:
            return
        for text in counts:
            text.sequence.turn.begin_decoding()
        logits = self._step({text: text.unread() for text in counts})
        guessing = {text: text.sequence for text in counts}
        if self._forks and max(counts.values()) > 1:
            guessing = {text: self.engine.sequences.fork(text.sequence) for text in counts}
        try:
            for text in counts:
                text.guessed = [self._likeliest(logits[text.sequence])]
            while unfinished := {text: n for text, n in counts.items() if len(text.guessed) < n}:
                logits = self.engine.step(
                    {guessing[text]: text.guessed[-1:] for text in unfinished},
                    hidden=_given({guessing[text]: text.latest_hidden() for text in unfinished}),
                )
                for text in unfinished:
                    text.guessed.append(self._likeliest(logits[guessing[text]]))
        finally:
            for text, sequence in guessing.items():
                if sequence is not text.sequence:
                    self.engine.sequences.close(sequence)

    def _step(self, batch: Mapping[ModelDrafts, list[int]]) -> dict[TokenSequence, Floats]:
        """Run tokens of texts that have been chosen."""
        hidden = _given({text.sequence: text.hidden(len(ids)) for text, ids in batch.items()})
        return self.engine.step({text.sequence: ids for text, ids in batch.items()}, hidden=hidden)

    def _likeliest(self, logits: Floats) -> int:
        return int(logits[: self._guessable].argmax())

    def close(self) -> None:
        """Give its memory back."""
        self.engine.close()


def _given(hidden: Mapping[TokenSequence, Floats | None]) -> dict[TokenSequence, Floats]:
    return {sequence: rows for sequence, rows in hidden.items() if rows is not None}


class ModelDrafts:
    """One text, and the draft model's guesses at what follows it."""

    def __init__(self, model: DraftModel, token_ids: Sequence[int], sequence: TokenSequence) -> None:
        self.sequence = sequence
        """The part of the text that the draft model has read, and guesses after it that may be wrong."""
        self.guessed: list[int] = []
        self._model = model
        self._ids = list(token_ids)
        self._agreed = sequence.position
        """How many tokens of the sequence are known to be those of the text."""
        vocab_size = model.engine.spec.vocab_size
        self._readable = all(token < vocab_size for token in token_ids)
        self._open = True

    def add(self, token: int) -> None:
        """Append a token."""
        self._ids.append(token)
        self._readable = self._readable and token < self._model.engine.spec.vocab_size
        self.guessed = []

    def offer(self, most: int) -> Offer:
        """How many tokens it can guess, of `most`: none after a token that it does not know, or beyond its context."""
        room = self._model.engine.context_length - len(self._ids) + 1
        return Offer(max(0, min(most, room)) if self._readable and self._open else 0, BY_MODEL)

    @property
    def unread_tokens(self) -> int:
        """The tokens of the text that are unread, where reading them takes much longer than guessing; else 0."""
        behind = len(self._ids) - self.sequence.position
        return behind if behind > MOST_BEHIND else 0

    def unread(self) -> list[int]:
        """The tokens that are to be run before the first guess; what was guessed wrongly is forgotten."""
        held, ids = self.sequence.ids, self._ids
        most = min(len(held), len(ids) - 1)  # the logits after the last one are wanted
        self._agreed = min(self._agreed, most)
        while self._agreed < most and held[self._agreed] == ids[self._agreed]:
            self._agreed += 1
        if self._agreed < len(held):
            self.sequence.rewind(self._agreed)
        return ids[self._agreed :]

    def hidden(self, tokens: int) -> Floats | None:
        """The hidden states that an MTP head reads with the next tokens; None for any other model."""
        return None

    def latest_hidden(self) -> Floats | None:
        """The one that it reads with its latest guess, its own; None for any other model."""
        return None

    def read_all(self, stopped: Callable[[], bool]) -> None:
        """Read what there is of the text, unless `stopped` says that nobody wants it any more."""
        while self.offer(1).tokens and len(self.unread()) > 1 and not stopped():
            self._model.read([self])

    def take(self, count: int) -> list[int]:
        """Guess up to `count` tokens, unless that has been done; none where the draft model fails."""
        if count and not self.guessed:
            try:
                self._model.guess({self: count})
            except EdgemoeError:  # a draft must not fail what would succeed without it
                self.guessed = []
        return self.guessed[:count]

    def end(self) -> None:
        """Give its place in the draft model to another text. Ending it twice is harmless."""
        if self._open:
            self._open = False
            self._model.engine.sequences.close(self.sequence)


class HeadDrafts(ModelDrafts):
    """One text, and an MTP head's guesses at what follows it.

    The head reads each token with the hidden state of the token before, which the model has computed: its sequence has
    the tokens of the text from some place on, and the model gives it the hidden states of all tokens that it runs.
    Those of a prompt's beginning, or of a kept prefix, are not there, and the head begins behind them.
    """

    def __init__(
        self, model: DraftModel, token_ids: Sequence[int], sequence: TokenSequence, models_own: TokenSequence
    ) -> None:
        super().__init__(model, [], sequence)
        self._text = list(token_ids)
        self._models_own = models_own
        self._first = 0
        """The place in the text of the first token that the head reads."""
        self._hidden: dict[int, Floats] = {}
        """The model's hidden states, by the place of their tokens in the text."""
        self._own: Floats | None = None
        self._take_from = max(0, len(token_ids) - 1 - HIDDEN_TOKENS)
        model.model.hidden_takers[models_own] = self._take
        model.engine.hidden_takers[sequence] = self._take_own

    def _take(self, place: int, rows: Floats) -> None:
        """Note hidden states of the model, of the token at a place and of those that follow it."""
        skipped = max(0, self._take_from - place, len(rows) - HIDDEN_TOKENS)
        for number, row in enumerate(_normed(self._model.model, rows[skipped:]), place + skipped):
            self._hidden[number] = row.copy()
        if len(self._hidden) > HIDDEN_TOKENS:  # nothing has been guessed for long
            for old in [old for old in self._hidden if old <= place + len(rows) - HIDDEN_TOKENS // 2]:
                del self._hidden[old]

    def _take_own(self, place: int, rows: Floats) -> None:
        self._own = _normed(self._model.engine, rows[-1:])

    def add(self, token: int) -> None:
        self._text.append(token)
        self.guessed = []

    def offer(self, most: int) -> Offer:
        self._follow()
        return super().offer(most) if self._ids else Offer(0, BY_MODEL)

    def _follow(self) -> None:
        """Take the tokens whose hidden states before them are there to those that the head reads, or begin anew."""
        last = len(self._text) - 1
        read = self._first + self._agreed
        if any(place - 1 not in self._hidden for place in range(max(read, self._first, 1), last + 1)) or not self._ids:
            begin = last + 1
            while begin > 1 and begin - 2 >= self._take_from and begin - 2 in self._hidden:
                begin -= 1
            self._first = begin
            self.sequence.rewind(0)
            self._agreed = 0
        self._ids = self._text[self._first :]
        for place in [place for place in self._hidden if place < self._first + self._agreed - 1]:
            del self._hidden[place]

    def hidden(self, tokens: int) -> Floats | None:
        first = self._first + self._agreed - 1
        return np.stack([self._hidden[place] for place in range(first, first + tokens)])

    def latest_hidden(self) -> Floats | None:
        return self._own

    def end(self) -> None:
        if self._open:
            self._model.model.hidden_takers.pop(self._models_own, None)
            self._model.engine.hidden_takers.pop(self.sequence, None)
        super().end()


def _normed(engine: Engine, rows: Floats) -> Floats:
    """The rows that the head of a model reads, `(n, D)`: the hidden states after its last norm."""
    weights = engine.weights["final_norm"]
    assert not isinstance(weights, Matrix)
    scale = np.sqrt(np.mean(np.square(rows), axis=-1, keepdims=True) + engine.spec.norm_epsilon)
    normed: Floats = (rows / scale * weights).astype(np.float32)
    return normed


def open_beside(draft: str | os.PathLike[str], store: Store, folder: Path, options: EngineOptions) -> BesideModel:
    """Make a draft model ready to be planned beside a store, whose text files are in `folder`.

    Raises UsageError for one with other tokens, or where either has an encoder, StoreError and SourceError.
    """
    if store_spec(store).encoder is not None:
        raise UsageError(
            f"{store.path}: a model that reads an input apart from its text takes no draft model.", "Leave `draft` out."
        )
    drafting = open_store(draft)
    beside = BesideModel(drafting, store, options.threads, options.sequences)
    try:
        _check_same_tokens(beside, drafting.text_folder, store, folder)
    except BaseException:
        beside.close()
        raise
    return beside


def _check_same_tokens(draft: BesideModel, draft_folder: Path, store: Store, folder: Path) -> None:
    """Raise UsageError unless ids stand for the same tokens in both models.

    One of them may have more tokens than the other. Without tokenizers the numbers of tokens must agree.
    """
    found = ""
    both = has_tokenizer(folder), has_tokenizer(draft_folder)
    counts = draft.spec.vocab_size, store_spec(store).vocab_size
    if all(both):
        found = _other_token(folder, draft_folder)
    elif any(both):
        found = "one of them has no tokenizer"
    elif len(set(counts)) > 1:
        found = f"it has {counts[0]} tokens, and not {counts[1]}"
    if found:
        raise UsageError(
            f"`draft`: expected a model with the tokens of {store.path}, found {draft.store.path}: {found}.",
            "Choose a draft model of the same family, or leave it out.",
        )


def _other_token(folder: Path, draft_folder: Path) -> str:
    """A token that is another one in the draft model, in words; empty where there is none."""
    if (folder / TOKENIZER_NAME).read_bytes() == (draft_folder / TOKENIZER_NAME).read_bytes():
        return ""
    tokens, drafted = (
        {number: text for text, number in load_library_tokenizer(one).get_vocab(True).items()}
        for one in (folder, draft_folder)
    )
    different = (number for number in sorted(tokens.keys() & drafted.keys()) if tokens[number] != drafted[number])
    first = next(different, None)
    return "" if first is None else f"its token {first} is {drafted[first]!r}, and not {tokens[first]!r}"
