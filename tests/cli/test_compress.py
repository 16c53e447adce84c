"""`edgemoe compress` on the command line, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.session.cut_texts import held_back
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer

TEXT = "All happy families are alike;\neach unhappy family is unhappy in its own way.\n" * 40
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    write_checkpoint(folder / "source", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "source")
    return convert_checkpoint(str(folder / "source"), folder / "tiny-moe", experts="f32", dense="f32")


def test_a_store_with_fewer_experts_is_made_and_measured(store: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "tolstoy.txt").write_text(TEXT)
    text, figures = str(tmp_path / "tolstoy.txt"), tmp_path / "figures.json"
    arguments = ["compress", str(store), str(tmp_path / "made"), "--prune", "frequency", "--keep", "75%"]
    assert run_command([*arguments, "--text", text, "--json", str(figures)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"{tmp_path / 'made'}: 6 of 8 experts, " in shown.out
    assert "tokens of the end of tolstoy.txt:" in shown.out
    assert "KL divergence " in shown.out
    found = json.loads(figures.read_text())
    assert found["models"][0]["divergence"]["nats"]["mean"] > 0
    manifest = json.loads((tmp_path / "made" / "edgemoe.json").read_text())
    assert manifest["provenance"]["compressed"].startswith("frequency, 75% of experts, 16384 tokens of tolstoy.txt (")


def test_a_dense_model_is_made_of_all_experts(store: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "tolstoy.txt").write_text(TEXT)
    arguments = ["compress", str(store), str(tmp_path / "made"), "--aggregate", "--text", str(tmp_path / "tolstoy.txt")]
    assert run_command(arguments) == 0
    shown = capsys.readouterr()
    assert "0 of 8 experts, " in shown.out
    assert "KL divergence " in shown.out


def test_bad_input_is_refused_before_any_work(store: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    cases = {
        "expected --prune or --merge, found neither": [],
        "--keep: expected more than 0% and less than 100% of the experts, found 0%": [
            "--prune",
            "REAP",
            "--keep",
            "0%",
        ],
        "--aggregate takes the place of --prune and --merge": ["--prune", "REAP", "--aggregate"],
        "found 100%": ["--prune", "REAP", "--keep", "100%"],
        "--keep: expected 2 to 3 of the 4 experts of layer 0": ["--prune", "random", "--keep", "25%"],
        "--text: expected a text of at least 64 tokens": ["--prune", "REAP", "--text", str(tmp_path / "short.txt")],
    }
    for message, arguments in cases.items():
        assert run_command(["compress", str(store), str(tmp_path / "made"), *arguments]) != 0
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("made*"))


def test_the_end_of_a_text_is_held_back_from_a_line_on() -> None:
    text = "one\ntwo\nthree\nfour\nfive\nsix\n"
    first, last = held_back(text, 0.4)
    assert first + last == text
    assert last == "five\nsix\n"
    assert held_back("no line here", 0.25) == ("no line h", "ere")
