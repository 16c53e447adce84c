"""A model that reads a text and writes another one: text to text, without conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgemoe
from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.model import Model
from tests.support.checkpoints import SMALL_SWITCH, write_checkpoint
from tests.support.gap_tokenizer import side_files

VOCAB = SMALL_SWITCH["vocab_size"]
TEXT = "the man walks into a <extra_id_0> and orders a <extra_id_1>."
Capture = pytest.CaptureFixture[str]


def gap(number: int) -> int:
    return int(VOCAB) - 1 - number


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text-to-text")
    write_checkpoint(folder / "source", SMALL_SWITCH, side_files=side_files(VOCAB))
    return convert_checkpoint(str(folder / "source"), folder / "store")


@pytest.fixture(scope="module")
def model(store: Path) -> Iterator[Model]:
    with edgemoe.load(store, threads=1) as opened:
        yield opened


def test_a_text_ends_with_the_end_and_has_gaps(model: Model) -> None:
    ids = model.encode(TEXT)
    assert ids[-1] == 1
    assert [token for token in ids if token >= VOCAB - 100] == [gap(0), gap(1)]
    assert model.decode(ids) == TEXT.replace(">.", "> .")
    assert model.decode([0, gap(0), 4, gap(1), 9, 1]) == "<extra_id_0> man<extra_id_1> bar"
    assert gap(0) not in model.encode(TEXT, literal=True)


def greedy(model: Model, read: list[int], tokens: int) -> list[int]:
    """The likeliest tokens, by the engine alone."""
    with edgemoe.load(model.path, threads=1) as other:
        engine, ids = other.engine, [0]
        engine.encode(read)
        while len(ids) <= tokens:
            ids.append(int(engine.forward(ids[-1:]).argmax()))
            if ids[-1] == 1:
                break
    return ids[1:]


def test_an_answer_begins_with_the_start_token_and_sees_the_input(model: Model) -> None:
    read = model.encode(TEXT)
    result = model.generate(read, max_tokens=20)
    assert result.token_ids == [token for token in greedy(model, read, 20) if token != 1]
    assert result.prompt_tokens == len(read)
    assert result.statistics.prefill_tokens == len(read) + 1
    again = model.generate(read, max_tokens=20)
    assert again.token_ids == result.token_ids
    assert again.statistics.prefill_tokens == 1  # the input is still there
    other = model.generate(model.encode("a bar"), max_tokens=20)
    assert other.statistics.prefill_tokens == len(model.encode("a bar")) + 1


def test_pieces_of_gaps_are_said(model: Model) -> None:
    texts = []
    for seed in range(5):
        generation = model.stream(model.encode(TEXT), 30, SamplingOptions(temperature=5.0, seed=seed))
        pieces = list(generation)
        assert "".join(pieces) == generation.text == model.decode(generation.token_ids)
        texts.append(generation.text)
    assert any("<extra_id_" in text for text in texts)
    assert not any("<pad>" in text or "</s>" in text for text in texts)


def test_logits_need_an_input_and_a_text(model: Model) -> None:
    read = model.encode(TEXT)
    logits = model.logits([0, 5, 6], read)
    assert logits.shape == (3, VOCAB)
    np.testing.assert_array_equal(model.logits([0, 5], read), logits[:2])
    with pytest.raises(UsageError, match="`input_ids` is missing"):
        model.logits([0, 5])
    with pytest.raises(UsageError, match=f"expected 0 to {VOCAB - 1}"):
        model.logits([0], [VOCAB])


def test_inputs_fill_the_context_and_no_more(store: Path) -> None:
    with edgemoe.load(store, threads=1, context_length=64) as small:
        assert len(small.generate([5] * 64, max_tokens=3).token_ids) <= 3
        with pytest.raises(UsageError, match="fewer than 65 tokens"):
            small.generate([5] * 65)
        answer = small.generate([5] * 64, max_tokens=None)
        assert answer.finish_reason in ("context", "stop")


def test_it_holds_no_conversation(model: Model, store: Path, capsys: Capture) -> None:
    for chat in (model.chat, lambda: model.encode_chat("hello")):
        with pytest.raises(UsageError, match="reads a whole text and writes another"):
            chat()
    assert run_command(["chat", str(store), "--no-warm-start"]) == 2
    assert "edgemoe run" in capsys.readouterr().err


def test_run_is_text_to_text(model: Model, store: Path, capsys: Capture) -> None:
    read = model.encode(TEXT)
    expected = model.generate(read, max_tokens=12)
    for more in ([], ["--raw"]):
        arguments = ["run", str(store), "-p", TEXT, "--max-tokens", "12", "--no-warm-start", "--json", *more]
        assert run_command(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["text"], found["token_ids"]) == (expected.text, expected.token_ids)
        assert found["prompt_tokens"] == len(read)
    assert run_command(["run", str(store), "-p", TEXT, "--system", "be kind", "--no-warm-start"]) == 2
    assert "--system and --template-var" in capsys.readouterr().err.replace("\n", " ")
