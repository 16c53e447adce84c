"""Determines which tokens of a GGUF's vocabulary are markers, and which of them end an answer.

A file gives the ids of its markers (`tokenizer.ggml.eos_token_id`, ...) and a type for each token. But some files have
no types, or mark every token as ordinary text, and many leave ids out. So llama.cpp's vocabulary loader
(src/llama-vocab.cpp) also recognises markers by their text; the names below are taken from there, without those of
vocabularies that cannot be converted (o200k_harmony, MiniMax).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of `tokenizer.ggml.token_type`; the remaining ones (unused tokens and bytes) are not needed here."""

_UNDEFINED = 0

END_KINDS = ("eos", "eot", "eom")
"""Special tokens that end an answer: end of text, of turn and of message. Each has a metadata key of its own."""

_FILL_END_KINDS = ("fim_pad", "fim_rep", "fim_sep")
"""Fill-in-the-middle tokens that end an answer, because another file or repository begins after them."""

MARKER_KINDS = (
    "bos",
    *END_KINDS,
    *_FILL_END_KINDS,
    *("fim_pre", "fim_suf", "fim_mid", "prefix", "suffix", "middle"),
)
"""Special tokens that are always markers; those for unknown text and padding may be ordinary text."""

_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"),
        *("<end_of_turn>", "<end_of_utterance>", "<eos>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<｜end▁of▁sentence｜>", "<turn|>", "<|tool_response>"),
    }
)
_FILL_ENDS = frozenset(
    {
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
        "<|file_sep|>",
    }
)
_OTHERS = frozenset(
    {
        *("<s>", "<unk>", "<pad>", "<bos>", "<start_of_turn>", "[INST]", "[/INST]"),
        *("<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
        *("<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
        *("<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
    }
)
_KNOWN = _ENDS | _FILL_ENDS | _OTHERS
_BARRED = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>")
"""Matches the form of most families' markers, such as <|im_start|>."""
_TAG = re.compile(r"</?[A-Za-z][^<>\s]*>")
"""Matches further tokens that are kept whole when text is tokenised, such as <think>."""


def corrected_types(
    tokens: Sequence[str], types: Sequence[int], named: Collection[int], spelled: Collection[str] | None
) -> list[int]:
    """Correct the type of each token, since a file may give a marker the type of ordinary text.

    `named` holds the ids that the file names as markers. `spelled` holds the tokens that the merges of byte-level BPE
    produce: these are ordinary text whatever their form, and any other token of several letters can only be matched
    whole. It is None for SentencePiece, whose pieces do not show this.
    """
    return [
        _corrected(token, kind, number in named, None if spelled is None else token in spelled or len(token) == 1)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]


def _corrected(token: str, kind: int, named: bool, spelled: bool | None) -> int:
    if kind in (CONTROL, UNKNOWN) or (spelled and kind in (NORMAL, _UNDEFINED)):
        return kind
    if named or token in _KNOWN:
        return CONTROL
    if kind in (NORMAL, _UNDEFINED):
        if _BARRED.fullmatch(token):
            return CONTROL
        if spelled is False and _TAG.fullmatch(token):
            return USER_DEFINED
    return kind


def answer_ends(
    tokens: Sequence[str], types: Sequence[int], ids: Mapping[str, int], listed: Iterable[int] | None
) -> list[int]:
    """The ids of the tokens that end an answer, without duplicates, `eos` first.

    `types` come from `corrected_types`; `ids` maps kinds of special tokens to their ids; `listed` is the file's own
    list of all ends. Without a list, every marker in the vocabulary that is known to end an answer counts.
    """
    ends = [ids[kind] for kind in END_KINDS if kind in ids]
    if listed is not None:
        return list(dict.fromkeys([*ends, *listed]))
    ends += [ids[kind] for kind in _FILL_END_KINDS if kind in ids]
    known = _ENDS | _FILL_ENDS
    if "<|tool_response>" in tokens:  # in the vocabulary of Gemma 4 this is the end of struck out text, in HTML
        known -= {"</s>"}
    ends += [number for number, token in enumerate(tokens) if token in known and types[number] == CONTROL]
    return list(dict.fromkeys(ends))
