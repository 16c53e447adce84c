"""Tokenizers that are made from files of tiktoken's form cut and join text as tiktoken does."""

from __future__ import annotations

import base64
import functools
import random
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgemoe.conversion.tokenizers.tekken import read_tekken
from edgemoe.conversion.tokenizers.tiktoken import read_tiktoken
from edgemoe.errors import SourceError
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.vocabularies import TEXTS, as_json, every_character, tekken_file, tiktoken_file, trained_tokens

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NOT_HAN = "&&[^\\p{Han}]]"
PATTERNS = {
    "kimi": "|".join(
        (
            r"[\p{Han}]+",
            rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER[:-1]}{NOT_HAN}*{LOWER[:-1]}{NOT_HAN}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER[:-1]}{NOT_HAN}+{LOWER[:-1]}{NOT_HAN}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "hunyuan": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""The patterns as the programs of the models have them."""

LARGE = 1 << 20


@functools.cache
def tokens_of(kind: str) -> tuple[bytes, ...]:
    return trained_tokens(PATTERNS[kind])


def kimi_settings(**described: Any) -> dict[str, Any]:
    """The settings of Kimi's tokenizer, with tokens by their places after all others."""
    begin = len(tokens_of("kimi"))
    tokens = described or {"0": "[BOS]", "1": "[EOS]", "2": "<|im_end|>", "5": "<think>"}
    added = {str(begin + int(at)): {"content": text, "special": text != "<think>"} for at, text in tokens.items()}
    return {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": added}


@functools.cache
def made(kind: str) -> Tokenizer:
    content = tiktoken_file(tokens_of(kind))
    if kind == "tekken":
        found = read_tekken("tekken.json", as_json(tekken_file(tokens_of(kind), PATTERNS[kind])), {}, LARGE)
    elif kind == "kimi":
        found = read_tiktoken("tiktoken.model", content, kimi_settings(), LARGE)
    else:
        found = read_tiktoken("hy.tiktoken", content, {"tokenizer_class": "HYTokenizer"}, LARGE)
    return Tokenizer.from_str(found.tokenizer.to_str())


def special_tokens(kind: str) -> dict[str, int]:
    begin = len(tokens_of(kind))
    if kind == "kimi":
        named = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 5: "<think>"}
        return {named.get(n, f"<|reserved_token_{begin + n}|>"): begin + n for n in range(256)}
    if kind == "hunyuan":
        named = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"]
        return {text: begin + n for n, text in enumerate([*named, *(f"<|extra_{n}|>" for n in range(205))])}
    return {}


@functools.cache
def original(kind: str) -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(tokens_of(kind))}
    return tiktoken.Encoding(kind, pat_str=PATTERNS[kind], mergeable_ranks=ranks, special_tokens=special_tokens(kind))


def require_equal(kind: str, texts: Iterable[str], parsed: bool = False) -> None:
    tokenizer, first = made(kind), 24 if kind == "tekken" else 0
    tokenizer.encode_special_tokens = not parsed
    try:
        for text in texts:
            given_text = unicodedata.normalize("NFC", text) if kind == "hunyuan" else text
            encoding = original(kind)
            special = set(special_tokens(kind)) if parsed else {"<think>"} & set(special_tokens(kind))
            ids = encoding.encode(given_text, allowed_special=special, disallowed_special=())
            assert tokenizer.encode(text, add_special_tokens=False).ids == [first + number for number in ids], text
            found = tokenizer.decode([first + number for number in ids], skip_special_tokens=False)
            assert found == encoding.decode(ids) == given_text
    finally:
        tokenizer.encode_special_tokens = False


@every_case("kind", PATTERNS)
def test_same_tokens_as_tiktoken(kind: str) -> None:
    require_equal(kind, TEXTS)
    drawn = random.Random(len(kind))
    for character in "a- =\n0字":
        require_equal(kind, (character * drawn.randrange(500, 3000), "b" + character * drawn.randrange(40) + " b"))
    require_equal(kind, ["".join(drawn.choice("ab-= ") for _ in range(2000)), " ".join(TEXTS) * 20])


@every_case("kind", PATTERNS)
def test_one_character_of_every_script_and_class(kind: str) -> None:
    seen: dict[tuple[str, str], list[str]] = {}
    for number in range(0, 0x20000, 5):
        character = chr(number)
        category = unicodedata.category(character)
        if category not in ("Cn", "Cs", "Co"):
            seen.setdefault((category, unicodedata.name(character, "?").split()[0]), []).append(character)
    some = [group[0] + "a" + group[-1] + "B1 " for group in seen.values()]
    assert len(some) > 300
    require_equal(kind, ["".join(some[place : place + 20]) for place in range(0, len(some), 20)])


@pytest.mark.slow
@every_case("kind", PATTERNS)
def test_every_character(kind: str) -> None:
    require_equal(kind, every_character())


@settings(max_examples=examples(150), deadline=None)
@given(kind=st.sampled_from(sorted(PATTERNS)), text=st.text(max_size=40))
def test_same_tokens_for_any_text(kind: str, text: str) -> None:
    # Normalising text of the newest marks differs between versions of Unicode.
    require_equal(kind, [text if kind != "hunyuan" else unicodedata.normalize("NFC", text)])


