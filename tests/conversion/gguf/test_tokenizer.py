"""The tokenizer in a GGUF cuts and joins text as the one that it was made from."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from edgemoe.conversion.gguf.tokenizer import side_files
from edgemoe.errors import SourceError
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.gguf_files import tokenizer_metadata
from tests.support.small_tokenizer import TEMPLATE, small_tokenizer

PATH = Path("model.gguf")
TEXTS = (
    "Hello, world! What's 12345 + 67890? It's 3.14, I'LL say; don't.",
    "  two  spaces\n\n\ttabs \r\n line ends   ",
    "Größe naïve café 你好，世界 🙂🙃 ½ ² Ⅷ e\u0301\u200d",
    "def f(x):\n    return x**2 # $5 <=> ^~| 'quoted'",
    "",
    " ",
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
DEEPSEEK = (
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE_FIRST = ("llama-bpe", "lfm2", "gpt-4o", "tekken", "kimi-k2")
WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

REFERENCES: dict[str, Any] = {
    "gpt-2": WHOLE,
    "olmo": WHOLE,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WHOLE]),
    "starcoder": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WHOLE]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "lfm2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "dbrx": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "gpt-4o": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "isolated"), BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
    "hunyuan": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
    "glm4": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "minimax-m2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "isolated"), BYTES]),
    "bailingmoe2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LING), "isolated"), BYTES]),
    "cohere2moe": pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(one), "isolated") for one in (r"\d{1,3}(?=(?:\d{3})*\b)", O200K)), BYTES]
    ),
    "deepseek-v3": pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(one), "isolated") for one in DEEPSEEK), BYTES]
    ),
    "qwen35": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN35), "isolated"), BYTES]),
    "tekken": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TEKKEN), "isolated"), BYTES]),
    "kimi-k2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(KIMI), "isolated"), BYTES]),
}
"""The rules as the tokenizer.json of their models has them."""


@functools.cache
def reference(rule: str) -> tokenizers.Tokenizer:
    """A tokenizer of that rule, trained here, with merges across digits that the rule must prevent."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=rule in WHOLE_FIRST))
    tokenizer.pre_tokenizer = WHOLE
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "12345 67890 123 456 $5 <=>"] * 20, trainer)
    tokenizer.pre_tokenizer = REFERENCES[rule]
    if rule in ("qwen2", "qwen35", "olmo"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("    ", normalized=False)])
    return tokenizer


@functools.cache
def from_metadata(rule: str) -> tokenizers.Tokenizer:
    files = side_files(PATH, tokenizer_metadata(reference(rule), rule))
    return tokenizers.Tokenizer.from_str(bytes(files["tokenizer.json"]).decode())


@every_case("rule", REFERENCES)
def test_same_tokens_as_the_original(rule: str) -> None:
    for text in (*TEXTS, "<|start|>user\nhi<|end|>", "a<tool>b", "x    y      z"):
        expected = reference(rule).encode(text)
        found = from_metadata(rule).encode(text)
        assert found.tokens == expected.tokens
        assert found.ids == expected.ids
        for skip in (True, False):
            assert from_metadata(rule).decode(found.ids, skip_special_tokens=skip) == reference(rule).decode(
                expected.ids, skip_special_tokens=skip
            )


@settings(max_examples=examples(150), deadline=None)
@given(rule=st.sampled_from(sorted(REFERENCES)), text=st.text(max_size=40))
def test_same_tokens_for_any_text(rule: str, text: str) -> None:
    assert from_metadata(rule).encode(text).ids == reference(rule).encode(text).ids


def test_digits() -> None:
    def cut(rule: str) -> list[str]:
        tokenizer = from_metadata(rule)
        return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("a 12345")]

    assert cut("smollm") == ["a", "Ġ", "1", "2", "3", "4", "5"]
    assert cut("llama-bpe") == ["a", "Ġ", "123", "45"]
    assert cut("qwen2") == ["a", "Ġ", "1", "2", "3", "4", "5"]
    assert cut("gpt-4o") == ["a", "Ġ", "123", "45"]
    assert cut("cohere2moe") == ["a", "Ġ", "12", "345"]
    assert cut("deepseek-v3") == ["a", "Ġ", "123", "45"]
    assert cut("tekken") == ["a", "Ġ", "1", "2", "3", "4", "5"]
    assert cut("gpt-2") == ["a", "Ġ12345"]


