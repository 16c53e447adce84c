"""A draft model: a second, smaller model with the same tokens, all in RAM, whose greedy continuations are the drafts.

It reads every text that it drafts for, and goes back to the text where its guesses were not chosen. Guesses for several
texts are made in common steps. Nothing that it computes becomes part of an answer: that depends on the other model
alone, so the draft model may be any, and a likelier one is faster.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgemoe.engine.beside import BesideModel
from edgemoe.engine.engine import Engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.operations import Floats
from edgemoe.model.description import store_spec
from edgemoe.session.draft_gate import BY_MODEL
from edgemoe.session.drafts import Offer
from edgemoe.session.stores import open_store
from edgemoe.session.tokenizer import TOKENIZER_NAME, has_tokenizer, load_library_tokenizer
from edgemoe.store.reader import Store

MOST_BEHIND = 32
"""With more tokens to read before its guess, a draft model reads first, in a step of its own."""


class DraftModel:
    """The draft model of an open model. Not to be used from several threads at once."""

    def __init__(self, engine: Engine, forks: bool, vocab_size: int) -> None:
        """`forks`: guess in copies of sequences; `vocab_size`: that of the other model, whose tokens it may guess."""
        self.engine = engine
        self._forks = forks
        self._guessable = min(vocab_size, engine.spec.vocab_size)
        engine.sequences.close(engine.sequence)  # its place is for a text

    @classmethod
    def open(cls, beside: BesideModel, context_length: int, vocab_size: int) -> DraftModel:
        """Open it for a model with this context. Raises as `open_engine`."""
        return cls(beside.open(context_length), beside.forks, vocab_size)

    def begin(self, token_ids: Sequence[int]) -> ModelDrafts:
        """A text to draft for, which begins with these tokens. End it when it is written."""
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
            self.engine.step(batch)

    def guess(self, counts: Mapping[ModelDrafts, int]) -> None:
        """Guess so many tokens after each of the texts."""
        counts = {text: count for text, count in counts.items() if count}
        if not counts:
            return
        for text in counts:
            text.sequence.turn.begin_decoding()
        logits = self.engine.step({text.sequence: text.unread() for text in counts})
        guessing = {text: text.sequence for text in counts}
        if self._forks and max(counts.values()) > 1:
            guessing = {text: self.engine.sequences.fork(text.sequence) for text in counts}
        try:
            for text in counts:
                text.guessed = [self._likeliest(logits[text.sequence])]
            while unfinished := {text: n for text, n in counts.items() if len(text.guessed) < n}:
                logits = self.engine.step({guessing[text]: text.guessed[-1:] for text in unfinished})
                for text in unfinished:
                    text.guessed.append(self._likeliest(logits[guessing[text]]))
        finally:
            for text, sequence in guessing.items():
                if sequence is not text.sequence:
                    self.engine.sequences.close(sequence)

    def _likeliest(self, logits: Floats) -> int:
        return int(logits[: self._guessable].argmax())

    def close(self) -> None:
        """Give its memory back."""
        self.engine.close()


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
    def far_behind(self) -> bool:
        """Whether so much of the text is unread that reading it takes much longer than guessing."""
        return len(self._ids) - self.sequence.position > MOST_BEHIND

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

    def read_all(self, stopped: Callable[[], bool]) -> None:
        """Read what there is of the text, unless `stopped` says that nobody wants it any more."""
        while self.offer(1).tokens and self.far_behind and not stopped():
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


def open_beside(draft: str | os.PathLike[str], store: Store, folder: Path, options: EngineOptions) -> BesideModel:
    """Make a draft model ready to be planned beside a store, whose text files are in `folder`.

    Raises UsageError for one with other tokens, or where either has an encoder, StoreError and SourceError.
    """
    if store_spec(store).encoder is not None:
        raise UsageError(
            f"{store.path}: a model that reads an input apart from its text takes no draft model.", "Leave `draft` out."
        )
    drafting = open_store(draft)
    beside = BesideModel(drafting, options.threads, options.sequences)
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
