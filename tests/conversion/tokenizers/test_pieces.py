"""Tokenizers that are made from SentencePiece models cut and join text as SentencePiece does."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from edgemoe.conversion.tokenizers.pieces import read_pieces
from edgemoe.errors import SourceError
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.vocabularies import TEXTS, every_character, sentencepiece_model

AS_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "bpe", "byte_fallback": True, "split_digits": True, **AS_IS},
    "without a prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **AS_IS},
    "without bytes": {"model_type": "bpe", "allow_whitespace_only_pieces": True, **AS_IS},
    "kept whole": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": ["▁▁", "▁▁▁▁", "<mask:1>", "ell", "\n", "(a)"],
        "control_symbols": ["[INST]"],
        **AS_IS,
    },
}
"""Options of the trainer: BPE, whose tokens are equal for every text."""
UNIGRAM: dict[str, Any] = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
"""As T5's are."""


@functools.cache
def content(name: str) -> bytes:
    return sentencepiece_model(**(MODELS.get(name) or UNIGRAM))


@functools.cache
def original(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=content(name))


@functools.cache
def made(name: str) -> Tokenizer:
    file = "tokenizer.model" if name in MODELS else "spiece.model"
    return Tokenizer.from_str(read_pieces(file, content(name), {}, 0).tokenizer.to_str())


def require_equal(name: str, texts: Iterable[str]) -> None:
    tokenizer, reference = made(name), original(name)
    tokenizer.encode_special_tokens = True
    try:
        for text in texts:
            ids = reference.encode(text)
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
            if reference.unk_id() not in ids:
                assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)
    finally:
        tokenizer.encode_special_tokens = False


@every_case("name", MODELS)
def test_same_tokens_as_sentencepiece(name: str) -> None:
    require_equal(name, [*TEXTS, "▁", " ▁ a ", "  (a)  ellell<mask:1>a <mask:1>", "ell", " ell"])
    drawn = random.Random(len(name))
    for character in "a- =\n0字▁":
        require_equal(name, (character * drawn.randrange(500, 3000), "b" + character * drawn.randrange(40) + " b"))
    require_equal(name, ["".join(drawn.choice("ab-= ") for _ in range(2000)), " ".join(TEXTS) * 20])


@pytest.mark.slow
@every_case("name", MODELS)
def test_every_character(name: str) -> None:
    require_equal(name, every_character())


@settings(max_examples=examples(150), deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), text=st.text(max_size=40).filter(lambda text: "<" not in text))
def test_same_tokens_for_any_text(name: str, text: str) -> None:
    require_equal(name, [text])


def test_unigram_cuts_words_as_sentencepiece_does() -> None:
    words = [" ".join(TEXTS[0].split()[::step]) for step in (1, 2, 3)]
    composed = (
        "  naïve\t café ½ ² ﬁ ǅ ｘ　ｙ １２ ㍍ \u00a0 e\u0301 한국어 \x07\u200b x  ",
        "你好，世界 🙂 \ufffd",
        "",
        " ",
        "\n\n",
    )
    tokenizer, reference = made("t5"), original("t5")
    for text in (*words, *composed, *("a" + chr(number) + " b" for number in range(0xA0, 0x3100, 7))):
        expected, found = reference.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:  # of cuts with equal sums of scores, each library takes one of its own
            assert reference.decode(found) == reference.decode(expected), text
            sums = [sum(reference.get_score(token) for token in ids) for ids in (found, expected)]
            assert sums[0] == pytest.approx(sums[1], abs=1e-4), text


def test_a_combining_mark_after_a_compatibility_character_is_lost() -> None:
    """The normaliser of the library `tokenizers` works so; where it learns to do otherwise, say so in `read_pieces`."""
    assert original("t5").encode("x\u00a0\u0301") != made("t5").encode("x\u00a0\u0301", add_special_tokens=False).ids


def test_t5_s_gaps_have_the_last_ids_from_the_end() -> None:
    count = original("t5").vocab_size()
    assert [made("t5").token_to_id(f"<extra_id_{gap}>") for gap in (0, 1, 99)] == [count + 99, count + 98, count]
    assert made("t5").get_vocab_size() == count + 100
    ids = made("t5").encode("the <extra_id_0> of").ids
    assert ids == [*original("t5").encode("the"), count + 99, *original("t5").encode("of"), 1]
    fewer = read_pieces("spiece.model", content("t5"), {"extra_ids": 3}, 0).tokenizer
    assert fewer.token_to_id("<extra_id_2>") == count
    assert fewer.get_vocab_size() == count + 3
    for unlikely in ("3", True, -1, 1 << 40):
        other = read_pieces("spiece.model", content("t5"), {"extra_ids": unlikely}, 0).tokenizer
        assert other.token_to_id("<extra_id_99>") == count


