"""Texts that a model's experts are looked at with, as windows of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.analysis.windows import cut_texts
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.errors import UsageError
from edgemoe.model.description import store_spec
from edgemoe.session.text_ids import TextIds
from edgemoe.session.tokenizer import Tokenizer, has_tokenizer
from edgemoe.store.reader import Store


@dataclass(frozen=True, eq=False)
class CutTexts:
    """Texts in windows, and the tokenizer that cut them."""

    windows: Windows
    domains: npt.NDArray[np.int32]
    """The number of each window's text."""
    tokenizer: Tokenizer

    @classmethod
    def of(cls, store: Store, texts: Sequence[tuple[str, str]], tokens: int) -> CutTexts:
        """Cut the first `tokens` tokens of each text, given by its name and content.

        Raises UsageError for a model without a tokenizer, and for a text that is too short; StoreError.
        """
        if tokens < 1:
            raise UsageError(f"`tokens`: expected 1 or more, found {tokens}.", "Leave it out for the usual number.")
        if not has_tokenizer(store.text_folder):
            raise UsageError(
                f"{store.path}: this model has no tokenizer, so it cannot read a text.",
                "Copy the checkpoint's tokenizer.json into the store and run edgemoe update STORE.",
            )
        tokenizer = Tokenizer.load(store.text_folder, store_spec(store).vocab_size)
        found = [(name, TextIds.of(text, tokenizer, tokens)) for name, text in texts]
        windows, domains = cut_texts(store, [(name, one.ids) for name, one in found], found[0][1].head)
        return cls(windows, domains, tokenizer)

    def spell(self, token: int) -> str:
        """The text of a token."""
        return self.tokenizer.decode([token])


def held_back(text: str, share: float) -> tuple[str, str]:
    """A text without its end, and the end: about that share of it, from the beginning of a line on if there is one."""
    cut = round(len(text) * (1 - share))
    line = text.find("\n", cut)
    cut = cut if line < 0 or len(text) - line < len(text) * share / 2 else line + 1
    return text[:cut], text[cut:]


def described(name: str, text: str, tokens: int) -> str:
    """Describe the text that decided something in a store, for its provenance."""
    return f"{tokens} tokens of {name} ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
