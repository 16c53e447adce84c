"""A tokenizer in a GGUF cuts text as that of the store does; one that would not is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from edgemoe.conversion.gguf.file import read_gguf
from edgemoe.conversion.gguf.tokenizer import side_files
from edgemoe.conversion.gguf.vocabulary import write_vocabulary
from edgemoe.errors import StoreError
from edgemoe.session.tokenizer import load_library_tokenizer
from tests.conversion.gguf.test_tokenizer import O200K
from tests.support.every_case import every_case
from tests.support.small_tokenizer import END, START, TEMPLATE, small_tokenizer

BUNDLED = Path(__file__).parents[3] / "models" / "smollm2-135m-moe" / "store"
TEXT = "Hello, wörld! It's 1234 o'clock.\n\n  <|im_start|>user\ndef f(x):\treturn 你好 🙂<|im_end|>  "


def there_and_back(folder: Path, vocabulary: int, file: Path) -> dict[str, bytes]:
    """The tokenizer's files, read again from a GGUF of them."""
    writer = gguf.GGUFWriter(file, "llama")
    try:
        write_vocabulary(writer, folder, vocabulary)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return {name: bytes(content) for name, content in side_files(file, read_gguf(file).metadata).items()}


def copy_of(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_str())


def write_folder(folder: Path, tokenizer: tokenizers.Tokenizer, **config: Any) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, **config}))
    return folder


@pytest.mark.slow
def test_the_bundled_models_files_come_back_to_the_byte(tmp_path: Path) -> None:
    files = there_and_back(BUNDLED, 49152, tmp_path / "m.gguf")
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name, content in files.items():
        assert content == (BUNDLED / name).read_bytes(), name


LLAMA3_WORDS = pre_tokenizers.Split(
    tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "isolated",
)
O200K_WORDS = pre_tokenizers.Split(tokenizers.Regex(O200K), "isolated")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "rule"),
    [
        (GPT2, None, "gpt-2"),
        (GPT2, normalizers.NFC(), "olmo"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None, "smollm"),
        (pre_tokenizers.Sequence([LLAMA3_WORDS, BYTES]), None, "llama-bpe"),
        (pre_tokenizers.Sequence([O200K_WORDS, BYTES]), None, "gpt-4o"),
        (pre_tokenizers.Sequence([O200K_WORDS, BYTES]), None, "gpt-4o whole words first"),
    ],
)
def test_rules_for_words_are_known_by_what_they_do(
    tmp_path: Path, pre_tokenizer: Any, normalizer: Any, rule: str
) -> None:
    tokenizer = copy_of(small_tokenizer())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if rule in ("llama-bpe", "gpt-4o whole words first"):
        data = json.loads(tokenizer.to_str())
        data["model"]["ignore_merges"] = True
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    size = tokenizer.get_vocab_size()
    files = there_and_back(write_folder(tmp_path / "store", tokenizer), size, tmp_path / "m.gguf")
    assert read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == rule.split(" ")[0]
    back = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert back.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert back.decode(back.encode(TEXT).ids, skip_special_tokens=False) == TEXT


def test_template_special_tokens_sampling_and_padding_come_along(tmp_path: Path) -> None:
    tokenizer = copy_of(small_tokenizer())
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    size = tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(single=[START, "$A"], special_tokens=[(START, 0)])
    folder = write_folder(tmp_path / "store", tokenizer, bos_token={"content": START}, chat_template="not this one")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(
        json.dumps(
            {
                "eos_token_id": [7, 1],
                "do_sample": True,
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
                "repetition_penalty": 1.25,
            }
        )
    )
    files = there_and_back(folder, size + 3, tmp_path / "m.gguf")
    back = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert back.encode(TEXT + "<think>").ids == tokenizer.encode(TEXT + "<think>").ids
    assert back.get_vocab_size() == size + 3
    config, generation = json.loads(files["tokenizer_config.json"]), json.loads(files["generation_config.json"])
    assert config["chat_template"] == TEMPLATE
    assert (config["bos_token"], config["add_bos_token"], config["eos_token"]) == (START, True, END)
    assert generation["eos_token_id"] == [1, 7]
    assert (generation["temperature"], generation["top_k"], generation["top_p"]) == (0.7, 20, 0.8)
    assert generation["repetition_penalty"] == 1.25
    types = read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.token_type"]
    assert (types[:2], types[2], types[-4:]) == ([3, 3], 1, [4, 5, 5, 5])


