"""Checkpoints without a tokenizer.json become stores that read and write text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.cli.main import run_command
from edgemoe.conversion import pipeline
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.tokenizers.files import VOCABULARY_NAMES, vocabulary_name, with_tokenizer
from edgemoe.errors import SourceError, UsageError
from edgemoe.session.tokenizer import Tokenizer, load_library_tokenizer
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_vocabulary import there_and_back
from tests.conversion.tokenizers.test_pieces import content
from tests.conversion.tokenizers.test_pieces import original as pieces
from tests.conversion.tokenizers.test_tiktoken import PATTERNS, kimi_settings, original, tokens_of
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.letters_tokenizer import write_letters_tokenizer
from tests.support.vocabularies import as_json, tekken_file, tiktoken_file

TEXT = "Hello, world! It's 12345 你好 漢字 naïve\n\n  x"


def files_of(name: str) -> tuple[dict[str, bytes], int]:
    """The tokenizer's files of a checkpoint with a vocabulary of this form, and how many tokens it has."""
    if name == "tekken.json":
        listed = [{"rank": rank, "token_str": text} for rank, text in enumerate(("<unk>", "<s>", "</s>"))]
        tokens = tokens_of("tekken")
        return {name: as_json(tekken_file(tokens, PATTERNS["tekken"], listed))}, 24 + len(tokens)
    if name == "tiktoken.model":
        settings = {**kimi_settings(), "eos_token": "[EOS]"}
        files = {name: tiktoken_file(tokens_of("kimi")), "tokenizer_config.json": as_json(settings)}
        return files, 256 + len(tokens_of("kimi"))
    if name == "hy.tiktoken":
        settings = {"tokenizer_class": "HYTokenizer", "eos_token": "<|eos|>"}
        files = {name: tiktoken_file(tokens_of("hunyuan")), "tokenizer_config.json": as_json(settings)}
        return files, 210 + len(tokens_of("hunyuan"))
    kind = "mixtral" if name == "tokenizer.model" else "t5"
    return {name: content(kind)}, pieces(kind).vocab_size() + (100 if kind == "t5" else 0)


def expected(name: str) -> tuple[list[int], int]:
    """The ids of a text, as the library of this form gives them, and the id that ends an answer."""
    if name in ("tokenizer.model", "spiece.model"):
        kind = "mixtral" if name == "tokenizer.model" else "t5"
        return pieces(kind).encode(TEXT), pieces(kind).eos_id()
    kind = {"tekken.json": "tekken", "tiktoken.model": "kimi", "hy.tiktoken": "hunyuan"}[name]
    first, count = 24 if kind == "tekken" else 0, len(tokens_of(kind))
    ids = [first + number for number in original(kind).encode_ordinary(TEXT)]
    return ids, {"tekken": 2, "kimi": count + 1, "hunyuan": count + 3}[kind]


def write_model(folder: Path, files: dict[str, bytes], vocab_size: int) -> str:
    write_checkpoint(folder, {**SMALL_MIXTRAL, "vocab_size": vocab_size}, side_files=files)
    return str(folder)


def require_text(folder: Path, name: str, count: int) -> None:
    tokenizer = Tokenizer.load(folder, count)
    ids, end = expected(name)
    assert tokenizer.encode(TEXT) == ids
    assert tokenizer.decode(tokenizer.encode("Hello, world!")) == "Hello, world!"
    if name == "spiece.model":  # the library finds names of special tokens among unigram's pieces
        with pytest.raises(UsageError, match="cannot be plain text"):
            tokenizer.encode("Hello</s>", literal=True)
    else:
        assert end not in tokenizer.encode("Hello</s>[EOS]<|eos|>", literal=True)
    assert end in tokenizer.encode("Hello</s>[EOS]<|eos|>")
    assert tokenizer.stop_ids == {end}
    assert tokenizer.remarks == ()