def test_tokens_that_settings_add_have_their_ids() -> None:
    for name in ("mixtral", "t5"):
        count = original(name).vocab_size()
        added = {str(count + place): {"content": f"<|new_{place}|>", "special": not place} for place in (0, 1)}
        tokenizer = read_pieces("tokenizer.model", content(name), {"added_tokens_decoder": added}, 0).tokenizer
        assert [tokenizer.token_to_id(f"<|new_{place}|>") for place in (0, 1)] == [count, count + 1]
        assert [token.special for token in tokenizer.get_added_tokens_decoder().values()][-2:] == [True, False]


@every_case(
    ("name", "settings", "around"),
    [
        ("mixtral", {}, (["<s>"], [])),
        ("mixtral", {"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True}, (["<s>"], ["</s>"])),
        ("mixtral", {"add_bos_token": False}, ([], [])),
        ("mixtral", {"tokenizer_class": "Ernie4_5_Tokenizer"}, ([], [])),
        ("t5", {"tokenizer_class": "T5Tokenizer"}, ([], ["</s>"])),
    ],
)
def test_what_stands_around_a_text(name: str, settings: Mapping[str, Any], around: tuple[list[str], list[str]]) -> None:
    tokenizer = read_pieces("tokenizer.model", content(name), settings, 0).tokenizer
    plain = tokenizer.encode("the", add_special_tokens=False).tokens
    assert tokenizer.encode("the").tokens == [*around[0], *plain, *around[1]]


def test_names_of_special_tokens() -> None:
    assert read_pieces("tokenizer.model", content("mixtral"), {}, 0).names == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    assert read_pieces("spiece.model", content("t5"), {}, 0).names == {
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }


def test_control_tokens_are_found_in_text_and_begin_a_new_one() -> None:
    """Published tokenizers of Mixtral do the same: what follows a token has a space put before it."""
    reference = original("kept whole")
    ids = [reference.piece_to_id("[INST]"), *reference.encode("the"), reference.piece_to_id("</s>")]
    assert made("kept whole").encode("[INST]the</s>", add_special_tokens=False).ids == ids


def changed(name: str = "mixtral", **fields: Any) -> bytes:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content(name))
    for key, value in fields.items():
        *path, last = key.split("__")
        place: Any = model
        for step in path:
            place = place[int(step)] if step.isdigit() else getattr(place, step)
        setattr(place, last, value)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (lambda: b"YQ== 0\nYg== 1\n", "expected a SentencePiece model, found something else"),
        (lambda: content("mixtral")[:-3], "expected a SentencePiece model, found something else"),
        (lambda: b"", "expected a SentencePiece model, found something else"),
        (lambda: content("mixtral").replace(b"</s>", b"<\xff\xff>"), "expected a SentencePiece model, found something"),
        (lambda: changed(pieces__90__piece="e"), "expected each piece once"),
        (lambda: changed(pieces__90__piece=""), "expected pieces with text"),
        (lambda: changed(pieces__90__piece="x" * 1025), "expected pieces as long as words"),
        (lambda: changed(pieces__90__score=float("nan")), "expected scores that are numbers"),
        (lambda: changed(pieces__0__type=1), "expected a piece for unknown text"),
        (lambda: changed(trainer_spec__model_type=3), "expected BPE or unigram, found the model type 3"),
        (lambda: changed(trainer_spec__treat_whitespace_as_suffix=True), "expected spaces before words"),
        (lambda: changed(normalizer_spec__escape_whitespaces=False), "expected ▁ for spaces"),
        (lambda: changed("t5", pieces__90__type=5), "expected pieces that are all used"),
        (
            lambda: changed("t5", normalizer_spec__precompiled_charsmap=b"\xff\xff\xff\xff"),
            "its tokenizer cannot be built",
        ),
    ],
)
def test_a_damaged_or_other_model_is_told(data: Callable[[], bytes], found: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_pieces("tokenizer.model", data(), {}, 0)
    assert found in caught.value.message
    assert caught.value.message.startswith("tokenizer.model: ")


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(SourceError, match="needs the package `sentencepiece`") as caught:
        read_pieces("tokenizer.model", content("mixtral"), {}, 0)
    assert caught.value.hint == "Run: pip install 'edgemoe[sentencepiece]'"