@every_case("kind", ("kimi", "hunyuan"))
def test_special_tokens_in_text(kind: str) -> None:
    texts = [
        "".join(f"{text}a {text}" for text in list(special_tokens(kind))[:8]),
        f"<|im_end|>user<think>x</think> <|extra_204|> [EOS]{list(special_tokens(kind))[-1]}",
        "<|reserved_token_1|> <|extra_205|> <|IM_END|>",
    ]
    for parsed in (False, True):
        require_equal(kind, texts, parsed)


def test_descriptions_decide_which_tokens_are_special() -> None:
    added = made("kimi").get_added_tokens_decoder()
    texts = {token.content: token.special for token in added.values()}
    begin = len(tokens_of("kimi"))
    assert texts["<think>"] is False
    assert texts["[EOS]"] is texts[f"<|reserved_token_{begin + 3}|>"] is True
    assert made("kimi").encode("a").ids == made("kimi").encode("a", add_special_tokens=False).ids


@every_case(
    ("settings", "around"), [({}, (1, 0)), ({"add_bod_token": False}, (0, 0)), ({"add_eod_token": True}, (1, 1))]
)
def test_what_hunyuan_puts_around_a_text(settings: Mapping[str, Any], around: tuple[int, int]) -> None:
    content = tiktoken_file(tokens_of("hunyuan"))
    tokenizer = read_tiktoken("hy.tiktoken", content, {"tokenizer_class": "HYTokenizer", **settings}, LARGE).tokenizer
    begin = len(tokens_of("hunyuan"))
    assert tokenizer.encode("").ids == [begin + 1] * around[0] + [begin] * around[1]


def test_hunyuan_s_ranks_are_the_lines() -> None:
    tokens = tokens_of("hunyuan")
    content = b"".join(b"%s 7\n" % base64.b64encode(token) for token in tokens)
    tokenizer = read_tiktoken("hy.tiktoken", content, {"tokenizer_class": "HYTokenizer"}, LARGE).tokenizer
    assert tokenizer.get_vocab() == made("hunyuan").get_vocab()


def test_older_models_of_hunyuan_lack_one_special_token() -> None:
    tokens = tokens_of("hunyuan")
    content, most = tiktoken_file(tokens), len(tokens) + 209
    tokenizer = read_tiktoken("hy.tiktoken", content, {"tokenizer_class": "HYTokenizer"}, most).tokenizer
    assert tokenizer.get_vocab_size() == most
    assert tokenizer.token_to_id("<|extra_204|>") is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda lines: [], "expected tokens, found none"),
        (lambda lines: [*lines[:-1], lines[-1][:3]], "line {last}: expected a token in base64, a space and its rank"),
        (lambda lines: [*lines, b"n@t 9999"], "line {next}: expected a token in base64, found 'n@t'"),
        (lambda lines: [*lines, b"YQ= 9999"], "line {next}: expected a token in base64, found 'YQ='"),
        (lambda lines: [*lines, b" 9999"], "found 0"),
        (lambda lines: [*lines, base64.b64encode(b"x" * 1025) + b" 9999"], "1 to 1024 bytes, found 1025"),
        (lambda lines: [*lines, b"WFhYWFhY -1"], "a space and its rank, found b'WFhYWFhY -1'"),
        (lambda lines: [*lines, b"WFhYWFhY 12345678901234"], "a space and its rank"),
        (lambda lines: [*lines, lines[0].split()[0] + b" 9999"], "found that of line 1 again"),
        (lambda lines: [*lines, b"WFhYWFhY 3"], "line {next}: expected each rank once, found 3 again"),
        (lambda lines: [*lines, b"WFhYWFhY 9999"], "found no token of rank {last}"),
        (lambda lines: lines[1:], "found no token of rank 0"),
        (lambda lines: [b"WFhYWFhY 0"], "a token for each byte, found none for 0x00 and 255 others"),
    ],
)
def test_a_damaged_file_is_told(change: Callable[[list[bytes]], list[bytes]], found: str) -> None:
    tokens = tokens_of("kimi")
    content = b"\n".join(change(tiktoken_file(tokens).splitlines()))
    with pytest.raises(SourceError) as caught:
        read_tiktoken("tiktoken.model", content, kimi_settings(), LARGE)
    assert found.format(last=len(tokens), next=len(tokens) + 1) in caught.value.message
    assert caught.value.message.startswith("tiktoken.model: ")


@every_case(
    ("file", "settings"),
    [
        ("tiktoken.model", {}),
        ("tiktoken.model", {"tokenizer_class": "HYTokenizer"}),
        ("hy.tiktoken", {"tokenizer_class": []}),
    ],
)
def test_a_rule_that_is_not_known_is_not_guessed(file: str, settings: Mapping[str, Any]) -> None:
    with pytest.raises(SourceError, match="the rule that cuts text into words is not known") as caught:
        read_tiktoken(file, tiktoken_file(tokens_of("kimi")), settings, LARGE)
    assert "tokenizer.json" in str(caught.value.hint)


def test_a_special_token_that_text_is_cut_into_is_told() -> None:
    with pytest.raises(SourceError, match="'a' stands for two tokens"):
        read_tiktoken("tiktoken.model", tiktoken_file(tokens_of("kimi")), kimi_settings(**{"0": "a"}), LARGE)


def test_a_description_of_a_token_that_the_file_has_is_told() -> None:
    with pytest.raises(SourceError, match=r"^tokenizer_config.json: added token '\[BOS\]': expected an id from \d+"):
        read_tiktoken("tiktoken.model", tiktoken_file(tokens_of("kimi")), kimi_settings(**{"-1": "[BOS]"}), LARGE)
