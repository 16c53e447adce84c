"""Converts the tokenizer in a GGUF's metadata to a checkpoint's files: tokenizer.json and its companions.

Three kinds are supported: byte-level BPE (`gpt2`), where `tokenizer.ggml.pre` names the rule that splits text into
words before merging; SentencePiece BPE (`llama`), where merges follow from the scores of the pieces; and pieces as
SentencePiece has them with merges that are listed (`gemma4`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from edgemoe.conversion.gguf.markers import (
    CONTROL,
    MARKER_KINDS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    answer_ends,
    corrected_types,
)
from edgemoe.conversion.gguf.names import TAKE_ANOTHER
from edgemoe.conversion.tokenizers.building import add_around, byte_level, in_pieces, scored_merges
from edgemoe.conversion.tokenizers.words import BOS_RULES, COMPOSED, WHOLE_WORDS_FIRST, WORD_RULES
from edgemoe.errors import SourceError, UsageError
from edgemoe.model.sampling import read_generation_config

NO_TOKENIZER = "none"
"""Value of `tokenizer.ggml.model` in a file without a tokenizer: its ids have no text."""

_KEY = "tokenizer.ggml."

ENDS_KEY = _KEY + "eos_token_ids"
"""Key of the list of all tokens that end an answer, as Ollama writes it; llama.cpp has keys for three such tokens."""

SAMPLING_KEYS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty", "penalty_last_n": "penalty_last_n", "mirostat": "mirostat",
    "xtc_probability": "xtc_probability", "sequence": "sampling_sequence",
}  # fmt: skip
"""`general.sampling.*` keys and their generation_config.json names; some are only reported as unsupported."""

SAMPLED_KEYS = frozenset({"temp", "top_k", "top_p", "min_p"})
"""Sampling keys that have no effect on greedy decoding."""


def side_files(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes | Path]:
    """Make tokenizer.json, tokenizer_config.json and generation_config.json. Raises SourceError.

    The result is empty if the file declares that its model has no tokenizer.
    """
    if metadata.get(_KEY + "model") == NO_TOKENIZER:
        return {}
    vocabulary = _Vocabulary(path, metadata)
    files = {
        "tokenizer.json": vocabulary.tokenizer().to_str(),
        "tokenizer_config.json": _json(vocabulary.tokenizer_config()),
        "generation_config.json": _json(vocabulary.generation_config()),
    }
    return {name: text.encode() for name, text in files.items()}


def notices(path: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Paragraphs that inform the user about the tokenizer that `side_files` converts."""
    if metadata.get(_KEY + "model") == "gpt2" and not metadata.get(_KEY + "pre"):
        return [
            f"{path}: {_KEY}pre is missing; expected the rule that cuts text into words. The rule `default` "
            "is taken, as llama.cpp does: where the model was trained with another, its answers are worse. "
            "Take a newer GGUF of this model."
        ]
    return []


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


