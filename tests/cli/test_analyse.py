"""`edgemoe analyse` on the command line, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer

TEXT = "All happy families are alike; each unhappy family is unhappy in its own way. " * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyse")
    write_checkpoint(folder / "source", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "source")
    return convert_checkpoint(str(folder / "source"), folder / "tiny-moe", experts="f32", dense="f32")


def test_an_analysis_is_shown_and_written(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tolstoy.txt").write_text(TEXT)
    text, figures = str(tmp_path / "tolstoy.txt"), tmp_path / "figures.json"
    assert run_command(["analyse", str(store), "--text", text, "--origin", "scratch", "--json", str(figures)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "tiny-moe, means over layers:" in shown.out
    assert "text: 256 tokens of tolstoy.txt; 256 of them through every expert of each layer" in shown.out
    assert "confirmed: mean cosine gate" in shown.out
    found = json.loads(figures.read_text())
    assert found["edgemoe_analysis"] == 1
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert len(found["observations"]) == 3


def test_bad_input_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    short = str(tmp_path / "short.txt")
    cases = {
        "there is no text: expected --text FILE": [],
        "--text: expected a text of at least 64 tokens, found 11 in short.txt": ["--text", short],
        "--tokens: expected 1 or more, found 0": ["--text", short, "--tokens", "0"],
    }
    for message, arguments in cases.items():
        assert run_command(["analyse", str(store), *arguments]) != 0
        assert message in capsys.readouterr().err
