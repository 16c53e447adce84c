"""Reads Mistral's tekken.json: ranks as in tiktoken, a pattern of words, and special tokens, with the first ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemoe.conversion.tokenizers.building import add_around
from edgemoe.conversion.tokenizers.made import DAMAGED, Made, Special, ranked_tokenizer, token_bytes
from edgemoe.errors import SourceError
from edgemoe.store.headers import parse_json

BOS, EOS = "<s>", "</s>"
NAMES = {"bos_token": BOS, "eos_token": EOS, "unk_token": "<unk>", "pad_token": "<pad>"}

_FIRST_SPECIALS = (
    *("<unk>", BOS, EOS, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
    ),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""The special tokens of files that list none, which older versions do not."""

_MOST_TOKENS = 1 << 24


def read_tekken(file: str, content: bytes, settings: Mapping[str, Any], vocab_size: int) -> Made:
    """The tokenizer of a tekken.json, which needs no settings beside it. Raises SourceError."""
    try:
        data = parse_json(content)
    except ValueError as problem:
        raise SourceError(f"{file}: expected JSON, found something else ({problem!s:.200}).", DAMAGED) from None
    config = _field(file, data, "config", dict)
    pattern = _field(file, config, "pattern", str)
    whole = _count(file, config, "default_vocab_size")
    special = _count(file, config, "default_num_special_tokens")
    entries = _field(file, data, "vocab", list)
    if not 0 <= special < whole <= special + len(entries):
        raise SourceError(
            f"{file}: expected {whole} tokens, of which {special} are special, found {len(entries)} ordinary ones.",
            DAMAGED,
        )
    specials = _read_specials(file, data, special)
    tokens = [_read_token(file, rank, entry) for rank, entry in enumerate(entries[: whole - special])]
    last = {token: rank for rank, token in enumerate(tokens)}
    if len(last) < len(tokens):
        twice = next(rank for rank, token in enumerate(tokens) if last[token] != rank)
        raise SourceError(f"{file}: expected each token once, found that of rank {twice} twice.", DAMAGED)
    tokenizer = ranked_tokenizer(file, tokens, special, specials, [pattern])
    texts = {token.text for token in specials.values()}
    add_around(tokenizer, BOS if BOS in texts else None, None)
    return Made(tokenizer, {name: text for name, text in NAMES.items() if text in texts})


def _read_token(file: str, rank: int, entry: object) -> bytes:
    where = f"{file}: vocab: entry {rank}"
    if not isinstance(entry, Mapping) or type(entry.get("rank")) is not int or entry["rank"] != rank:
        found = entry.get("rank") if isinstance(entry, Mapping) else entry
        raise SourceError(f"{where}: expected the token of rank {rank}, found {found!r:.80}.", DAMAGED)
    return token_bytes(entry.get("token_bytes"), where)


def _read_specials(file: str, data: Mapping[str, Any], count: int) -> dict[int, Special]:
    """The special tokens by id; those that the file leaves out have names that say their ids."""
    listed = data.get("special_tokens")
    if listed is None:
        listed = [{"rank": rank, "token_str": text} for rank, text in enumerate(_FIRST_SPECIALS)]
    found: dict[int, str] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        rank, text = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, Mapping) else (None, None)
        if type(rank) is not int or not 0 <= rank < count or rank in found or not isinstance(text, str) or not text:
            raise SourceError(
                f"{file}: special_tokens: expected each with a text and a rank of its own below {count},"
                f" found {entry!r:.80}.",
                DAMAGED,
            )
        found[rank] = text
    specials = {rank: Special(found.get(rank, f"<SPECIAL_{rank}>")) for rank in range(count)}
    if len({token.text for token in specials.values()}) < count:
        raise SourceError(f"{file}: special_tokens: expected each text once, found one twice.", DAMAGED)
    return specials


def _field(file: str, data: Any, key: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, kind):
        found = "none" if value is None else type(value).__name__
        raise SourceError(f"{file}: {key}: expected {_KINDS[kind]}, found {found}.", DAMAGED)
    return value


_KINDS = {dict: "an object", str: "a text", list: "a list", int: "a whole number"}


def _count(file: str, config: Mapping[str, Any], key: str) -> int:
    value: int = _field(file, config, key, int)
    if isinstance(value, bool) or not 0 <= value <= _MOST_TOKENS:
        raise SourceError(f"{file}: {key}: expected 0 to {_MOST_TOKENS}, found {value!r:.80}.", DAMAGED)
    return value
