import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.cli import convert as convert_module
from edgemoe.cli.convert import Report
from edgemoe.cli.main import run_command
from edgemoe.conversion.progress import Download, Progress
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer
from tests.support.mxfp4_checkpoints import write_packed_checkpoint


class Bar:
    def __init__(self) -> None:
        self.shown: list[tuple[str, int, int | None, str]] = []

    def update(self, title: str, done: int, total: int | None, beside: str) -> None:
        self.shown.append((title, done, total, beside))


def test_a_conversion_is_shown_with_rate_and_time_left() -> None:
    bar: Any = Bar()
    report = Report(bar)
    report.conversion(Progress("a.safetensors", 1 << 20, 2 << 30, 0, None, None))
    report.conversion(Progress("a.safetensors", 1 << 30, 2 << 30, 0, 16 << 20, 64.0))
    report.conversion(Progress("layer 2 of 4", 1 << 20, 4 << 20, 0, None, None, comparing=True))
    assert bar.shown == [
        ("converting a.safetensors", 1 << 20, 2 << 30, "1.0 MiB of 2.00 GiB"),
        ("converting a.safetensors", 1 << 30, 2 << 30, "1.00 GiB of 2.00 GiB · 16.0 MiB/s · about 1 min 4 s left"),
        ("comparing layer 2 of 4", 1 << 20, 4 << 20, "1.0 MiB of 4.0 MiB"),
    ]


def test_a_download_is_measured_from_where_this_run_began(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 12.0, 12.1, 20.0])
    monkeypatch.setattr(convert_module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    bar: Any = Bar()
    report = Report(bar)
    report.download(Download("a", 50 << 20, 100 << 20))
    report.download(Download("a", 70 << 20, 100 << 20))
    report.download(Download("b", 1 << 20, None))
    report.download(Download("b", 1 << 20, None))
    assert [beside for *_, beside in bar.shown] == [
        "50.0 MiB of 100.0 MiB",
        "70.0 MiB of 100.0 MiB · 10.0 MiB/s · about 3 s left",
        "1.0 MiB",
        "1.0 MiB · 0 bytes/s",
    ]


def test_ctrl_c_says_that_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgemoe.conversion.pipeline.convert_checkpoint", interrupt)
    assert run_command(["convert", "a", str(tmp_path / "b")]) == 130
    assert "to resume" in capsys.readouterr().err


def test_faults_of_tokenizer_and_template_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    write_checkpoint(source, SMALL_MIXTRAL)
    write_letters_tokenizer(source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    said_before_the_work = []

    def began(*arguments: object) -> None:
        said_before_the_work.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    monkeypatch.setattr("edgemoe.conversion.pipeline._begin", began)

    def told(**config: object) -> str:
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        assert run_command(["convert", str(source), str(tmp_path / "store")]) == 130
        assert capsys.readouterr().err == "interrupted: run the same command again to resume.\n"
        return said_before_the_work[-1]

    assert told(chat_template="x") == ""
    assert told(eos_token="<nowhere>") == (
        "note: tokenizer_config.json: eos_token '<nowhere>' is not in the vocabulary: it ends no answer.\n"
    )
    named = {"rag": "x", "tool_use": "y"}
    assert "note: The store will not be able to chat: tokenizer_config.json: chat_template: expec" in told(
        chat_template=named
    )
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    tokenizer["added_tokens"] = [{"id": 1, "content": "<s>", "special": True, **flags}]
    assert "not be able to read or write text: tokenizer.json: the tokenizer does not load (added token '<s>'" in told()
    tokenizer["added_tokens"][0]["id"] = 2000
    assert "tokenizer.json has 1 token without a row in the embedding of 101: the first is '<s>', id 2000" in told()
    assert not (tmp_path / "store").exists()


def test_what_a_person_should_know_is_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, side_files={"vocab.json": b"x"})
    assert run_command(["convert", str(tmp_path / "model"), str(tmp_path / "store")]) == 0
    captured = capsys.readouterr()
    assert "note: The checkpoint has vocab.json but no tokenizer.json" in captured.err
    assert "note:" not in captured.out
    assert "edgemoe update" in captured.out


def test_how_many_quantised_tensors_are_exact_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dict(SMALL_MIXTRAL, intermediate_size=96)
    write_packed_checkpoint(tmp_path / "model", config, lambda name: ".experts." in name)
    assert run_command(["convert", str(tmp_path / "model"), str(tmp_path / "store")]) == 0
    assert "Of 24 quantised tensors all stand for the same numbers as before." in capsys.readouterr().out
    assert run_command(["inspect", str(tmp_path / "store")]) == 0
    assert "relative error 0.0000, 24 of 24 quantised tensors exact" in " ".join(capsys.readouterr().out.split())
