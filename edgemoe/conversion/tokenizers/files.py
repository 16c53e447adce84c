"""The files that a tokenizer.json is made from where a checkpoint has none, and the one that is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from edgemoe.conversion.tokenizers.made import DAMAGED, Made
from edgemoe.errors import SourceError
from edgemoe.store.headers import parse_json
from edgemoe.store.tokenizer_config import CONFIG_NAME, MAP_NAME

TOKENIZER_NAME = "tokenizer.json"
VOCABULARY_NAMES = ("tekken.json", "tiktoken.model", "hy.tiktoken", "tokenizer.model", "spiece.model")
"""The files in the order in which they are taken."""

_LEAST_SHARE = 7 / 8
"""The share of a model's tokens that its tokenizer has at least: embeddings have rows of padding."""


def vocabulary_name(names: Collection[str]) -> str | None:
    """The file among `names` that a tokenizer.json is made from; None where there is one, or no such file."""
    if TOKENIZER_NAME in names:
        return None
    return next((name for name in VOCABULARY_NAMES if name in names), None)


def with_tokenizer(files: Mapping[str, bytes], vocab_size: int) -> dict[str, bytes]:
    """The side files of a model of `vocab_size` tokens, with what is made from a vocabulary in that one's place.

    Raises SourceError for a vocabulary that is damaged or of another model.
    """
    name = vocabulary_name(files)
    side_files = {other: content for other, content in files.items() if other not in VOCABULARY_NAMES}
    if name is None:
        return side_files
    settings, further = _read(files, CONFIG_NAME), _read(files, MAP_NAME)
    made = _reader(name)(name, files[name], settings, vocab_size)
    _check_size(name, made, vocab_size)
    side_files[TOKENIZER_NAME] = made.tokenizer.to_str().encode()
    missing = {key: text for key, text in made.names.items() if key not in settings and key not in further}
    if missing:
        side_files[CONFIG_NAME] = (json.dumps({**settings, **missing}, indent=2, ensure_ascii=False) + "\n").encode()
    return side_files


def _reader(name: str) -> Callable[[str, bytes, Mapping[str, Any], int], Made]:
    """The function that reads this file; its module imports the library of tokenizers."""
    if name == "tekken.json":
        from edgemoe.conversion.tokenizers.tekken import read_tekken

        return read_tekken
    if name in ("tiktoken.model", "hy.tiktoken"):
        from edgemoe.conversion.tokenizers.tiktoken import read_tiktoken

        return read_tiktoken
    from edgemoe.conversion.tokenizers.pieces import read_pieces

    return read_pieces


def _check_size(name: str, made: Made, vocab_size: int) -> None:
    tokens = 1 + max(made.tokenizer.get_vocab(with_added_tokens=True).values())
    if tokens > vocab_size:
        expected = f"at most {vocab_size} tokens, as config.json says"
    elif tokens < _LEAST_SHARE * vocab_size:
        expected = f"{vocab_size} tokens, as config.json says, or a few less"
    else:
        return
    raise SourceError(
        f"{name}: expected {expected}, found {tokens}.",
        f"Is it the tokenizer of this model? Put its tokenizer.json beside it, or move {name} away: the store then"
        " works with ids only.",
    )


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = parse_json(files.get(name, b"{}"))
    except ValueError as problem:
        raise SourceError(f"{name}: expected JSON, found something else ({problem!s:.200}).", DAMAGED) from None
    if not isinstance(value, dict):
        raise SourceError(f"{name}: expected a JSON object, found {type(value).__name__}.", DAMAGED)
    return value
