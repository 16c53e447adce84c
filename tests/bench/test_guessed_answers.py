"""Answers with drafts against those without: what is measured, shown and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.guessed_answers import PROMPTS, GuessedMeasurement, read_prompts
from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
from edgemoe.bench.writer_worker import WriterWorker
from edgemoe.cli.company import guessed_table
from edgemoe.cli.main import run_command
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.select import describe_backend

SETTINGS = Settings(decode_tokens=12, repeats=2)


def test_prompts_stand_between_dashes(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("\n---\none\n\ntwo --- three\n---\n\nfour\n---\n")
    assert read_prompts(path) == ["one\n\ntwo --- three", "four"]
    assert len(read_prompts(PROMPTS)) > 5
    for wrong in (b"---\n", b"\xff", None):
        path.unlink() if wrong is None else path.write_bytes(wrong)
        with pytest.raises(UsageError, match=r"prompts between lines|cannot be read"):
            read_prompts(path)


def test_options_of_other_measurements_are_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (["--text", str(store)], ["--speculate", "1", "--text", str(store)], ["--tokens", "3"]):
        assert run_command(["bench", str(store), *asked]) == 2
        assert "--text for --speculate auto" in capsys.readouterr().err


def test_an_answer_without_a_rate_is_told(store: Path) -> None:
    measurement = GuessedMeasurement(store, SETTINGS, describe_backend(1), EngineOptions())

    class Short:
        def ask(self, method: str, **asked: Any) -> Mapping[str, Any]:
            return {"token_ids": [1], "tokens_per_s": None}

    with pytest.raises(EdgemoeError, match="The answer to 'Hi' ends with its first token"):
        measurement._answer(Short(), ("Hi", 0.0), True)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_measurement(store: Path, start: Start, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text("Once upon a time\n---\nababab")
    measurement = GuessedMeasurement(
        store, SETTINGS, describe_backend(1), EngineOptions(), prompts=prompts, start=start
    )
    report = measurement.run()
    assert [(one.prompt, one.temperature) for one in report.answers] == [
        (prompt, temperature) for prompt in ("Once upon a time", "ababab") for temperature in (0.0, 0.7)
    ]
    assert all(len(one.against_none.samples) == 2 for one in report.answers)
    assert all(0 < one.tokens <= 12 for one in report.answers)
    assert json.loads(json.dumps(report.to_json()))["draft"] is None
    title, rows = guessed_table(report)
    assert title == "tiny-moe, answers with drafts: 2 rounds, medians (least to most)"
    assert [name for name, _ in rows][2:4] == ["Once upon a time at 0", "Once upon a time at 0.7"]


@pytest.mark.slow
def test_a_worker_answers_with_drafts_and_without(store: Path) -> None:
    worker = WriterWorker()
    options = EngineOptions(threads=1, context_length=128, speculate=3).to_json()
    worker.open(str(store), options)
    with worker.model as model:
        steps, found = [], []
        for drafts in (False, True):
            before = model.engine.statistics.tokens
            found.append(worker.answer("abcabcabc" * 4, 20, 0.0, 0, drafts)["token_ids"])
            steps.append(model.engine.statistics.tokens - before)
        assert found[0] == found[1]
        assert steps[0] <= steps[1]
        assert model.engine.speculate == 3
