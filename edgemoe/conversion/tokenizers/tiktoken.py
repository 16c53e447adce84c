"""Reads vocabularies in tiktoken's form: a line for each token, with its bytes in base64, a space, and its rank.

How text is cut into words, and which special tokens there are, the programs beside such files say. They are not run;
`_RULES` has what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemoe.conversion.tokenizers.building import add_around
from edgemoe.conversion.tokenizers.made import DAMAGED, Made, Special, described, ranked_tokenizer, token_bytes
from edgemoe.conversion.tokenizers.words import WORD_RULES
from edgemoe.errors import SourceError


@dataclass(frozen=True)
class _Rule:
    words: str
    """The rule's name in `WORD_RULES`."""
    numbered: bool
    """Whether a token's number is its rank; else its line is, and numbers are not looked at."""
    specials: tuple[str, ...]
    """The special tokens after all others; `{id}` stands for a token's own id."""
    names: Mapping[str, str]
    last_is_newer: bool = False
    """Whether older models do not have the last special token."""
    composed: bool = False
    """Whether text is normalised to NFC first."""
    begins: str = ""
    """The setting by which texts begin with BOS, unless it is false; none: they do not."""
    ends: str = ""
    """The setting by which texts end with EOS, if it is true."""


_RULES: dict[tuple[str, str], _Rule] = {
    ("tiktoken.model", "TikTokenTokenizer"): _Rule(  # Kimi-K2, Kimi-Linear, Moonlight
        "kimi-k2", True, ("<|reserved_token_{id}|>",) * 256, {"bos_token": "[BOS]", "eos_token": "[EOS]"}
    ),
    ("hy.tiktoken", "HYTokenizer"): _Rule(  # Hunyuan-A13B, Hunyuan-Large
        "hunyuan",
        False,
        (
            *("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"),
            *(f"<|extra_{number}|>" for number in range(205)),
        ),
        {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
        last_is_newer=True,
        composed=True,
        begins="add_bod_token",
        ends="add_eod_token",
    ),
}
"""By the name of the file and the class of its tokenizer, which tokenizer_config.json has."""


def read_tiktoken(file: str, content: bytes, settings: Mapping[str, Any], vocab_size: int) -> Made:
    """The tokenizer of a file in tiktoken's form, by the settings of its tokenizer_config.json. Raises SourceError."""
    kind = settings.get("tokenizer_class")
    rule = _RULES.get((file, str(kind)))
    if rule is None:
        known = ", ".join(name for other, name in _RULES if other == file)
        raise SourceError(
            f"{file}: the rule that cuts text into words is not known: expected a tokenizer_config.json with the"
            f" tokenizer_class {known}, found {kind!r:.80}.",
            f"Put a tokenizer.json of this model beside it, or move {file} away: the store then works with ids only.",
        )
    tokens = _read_tokens(file, content, rule.numbered)
    begin, given = len(tokens), described(settings)
    wrong = next((number for number in given if number < begin), None)
    if wrong is not None:
        raise SourceError(
            f"tokenizer_config.json: added token {given[wrong].text!r:.80}: expected an id from {begin}, as {file} has"
            f" the tokens before it, found {wrong}.",
            DAMAGED,
        )
    fits = begin + len(rule.specials) <= vocab_size
    texts = rule.specials if fits or not rule.last_is_newer else rule.specials[:-1]
    names = (text.format(id=begin + place) for place, text in enumerate(texts))
    specials = {number: Special(text) for number, text in enumerate(names, begin)} | given
    tokenizer = ranked_tokenizer(file, tokens, 0, specials, WORD_RULES[rule.words], composed=rule.composed)
    first, last = rule.names["bos_token"], rule.names["eos_token"]
    add_around(
        tokenizer,
        first if rule.begins and settings.get(rule.begins) is not False else None,
        last if rule.ends and settings.get(rule.ends) is True else None,
    )
    return Made(tokenizer, rule.names)


def _read_tokens(file: str, content: bytes, numbered: bool) -> list[bytes]:
    """The tokens in the order of their ranks."""
    tokens: dict[int, bytes] = {}
    places: dict[bytes, int] = {}
    for place, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}: line {place}"
        text, _, number = line.partition(b" ")
        if not number.isdigit() or len(number) > 9:
            raise SourceError(
                f"{where}: expected a token in base64, a space and its rank, found {line[:60]!r}.", DAMAGED
            )
        token, rank = token_bytes(text, where), int(number) if numbered else len(tokens)
        if token in places:
            raise SourceError(f"{where}: expected each token once, found that of line {places[token]} again.", DAMAGED)
        if rank in tokens:
            raise SourceError(f"{where}: expected each rank once, found {rank} again.", DAMAGED)
        tokens[rank], places[token] = token, place
    if not tokens:
        raise SourceError(f"{file}: expected tokens, found none.", DAMAGED)
    gap = next((rank for rank in range(len(tokens)) if rank not in tokens), None)
    if gap is not None:
        raise SourceError(f"{file}: expected ranks from 0 to {max(tokens)}, found no token of rank {gap}.", DAMAGED)
    return [tokens[rank] for rank in range(len(tokens))]
