"""Builds tokenizers of the `tokenizers` library from vocabularies, merges and rules, wherever those were read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "▁"
"""Stands for a space in the pieces of SentencePiece."""


def byte_level(
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    patterns: Iterable[str],
    *,
    whole_first: bool,
    composed: bool,
) -> Tokenizer:
    """Byte-level BPE, whose words are the matches of the patterns, applied one after another.

    `whole_first`: a word in the vocabulary becomes that token, whatever the merges; `composed`: text is normalised to
    NFC.
    """
    tokenizer = Tokenizer(models.BPE(vocab=dict(ids), merges=list(merges), ignore_merges=whole_first))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def in_pieces(model: models.Model, prefix: bool, before: Sequence[normalizers.Normalizer] = ()) -> Tokenizer:
    """A tokenizer of SentencePiece's pieces, in which `SPACE` stands for a space.

    `prefix`: a space is put before a text, and left out as it is decoded; `before`: what changes the text first.
    """
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [*before, *([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def add_around(tokenizer: Tokenizer, first: str | None, last: str | None) -> None:
    """Put the tokens `first` and `last` around every plain text; None: no token."""
    around: list[Any] = [*([first] if first else []), "$A", *([last] if last else [])]
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((first, last)) if token]
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)


def scored_merges(tokens: Sequence[str], scores: Sequence[float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of BPE by scores: every cut of a token into two tokens, the best-scored token first.

    Only one cut of a token is ever reached: merges do not cross what will be its ends, so that its inside is merged as
    if it stood alone. The others do no harm.
    """
    merges = []
    for number, token in enumerate(tokens):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in ids and token[at:] in ids]
        cuts.sort(key=lambda cut: (ids[cut[0]], ids[cut[1]]))
        merges += [(-scores[number], number, cut) for cut in cuts]
    merges.sort(key=lambda merge: merge[:2])
    return [cut for _, _, cut in merges]
