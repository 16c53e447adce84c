"""`edgemoe eval` on the command line, with a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.evaluation import Evaluation
from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.session.default_model import find_model
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer

Capture = pytest.CaptureFixture[str]
TEXT = "All happy families are alike; each unhappy family is unhappy in its own way. " * 4
WINDOWS = ("--context", "32", "--stride", "16", "--threads", "1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_checkpoint(folder / "source", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "source")
    return convert_checkpoint(str(folder / "source"), folder / "tiny-moe", experts="q4", dense="q8")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "tolstoy.txt").write_text(TEXT)
    return str(tmp_path / "tolstoy.txt")


def test_an_evaluation_is_shown_written_and_kept(store: Path, text: str, tmp_path: Path, capsys: Capture) -> None:
    run, figures = str(tmp_path / "run"), tmp_path / "figures.json"
    assert run_command(["eval", str(store), "--text", text, *WINDOWS, "--save", run]) == 0
    shown = capsys.readouterr()
    assert "307 distributions of tiny-moe (whole): " in shown.err
    assert "text: tolstoy.txt, 308 tokens" in shown.out
    assert "read in: 19 windows of 32 tokens, 16 further each" in shown.out
    assert "part experts: q4: " in shown.out
    assert "scored: 307 tokens in 19 windows" in shown.out
    assert "KL divergence" not in shown.out
    arguments = ["eval", str(store), str(store), "--text", text, "--threads", "1", "--against", run]
    assert run_command([*arguments, "--json", str(figures)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"reference: {run}" in shown.out
    assert "KL divergence: 0.00000 (0.00000 to 0.00000) nats (mean, reference || model)" in shown.out
    assert "same top token: 100.00% (100.00% to 100.00%) of positions" in shown.out
    written = json.loads(figures.read_text())
    assert (written["edgemoe_evaluation"], written["complete"], written["context"]) == (1, True, 32)
    assert [one["divergence"]["nats"]["mean"] for one in written["models"]] == [0.0, 0.0]
    assert "95 %" in written["intervals"]


def test_an_evaluation_is_drawn(store: Path, text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for against in ([], ["--against", str(store)]):
        picture = tmp_path / "error.png"
        assert run_command(["eval", str(store), "--text", text, *WINDOWS, *against, "--plot", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_shows_what_there_is(
    store: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    windows = 0
    read = Engine.forward_each

    def forward_each(self: Engine, *arguments: Any) -> None:
        nonlocal windows
        windows += 1
        if windows == 4:
            signal.raise_signal(signal.SIGINT)
        read(self, *arguments)

    monkeypatch.setattr(Engine, "forward_each", forward_each)
    figures = tmp_path / "figures.json"
    assert run_command(["eval", str(store), "--text", text, *WINDOWS, "--json", str(figures)]) == 130
    shown = capsys.readouterr()
    assert "scored: 64 tokens in 3 windows" in shown.out
    assert shown.err == "interrupted: the figures are of what was read until then.\n"
    assert json.loads(figures.read_text())["complete"] is False


def test_ctrl_c_before_anything_was_read(
    store: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(Evaluation, "_look_at", lambda self, *arguments: self.stop() or look_at(self, *arguments))
    arguments = ["eval", str(store), "--text", text, *WINDOWS, "--plot", "none.png"]
    pytest.importorskip("matplotlib")
    assert run_command(arguments) == 130
    shown = capsys.readouterr()
    assert "scored" not in shown.out
    assert shown.err.startswith("interrupted")
    assert not Path("none.png").exists()


look_at = Evaluation._look_at


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "there is no text: expected --text FILE."),
        (["--text", "{tmp}/none.txt"], 1, "none.txt: No such file"),
        (["--text", "{tmp}/empty.txt"], 2, "expected a text, found an empty file"),
        (["--text", "{tmp}/short.txt"], 2, "--text: expected a text of 2 tokens or more, found 1."),
        (["--text", "{tmp}/latin.txt"], 2, "latin.txt is not UTF-8: found byte 0xe9 at 3."),
        (["--text", "{tmp}/binary.txt"], 2, "expected a text, found a binary file (a byte 0 at 3)"),
        (["--text", "{tmp}/good.txt", "--context", "7"], 2, "--context: expected 8 to 256 tokens"),
        (["--text", "{tmp}/good.txt", "--stride", "0"], 2, "--stride: expected 1 to 255"),
        (["--text", "{tmp}/good.txt", "--tokens", "1"], 2, "--tokens: expected 2 to 150000"),
        (["--text", "{tmp}/good.txt", "--top", "0"], 2, "--top: expected 1 or more"),
        (["--text", "{tmp}/good.txt", "--against", "{tmp}/none"], 1, "there is no such folder or model"),
        (["--text", "{tmp}/good.txt", "--save", "{tmp}/none/run"], 2, "cannot be written"),
        (["--text", "{tmp}/good.txt", "--save", "{tmp}/good.txt"], 2, "it exists and is no run"),
        (["--text", "{tmp}/good.txt", "--kv", "q3"], 2, "kv: expected f16 or q8"),
        (["--text", "{tmp}/good.txt", "--ram", "1MiB"], 1, "This model needs at least"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    store: Path, tmp_path: Path, arguments: list[str], code: int, says: str, capsys: Capture
) -> None:
    files = {"empty": b" \n", "short": b"I", "latin": b"caf\xe9", "binary": b"abc\0def", "good": TEXT.encode()}
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run_command(["eval", str(store), *given]) == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.startswith("error: ")
    assert shown.out == ""


@pytest.mark.slow
@pytest.mark.alone
def test_two_models_one_after_the_other_stay_within_the_budget(tmp_path: Path) -> None:
    model, figures = find_model(None), tmp_path / "figures.json"
    (tmp_path / "long.txt").write_text(TEXT * 8)
    arguments = ["eval", str(model), "--text", str(tmp_path / "long.txt"), "--against", str(model), "--ram", "290MiB"]
    command = [sys.executable, "-m", "edgemoe", *arguments, "--context", "256", "--json", str(figures)]
    subprocess.run(command, check=True, capture_output=True)
    (result,) = json.loads(figures.read_text())["models"]
    assert result["divergence"]["nats"]["mean"] == 0.0
    assert 190 << 20 < result["peak_rss_bytes"] < 290 << 20
