"""A tokenizer that was made from a vocabulary, and the tokens that texts and ids beside it stand for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from edgemoe.conversion.tokenizers.building import byte_level, scored_merges
from edgemoe.errors import SourceError
from edgemoe.store.tokenizer_config import SpecialTokens

DAMAGED = "Was the checkpoint cut short or altered? Download it again, or put a tokenizer.json of this model beside it."
LONGEST_TOKEN_BYTES = 1024
"""Limit on a token's length, above that of any real one: finding its merges takes time with the square of it."""


class Special(NamedTuple):
    """A token that text is not cut into: it is found whole."""

    text: str
    special: bool = True
    """Whether it is left out of decoded text."""


@dataclass(frozen=True)
class Made:
    """A tokenizer, and its special tokens by the names of tokenizer_config.json, where that file does not name them."""

    tokenizer: Tokenizer
    names: Mapping[str, str] = field(default_factory=dict)


def described(settings: Mapping[str, Any]) -> dict[int, Special]:
    """The tokens that `added_tokens_decoder` of a tokenizer_config.json lists, by id."""
    numbered = SpecialTokens.of(settings, {}).numbered
    return {number: Special(token["content"], bool(token["special"])) for number, token in sorted(numbered.items())}


def add_specials(tokenizer: Tokenizer, specials: Iterable[Special]) -> None:
    """Let text be searched for these tokens. Those that are not in the vocabulary get the next ids."""
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in specials])


@contextmanager
def library_errors(file: str) -> Iterator[None]:
    """Turns errors of the library `tokenizers` into a SourceError about the file that its arguments come from."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, for a pattern that it cannot read; a panic is a BaseException
        raise SourceError(f"{file}: its tokenizer cannot be built: {error!s:.200}.", DAMAGED) from error


def token_bytes(text: object, where: str) -> bytes:
    """The bytes of a token that a file gives in base64. Raises SourceError, which begins with `where`."""
    try:
        if not isinstance(text, (str, bytes)):
            raise ValueError
        token = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise SourceError(f"{where}: expected a token in base64, found {_shown(text)}.", DAMAGED) from None
    if not 0 < len(token) <= LONGEST_TOKEN_BYTES:
        raise SourceError(
            f"{where}: expected a token of 1 to {LONGEST_TOKEN_BYTES} bytes, found {len(token)}.", DAMAGED
        )
    return token


def _shown(value: object) -> str:
    return repr(value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value)[:80]


def ranked_tokenizer(
    file: str,
    tokens: Sequence[bytes],
    first: int,
    specials: Mapping[int, Special],
    patterns: Iterable[str],
    *,
    composed: bool = False,
) -> Tokenizer:
    """The tokenizer of tiktoken's ranks: `tokens` in their order, of which the first has the id `first`.

    Of all pairs of neighbours the one is merged first that makes the token of the lowest rank. Raises SourceError.
    """
    missing = {bytes([value]) for value in range(256)} - set(tokens)
    if missing:
        raise SourceError(
            f"{file}: expected a token for each byte, found none for {min(missing)[0]:#04x}"
            f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}.",
            DAMAGED,
        )
    names = [token.decode("latin-1").translate(_BYTE_NAMES) for token in tokens]
    ids = {name: first + rank for rank, name in enumerate(names)}
    merges = scored_merges(names, range(0, -len(names), -1), ids)
    for number, (text, _) in specials.items():
        if ids.setdefault(text, number) != number:
            raise SourceError(f"{file}: {text!r:.80} stands for two tokens: {number} and {ids[text]}.", DAMAGED)
    with library_errors(file):
        tokenizer = byte_level(ids, merges, patterns, whole_first=True, composed=composed)
        add_specials(tokenizer, specials.values())
    return tokenizer


def _byte_names() -> dict[int, int]:
    """The character that stands for each byte in byte-level BPE: itself, if it is visible, or one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [value for value in range(256) if value not in visible]
    return {value: value for value in visible} | {value: 256 + place for place, value in enumerate(hidden)}


_BYTE_NAMES = _byte_names()
