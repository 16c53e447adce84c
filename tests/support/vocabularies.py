"""Small vocabularies in the forms that checkpoints have without a tokenizer.json, for tests."""

from __future__ import annotations

import base64
import functools
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

TEXTS = (
    "Hello, world! What's 12345 + 67890? It's 3.14, I'LL say; don't. HelloWorld XMLHttpRequest iPhone O'Neill's",
    "  two  spaces\n\n\ttabs \r\n line ends   \u00a0 \u3000 \u2028 \x85 \x0b\x0c \x00\x1f \n \n\n  x",
    "Größe naïve café 你好，世界 日本語のテキスト 한국어 👩\u200d👩\u200d👧 🙂🙃 ½ ² Ⅷ ٣٤٥ e\u0301\u200d a\u0323\u0307",
    'def f(x):\n    return x**2 # $5 <=> ^~| \'quoted\' """ /* // */ {}[]()\n\n\n        if (a && b) { c->d++; }\r\n',
    "ŉ ſ's 'ſ K ﬁ ﬆ ǅ ʰa Ⅻ 〇 々 漢字かなカナ漢 abc漢abc 漢's 𠀀𠀁 𝕏𝟙 \U000e0041 \ufeff \ufffd نص عربي हिन्दी ไทย",
    "aaaaaaaaaaaaaaaaaaaaaaa --------------- ============ \t\t\t\t\t\t\t\t 00000000000000 .....\n\n\n\n\n\n!!!!!!!!",
    "▁ ▁▁a <0x41> <s>a</s> <unk> <|im_end|> [INST] <extra_id_0>",
    "",
    " ",
    "\n",
)
"""Texts that are hard to cut as another program does."""

SEED_TEXTS = ("abcab", "the theme of them", "don't you're WE'LL", "12 123 1234", "你好世界 世界", "    \n\n  x == y")


@functools.cache
def trained_tokens(pattern: str, count: int = 700) -> tuple[bytes, ...]:
    """Tokens in the order of their ranks, trained on these texts cut by a pattern: all bytes, and what is merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *SEED_TEXTS] * 5, trainer)
    values = {name: bytes([value]) for value, name in enumerate(_byte_names())}
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return tuple(b"".join(values[letter] for letter in token) for token in tokens)


def _byte_names() -> list[str]:
    """The letters of the library for the bytes, found by asking it."""
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names: dict[int, str] = {}
    for text in [chr(number) for number in range(0x800)] + ["\u0800", "\u1000", *(chr(n << 12) for n in range(2, 16))]:
        names |= dict(zip(text.encode("utf-8", "surrogatepass"), cutter.pre_tokenize_str(text)[0][0], strict=True))
    for number in range(0x10000, 0x110000, 0x40000):
        names |= dict(zip(chr(number).encode(), cutter.pre_tokenize_str(chr(number))[0][0], strict=True))
    spare = iter(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(names.values())))
    return [names[value] if value in names else next(spare) for value in range(256)]  # bytes that UTF-8 does not have


def every_character(at_once: int = 20) -> Iterator[str]:
    """Texts that between them have every character of Unicode: after letters and a space, twice, before letters."""
    known = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) not in ("Cn", "Cs", "Co")]
    for first in range(0, len(known), at_once):
        yield "\n".join(f"a{one}B{one}{one} {one}1's" for one in known[first : first + at_once])


def tiktoken_file(tokens: Sequence[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def tekken_file(tokens: Sequence[bytes], pattern: str, special_tokens: Any = None, special: int = 24) -> dict[str, Any]:
    """The contents of a tekken.json."""
    return {
        "config": {
            "pattern": pattern,
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + special,
            "default_num_special_tokens": special,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        **({} if special_tokens is None else {"special_tokens": special_tokens}),
    }


def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece model that was trained on these texts, with options of its trainer."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in (*TEXTS[:6], *SEED_TEXTS) for line in text.splitlines()] * 5),
        model_writer=written,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **{"vocab_size": 600, **options},
    )
    return written.getvalue()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
