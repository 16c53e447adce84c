"""Models that are compared on a text: what must be the same of them, looked at before any of them runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemoe.bench.evaluation_report import ModelFacts
from edgemoe.errors import UsageError
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import open_store
from edgemoe.session.text_ids import TextIds
from edgemoe.session.tokenizer import Tokenizer, has_tokenizer

PIECES = 256
"""How many tokens' spellings tell two vocabularies of one size apart, besides the text's own."""


@dataclass(frozen=True)
class Candidate:
    """A model, with the text as its tokenizer cuts it."""

    path: Path
    name: str
    facts: ModelFacts
    vocab_size: int
    max_positions: int
    text: TextIds
    pieces: Mapping[str, str]
    """Some tokens' spellings by id, evenly over the vocabulary; unused ids have none."""

    @classmethod
    def of(cls, path: Path, text: str, tokens: int) -> Candidate:
        """Look at a model's files, and cut the first `tokens` tokens of a text with its tokenizer.

        Raises UsageError for a model without a tokenizer or with an encoder, and what opening a store raises.
        """
        store = open_store(path)
        spec, name = store_spec(store), model_name(path)
        folder = store.text_folder
        if not has_tokenizer(folder):
            raise UsageError(
                f"{name}: this model has no tokenizer, so it cannot read a text.",
                "Copy the checkpoint's tokenizer.json into the store and run edgemoe update STORE.",
            )
        if spec.encoder is not None:
            raise UsageError(
                f"{name}: this model reads one text and writes another, so a text alone has no perplexity under it.",
                "Evaluate a model without an encoder.",
            )
        tokenizer = Tokenizer.load(folder, spec.vocab_size)
        library = tokenizer.require()
        numbers = dict.fromkeys(number * spec.vocab_size // PIECES for number in range(PIECES))
        pieces = {str(number): piece for number in numbers if (piece := library.id_to_token(number)) is not None}
        return cls(
            path,
            name,
            ModelFacts.of(store, spec.family),
            spec.vocab_size,
            spec.max_positions,
            TextIds.of(text, tokenizer, tokens),
            pieces,
        )


@dataclass(frozen=True)
class Tokens:
    """How a model or a run cuts the text, with its name for errors."""

    name: str
    vocab_size: int
    text: TextIds
    pieces: Mapping[str, str]

    def check(self, other: Candidate) -> None:
        """Raise UsageError, naming the difference, where a model's distributions are over other tokens."""
        what = f"{self.name} and {other.name} have different"
        way_out = "Compare models of one tokenizer, such as two conversions of one checkpoint."
        if self.vocab_size != other.vocab_size:
            raise UsageError(f"{what} vocabularies: {self.vocab_size} and {other.vocab_size} tokens.", way_out)
        for number, piece in self.pieces.items():
            if other.pieces.get(number, piece) != piece:
                raise UsageError(
                    f"{what} vocabularies: token {number} is {piece!r} and {other.pieces[number]!r}.", way_out
                )
        if self.text.head != other.text.head:
            raise UsageError(
                f"{what} tokens before a text: {list(self.text.head)} and {list(other.text.head)}.", way_out
            )
        mine, its = self.text.ids, other.text.ids
        shorter = min(len(mine), len(its))
        apart = np.flatnonzero(mine[:shorter] != its[:shorter])
        if len(apart):
            first = int(apart[0])
            raise UsageError(
                f"{what} tokens for this text: number {first} is {int(mine[first])} and {int(its[first])}.",
                f"Give the text that the run was made with, if one is a run. {way_out}",
            )
        if len(mine) != len(its):
            raise UsageError(
                f"{what} numbers of tokens for this text: {len(mine)} and {len(its)}.",
                f"Give the text that the run was made with, if one is a run. {way_out}",
            )