class _Vocabulary:
    """The tokenizer's metadata, checked on construction. Every method raises SourceError."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path, self._metadata = path, metadata
        self._model = self._get("model", "no tokenizer")
        self._rule = self._get("pre") or "default"
        if self._model not in ("gpt2", "llama", "gemma4"):
            raise self._wrong("model", "gpt2 (byte-level BPE), llama (SentencePiece BPE) or gemma4", self._model)
        if self._model == "gpt2" and (not isinstance(self._rule, str) or self._rule not in WORD_RULES):
            raise self._wrong("pre", "one of " + ", ".join(WORD_RULES), self._rule)
        self._tokens = self._strings("tokens")
        types = self._get("token_type", [NORMAL] * len(self._tokens))
        if not isinstance(types, list) or len(types) != len(self._tokens):
            raise self._wrong("token_type", f"{len(self._tokens)} types, one for each token", types)
        self._merges = self._strings("merges") if self._model != "llama" else []
        self._markers = {kind: number for kind in MARKER_KINDS if (number := self._token_id(kind)) is not None}
        spelled = {merge.replace(" ", "", 1) for merge in self._merges} if self._merges else None
        self._types = corrected_types(self._tokens, types, set(self._markers.values()), spelled)

    def _get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(_KEY + key, default)

    def _wrong(self, key: str, expected: str, found: Any) -> SourceError:
        found = f"a list of {len(found)}" if isinstance(found, list) else repr(found)
        return SourceError(f"{self._path}: {_KEY}{key}: expected {expected}, found {found:.80}.", TAKE_ANOTHER)

    def _strings(self, key: str) -> list[str]:
        values = self._get(key)
        if not isinstance(values, list) or not values or not isinstance(values[0], str):
            raise self._wrong(key, "a list of strings", values)
        return values

    def _token_id(self, kind: str) -> int | None:
        """The id of a special token, by the kind's name in the metadata (`bos`, `eos`, ...)."""
        value = self._get(f"{kind}_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self._tokens):
            raise self._wrong(f"{kind}_token_id", f"a token from 0 to {len(self._tokens) - 1}", value)
        return value

    def _listed_ends(self) -> list[int] | None:
        """The file's list of all tokens that end an answer; None if it has no list."""
        ids = self._metadata.get(ENDS_KEY)
        if ids is None:
            return None
        known = range(len(self._tokens))
        if not isinstance(ids, list) or not all(type(number) is int and number in known for number in ids):
            raise self._wrong("eos_token_ids", f"a list of tokens from 0 to {len(self._tokens) - 1}", ids)
        return ids

    def _adds(self, kind: str, default: bool) -> bool:
        return self._token_id(kind) is not None and self._get(f"add_{kind}_token", default) is True

    @property
    def _adds_bos(self) -> bool:
        if self._model == "gemma4":  # some files say that none is added, which llama.cpp does not believe either
            return self._token_id("bos") is not None
        return self._adds("bos", self._model == "llama" or self._rule in BOS_RULES)

    @property
    def _adds_eos(self) -> bool:
        return self._adds("eos", False)

    def tokenizer(self) -> Tokenizer:
        try:
            tokenizer = self._byte_level() if self._model == "gpt2" else self._sentence_piece()
            special = self._of_type(CONTROL, UNKNOWN)
            tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
            tokenizer.add_tokens([AddedToken(token, normalized=False) for token in self._of_type(USER_DEFINED)])
            add_around(tokenizer, self._around("bos", self._adds_bos), self._around("eos", self._adds_eos))
        except SourceError:
            raise
        except Exception as error:  # the library raises plain Exception for an inconsistent vocabulary
            raise SourceError(f"{self._path}: its tokenizer cannot be built: {error}.", TAKE_ANOTHER) from error
        return tokenizer

    def _of_type(self, *types: int) -> list[str]:
        return [token for token, kind in zip(self._tokens, self._types, strict=True) if kind in types and token]

    def _ids(self) -> dict[str, int]:
        """Ids by token. Padding may repeat a token; text then becomes the first of them."""
        ids: dict[str, int] = {}
        for number, token in enumerate(self._tokens):
            ids.setdefault(token, number)
        return ids

    def _pairs(self) -> list[tuple[str, str]]:
        """The merges that the file lists."""
        halves = [merge.partition(" ") for merge in self._merges]
        if not all(left and right for left, _, right in halves):
            raise self._wrong("merges", "pairs of tokens with a space between", self._merges)
        return [(left, right) for left, _, right in halves]

    def _byte_level(self) -> Tokenizer:
        return byte_level(
            self._ids(),
            self._pairs(),
            WORD_RULES[self._rule],
            whole_first=self._rule in WHOLE_WORDS_FIRST,
            composed=self._rule in COMPOSED,
        )

    def _sentence_piece(self) -> Tokenizer:
        for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
            if self._get(key):
                raise self._wrong(key, "no such rule for the text", self._get(key))
        ids = self._ids()
        unknown = self._token_id("unknown")
        model = models.BPE(
            vocab=ids,
            merges=self._pairs() if self._merges else scored_merges(self._tokens, self._scores(), ids),
            unk_token=None if unknown is None else self._tokens[unknown],
            fuse_unk=True,
            byte_fallback="<0x00>" in ids,
        )
        return in_pieces(model, self._model == "llama" and self._get("add_space_prefix", True) is True)

    def _scores(self) -> list[float]:
        scores = self._get("scores")
        if not isinstance(scores, list) or len(scores) != len(self._tokens):
            raise self._wrong("scores", f"{len(self._tokens)} scores, one for each token", scores)
        return scores

    def _around(self, kind: str, adds: bool) -> str | None:
        """The special token of this kind, if it is added to a text; a chat template adds its own."""
        number = self._token_id(kind)
        return self._tokens[number] if adds and number is not None else None

    def tokenizer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"add_bos_token": self._adds_bos, "add_eos_token": self._adds_eos}
        for kind, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
            number = self._token_id(kind)
            if number is not None:
                config[f"{name}_token"] = self._tokens[number]
        template = self._metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            config["chat_template"] = template
        return config

    def generation_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {}
        # A model may end a text, a turn and a message with different tokens: generation stops at any of them.
        ends = answer_ends(self._tokens, self._types, self._markers, self._listed_ends())
        if ends:
            config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        for kind, name in (("bos", "bos"), ("padding", "pad")):
            number = self._token_id(kind)
            if number is not None:
                config[f"{name}_token_id"] = number
        for key, name in SAMPLING_KEYS.items():
            value = self._metadata.get(f"general.sampling.{key}")
            if value is None:
                continue
            config |= {"do_sample": True, name: value} if key in SAMPLED_KEYS else {name: value}
            try:
                read_generation_config({"do_sample": True, name: value})
            except UsageError as error:
                reason = error.message.removeprefix(f"{name}: ")
                raise SourceError(f"{self._path}: general.sampling.{key}: {reason}", TAKE_ANOTHER) from None
        return config
