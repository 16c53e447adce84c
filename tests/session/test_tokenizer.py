import json
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from edgemoe.errors import StoreError, UsageError
from edgemoe.session import tokenizer as tokenizer_module
from edgemoe.session.tokenizer import Detokeniser, Tokenizer, load_library_tokenizer
from tests.support.small_tokenizer import END, small_tokenizer, write_model_folder

SMALL = Tokenizer(small_tokenizer(), small_tokenizer().get_vocab_size(), frozenset({1}))


def stream(tokenizer: Tokenizer, ids: list[int], before: list[int] | None = None) -> list[str]:
    detokeniser = Detokeniser(tokenizer, before or [])
    return [*(detokeniser.push(token) for token in ids), detokeniser.finish()]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(deadline=None, max_examples=200)
def test_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    ids = SMALL.encode(text)
    pieces = stream(SMALL, ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(2, SMALL.vocabulary - 1), max_size=25))
@settings(deadline=None, max_examples=200)
def test_pieces_of_any_ids_are_what_the_library_decodes(ids: list[int]) -> None:
    assert "".join(stream(SMALL, ids)) == small_tokenizer().decode(ids)


def test_a_character_waits_for_its_last_byte() -> None:
    ids = SMALL.encode("a\U0001f9c0b")
    pieces = stream(SMALL, ids)
    assert [piece for piece in pieces if piece] == ["a", "\U0001f9c0", "b"]


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    ids = SMALL.encode("a\U0001f9c0")[:-1]
    assert "".join(stream(SMALL, ids)) == "a\ufffd"


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (decoders.Replace(tokenizers.Regex(r"(a+)+$"), "b"), "fails on these ids"),  # backtracks too far, and panics
        (decoders.Replace("a", "b" * 100_000), "characters of 41 tokens"),
    ],
)
def test_a_hostile_decoder_ends_in_an_error(decoder: decoders.Decoder, message: str) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "!": 1}, merges=[]))
    library.decoder = decoders.Sequence([decoders.Fuse(), decoder])
    with pytest.raises(StoreError, match=message):
        Tokenizer(library, 2, frozenset()).decode([0] * 40 + [1])


def sentencepiece_like() -> Tokenizer:
    """A tokenizer that marks the space before a word and drops the one that begins a text."""
    words = ["▁", "▁Hello", "▁world", "!", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], byte_fallback=True)
    library = tokenizers.Tokenizer(model)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    return Tokenizer(library, len(words), frozenset())


def test_the_space_that_begins_a_text_is_dropped_once() -> None:
    tokenizer = sentencepiece_like()
    assert stream(tokenizer, [1, 2, 3, 2]) == ["Hello", " world", "!", " world", ""]
    assert stream(tokenizer, [2, 4, 3], before=[1]) == [" world", "s", "!", ""]


def test_byte_fallback_gives_whole_characters() -> None:
    tokenizer = sentencepiece_like()
    cheese = [5 + byte for byte in "\U0001f9c0".encode()]
    assert "".join(stream(tokenizer, [1, *cheese, *cheese, 2])) == "Hello\U0001f9c0\U0001f9c0 world"
    assert not any("\ufffd" in piece for piece in stream(tokenizer, [1, *cheese, *cheese, 2]))


def test_broken_characters_are_not_held_back_for_ever() -> None:
    first_byte = SMALL.encode("\U0001f9c0")[0]
    pieces = stream(SMALL, [first_byte] * 100)
    assert any(pieces[:40])
    assert "".join(pieces).count("\ufffd") >= 90


def test_markers_in_a_text_become_their_tokens() -> None:
    assert SMALL.encode(f"a{END}")[-1] == 1


def test_stop_ids_come_from_both_files(folder: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(folder, 400).stop_ids == {1}
    other = write_model_folder(tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.load(other, 400).stop_ids == {1, 7}
    # each file may name further ones, also for the text model of a larger one
    (other / "config.json").write_text(json.dumps({"eos_token_id": [8, 9], "text_config": {"eos_token_id": 10}}))
    assert Tokenizer.load(other, 400).stop_ids == {1, 7, 8, 9, 10}


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    folder = write_model_folder(tmp_path / "model")
    (folder / name).write_text(json.dumps({"eos_token_id": "<|im_end|>"}))
    with pytest.raises(StoreError, match=rf"{name}: eos_token_id: expected a token id"):
        Tokenizer.load(folder, 400)


def test_limits_of_the_training_do_not_cut_prompts(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    text = "Hello, world! Hello, world!"
    assert Tokenizer.load(folder, 400).decode(Tokenizer.load(folder, 400).encode(text)) == text


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"model": {"type": "BPE"}}', '{"version": "1.0"}', "[" * 100_000],
)
def test_a_broken_tokenizer_is_one_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StoreError, match=r"tokenizer\.json"):
        load_library_tokenizer(tmp_path)


def test_a_tokenizer_that_is_missing_too_large_or_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="missing"):
        load_library_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(StoreError, match="expected a file"):
        load_library_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").rmdir()
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(StoreError, match="UTF-8"):
        load_library_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer_module, "TOKENIZER_LIMIT_BYTES", 10)
    with pytest.raises(StoreError, match="at most"):
        load_library_tokenizer(tmp_path)


def test_ids_beyond_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    narrow = Tokenizer(small_tokenizer(), 5, frozenset())
    with pytest.raises(StoreError, match="below 5"):
        narrow.encode("Hello")
    for wrong in (-1, tokenizer.vocabulary):
        with pytest.raises(UsageError, match=str(wrong)):
            tokenizer.decode([wrong])


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        tokenizer.encode("a\udcff")


def test_a_tokenizer_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> None:
            time.sleep(5)

    monkeypatch.setattr(tokenizer_module, "ENCODE_LIMIT_SECONDS", 0.05)
    with pytest.raises(UsageError, match="could not be tokenised"):
        Tokenizer(Slow(), 10, frozenset()).encode("x")  # type: ignore[arg-type]
