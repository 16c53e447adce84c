from pathlib import Path
from typing import Any

import pytest

from edgemoe.cli import convert as convert_module
from edgemoe.cli.convert import Report
from edgemoe.cli.main import run_command
from edgemoe.conversion.progress import Download, Progress
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint


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
    assert bar.shown == [
        ("converting a.safetensors", 1 << 20, 2 << 30, "1.0 MiB of 2.00 GiB"),
        ("converting a.safetensors", 1 << 30, 2 << 30, "1.00 GiB of 2.00 GiB · 16.0 MiB/s · about 1 min 4 s left"),
    ]


def test_a_download_is_measured_from_where_this_run_began(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 12.0, 12.1, 20.0])
    monkeypatch.setattr(convert_module.time, "monotonic", lambda: next(seconds))
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
    assert "goes on where it was" in capsys.readouterr().err


def test_what_a_person_should_know_is_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, side_files={"tokenizer.model": b"x"})
    assert run_command(["convert", str(tmp_path / "model"), str(tmp_path / "store")]) == 0
    captured = capsys.readouterr()
    assert "note: The checkpoint has tokenizer.model but no tokenizer.json" in captured.err
    assert "note:" not in captured.out
    assert "edgemoe update" in captured.out