def _changed(key: str, value: Any) -> tokenizers.Tokenizer:
    tokenizer = copy_of(small_tokenizer())
    setattr(tokenizer, key, value)
    return tokenizer


@every_case(
    ("tokenizer", "what"),
    [
        (tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a")), "expected byte-level BPE, found WordLevel"),
        (
            tokenizers.Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)),
            "expected byte-level BPE, found SentencePiece BPE",
        ),
        (_changed("normalizer", normalizers.Lowercase()), "expected no normalizer but NFC, found Lowercase"),
        (_changed("pre_tokenizer", pre_tokenizers.Whitespace()), "expected cuts by patterns, found Whitespace"),
        (_changed("pre_tokenizer", BYTES), "expected a rule for words among gpt-2"),
        (_changed("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)), "found ByteLevel"),
        (_changed("pre_tokenizer", pre_tokenizers.Sequence([BYTES, LLAMA3_WORDS])), "expected a rule for words"),
        (
            _changed(
                "post_processor",
                processors.TemplateProcessing(single=["$A", START], special_tokens=[(START, 0)]),
            ),
            "other tokens around a text",
        ),
    ],
)
def test_tokenizers_that_a_file_cannot_tell_are_refused(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, what: str
) -> None:
    folder = write_folder(tmp_path / "store", tokenizer, bos_token=START)
    with pytest.raises(StoreError, match=what) as caught:
        there_and_back(folder, 400, tmp_path / "m.gguf")
    assert "`no_tokenizer`" in caught.value.hint


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "store", small_tokenizer())
    with pytest.raises(StoreError, match="expected ids below 300, found"):
        there_and_back(folder, 300, tmp_path / "m.gguf")


def test_a_tokenizer_that_is_none_is_told_as_such(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "store", small_tokenizer())
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(StoreError, match=r"tokenizer\.json: cannot be parsed"):
        there_and_back(folder, 400, tmp_path / "m.gguf")


def test_all_ends_of_an_answer_come_back(tmp_path: Path) -> None:
    """Three have keys in the format (eos, eot, eom), and a list names all, which Ollama reads too."""
    folder = write_folder(tmp_path / "store", small_tokenizer())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9, 1, 11, 400]}))
    files = there_and_back(folder, 404, tmp_path / "m.gguf")
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert [metadata[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "eot", "eom")] == [1, 7, 9]
    assert metadata["tokenizer.ggml.eos_token_ids"] == [1, 7, 9, 11, 400]
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [1, 7, 9, 11, 400]


def test_special_tokens_that_only_special_tokens_map_names_come_along(tmp_path: Path) -> None:
    """Source: transformers, PreTrainedTokenizerBase._from_pretrained."""
    data = json.loads(small_tokenizer().to_str())
    data["added_tokens"] = []
    folder = write_folder(tmp_path / "store", tokenizers.Tokenizer.from_str(json.dumps(data)))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": START, "eos_token": {"content": END}}))
    files = there_and_back(folder, 400, tmp_path / "m.gguf")
    back = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert back.encode(f"{START}a{END}").ids == small_tokenizer().encode(f"{START}a{END}").ids
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"]) == (START, END)
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 1


