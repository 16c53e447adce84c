"""Tells a person, before the hours of conversion, about a checkpoint that converts and yet lacks something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgemoe.architectures import model_spec
from edgemoe.conversion.source import Source
from edgemoe.store.headers import parse_json

TOKENIZER_NAME = "tokenizer.json"


def conversion_notices(source: Source, side_files: Mapping[str, bytes]) -> Iterator[str]:
    """Paragraphs about a checkpoint that converts; `side_files` are what the store will have."""
    yield from source.notices()
    if TOKENIZER_NAME in side_files:
        rows = model_spec(source.config).vocabulary
        beyond = _tokens_from(side_files[TOKENIZER_NAME], rows)
        if beyond:
            first = min(beyond, key=beyond.__getitem__)
            count = f"{len(beyond)} token{'s' * (len(beyond) > 1)}"
            yield (
                f"{TOKENIZER_NAME} has {count} without a row in the embedding of {rows}:"
                f" the first is {first[:40]!r}, id {beyond[first]}. A text that contains one will be refused."
                " If tokens were added in training, these weights are older than the tokenizer."
            )


def _tokens_from(tokenizer: bytes, first_id: int) -> dict[str, int]:
    """Tokens of a tokenizer.json whose id is at least `first_id`. Empty for a file that cannot be read as one."""
    try:
        data = parse_json(tokenizer)
    except ValueError:  # when the store is opened it is refused, and `edgemoe convert` says so
        return {}
    data = data if isinstance(data, dict) else {}
    model, added = data.get("model"), data.get("added_tokens")
    vocabulary: Any = model.get("vocab") if isinstance(model, dict) else None
    pairs: list[tuple[Any, Any]] = []
    if isinstance(vocabulary, dict):
        pairs += vocabulary.items()
    elif isinstance(vocabulary, list):  # a Unigram model: the place in the list is the id
        pairs += ((entry[0], number) for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry)
    if isinstance(added, list):
        pairs += ((entry.get("content"), entry.get("id")) for entry in added if isinstance(entry, dict))
    return {
        token: number
        for token, number in pairs
        if isinstance(token, str) and type(number) is int and number >= first_id
    }
