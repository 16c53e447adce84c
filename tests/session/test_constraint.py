"""Forced text becomes tokens that spell exactly that, whatever a tokenizer puts before the first word of a text."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from edgemoe.session.constraint import _Words
from edgemoe.session.tokenizer import Tokenizer

SPACE = "\u2581"


def marked(*pieces: str) -> Tokenizer:
    """Tokens of these pieces and of all bytes, in the manner of SentencePiece: a text begins with a space."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("a", "b"), (SPACE, "ab")] if SPACE + "ab" in pieces else []
    model = models.BPE(
        {name: number for number, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True
    )
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    library.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<unk>"])
    return Tokenizer(library, len(names), frozenset())


@pytest.mark.parametrize("text", ["ab", " ab", "abab", "a", '"ab": ', "\u00e9", ""])
def test_forced_text_is_spelled_as_it_is(text: str) -> None:
    words = _Words(marked(SPACE, "a", "b", "ab", SPACE + "ab"))
    assert b"".join(words.tokens[one] for one in words(text)) == text.encode()
    assert b"".join(words.tokens[one] for one in words._longest(text.encode())) == text.encode()


def test_forced_text_is_cut_as_the_tokenizer_cuts_it() -> None:
    tokenizer = marked(SPACE, "a", "b", "ab", SPACE + "ab")
    words = _Words(tokenizer)
    assert words(" ab") == tokenizer.encode("ab")
    assert words("ab") == [tokenizer.require().token_to_id("ab")]
