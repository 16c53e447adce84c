"""GGUF files where commands take a model: those that run one take the file, others say what to do with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from tests.conversion.gguf.test_source import CONFIGS
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import tokenizer_metadata, write_gguf
from tests.support.small_tokenizer import small_tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of random weights, and the same as a GGUF file."""
    folder = tmp_path_factory.mktemp("files")
    assert run_command(["synth", "tiny", str(folder / "store"), "--gguf", str(folder / "tiny.gguf")]) == 0
    return folder / "store", folder / "tiny.gguf"


def test_inspect_shows_what_a_file_holds(files: tuple[Path, Path], capsys: Capture) -> None:
    store, file = files
    assert run_command(["inspect", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run_command(["inspect", str(store), "--json"]) == 0
    of_store = json.loads(capsys.readouterr().out)
    assert found["files"] == {"tiny.gguf": file.stat().st_size}
    assert found["total_bytes"] == file.stat().st_size
    assert found["experts"]["slot_bytes"] == of_store["experts"]["slot_bytes"] == of_store["experts"]["record_bytes"]
    assert 0 < found["experts"]["record_bytes"] <= found["experts"]["slot_bytes"]
    assert found["parts"]["experts"]["formats"] == of_store["parts"]["experts"]["formats"]
    assert run_command(["inspect", str(file)]) == 0
    assert "none in a GGUF file; types, sizes, finite numbers" in capsys.readouterr().out.replace("\n", " ")


def test_a_plan_is_of_the_file_as_it_is_unless_formats_are_given(files: tuple[Path, Path], tmp_path: Path) -> None:
    rates = ["--disk-rate", "1GB/s", "--memory-rate", "10GB/s", "--json", str(tmp_path / "plan.json")]
    for more, known_from in (([], "the file, opened as it is"), (["--experts", "q8"], "the headers of the weights")):
        assert run_command(["plan", str(files[1]), *rates, *more]) == 0
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert known_from in plan["known_from"]
        assert plan["record_bytes"] > 0


def test_a_rule_for_words_that_the_file_lacks_is_told(tmp_path: Path, capsys: Capture) -> None:
    """As a conversion does: the answers may be worse."""
    config = CONFIGS["mixtral"]
    write_checkpoint(tmp_path / "checkpoint", config, dtype="F32")
    words = {**tokenizer_metadata(small_tokenizer(), "gpt-2"), "tokenizer.ggml.pre": None}
    kinds = {"_exps": "Q4_0", ".": "Q8_0"}
    file = write_gguf(tmp_path / "m.gguf", config, read_tensors(tmp_path / "checkpoint"), kinds=kinds, tokenizer=words)
    assert run_command(["run", str(file), "--raw", "-p", "Hello", "--max-tokens", "1", "--no-warm-start"]) == 0
    assert "warning: " + str(file) + ": tokenizer.ggml.pre is missing" in capsys.readouterr().err.replace("\n", " ")


def test_a_missing_tensor_is_told_with_the_file(files: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    content = files[1].read_bytes()
    assert b"output_norm" in content
    (tmp_path / "x.gguf").write_bytes(content.replace(b"output_norm", b"zutput_norm"))
    assert run_command(["run", str(tmp_path / "x.gguf"), "--raw", "-p", "Hello"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert f"error: {tmp_path / 'x.gguf'}: model.norm.weight: missing" in error
    assert error.endswith("or a file is missing. Download the model again.")


@pytest.mark.parametrize("command", ["verify", "update", "export"])
def test_what_needs_a_store_says_so(files: tuple[Path, Path], command: str, tmp_path: Path, capsys: Capture) -> None:
    more = [str(tmp_path / "x.gguf")] if command == "export" else []
    assert run_command([command, str(files[1]), *more]) == 1
    error = capsys.readouterr().err
    assert "expected a store" in error
    assert f"edgemoe convert {files[1]} DEST" in error
