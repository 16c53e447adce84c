import functools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from edgemoe.errors import StoreError, UsageError
from edgemoe.session import tokenizer as tokenizer_module
from edgemoe.session.tokenizer import Detokeniser, Tokenizer, load_library_tokenizer
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.small_tokenizer import END, small_tokenizer, write_model_folder

SMALL = Tokenizer(small_tokenizer(), small_tokenizer().get_vocab_size(), frozenset({1}))


@functools.cache
def sentencepiece_like() -> Tokenizer:
    """A tokenizer that marks the space before a word and drops the one that begins a text."""
    words = ["<s>", "▁", "▁Hello", "▁world", "!", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], byte_fallback=True)
    library = tokenizers.Tokenizer(model)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.add_special_tokens(["<s>"])
    return Tokenizer(library, len(words), frozenset())


def stream(tokenizer: Tokenizer, ids: list[int], before: list[int] | None = None) -> list[str]:
    detokeniser = Detokeniser(tokenizer, before or [])
    return [*(detokeniser.push(token) for token in ids), detokeniser.finish()]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(deadline=None, max_examples=examples(200))
def test_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    ids = SMALL.encode(text)
    pieces = stream(SMALL, ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, SMALL.vocabulary - 1), max_size=40))
@settings(deadline=None, max_examples=examples(200))
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
        (
            decoders.Replace(tokenizers.Regex(r"(a+)+$"), "b"),
            "cannot process these ids",
        ),  # backtracks too far, and panics
        (decoders.Replace("a", "b" * 100_000), "41 tokens to"),
    ],
)
def test_a_hostile_decoder_ends_in_an_error(decoder: decoders.Decoder, message: str) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "!": 1}, merges=[]))
    library.decoder = decoders.Sequence([decoders.Fuse(), decoder])
    with pytest.raises(StoreError, match=message):
        Tokenizer(library, 2, frozenset()).decode([0] * 40 + [1])


def test_the_space_that_begins_a_text_is_dropped_once() -> None:
    tokenizer = sentencepiece_like()
    assert stream(tokenizer, [2, 3, 4, 3]) == ["Hello", " world", "!", " world", ""]
    assert stream(tokenizer, [3, 5, 4], before=[2]) == [" world", "s", "!", ""]
    assert stream(tokenizer, [2, *[0] * 20, 3]) == ["Hello", *[""] * 20, " world", ""]


def test_byte_fallback_gives_whole_characters() -> None:
    tokenizer = sentencepiece_like()
    cheese = byte_ids("\U0001f9c0")
    assert "".join(stream(tokenizer, [2, *cheese, *cheese, 3])) == "Hello\U0001f9c0\U0001f9c0 world"
    assert not any("\ufffd" in piece for piece in stream(tokenizer, [2, *cheese, *cheese, 3]))


def byte_ids(text: str) -> list[int]:
    """The ids of a text's bytes in `sentencepiece_like`."""
    return [6 + byte for byte in text.encode()]


def test_an_answer_that_ends_inside_a_character_keeps_those_before_it() -> None:
    """SentencePiece decodes a run of byte pieces so: whole characters stay, each byte beside them is one U+FFFD."""
    tokenizer = sentencepiece_like()
    khmer = byte_ids("ឃឃឃ")
    assert tokenizer.decode(khmer[:-1]) == "ឃឃ\ufffd\ufffd"
    assert tokenizer.decode([2, *khmer[1:], 3]) == "Hello\ufffd\ufffdឃឃ world"
    assert stream(tokenizer, khmer[:-1]) == ["", "", "ឃ", "", "", "ឃ", "", "", "\ufffd\ufffd"]
    # the context of a prompt may begin inside a character, and the answer's first tokens may end one
    assert "".join(stream(tokenizer, khmer, before=[2, *khmer])) == "ឃឃឃ"
    assert stream(tokenizer, [*khmer[-1:], 3], before=[2, *khmer[:-1]]) == ["ឃ", " world", ""]


SCRIPTS = "aé ßΩжשعहிกဗឃ你。한\U0001f642\U0001f9c0\u200d\u0301"


@pytest.mark.parametrize("tokenizer", [SMALL, sentencepiece_like()], ids=["byte-level", "byte fallback"])
@given(text=st.text(st.sampled_from(SCRIPTS), min_size=1, max_size=30), place=st.data())
@settings(deadline=None, max_examples=examples(100))
def test_a_prompt_may_end_and_an_answer_be_cut_anywhere(tokenizer: Tokenizer, text: str, place: st.DataObject) -> None:
    text = text.strip() or "ឃ"  # some tokenizers drop a space at the beginning
    ids = tokenizer.encode(text)
    begin = place.draw(st.integers(0, len(ids)), "where the prompt ends")
    end = place.draw(st.integers(begin, len(ids)), "where the answer is cut")
    prompt = tokenizer.decode(ids[:begin]).rstrip("\ufffd")
    assert text.startswith(prompt)
    expected = text[len(prompt) :]
    assert "".join(stream(tokenizer, ids[begin:], ids[:begin])) == expected
    cut = "".join(stream(tokenizer, ids[begin:end], ids[:begin]))
    whole = cut.rstrip("\ufffd")
    assert expected.startswith(whole)
    assert len(cut) - len(whole) <= 3
    assert tokenizer.decode(ids[:end]).rstrip("\ufffd") == prompt + whole


@given(st.lists(st.integers(0, sentencepiece_like().vocabulary - 1), max_size=40))
@settings(deadline=None, max_examples=examples(100))
def test_pieces_of_any_bytes_are_the_whole_decoded(ids: list[int]) -> None:
    assert "".join(stream(sentencepiece_like(), ids)) == sentencepiece_like().decode(ids)


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


@every_case(
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


def test_the_time_in_which_the_program_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was stopped and continued sees that the time is over, and the work is not."""
    goes_on = threading.Event()
    join = threading.Thread.join
    stopped = iter([True])

    class Continued:
        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[SimpleNamespace]:
            goes_on.wait()
            return [SimpleNamespace(ids=[1, 2])]

    def time_is_over(thread: threading.Thread, timeout: float | None = None) -> None:
        if not next(stopped, False):
            goes_on.set()
            join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", time_is_over)
    assert Tokenizer(Continued(), 10, frozenset()).encode("x") == [1, 2]  # type: ignore[arg-type]
