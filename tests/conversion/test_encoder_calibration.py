"""Calibration of models with an encoder: what is read and what is written of a text, and the way of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.calibration import advice
from edgemoe.conversion.calibration.layers import within
from edgemoe.conversion.calibration.settings import Calibration, TextTokens, Windows
from edgemoe.conversion.calibration.spans import longest_text, sides
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.model.build import build_graph
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import SMALL_SWITCH, folder_bytes, write_checkpoint

VOCABULARY = SMALL_SWITCH["vocab_size"]
END, FIRST_MARK, MARKS = 1, 180, 13
START = SMALL_SWITCH["decoder_start_token_id"]


def tokenise(files: Mapping[str, bytes], vocabulary: int, text: str, tokens: int) -> TextTokens:
    """Stands for a tokenizer of T5's kind: a text's length is its number of tokens."""
    ids = np.random.default_rng(len(text)).integers(2, FIRST_MARK, len(text)).astype(np.int32)
    return TextTokens(ids[:tokens], (), (END,), tuple(range(FIRST_MARK, FIRST_MARK + MARKS)))


def calibration(tokens: int = 900, **options: Any) -> Calibration:
    return Calibration(1800 * "a", "text.txt", tokenise, tokens, **options)


def windows(**options: Any) -> Windows:
    return Windows.of(calibration(**options), {}, VOCABULARY, 128, START)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    write_checkpoint(folder, SMALL_SWITCH)
    return folder


def filled(read: np.ndarray, written: np.ndarray, marks: Sequence[int]) -> list[int]:
    """The text: what is read, with what is written behind each mark in its place."""
    places = np.flatnonzero(np.isin(written, marks))
    assert places[0] == 0
    spans = {int(span[0]): span[1:].tolist() for span in np.split(written, places[1:])}
    assert all(spans.values())
    return [token for one in read.tolist() for token in (spans[one] if one in marks else [one])]


def test_what_is_left_out_is_written_behind_its_mark() -> None:
    rows = np.arange(4 * 568, dtype=np.int32).reshape(4, 568) + 1000
    marks = range(100)
    read, written = sides(rows, marks, 1)
    assert (read.shape, written.shape) == ((4, 511), (4, 85 + 28))  # as T5 was trained, in 512 tokens with the last
    assert [filled(*one, marks) for one in zip(read, written, strict=True)] == rows.tolist()
    assert all(np.isin(marks[:28], one).all() for one in read)
    for few in (0, 1):
        np.testing.assert_array_equal(sides(rows[:few], marks, 1)[0], read[:few])
    assert not np.array_equal(sides(rows, marks, 2)[0], read)


def test_a_text_without_marks_is_continued() -> None:
    rows = np.arange(20, dtype=np.int32).reshape(2, 10)
    read, written = sides(rows, (), 0)
    np.testing.assert_array_equal(np.concatenate([read, written], axis=1), rows)
    assert longest_text(10, 0) == 10


@pytest.mark.parametrize(("most", "marks", "expected"), [(511, 100, 568), (511, 10, 209), (64, 100, 71), (2, 1, 2)])
def test_a_window_has_as_many_tokens_as_are_read_and_as_there_are_marks_for(
    most: int, marks: int, expected: int
) -> None:
    assert longest_text(most, marks) == expected


def test_windows_have_both_sides_of_the_text_in_its_order() -> None:
    found = windows(held_out=300)
    whole = tokenise({}, VOCABULARY, 1800 * "a", 1200).ids
    assert found.inputs is not None
    read, length = found.inputs.ids, 141
    assert (read.shape[1], len(found.ids), found.held, found.inputs.held) == (128, 8, 2, 2)
    assert set(read[:, -1].tolist()) == {END}
    assert set(found.ids[:, 0].tolist()) == {START}
    marks = range(FIRST_MARK, FIRST_MARK + MARKS)
    texts = [filled(*one, marks) for one in zip(read[:, :-1], found.ids[:, 1:], strict=True)]
    assert np.concatenate(texts[2:]).tolist() == whole[: 6 * length].tolist()
    assert np.concatenate(texts[:2]).tolist() == whole[900 : 900 + 2 * length].tolist()
    assert found.notices() == [
        f"The text for calibration has only {6 * length} tokens: with 4096 or more the result is better."
    ]
    without = windows(held_out=0)
    assert without.inputs is not None
    np.testing.assert_array_equal(without.inputs.ids, read[2:])


def test_memory_bounds_what_is_read_and_written() -> None:
    graph = build_graph(model_spec(SMALL_SWITCH))
    inputs = Windows(np.zeros((64, 128), np.int32), 0)
    both = Windows(np.zeros((64, 32), np.int32), 1, 0, inputs)
    counts = [len(within(most, graph, both).ids) for most in (1 << 40, 16 << 20, 4 << 20, 1)]
    assert counts[0] == 64 > counts[1] > counts[2] > counts[3] == 1
    few = within(4 << 20, graph, both)
    assert few.inputs is not None
    assert len(few.inputs.ids) == len(few.ids)


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["n2", "sub1"])
def test_what_is_lost_is_told_as_the_engine_has_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, experts: str
) -> None:
    """All inputs go through the encoder at once, and one by one in the engine: with the same tokens beyond capacity."""
    options: dict[str, Any] = {"experts": experts, "dense": "n3", "head": "q8"}
    found: list[Any] = []
    monkeypatch.setattr(advice, "advice", lambda plan, loss: found.append(loss) or [])
    measured = calibration(held_out=600)
    store = convert_checkpoint(str(checkpoint), tmp_path / "store", **options, calibration=measured)
    other = convert_checkpoint(str(checkpoint), tmp_path / "other", **options, calibration=calibration(held_out=0))
    assert folder_bytes(store) == folder_bytes(other)
    assert verify_store(Store.open(store)) == []
    exact = convert_checkpoint(str(checkpoint), tmp_path / "exact", experts="keep", dense="keep", head="keep")
    held = Windows.of(measured, {}, VOCABULARY, SMALL_SWITCH["n_positions"], START).held_out()
    assert held.inputs is not None
    (loss,) = found
    total, places = 0.0, held.ids.shape[1] - 1
    with open_engine(store, EngineOptions()) as mine, open_engine(exact, EngineOptions()) as reference:
        for ids, read in zip(held.ids, held.inputs.ids, strict=True):
            rows = []
            for engine in (mine, reference):
                engine.rewind(0)
                engine.encode(read)
                logits = engine.forward(ids, all_logits=True)[:places].astype(np.float64)
                rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
            total += float((np.exp(rows[1]) * (rows[1] - rows[0])).sum())
    assert loss.positions == places * len(held.ids)
    assert loss.divergence.nats.mean == pytest.approx(total / loss.positions, rel=1e-4)
    assert loss.divergence.nats.mean > 0


@pytest.mark.slow
def test_results_are_nearer_than_by_rounding(checkpoint: Path, tmp_path: Path) -> None:
    """Keys and values of the encoder's result are calibrated too, as are its experts."""
    options: dict[str, Any] = {"experts": "n2", "dense": "n3", "head": "q8"}
    read, ids = np.arange(100) % 150 + 2, [START, *range(20, 40)]

    def logits(name: str, **own: Any) -> np.ndarray:
        store = convert_checkpoint(str(checkpoint), tmp_path / name, **options | own)
        with open_engine(store, EngineOptions()) as engine:
            engine.encode(read)
            return engine.forward(ids, all_logits=True)

    exact = logits("exact", experts="f32", dense="f32", head="f32")
    errors = [
        float(np.square(logits(name, calibration=own) - exact).mean())
        for name, own in (("calibrated", calibration(1600, held_out=0)), ("rounded", None))
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.slow
def test_bits_are_spent_by_what_a_text_makes_of_both_sides(checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"bits": 3.4, "calibration": calibration(held_out=0)}
    store = convert_checkpoint(str(checkpoint), tmp_path / "store", **options)
    assert Store.open(store).manifest.provenance["bits"] == 3.4
