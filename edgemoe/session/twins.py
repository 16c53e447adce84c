"""Twins of special tokens: the same tokens under names that no text has, so that their own names can be text."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from edgemoe.errors import UsageError

if TYPE_CHECKING:
    import tokenizers

PRIVATE_PLANE = 0x100000
"""The last plane of Unicode, for private use: no normalizer changes its characters."""
NAME_CHARACTERS = 8


class Twins:
    """A second token for each special token of a tokenizer, with its flags but not special.

    The library can be asked to leave special tokens alone (`encode_special_tokens`): then their names are text, and the
    twins are found. Twins have ids of their own, beyond the vocabulary, which `encode` exchanges. Their names are drawn
    at random each time, so that nobody can write them.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        from tokenizers import AddedToken

        self._tokenizer = tokenizer
        self._special = {
            number: token for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.texts = tuple(sorted((token.content for token in self._special.values()), key=len, reverse=True))
        """The names of the special tokens, the longest first: of several that begin at one place it is the one."""
        # The first character of a name is its own, so that no name is a part of another.
        drawn = (int.from_bytes(os.urandom(2), "big") % 0x8000 for _ in range(NAME_CHARACTERS))
        tail = "".join(chr(PRIVATE_PLANE + number) for number in drawn)
        self._names = {text: chr(PRIVATE_PLANE + 0x8000 + place) + tail for place, text in enumerate(self.texts)}
        tokenizer.add_tokens(
            [
                AddedToken(
                    self._names[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=False,
                )
                for token in self._special.values()
            ]
        )
        self._originals = {
            tokenizer.token_to_id(self._names[token.content]): number for number, token in self._special.items()
        }
        alone = {token.content for token in self._special.values() if token.single_word}
        self._pattern = re.compile(
            "|".join(rf"(?<!\w){re.escape(text)}(?!\w)" if text in alone else re.escape(text) for text in self.texts)
            or "(?!)"
        )

    def rename(self, text: str) -> str:
        """The text with the name of its twin for each special token."""
        return self._pattern.sub(lambda match: self._names[match[0]], text)

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """The ids of a text in which twins are special tokens, and the special tokens' own names are text.

        Raises UsageError where the tokenizer's model makes a special token of its name all the same.
        """
        self._tokenizer.encode_special_tokens = True
        try:
            encoding = self._tokenizer.encode_batch([text], add_special_tokens=special_tokens)[0]
        finally:
            self._tokenizer.encode_special_tokens = False
        for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number in self._special and text[begin:end].strip() == self._special[number].content:
                raise UsageError(
                    f"{text[begin:end]!r:.80} cannot be plain text with this model: its tokenizer"
                    " can only encode it as a token.",
                    "Leave it out of the text, or allow special tokens in the text.",
                )
        return [self._originals.get(number, number) for number in encoding.ids]
