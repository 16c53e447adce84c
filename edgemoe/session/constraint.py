"""Answers in a given structure: a grammar says which tokens may follow, and the others are forbidden.

The package llguidance (extra `serve`) follows the grammar. It is imported, and told the vocabulary, when the first
grammar is compiled: that takes half a second. What it does not support it refuses by name. A grammar often leaves no
choice: such tokens are forced, and need no logits, so that several of them are run as one chunk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError
from edgemoe.session.token_bytes import TokenBytes
from edgemoe.session.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

Logits = npt.NDArray[np.float32]
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MARKER_BEGINS = "<["
"""How tokens with names of their own begin that are markers; others, such as runs of spaces, are text."""
BEFORE_TEXT = "\x02"
"""A character that no tokenizer joins with the text after it."""
LARGEST_BYTES = 1 << 20
"""The largest grammar that is compiled."""


@dataclass(frozen=True)
class Structure:
    """The structure of an answer."""

    grammar: Mapping[str, Any]
    """A grammar as llguidance takes it: `json_schema` or `lark_grammar`."""
    where: str
    """Its name in errors."""

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any], where: str) -> Structure:
        """The structure of the JSON texts that a schema allows, with the white space that models write most."""
        return cls({"json_schema": spaced(schema)}, where)

    @classmethod
    def of_grammar(cls, text: str, where: str) -> Structure:
        """The structure of a grammar in GBNF, as llama.cpp reads it, or in Lark's form.

        Raises UsageError for a text that is neither.
        """
        _library()
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            return cls({"lark_grammar": any_to_lark(text)}, where)
        except Exception as error:  # whatever its parser of GBNF stumbles on
            raise UsageError(f"`{where}`: it is no grammar in GBNF or Lark: {error!s:.300}.", "Correct it.") from None

    @classmethod
    def of_pattern(cls, pattern: str, where: str) -> Structure:
        """The structure of the texts that a regular expression matches as a whole."""
        found = json.loads(_library().LLMatcher.grammar_from_regex(pattern))
        return cls({"lark_grammar": found["grammars"][0]["lark_grammar"]}, where)


def spaced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with the white space of its texts, unless it says that itself."""
    return {"x-guidance": SPACES, **schema}


