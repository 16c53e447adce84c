"""Decoding beside busy processes: what is measured, and that those processes run when and only when they are let."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from edgemoe.bench import contention
from edgemoe.bench.contention import BusyProcesses, ContentionMeasurement, ContentionReport, fair_share
from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
from edgemoe.cli.company import contention_table
from edgemoe.cli.main import run_command
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.select import describe_backend
from tests.support.every_case import every_case

SETTINGS = Settings(prompt_tokens=4, decode_tokens=4, prefill_tokens=4, repeats=2)


@every_case(
    ("threads", "busy", "processors", "share"),
    [(2, 0, 2, 2.0), (2, 2, 2, 1.0), (2, 1, 2, 4 / 3), (2, 4, 2, 2 / 3), (1, 1, 2, 1.0), (2, 2, 8, 2.0)],
)
def test_fair_share(threads: int, busy: int, processors: int, share: float) -> None:
    assert fair_share(threads, busy, processors) == pytest.approx(share)


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_processes_run_only_while_they_are_let() -> None:
    with BusyProcesses(2) as busy:
        first, second = (psutil.Process(process.pid) for process in busy._processes)
        with busy.running(1):
            began_s, deadline_s = _used_s(first), time.monotonic() + 60
            while _used_s(first) < began_s + 0.05 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            assert _used_s(first) >= began_s + 0.05
            assert second.status() == psutil.STATUS_STOPPED
        deadline_s = time.monotonic() + 60
        while first.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert first.status() == psutil.STATUS_STOPPED
    assert not first.is_running()
    assert not second.is_running()


@pytest.fixture
def report(store_without_text: Path, monkeypatch: pytest.MonkeyPatch, start: Start) -> ContentionReport:
    monkeypatch.setattr(contention, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(contention, "SETTLE_SECONDS", 0.0)
    return ContentionMeasurement(
        store_without_text, SETTINGS, describe_backend(1), EngineOptions(), [1], start=start
    ).run()


def test_a_measurement(report: ContentionReport) -> None:
    (company,) = report.company
    assert len(report.alone.samples) == len(company.tokens_per_s.samples) == 2
    for beside, alone, of_fair in zip(
        company.tokens_per_s.samples, report.one_thread_alone.samples, company.of_fair_share.samples, strict=True
    ):
        assert of_fair == pytest.approx(beside / (alone * company.share_processors))
    assert json.loads(json.dumps(report.to_json()))["company"][0]["busy"] == 1
    names = [name for name, _ in contention_table(report)[1]]
    assert names == ["one thread alone", "all threads alone", "beside 1 busy process"]


@pytest.mark.parametrize("arguments", [["--beside", "0"], ["--beside", "65"]])
def test_numbers_out_of_range(
    arguments: list[str], store_without_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", str(store_without_text), *arguments]) == 2
    assert "expected numbers of 1 to 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    "unused", [["--limit", "1GiB"], ["--prefill", "256"], ["--drop-cold", "0.1"], ["--text", "story.txt"]]
)
def test_what_it_has_no_use_for_is_refused(
    unused: list[str], store_without_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", str(store_without_text), "--beside", "1", *unused]) == 2
    assert f"--beside excludes {unused[0]}." in capsys.readouterr().err