@every_case("name", VOCABULARY_NAMES)
def test_what_is_made_reads_and_writes_text(name: str, tmp_path: Path) -> None:
    files, count = files_of(name)
    folder = tmp_path / name
    folder.mkdir()
    for file, made in with_tokenizer(files, count + 5).items():
        (folder / file).write_bytes(made)
    require_text(folder, name, count + 5)


@every_case("name", ("tekken.json", "tiktoken.model"))
def test_what_is_made_goes_to_a_gguf_and_back(name: str, tmp_path: Path) -> None:
    files, count = files_of(name)
    folder = tmp_path / name
    folder.mkdir()
    for file, made in with_tokenizer(files, count).items():
        (folder / file).write_bytes(made)
    back = there_and_back(folder, count, tmp_path / f"{name}.gguf")
    found = tokenizers.Tokenizer.from_str(back["tokenizer.json"].decode())
    assert found.encode(TEXT).ids == load_library_tokenizer(folder).encode(TEXT).ids
    assert found.get_vocab_size() == count


def test_a_checkpoint_with_a_vocabulary_becomes_a_store_with_a_tokenizer(tmp_path: Path) -> None:
    heard: list[str] = []
    files, count = files_of("tekken.json")
    source = write_model(tmp_path / "model", {**files, "tokenizer.model": b"not read"}, count + 5)
    store = convert_checkpoint(source, tmp_path / "store", notice=heard.append)
    assert heard == []
    require_text(store, "tekken.json", count + 5)
    kept = {file.name for file in Store.open(store).manifest.side_files}
    assert kept == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not (store / "tekken.json").exists()


@every_case("name", VOCABULARY_NAMES)
def test_the_same_files_give_the_same_bytes(name: str) -> None:
    files, count = files_of(name)
    made = with_tokenizer(files, count)
    assert made == with_tokenizer(dict(reversed(files.items())), count)
    published = json.loads(files.get("tokenizer_config.json", b"{}"))
    assert json.loads(made["tokenizer_config.json"]).items() >= published.items()


def test_settings_that_name_all_special_tokens_stay_as_they_are() -> None:
    files, count = files_of("tokenizer.model")
    files["tokenizer_config.json"] = b'{ "bos_token": "<s>", "unk_token":"<unk>" }'
    files["special_tokens_map.json"] = b'{"eos_token": "</s>"}'
    made = with_tokenizer(files, count)
    assert made["tokenizer_config.json"] == files["tokenizer_config.json"]
    assert made["special_tokens_map.json"] == files["special_tokens_map.json"]


def test_which_file_is_taken() -> None:
    names = ["README.md", *reversed(VOCABULARY_NAMES)]
    for name in VOCABULARY_NAMES:
        assert vocabulary_name(names) == name
        assert vocabulary_name([*names, "tokenizer.json"]) is None
        names.remove(name)
    assert vocabulary_name([*names, "vocab.json", "other.tiktoken"]) is None


def test_a_tokenizer_json_is_not_made_again(tmp_path: Path) -> None:
    files = {"tokenizer.json": b'{"version": "1.0"}', "tokenizer.model": b"damaged"}
    store = convert_checkpoint(write_model(tmp_path / "model", files, 101), tmp_path / "store")
    assert (store / "tokenizer.json").read_bytes() == files["tokenizer.json"]


