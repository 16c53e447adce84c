"""Special tokens of tekken.json, whose ids are the first, and how many tokens a model has."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgemoe.conversion.tokenizers.made import Made
from edgemoe.conversion.tokenizers.tekken import read_tekken
from edgemoe.errors import SourceError
from tests.conversion.tokenizers.test_tiktoken import LARGE, PATTERNS, tokens_of
from tests.support.vocabularies import as_json, tekken_file

LISTED = [
    {"rank": rank, "token_str": text, "is_control": True}
    for rank, text in enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]"))
]


def tokens() -> tuple[bytes, ...]:
    return tokens_of("tekken")


def read(changes: dict[str, Any] | None = None, special_tokens: Any = LISTED) -> Made:
    data = tekken_file(tokens(), PATTERNS["tekken"], special_tokens)
    for key, value in (changes or {}).items():
        place = data
        *path, last = key.split("/")
        for step in path:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = value
    return read_tekken("tekken.json", as_json(data), {}, 0)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(read().tokenizer.to_str())


def test_special_tokens_are_the_first_ids() -> None:
    assert [tokenizer().id_to_token(number) for number in range(8)] == [
        *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "<SPECIAL_6>", "<SPECIAL_7>"),
    ]
    assert tokenizer().get_vocab_size() == 24 + len(tokens())
    assert tokenizer().encode("a", add_special_tokens=False).ids == [24 + tokens().index(b"a")]
    assert tokenizer().encode("[INST]a</s>").ids == [1, 3, 24 + tokens().index(b"a"), 2]
    assert tokenizer().decode([1, 3, 24 + tokens().index(b"a"), 2]) == "a"


def test_names_of_special_tokens() -> None:
    assert read().names == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert read(special_tokens=[]).names == {}
    assert read(special_tokens=[]).tokenizer.encode("").ids == []


def test_older_files_list_no_special_tokens() -> None:
    made = read(special_tokens=None)
    for text, number in (("<unk>", 0), ("</s>", 2), ("[TOOL_CALLS]", 9), ("<pad>", 11), ("[TOOL_CONTENT]", 19)):
        assert made.tokenizer.token_to_id(text) == number
    assert made.tokenizer.id_to_token(20) == "<SPECIAL_20>"
    assert made.names["pad_token"] == "<pad>"


def test_tokens_beyond_those_of_the_model_are_left_out() -> None:
    made = read({"config/default_vocab_size": 24 + len(tokens()) - 50})
    assert made.tokenizer.get_vocab_size() == 24 + len(tokens()) - 50
    assert made.tokenizer.encode("a").ids == [1, 24 + tokens().index(b"a")]


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("config", None, "config: expected an object, found none"),
        ("config", [], "config: expected an object, found list"),
        ("config/pattern", 7, "pattern: expected a text, found int"),
        ("config/pattern", "(", "its tokenizer cannot be built"),
        ("config/default_vocab_size", "131072", "default_vocab_size: expected a whole number, found str"),
        ("config/default_vocab_size", True, "default_vocab_size: expected 0 to"),
        ("config/default_vocab_size", 1 << 40, "default_vocab_size: expected 0 to"),
        ("config/default_vocab_size", 24, "of which 24 are special"),
        ("config/default_vocab_size", LARGE, "found {count} ordinary ones"),
        ("config/default_num_special_tokens", -1, "expected 0 to"),
        ("config/default_num_special_tokens", 5, "of which 5 are special, found {count} ordinary ones"),
        ("vocab", {}, "vocab: expected a list"),
        ("vocab/300", "x", "vocab: entry 300: expected the token of rank 300, found 'x'"),
        ("vocab/300/rank", 299, "expected the token of rank 300, found 299"),
        ("vocab/300/rank", True, "expected the token of rank 300, found True"),
        ("vocab/300/token_bytes", None, "vocab: entry 300: expected a token in base64, found None"),
        ("vocab/300/token_bytes", "YQ=", "expected a token in base64, found 'YQ='"),
        ("vocab/300/token_bytes", "", "1 to 1024 bytes, found 0"),
        ("vocab/300/token_bytes", "AA==", "found that of rank {zero} twice"),
        ("vocab/65/token_bytes", "WFhYWFhY", "found none for"),
        ("special_tokens", 5, "special_tokens: expected each with a text"),
        ("special_tokens/2/rank", 1, "special_tokens: expected each with a text"),
        ("special_tokens/2/rank", 24, "special_tokens: expected each with a text"),
        ("special_tokens/2/token_str", "", "special_tokens: expected each with a text"),
        ("special_tokens/2/token_str", "<s>", "special_tokens: expected each text once"),
        ("special_tokens/2/token_str", "a", "'a' stands for two tokens"),
    ],
)
def test_a_damaged_file_is_told(key: str, value: Any, found: str) -> None:
    with pytest.raises(SourceError) as caught:
        read({key: value}, [dict(entry) for entry in LISTED])
    assert found.format(count=len(tokens()), zero=tokens().index(b"\0")) in caught.value.message
    assert caught.value.message.startswith("tekken.json: ")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, as_json(tekken_file([b"x"], "x"))[:-9]])
def test_what_is_no_json_object_is_told(content: bytes) -> None:
    with pytest.raises(SourceError, match=r"^tekken\.json: "):
        read_tekken("tekken.json", content, {}, 0)
