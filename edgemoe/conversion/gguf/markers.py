"""Which tokens of a GGUF's vocabulary are markers, and which of them end an answer.

A file names its markers by ids (`tokenizer.ggml.eos_token_id`, ...) and gives each token a type. But some files have
no types, or call every token ordinary text, and many leave ids out. So llama.cpp's vocabulary loader
(src/llama-vocab.cpp) also knows markers by their text; the names below are facts from there, without those of
vocabularies that cannot be carried over (o200k_harmony, Gemma 4, MiniMax).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of `tokenizer.ggml.token_type`; the others that matter nowhere here are unused tokens and bytes."""

_UNDEFINED = 0

END_KINDS = ("eos", "eot", "eom")
"""The special tokens that end an answer: of a text, a turn and a message. Each has a key of its own."""

_FILL_END_KINDS = ("fim_pad", "fim_rep", "fim_sep")
"""Special tokens of filling in the middle that end an answer, because another file or repository begins there."""

MARKER_KINDS = (
    "bos",
    *END_KINDS,
    *_FILL_END_KINDS,
    *("fim_pre", "fim_suf", "fim_mid", "prefix", "suffix", "middle"),
)
"""The special tokens that are markers; those for unknown text and padding may be ordinary text."""

_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"),
        *("<end_of_turn>", "<end_of_utterance>", "<eos>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        "<｜end▁of▁sentence｜>",
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
"""The form in which most families write their markers, such as <|im_start|>."""
_TAG = re.compile(r"</?[A-Za-z][^<>\s]*>")
"""The form of further tokens that text becomes whole, such as <think>."""


def corrected_types(
    tokens: Sequence[str], types: Sequence[int], named: Collection[int], spelled: Collection[str] | None
) -> list[int]:
    """The type of each token, where the file may call a marker ordinary text.

    `named` holds the ids that the file names as markers. `spelled` holds what the merges of byte-level BPE make: such
    a token is ordinary text whatever its form, and any other of several letters text can only become whole. It is
    None for SentencePiece, whose pieces do not tell.
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
    """The ids of the tokens that end an answer, each once, that of `eos` first.

    `types` are corrected ones; `ids` are those of special tokens by their kind; `listed` is the file's own list of
    all ends. Without a list, the markers that are known to end an answer do so wherever a vocabulary has them.
    """
    ends = [ids[kind] for kind in END_KINDS if kind in ids]
    if listed is not None:
        return list(dict.fromkeys([*ends, *listed]))
    ends += [ids[kind] for kind in _FILL_END_KINDS if kind in ids]
    known = _ENDS | _FILL_ENDS
    ends += [number for number, token in enumerate(tokens) if token in known and types[number] == CONTROL]
    return list(dict.fromkeys(ends))
