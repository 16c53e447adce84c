"""Lossy options: refused where unsound, told where on, silent where off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.bench.quality import QualityMeasurement, QualityReport, SideReport
from edgemoe.bench.spread import Spread
from edgemoe.cli.lossy import lossy_line
from edgemoe.cli.main import run_command
from edgemoe.cli.quality import quality_tables
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.session.quality import Quality, find_quality, keep_quality
from tests.cli.conftest import Edgemoe

Capture = pytest.CaptureFixture[str]
ON = ("--drop-cold", "0.1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path / "cache" / "edgemoe"))


def side(dropped: float) -> SideReport:
    memory = {"slots": 40, "total_experts": 64}
    return SideReport(memory, Spread.of([10, 11]), 0.9, dropped, 0.0, 5 << 20)


def made_up_quality(settings: LossySettings, text: str | None = "a text") -> QualityReport:
    losses = (2.5, 2.52) if text else None
    return QualityReport(
        {}, settings.to_json(), "1GiB", text, 1000, 0.0123, (0.01, 0.0146), 0.041, losses, side(0),
        side(0.25),
        Spread.of([1.2, 1.3, 1.1]), version="0", machine={},
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["run", "chat", "bench"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cache-aware-routing", "1.5"], "--cache-aware-routing: expected a number from 0 (off) to 1, found 1.5."),
        (["--drop-cold", "nan"], "--drop-cold: expected a number from 0 (off) to 1, found nan."),
        (["--drop-cold", "-0.1"], "found -0.1"),
        (["--experts-per-token", "0"], "--experts-per-token: expected a whole number"),
        (["--experts-per-token", "x"], "--experts-per-token"),
        (["--on-miss", "guess"], "--on-miss: expected wait or base, found 'guess'."),
    ],
)
def test_unsound_values_are_refused(verb: str, options: list[str], says: str, capsys: Capture) -> None:
    prompt = ["-p", "x"] if verb == "run" else []
    assert run_command([verb, *prompt, *options]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_off_says_nothing(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("run", folder, "-p", "Hi", "--cache-aware-routing", "0", "--json")
    assert done.errors == ""
    assert "lossy" not in json.loads(done.output)


def test_run_says_what_it_costs_or_how_to_find_out(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("run", folder, "-p", "Hi", "--ram", "1GiB", *ON)
    assert done.output == "Hello, world!\n"
    assert done.errors == (
        f"lossy: drop cold 0.1 · quality not measured yet; to measure it: edgemoe bench {folder} --quality --ram 1GiB"
        " --drop-cold 0.1\n"
    )
    quality = Quality(0.0123, 0.041, 1000, "a text", 1.25)
    keep_quality(folder, LossySettings(drop_cold=0.1), 1 << 30, quality)
    done = edgemoe("run", folder, "-p", "Hi", "--ram", "1GiB", *ON)
    assert done.errors == f"lossy: drop cold 0.1 · measured: {quality.describe()}\n"
    done = edgemoe("run", folder, "-p", "Hi", "--ram", "1GiB", *ON, "--json")
    assert done.errors.startswith("lossy: drop cold 0.1")
    settings = LossySettings(drop_cold=0.1).to_json()
    told = {"asked": settings, "effective": settings, "quality": quality.to_json(), "expert_drops": 0}
    told["experts_from_base"] = 0
    assert json.loads(done.output)["lossy"] == told


def test_a_damaged_quality_file_is_no_harm(edgemoe: Edgemoe, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "edgemoe").mkdir(parents=True)
    (tmp_path / "cache" / "edgemoe" / "quality.json").write_text("{{{")
    done = edgemoe("run", folder, "-p", "Hi", *ON)
    assert (done.code, done.output) == (0, "Hello, world!\n")
    assert "not measured yet" in done.errors


def test_chat_through_a_pipe_says_it_on_stderr(edgemoe: Edgemoe, folder: Path) -> None:
    done = edgemoe("chat", folder, *ON, stdin=b"Hi\n")
    assert done.output == "Hello, world!\n"
    assert done.errors.startswith("lossy: drop cold 0.1 · quality not measured yet")
    assert edgemoe("chat", folder, stdin=b"Hi\n").errors == ""


def test_where_everything_is_in_memory_it_says_so(folder: Path) -> None:
    asked = LossySettings(drop_cold=0.1, cache_aware_routing=0.2)
    line = lossy_line(folder, asked, asked.effective(all_resident=True), None, None)
    assert line == "lossy: cache-aware routing 0.2, drop cold 0.1 · all experts are in memory, so this changes nothing"
    both = replace(asked, experts_per_token=2)
    line = lossy_line(folder, both, both.effective(all_resident=True), None, None)
    assert line.startswith("lossy: 2 experts per token · quality not measured yet")


def test_bench_quality_shows_writes_and_keeps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    taken: list[Any] = []

    def measurement(*arguments: Any) -> Any:
        taken.extend(arguments[:4])
        lossy = arguments[2].lossy
        return SimpleNamespace(run=lambda text, name: taken.extend([text, name]) or made_up_quality(lossy, name))

    monkeypatch.setattr("edgemoe.bench.quality.QualityMeasurement", measurement)
    text, figures = tmp_path / "some.txt", tmp_path / "figures.json"
    text.write_text("Once upon a time")
    options = ["--ram", "1GiB", "--tokens", "50", "--threads", "3", "--text", str(text), "--json", str(figures)]
    assert run_command(["bench", str(folder), "--quality", *ON, *options]) == 0
    settings = LossySettings(drop_cold=0.1)
    model, kernels, engine, tokens, content, name = taken
    assert (model, kernels.threads, engine.lossy, engine.ram, tokens) == (folder, 3, settings, "1GiB", 50)
    assert (content, name) == ("Once upon a time", "some.txt")
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "KL divergence: 0.01230 (0.01000 to 0.01460) nats" in shown.out
    assert "loss: 2.5000 nats lossless, 2.5200 lossy (+0.0200)" in shown.out
    assert "lossy over lossless: 1.20 (1.10 to 1.30) x the speed" in shown.out
    assert "25.0% dropped" in shown.out
    assert json.loads(figures.read_text())["divergence_nats"] == 0.0123
    assert find_quality(folder, settings, "1GiB") == Quality(0.0123, 0.041, 1000, "some.txt", 1.2)


def test_a_measurement_that_cannot_be_kept_is_shown_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    report = made_up_quality(LossySettings(drop_cold=0.1))
    monkeypatch.setattr(QualityMeasurement, "__init__", lambda *arguments: None)
    monkeypatch.setattr(QualityMeasurement, "run", lambda *arguments: report)
    assert run_command(["bench", str(folder), "--quality", *ON]) == 0
    shown = capsys.readouterr()
    assert "top token changed: 4.1% of positions" in shown.out
    assert "could not be kept" in shown.err


def test_random_ids_are_said_to_be_such() -> None:
    costs = dict(quality_tables(made_up_quality(LossySettings(drop_cold=0.1), text=None))[0][1])
    assert costs["positions"].startswith("1000, of random ids")
    assert "loss" not in costs


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--quality"], 2, "no lossy setting"),
        (["--quality", *ON, "--tokens", "0"], 2, "--tokens: expected 1 to"),
        (["--quality", *ON, "--against", "llama.cpp"], 2, "--against"),
        (["--quality", *ON, "--text", "{tmp}/none.txt"], 1, "none.txt"),
        (["--quality", *ON, "--text", "{tmp}/latin.txt"], 2, "not UTF-8"),
        (["--quality", *ON, "--text", "{tmp}/empty.txt"], 2, "an empty file"),
        (["--quality", *ON, "--json", "{tmp}/none/x.json"], 2, "cannot be written"),
        (["--tokens", "5"], 2, "are for --quality"),
        (["--text", "x"], 2, "are for --quality"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, options: list[str], code: int, says: str, capsys: Capture
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"\n")
    assert run_command(["bench", *(option.replace("{tmp}", str(tmp_path)) for option in options)]) == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.startswith("error: ")
    assert shown.out == ""


def test_settings_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from edgemoe.bench.benchmark import Benchmark
    from tests.bench.reports import made_up_report

    taken: list[Benchmark] = []

    def run(benchmark: Benchmark) -> Any:
        taken.append(benchmark)
        report = made_up_report(beside=False)
        about = {**report.edgemoe.about, "lossy": benchmark.options.lossy.to_json()}
        return replace(report, edgemoe=replace(report.edgemoe, about=about))

    monkeypatch.setattr(Benchmark, "run", run)
    assert run_command(["bench", *ON, "--experts-per-token", "1"]) == 0
    (benchmark,) = taken
    assert benchmark.options.lossy == LossySettings(drop_cold=0.1, experts_per_token=1)
    assert benchmark.options.lossy.to_json() == benchmark._options()["options"]["lossy"]
    assert capsys.readouterr().err.startswith("lossy: drop cold 0.1, 1 expert per token · quality not measured yet")
    assert run_command(["bench"]) == 0
    assert taken[1].options.lossy == EXACT
    assert capsys.readouterr().err == ""
