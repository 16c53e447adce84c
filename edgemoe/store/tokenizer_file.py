"""The tokenizer.json of a model folder as the `tokenizers` library reads it, with the ids that the file gives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_ADDED_TOKENS = re.compile(r'"added_tokens"\s*:\s*')


def library_tokenizer(text: str) -> tokenizers.Tokenizer:
    """The tokenizer that the text of a tokenizer.json describes.

    The library numbers added tokens that are not in the vocabulary one after another, whatever ids the file gives
    them. Where that results in another id they are put into the vocabulary, whose ids the library keeps.
    Raises ValueError where the file's ids cannot be kept; for an invalid text the library raises plain Exception, or
    panics.
    """
    import tokenizers

    given = _added_ids(text)
    tokenizer = tokenizers.Tokenizer.from_str(text)
    if not _other_ids(tokenizer, given):
        return tokenizer
    data = json.loads(text)
    vocabulary = data["model"]["vocab"]
    taken = set(vocabulary.values()) if isinstance(vocabulary, dict) else set()
    missing = {token: number for token, number in given.items() if token not in vocabulary}
    if isinstance(vocabulary, dict) and len({*missing.values()}) == len(missing) and not taken & {*missing.values()}:
        vocabulary.update(missing)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    for token, number in _other_ids(tokenizer, given).items():
        raise ValueError(f"added token {token!r:.80}: expected id {given[token]}, found {number} as it is loaded")
    return tokenizer


def _added_ids(text: str) -> dict[str, int]:
    """The added tokens of a tokenizer.json with their ids, without parsing its vocabulary, which takes long."""
    for place in _ADDED_TOKENS.finditer(text):
        try:
            entries: Any = json.JSONDecoder().raw_decode(text, place.end())[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(entries, list):  # a token of the vocabulary may have this name too: its value is a number
            return {
                entry["content"]: entry["id"]
                for entry in entries
                if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int
            }
    return {}


def _other_ids(tokenizer: tokenizers.Tokenizer, given: Mapping[str, int]) -> dict[str, int | None]:
    found = {token: tokenizer.token_to_id(token) for token in given}
    return {token: number for token, number in found.items() if number != given[token]}