@every_case("name", VOCABULARY_NAMES)
def test_a_vocabulary_of_another_model_is_refused(name: str) -> None:
    files, count = files_of(name)
    assert with_tokenizer(files, count + count // 8)
    with pytest.raises(SourceError, match=f"^{name}: expected {2 * count} tokens, .* or a few less, found {count}"):
        with_tokenizer(files, 2 * count)
    if name == "hy.tiktoken":  # older models have one special token less
        assert with_tokenizer(files, count - 1)
        count -= 1
    if name != "tiktoken.model":
        with pytest.raises(
            SourceError, match=f"expected at most {count - 1} tokens, as config.json says, found {count}"
        ):
            with_tokenizer(files, count - 1)
    else:
        settings = json.loads(files["tokenizer_config.json"])
        settings["added_tokens_decoder"][str(count)] = {"content": "<|beyond|>"}
        with pytest.raises(SourceError, match=f"at most {count} tokens, as config.json says, found {count + 1}"):
            with_tokenizer({**files, "tokenizer_config.json": as_json(settings)}, count)


@every_case("damaged", [b"", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b"a b\n"])
@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_damage_is_told_before_any_weight_is_read(name: str, damaged: bytes, tmp_path: Path) -> None:
    files, count = files_of(name)
    with pytest.raises(SourceError) as caught:
        with_tokenizer({**files, name: damaged}, count)
    assert name in caught.value.message
    assert caught.value.hint


def test_a_conversion_with_a_damaged_vocabulary_reads_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.Transfer, "run", lambda self: pytest.fail("a weight was read"))
    files, count = files_of("tekken.json")
    source = write_model(tmp_path / "model", {"tekken.json": files["tekken.json"][:-1000]}, count)
    assert run_command(["convert", source, str(tmp_path / "store")]) == 1
    assert "tekken.json: expected JSON, found something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    source = write_model(tmp_path / "other", *files_of("tokenizer.model"))
    assert run_command(["convert", source, str(tmp_path / "store")]) == 1
    assert "pip install 'edgemoe[sentencepiece]'" in capsys.readouterr().err


@settings(max_examples=examples(100), deadline=None)
@given(name=st.sampled_from(VOCABULARY_NAMES), data=st.data())
def test_altered_bytes_are_an_error_that_says_so_or_another_vocabulary(name: str, data: st.DataObject) -> None:
    files, count = files_of(name)
    content = bytearray(files[name])
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    try:
        made = with_tokenizer({**files, name: bytes(content)}, count)
    except SourceError as error:
        assert name in error.message
    else:
        assert tokenizers.Tokenizer.from_str(made["tokenizer.json"].decode()).encode("a").ids


@every_case("damaged", [b"{", b"[]", b"\xff"])
def test_damaged_settings_are_told(damaged: bytes) -> None:
    files, count = files_of("tekken.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        with pytest.raises(SourceError, match=rf"^{name}: expected"):
            with_tokenizer({**files, name: damaged}, count)


def test_update_makes_a_store_s_tokenizer_from_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, count = files_of("tekken.json")
    source = write_model(tmp_path / "model", {"README.md": b"x"}, count)
    store = convert_checkpoint(source, tmp_path / "store")
    assert not (store / "tokenizer.json").exists()

    def update(given: Path) -> None:
        assert run_command(["update", str(store), "--from", str(given)]) == 0
        assert "tokenizer.json: " in capsys.readouterr().out
        assert Tokenizer.load(store, count).encode(TEXT) == expected("tekken.json")[0]

    (tmp_path / "tekken.json").write_bytes(files["tekken.json"])
    update(tmp_path / "tekken.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (store / name).unlink()
    some = tmp_path / "some"
    some.mkdir()
    (some / "tekken.json").write_bytes(files["tekken.json"])
    update(some)
    write_letters_tokenizer(store)  # which the vocabulary takes the place of
    update(some)
    (tmp_path / "model" / "tekken.json").write_bytes(files["tekken.json"])
    (store / "tokenizer.json").unlink()
    update(tmp_path / "model")


def test_update_names_the_files_that_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = convert_checkpoint(write_model(tmp_path / "model", {"README.md": b"x"}, 101), tmp_path / "store")
    (tmp_path / "vocab.json").write_bytes(b"{}")
    assert run_command(["update", str(store), "--from", str(tmp_path / "vocab.json")]) == 2
    assert "tekken.json, tiktoken.model" in " ".join(capsys.readouterr().err.split())