def test_the_way_of_sampling_is_written_with_a_writer_of_any_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package `gguf` 0.17 and 0.17.1 have no methods for `general.sampling.*`."""
    for name in ("temp", "top_k", "top_p", "min_p"):
        monkeypatch.delattr(gguf.GGUFWriter, f"add_sampling_{name}", raising=False)
    folder = write_folder(tmp_path / "store", small_tokenizer())
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    files = there_and_back(folder, 400, tmp_path / "m.gguf")
    assert json.loads(files["generation_config.json"]).items() >= sampling.items()


def test_an_error_of_the_writer_blames_no_file_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise AttributeError("a method that is not there")

    monkeypatch.setattr(gguf.GGUFWriter, "add_token_types", broken)
    folder = write_folder(tmp_path / "store", small_tokenizer())
    with pytest.raises(AttributeError, match="a method that is not there"):
        there_and_back(folder, 400, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", r"tokenizer\.json: cannot be parsed"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json: expected a JSON object, found list"),
        ("generation_config.json", "{", r"generation_config\.json: cannot be parsed"),
    ],
)
def test_the_file_that_is_damaged_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "store", small_tokenizer())
    (folder / name).write_text(content)
    with pytest.raises(StoreError, match=message):
        there_and_back(folder, 400, tmp_path / "m.gguf")


EOT = "<|eot|>"


@pytest.mark.parametrize(
    ("files", "template", "ends"),
    [
        (
            {"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": EOT, "bos_token": START}},
            None,
            [2],
        ),
        ({"tokenizer_config.json": {"eos_token": END, "extra_special_tokens": {"eot_token": EOT}}}, None, [1]),
        ({"tokenizer_config.json": {"eos_token": END, "additional_special_tokens": [EOT]}}, None, [1]),
        (
            {
                "tokenizer_config.json": {
                    "eos_token": END,
                    "added_tokens_decoder": {"2": {"content": EOT, "special": True}},
                }
            },
            None,
            [1],
        ),
        (
            {
                "tokenizer_config.json": {
                    "eos_token": {"content": EOT},
                    "chat_template": {"default": TEMPLATE, "tool_use": "not this one"},
                },
                "generation_config.json": {"eos_token_id": [1]},
                "config.json": {"eos_token_id": 7},
            },
            TEMPLATE,
            [2, 1, 7],
        ),
        (
            {
                "tokenizer_config.json": {
                    "eos_token": EOT,
                    "chat_template": [
                        {"name": "tool_use", "template": "not this one"},
                        {"name": "default", "template": TEMPLATE},
                    ],
                }
            },
            TEMPLATE,
            [2],
        ),
    ],
)
def test_what_any_of_a_stores_files_says_is_in_the_gguf(
    tmp_path: Path, files: dict[str, Any], template: str | None, ends: list[int]
) -> None:
    """The export finds special tokens, template and ends as `run` does, which finds them as transformers does.

    transformers 5.24 on the same folders: `<|eot|>` is one token, id 2, and the template is the one named default. An
    answer ends where generation_config.json, config.json or the tokenizer's eos_token says, as `run` has it.
    """
    data = json.loads(small_tokenizer().to_str())
    vocabulary = data["model"]["vocab"]
    moved = next(token for token, number in vocabulary.items() if number == 2)
    vocabulary.update({moved: len(vocabulary), EOT: 2})
    folder = write_folder(tmp_path / "store", tokenizers.Tokenizer.from_str(json.dumps(data)))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    written = there_and_back(folder, len(vocabulary), tmp_path / "m.gguf")
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.token_type"][:3] == [3, 3, 3]
    assert metadata.get("tokenizer.chat_template") == template
    assert metadata["tokenizer.ggml.eos_token_ids"] == ends
    back = tokenizers.Tokenizer.from_str(written["tokenizer.json"].decode())
    assert back.encode(f"a{EOT}").ids == [*back.encode("a").ids, 2]
    assert load_library_tokenizer(folder).encode(f"a{EOT}").ids == back.encode(f"a{EOT}").ids


def test_templates_of_which_none_is_the_default_are_refused_by_their_names(tmp_path: Path) -> None:
    """The export says what `run` says; transformers raises ValueError for such a table, too."""
    folder = write_folder(tmp_path / "store", small_tokenizer(), chat_template={"rag": "a", "tool_use": "b"})
    with pytest.raises(StoreError, match="expected one template named default, found rag, tool_use"):
        there_and_back(folder, small_tokenizer().get_vocab_size(), tmp_path / "m.gguf")