def test_capitals_begin_a_word_of_gpt_4o() -> None:
    pieces = from_metadata("gpt-4o").pre_tokenizer.pre_tokenize_str("camelCase ABCdef don'T/\n")
    assert [piece for piece, _ in pieces] == ["camel", "Case", "ĠABCdef", "Ġdon'T", "/Ċ"]


def test_the_rule_of_files_that_name_none() -> None:
    metadata = tokenizer_metadata(small_tokenizer(), "default")
    del metadata["tokenizer.ggml.pre"]
    tokenizer = tokenizers.Tokenizer.from_str(bytes(side_files(PATH, metadata)["tokenizer.json"]).decode())
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345 (ok)...")]
    assert pieces == ["it", "'", "s", "Ġ", "123", "45", "Ġ", "(", "ok", ")..."]


def config_of(metadata: dict[str, Any], name: str = "tokenizer_config.json") -> dict[str, Any]:
    value: dict[str, Any] = json.loads(side_files(PATH, metadata)[name])  # type: ignore[arg-type]
    return value


def test_special_tokens_template_and_sampling_are_carried_over() -> None:
    metadata = tokenizer_metadata(small_tokenizer(), "gpt-2") | {
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.1,
        "general.sampling.xtc_probability": 0.5,
    }
    assert config_of(metadata) == {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    assert config_of(metadata, "generation_config.json") == {
        "eos_token_id": [1, 5],
        "bos_token_id": 0,
        "pad_token_id": 1,
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "repetition_penalty": 1.1,
        "xtc_probability": 0.5,
    }


NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def with_tokens(metadata: dict[str, Any], *tokens: str, **changes: Any) -> dict[str, Any]:
    """A vocabulary with further tokens, all of one type; no types at all with `types=None`."""
    names = [*metadata["tokenizer.ggml.tokens"], *tokens]
    kind = changes.pop("types", NORMAL)
    out = metadata | {"tokenizer.ggml.tokens": names}
    out |= {"tokenizer.ggml.token_type": [kind] * len(names)} if kind is not None else {}
    if kind is None:
        del out["tokenizer.ggml.token_type"]
    return out | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def from_tokens(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(bytes(side_files(PATH, metadata)["tokenizer.json"]).decode())


@pytest.mark.parametrize("types", [NORMAL, None], ids=["typed as text", "without types"])
def test_markers_are_one_token_whatever_their_type(types: int | None) -> None:
    """A conversation has the ids that the model's own tokenizer gives it."""
    original = small_tokenizer()
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    found = from_tokens(with_tokens(tokenizer_metadata(original, "gpt-2"), types=types))
    assert found.encode(prompt).ids == original.encode(prompt).ids
    assert found.decode(found.encode(prompt).ids) == original.decode(original.encode(prompt).ids)


@every_case("types", [NORMAL, None, 5], ids=["typed as text", "without types", "typed as unused"])
@every_case("kind", ["bos", "eos", "eot", "eom", "fim_pre", "suffix", "fim_sep"])
def test_what_an_id_names_is_special(kind: str, types: int | None) -> None:
    """Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf-py's constants, Keys.Tokenizer."""
    original = tokenizer_metadata(small_tokenizer(), "gpt-2")
    number = len(original["tokenizer.ggml.tokens"])
    metadata = with_tokens(original, "<the marker>", types=types, **{f"{kind}_token_id": number})
    found = from_tokens(metadata)
    assert found.encode("a<the marker>").ids[-1] == number
    assert found.decode([number]) == ""


def test_text_that_merges_make_stays_text() -> None:
    """Also where it has the form of a marker: only then does the tokenizer cut as it was trained to."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = WHOLE, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["</s>"] * 9, trainer)
    tokenizer.pre_tokenizer = BYTES
    tokenizer.train_from_iterator(["</s>"] * 9, trainer)
    number = tokenizer.token_to_id("</s>")
    assert number is not None
    metadata = with_tokens(tokenizer_metadata(tokenizer, "gpt-2"), "<|end|>", "<think>", "[PAD99]")
    found = from_tokens(metadata)
    assert found.decode(found.encode("a</s>").ids) == "a</s>"
    assert config_of(metadata, "generation_config.json")["eos_token_id"] == found.token_to_id("<|end|>")
    # Text becomes these whole or not at all; one of them is shown, as it is of a model that thinks aloud.
    assert found.decode(found.encode("<|end|><think>[PAD99]").ids) == "<think>[PAD99]"
    assert len(found.encode("<think>").ids) == 1
    assert len(found.encode("[PAD99]").ids) > 1


@every_case(
    ("tokens", "keys", "ends"),
    [
        # The three ends in the generation_config.json of Llama 3.1 (128001, 128008, 128009).
        ("<|end_of_text|> <|eom_id|> <|eot_id|>", {"eos": 0}, [0, 1, 2]),
        # The two in that of Qwen2.5 (151645, 151643).
        ("<|endoftext|> <|im_start|> <|im_end|>", {"eos": 2}, [2, 0]),
        ("<|a|> <|b|> <|c|>", {"eom": 2, "eot": 1, "eos": 0}, [0, 1, 2]),
        ("<|end|> <|fim_pad|> <|file_sep|> <|x|> <|fim_prefix|>", {"eos": 0, "fim_rep": 3}, [0, 3, 1, 2]),
    ],
)
def test_an_answer_ends_at_every_token_that_ends_one(tokens: str, keys: dict[str, int], ends: list[int]) -> None:
    original = tokenizer_metadata(small_tokenizer(), "gpt-2")
    original["tokenizer.ggml.tokens"][1] = "[free]"  # which ends an answer, too, as <|im_end|>
    first = len(original["tokenizer.ggml.tokens"])
    ids = {f"{kind}_token_id": first + number for kind, number in keys.items()}
    metadata = with_tokens(original, *tokens.split(), **ids)
    assert config_of(metadata, "generation_config.json")["eos_token_id"] == [first + number for number in ends]


def test_a_list_of_all_ends_is_that() -> None:
    """Ollama's converter writes it from generation_config.json, and its runner reads it beside `eos_token_id`."""
    metadata = with_tokens(tokenizer_metadata(small_tokenizer(), "gpt-2"), "<|endoftext|>", eos_token_ids=[7, 1])
    assert config_of(metadata, "generation_config.json")["eos_token_id"] == [7, 1]
    metadata |= {"tokenizer.ggml.eos_token_id": 9}
    assert config_of(metadata, "generation_config.json")["eos_token_id"] == [9, 7, 1]


def test_sentence_piece_markers_without_types() -> None:
    metadata = sentence_piece()
    typed = from_tokens(metadata)
    del metadata["tokenizer.ggml.token_type"]
    found = from_tokens(metadata)
    for text in ("the water</s>in", "<s>é<unk>", "a<0x41>"):
        assert found.encode(text).ids == typed.encode(text).ids
        assert found.decode(found.encode(text).ids) == typed.decode(typed.encode(text).ids)


@every_case(
    ("key", "value", "expected"),
    [
        ("top_p", 7.0, "above 0, up to 1"), ("temp", float("nan"), "0 \\(greedy\\) to 100"), ("top_k", "many", "0"),
        ("penalty_repeat", 0.0, "above 0"), ("min_p", True, "0 \\(off\\) to 1"),
    ],
)  # fmt: skip
def test_an_unusable_sampling_key_is_named(key: str, value: Any, expected: str) -> None:
    metadata = tokenizer_metadata(small_tokenizer(), "gpt-2") | {f"general.sampling.{key}": value}
    with pytest.raises(SourceError, match=rf"model\.gguf: general\.sampling\.{key}: expected {expected}"):
        side_files(PATH, metadata)


@every_case(
    ("rule", "keys", "expected"),
    [
        ("gpt-2", {}, "{}"),
        ("gpt-2", {"add_bos_token": True}, "0 {}"),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, "0 {} 1"),
        ("llama-bpe", {}, "0 {}"),
        ("lfm2", {}, "0 {}"),
        ("tekken", {}, "0 {}"),
        ("llama-bpe", {"add_bos_token": False}, "{}"),
    ],
)
def test_tokens_around_a_text(rule: str, keys: dict[str, Any], expected: str) -> None:
    metadata = tokenizer_metadata(reference(rule), rule) | {
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    tokenizer = tokenizers.Tokenizer.from_str(bytes(side_files(PATH, metadata)["tokenizer.json"]).decode())
    plain = " ".join(map(str, reference(rule).encode("What's up").ids))
    assert " ".join(map(str, tokenizer.encode("What's up").ids)) == expected.format(plain)


def sentence_piece(**changes: Any) -> dict[str, Any]:
    """A vocabulary as SentencePiece makes them: specials, bytes, then pieces with falling scores."""
    pieces = ["▁a", "in", "▁t", "he", "▁the", "er", "▁w", "at", "▁wat", "▁wate", "▁water", "the", "th"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    scores = (
        [0.0] * 259 + [-float(number) for number in range(len(pieces))] + [-1000.0 - n for n in range(len(letters))]
    )
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters))
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@every_case(
    ("text", "tokens"),
    [
        # The best-scored pair is merged first, whatever stands left of it: "he" before "th".
        ("the water", ["<s>", "▁the", "▁water"]),
        ("bathe", ["<s>", "▁", "b", "at", "he"]),
        ("the  in", ["<s>", "▁the", "▁", "▁", "in"]),
        ("é", ["<s>", "▁", "<0xC3>", "<0xA9>"]),
        ("a\n", ["<s>", "▁a", "<0x0A>"]),
        ("a</s>b", ["<s>", "▁a", "</s>", "▁", "b"]),
    ],
)
def test_sentence_piece(text: str, tokens: list[str]) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(bytes(side_files(PATH, sentence_piece())["tokenizer.json"]).decode())
    encoding = tokenizer.encode(text)
    assert encoding.tokens == tokens
    assert tokenizer.decode(encoding.ids) == text.replace("</s>", " ")


def test_sentence_piece_without_a_space_before_the_text() -> None:
    content = bytes(side_files(PATH, sentence_piece(add_space_prefix=False, add_bos_token=False))["tokenizer.json"])
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    assert tokenizer.encode("the water").tokens == ["the", "▁water"]
    assert tokenizer.decode(tokenizer.encode("the water").ids) == "the water"


def pieces_with_merges(**changes: Any) -> dict[str, Any]:
    """The same pieces with merges that are listed, and ends of a turn, as files of Gemma 4 have them."""
    metadata = sentence_piece(model="gemma4", merges=["h e", "t h", "▁ t", "▁t he", "\n \n"], add_bos_token=False)
    own = {"\n": 1, "\n\n": 1, "<turn|>": 3, "<|tool_response>": 4}
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.tokens"] = [*tokens, *own]
    metadata["tokenizer.ggml.token_type"] = [*types, *own.values()]
    metadata["tokenizer.ggml.eos_token_id"] = len(tokens) + list(own).index("<turn|>")
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@every_case(
    ("text", "tokens"),
    [
        # Merges in the order of the list, with no space before the text; and BOS, whatever the file says.
        ("the the", ["<s>", "t", "he", "▁the"]),
        ("th  e", ["<s>", "th", "▁", "▁", "e"]),
        ("é\n\n\n", ["<s>", "<0xC3>", "<0xA9>", "\n\n", "\n"]),
        ("a<turn|>", ["<s>", "a", "<turn|>"]),
    ],
)
def test_pieces_with_merges(text: str, tokens: list[str]) -> None:
    files = side_files(PATH, pieces_with_merges())
    tokenizer = tokenizers.Tokenizer.from_str(bytes(files["tokenizer.json"]).decode())
    encoding = tokenizer.encode(text)
    assert encoding.tokens == tokens
    assert tokenizer.decode(encoding.ids) == text.replace("<turn|>", "")
    names = pieces_with_merges()["tokenizer.ggml.tokens"]
    ends = json.loads(bytes(files["generation_config.json"]))["eos_token_id"]
    assert {names[number] for number in ends} == {"<turn|>", "<|tool_response>"}


@every_case(
    ("metadata", "message"),
    [
        ({}, "found 'no tokenizer'"),
        ({"tokenizer.ggml.model": "t5"}, r"gpt2 .*, llama .* or gemma4, found 't5'"),
        (tokenizer_metadata(small_tokenizer(), "viking"), r"ggml\.pre: expected one of .*smollm.*, found 'viking'"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.pre": ["x"]}, r"ggml\.pre"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.tokens": []}, r"ggml\.tokens"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.merges": ["ab"]}, r"ggml\.merges"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.merges": ["§ §"]}, "cannot be built"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.token_type": [1]}, "token_type"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.eom_token_id": 9999}, "eom_token_id"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.eos_token_ids": [1, 9999]}, "eos_token_ids"),
        (tokenizer_metadata(small_tokenizer(), "gpt-2") | {"tokenizer.ggml.eos_token_ids": "x"}, "eos_token_ids"),
        (sentence_piece(scores=[0.0]), "scores"),
        (sentence_piece(remove_extra_whitespaces=True), "remove_extra_whitespaces"),
        (sentence_piece(precompiled_charsmap=[1]), "precompiled_charsmap"),
    ],
)
def test_what_cannot_be_carried_over_is_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        side_files(PATH, metadata)
