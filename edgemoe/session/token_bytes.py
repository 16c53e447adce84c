"""The text and the bytes of single tokens, which may be parts of characters."""

from __future__ import annotations

from functools import cached_property

from edgemoe.session.tokenizer import BYTE_TOKEN, Tokenizer

WORD_BEGIN = "\u2581"
"""Stands for a space in tokens of SentencePiece."""


class TokenBytes:
    """Spells the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, token: int) -> bytes:
        """The bytes that a token stands for; those of its name for a special token, and none where it has no name."""
        library = self._tokenizer.require()
        name = library.id_to_token(token)
        if name is None:
            return b""
        if token in self._added:
            return name.encode()
        if BYTE_TOKEN.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        if self._letters:
            return bytes(self._letters[one] for one in name if one in self._letters)
        return name.replace(WORD_BEGIN, " ").encode()

    def text(self, token: int) -> str:
        """The text of a token, with U+FFFD for bytes that belong to no whole character."""
        return self.of(token).decode("utf-8", "replace")

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.require().get_added_tokens_decoder())

    @cached_property
    def _letters(self) -> dict[str, int]:
        """The byte of each letter, where tokens spell bytes by letters (byte-level BPE, GPT-2's table)."""
        decoder = self._tokenizer.require().decoder
        if decoder is None or decoder.decode(["\u0120"]) != " ":
            return {}
        printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = (byte for byte in range(256) if byte not in printable)
        return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
