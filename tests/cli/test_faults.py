"""Faults of a store as a person meets them: through the command, on a real engine."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.options import EngineOptions
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer
from tests.support.stores import flip_bit, version_1

Capture = pytest.CaptureFixture[str]
BAD_EXPERTS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_checkpoint(folder / "source", SMALL_MIXTRAL | {"num_hidden_layers": 4, "vocab_size": 96})
    write_letters_tokenizer(folder / "source")
    return convert_checkpoint(str(folder / "source"), folder / "store")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def flip(store: Path) -> None:
    """Damage the last layer, or mend it: what stands before the damage is computed, and not shown."""
    for expert in BAD_EXPERTS:
        record = Store.open(store).record(3, expert)
        flip_bit(record.path, record.offset + 64)


@pytest.mark.parametrize("ram", ["floor", "auto"])
def test_run_says_which_expert_is_damaged_and_shows_no_token(store: Path, ram: str, capsys: Capture) -> None:
    arguments = ["run", str(store), "-p", "Once upon a time", "--max-tokens", "8", "--ram", ram, "--json"]
    assert run_command(arguments) == 0
    right = json.loads(capsys.readouterr().out)
    flip(store)
    assert run_command(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: Layer 3, expert ")
    assert "not what was written" in shown.err
    assert "edgemoe verify" in shown.err
    assert shown.err.count("\n") == 1
    assert run_command(["verify", str(store)]) == 1
    assert "layers.3.experts.1" in capsys.readouterr().out
    flip(store)
    assert run_command(arguments) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == right["token_ids"]


def test_a_conversation_goes_on_after_a_read_that_failed(store: Path, capsys: Capture) -> None:
    """On a terminal an error is told and the next message is answered; the store is mended in between."""
    from edgemoe.cli.repl import Repl
    from edgemoe.cli.terminal.screen import Plain
    from edgemoe.session.model import load

    with load(store, EngineOptions("floor", warm_start=False)) as model:
        session = model.chat(max_tokens=6)
        repl = Repl(model, session, Plain(), interactive=True)
        flip(store)
        repl.handle("first")
        shown = capsys.readouterr()
        assert "error: Layer 3, expert " in shown.err
        assert session.messages == []
        flip(store)
        repl.handle("second")
        assert "error" not in capsys.readouterr().err
        assert [message["content"] for message in session.messages][:1] == ["second"]


def test_through_a_pipe_the_first_failure_ends_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    flip(store)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"first\nsecond\n")))
    assert run_command(["chat", str(store), "--ram", "floor", "--max-tokens", "6"]) == 1
    assert capsys.readouterr().err.count("Layer 3, expert ") == 1


@pytest.mark.parametrize(
    ("ram", "code", "told"),
    [
        ("0", 2, "cannot be met"),
        ("1MiB", 1, "needs at least"),
        ("-1GiB", 2, "-1GiB"),
    ],
)
def test_budgets_that_cannot_be(store: Path, ram: str, code: int, told: str, capsys: Capture) -> None:
    assert run_command(["run", str(store), "-p", "Hi", f"--ram={ram}"]) == code
    shown = capsys.readouterr()
    assert (shown.out, told in shown.err) == ("", True)


def test_a_store_of_version_1_is_migrated(store: Path, capsys: Capture) -> None:
    def inspected() -> bool:
        assert run_command(["inspect", str(store), "--json"]) == 0
        return bool(json.loads(capsys.readouterr().out)["checked_when_read"])

    before = (store / "edgemoe.json").read_bytes()
    assert inspected()
    version_1(store, fast_checksums=False)
    assert not inspected()
    assert run_command(["inspect", str(store)]) == 0
    assert "checked by edgemoe verify only" in capsys.readouterr().out
    assert run_command(["verify", str(store)]) == 0
    assert "--migrate rewrites it" in capsys.readouterr().out
    assert run_command(["verify", "--migrate", str(store)]) == 0
    assert "now has the format of this version" in capsys.readouterr().out
    assert inspected()
    assert (store / "edgemoe.json").read_bytes() == before
    assert run_command(["verify", "--migrate", str(store)]) == 0
    assert "already has the form" in capsys.readouterr().out


def test_warm_start_can_be_left_out(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ["run", str(store), "-p", "Hi", "--max-tokens", "4", "--ram", "floor"]
    assert run_command([*arguments, "--no-warm-start"]) == 0
    assert not (tmp_path / "cache").exists()
    assert run_command(arguments) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert run_command(["info", "--json"]) == 0
    out = capsys.readouterr().out
    folder = json.loads(out[out.index("{") :])["folders"]["cache"]
    assert (folder["path"], folder["problem"]) == (str(tmp_path / "cache"), None)
