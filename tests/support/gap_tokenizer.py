"""A tokenizer like that of T5: pieces of words by their likeliness, an end after each text, and tokens of gaps."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

GAPS = 100
PIECES = ["▁the", "▁man", "▁walks", "▁in", "to", "▁a", "▁bar", "▁and", "▁orders", "▁beer", "▁", *"abdehiklmnorstuwy."]


def gap_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """With `<pad>` 0, `</s>` 1, `<unk>` 2 and pieces after them; the last 100 ids are gaps, the first the highest."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -1.0 - len(piece) * 0.1) for piece in PIECES]
    pieces += [(f"▁filler{n}", -20.0) for n in range(vocab_size - GAPS - len(pieces))]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    gaps = [AddedToken(f"<extra_id_{GAPS - 1 - n}>", special=True, normalized=False) for n in range(GAPS)]
    tokenizer.add_special_tokens(gaps)
    return tokenizer


def side_files(vocab_size: int) -> dict[str, bytes]:
    """The text files of a checkpoint with this tokenizer."""
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**named, "additional_special_tokens": [f"<extra_id_{n}>" for n in range(GAPS)]}
    return {
        "tokenizer.json": gap_tokenizer(vocab_size).to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps({"decoder_start_token_id": 0, "eos_token_id": 1}).encode(),
    }