class Grammars:
    """Compiles grammars for the vocabulary of one model. Not to be used from several threads at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: llguidance.LLTokenizer | None = None

    def compile(self, structure: Structure, before: str = "") -> Constraint:
        """The constraint of a structure. `before`: a grammar in Lark's form that has it as `body`.

        Raises UsageError for what cannot be enforced, naming it.
        """
        llguidance = _library()
        where, own = structure.where, dict(structure.grammar)
        grammars = [{"lark_grammar": before}, {"name": "body", **own}] if before else [own]
        grammar = json.dumps({"grammars": grammars})
        if len(grammar) > LARGEST_BYTES:
            raise UsageError(f"`{where}`: expected at most {LARGEST_BYTES >> 10} KiB.", "Shorten it.")
        vocabulary = self._prepared()
        failed, remarks = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
        if failed:
            problem = "; ".join(remarks) or "it does not parse"
            raise UsageError(
                f"`{where}`: it cannot be enforced: {problem.strip():.500}.", "Leave that part out, or ask without it."
            )
        if remarks:  # what is merely remarked would not be enforced
            raise UsageError(f"`{where}`: it cannot be enforced: {'; '.join(remarks):.500}.", "Leave that part out.")
        return Constraint(llguidance.LLMatcher(vocabulary, grammar, log_level=0), self._tokenizer)

    def _prepared(self) -> llguidance.LLTokenizer:
        if self._vocabulary is None:
            words = _Words(self._tokenizer)
            library = _library()
            self._vocabulary = library.LLTokenizer(library.TokenizerWrapper(words), eos_token=words.ends)
        return self._vocabulary


class _Words:
    """The vocabulary as llguidance wants it: the bytes of each token, and which tokens are no text."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        spelled = TokenBytes(tokenizer)
        added = tokenizer.require().get_added_tokens_decoder()
        self._library = tokenizer.require()
        self.tokens = [spelled.of(token) for token in range(tokenizer.vocabulary)]
        self.special_token_ids = [
            number
            for number, token in added.items()
            if number < tokenizer.vocabulary and (token.special or token.content[0] in MARKER_BEGINS)
        ]
        ends = sorted(one for one in tokenizer.stop_ids if one < tokenizer.vocabulary)
        if not ends:  # it wants one: a token that is never allowed stands for it
            self.tokens.append(b"")
            ends = [tokenizer.vocabulary]
        self._ids: dict[bytes, int] | None = None
        self.ends = ends
        self.eos_token_id = ends[0]

    def __call__(self, text: bytes | str) -> list[int]:
        """The ids of a text; called for each run of forced text, on the thread that waits for it."""
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        wanted = said.encode()
        for before in ("", BEFORE_TEXT):  # some tokenizers put a space before the first word of a text
            ids = list(self._library.encode(before + said, add_special_tokens=False).ids)
            spelled = [self.tokens[one] for one in ids]
            while spelled and sum(map(len, spelled)) > len(wanted):
                del ids[0], spelled[0]
            if b"".join(spelled) == wanted:
                return ids
        return self._longest(wanted)

    def _longest(self, wanted: bytes) -> list[int]:
        """The ids of bytes, each the longest token that fits; they end where none does."""
        if self._ids is None:
            special = set(self.special_token_ids)
            self._ids = {one: number for number, one in enumerate(self.tokens) if one and number not in special}
        ids, place, longest = [], 0, max(map(len, self._ids))
        while place < len(wanted):
            sizes = range(min(longest, len(wanted) - place), 0, -1)
            size = next((size for size in sizes if wanted[place : place + size] in self._ids), None)
            if size is None:
                break
            ids.append(self._ids[wanted[place : place + size]])
            place += size
        return ids


_LIMITS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), np.inf, -np.inf
).astype(np.float32)
"""The most that eight bits of a mask leave of eight logits: a branch for each token would take up to ten times as long
as a minimum."""


class Constraint:
    """Follows one answer through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: Tokenizer) -> None:
        self._matcher = matcher
        self._ends = np.array(sorted(one for one in tokenizer.stop_ids if one < tokenizer.vocabulary), np.int64)
        self._forced: list[int] | None = None

    def copy(self) -> Constraint:
        """The same for another answer."""
        other: Constraint = object.__new__(Constraint)
        other._matcher, other._ends, other._forced = self._matcher.deep_copy(), self._ends, self._forced
        return other

    @property
    def ended(self) -> bool:
        """Whether the structure is complete, so that nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def forced(self) -> int | None:
        """The next token, where the grammar leaves no choice."""
        if self._forced is None:
            self._forced = [] if self.ended else [int(one) for one in self._matcher.compute_ff_tokens()]
        return self._forced[0] if self._forced else None

    def allows(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens may come next."""
        return bool(self._matcher.validate_tokens([*token_ids]) == len(token_ids))

    def apply(self, logits: Logits) -> None:
        """Forbid all tokens that the grammar does not allow next. Shapes: `(V,)`."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise UsageError(
                f"the grammar became too complex for this answer: {self._matcher.get_error():.300}.",
                "Simplify the schema or the grammar.",
            )
        limits = np.full(len(logits), -np.inf, np.float32)
        known = _LIMITS.take(mask, axis=0).reshape(-1)[: len(logits)]
        limits[: len(known)] = known
        limits[self._ends[self._ends < len(logits)]] = np.inf if self._matcher.is_accepting() else -np.inf
        np.minimum(logits, limits, out=logits)

    def add(self, token: int) -> None:
        """Follow the grammar over the chosen token."""
        self._forced = self._forced[1:] or None if self._forced and self._forced[0] == token else None
        self._matcher.consume_token(token)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UsageError(
            "answers in a given structure need the package llguidance, which is not here.",
            "Install it: pip install 'edgemoe[serve]', or -e '.[serve]' in a checkout.",
        ) from None
    return llguidance
