"""`edgemoe replay`: what it shows, writes and refuses."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgemoe.bench.replay_report import ReplayReport
from edgemoe.cli.main import run_command
from edgemoe.cli.terminal.replay_tables import replay_tables
from tests.bench.test_replay_report import small_report
from tests.lab.traces import make_shape, random_trace
from tests.support.shared_data import shared_file
from tests.support.traces import write_csv

Capture = pytest.CaptureFixture[str]
RATES = ("--disk-rate", "1GB/s", "--memory-rate", "10GB/s")


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "small.csv"
    write_csv(path, random_trace(make_shape(4, 16, 2), 10, 40))
    return path


def replayed(trace: Path, folder: Path, *arguments: str | Path) -> list[dict[str, object]]:
    json_file = folder / "figures.json"
    assert run_command(["replay", str(trace), *RATES, "--json", str(json_file), *map(str, arguments)]) == 0
    results: list[dict[str, object]] = json.loads(json_file.read_text())["results"]
    return results


def test_a_real_trace_end_to_end(tmp_path: Path, capsys: Capture) -> None:
    trace = shared_file("traces/qwen3-30b-a3b.csv")
    results = replayed(trace, tmp_path, "--policy", "lru,belady", "--capacity", "10%,20%,30%,50%")
    found = {(row["policy"], row["capacity_percent"]): round(float(str(row["hit_rate"])), 3) for row in results}
    assert found == {
        ("lru", 10): 0.528, ("lru", 20): 0.727, ("lru", 30): 0.841, ("lru", 50): 0.910,
        ("belady", 10): 0.740, ("belady", 20): 0.859, ("belady", 30): 0.903, ("belady", 50): 0.917,
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "Qwen3-30B-A3B" in shown
    assert "6144, of which a token uses 288 (4.7 %)" in shown
    assert re.search(r"10 %, 1.75 GiB *: 52.8% +74.0%", shown)
    assert "only lru was replayed" in shown


def test_it_shows_the_trace_the_curve_and_a_choice(trace_file: Path, tmp_path: Path, capsys: Capture) -> None:
    results = replayed(trace_file, tmp_path)
    assert {row["policy"] for row in results} == {"lru", "lfu", "lruf", "belady"}
    shown = capsys.readouterr().out
    titles = (
        "trace:",
        "hit rate, all uses",
        "MB from disk",
        "tokens/s (estimates)",
        "hit rate by capacity",
        "recommendation",
    )
    assert [shown.index(title) for title in titles] == sorted(shown.index(title) for title in titles)
    assert re.search(r"100 %, 63 KiB *: \|#+ +\| \d\d.\d% of", shown)
    assert "note: 5 %, 10 %: fewer slots than the 8 experts that a token uses" in shown


def test_both_formats_and_settings(trace_file: Path, tmp_path: Path) -> None:
    results = replayed(trace_file, tmp_path, "--policy", "lfu:4,lruf:8:2.5", "--capacity", "25")
    assert [(row["policy"], row["slots"]) for row in results] == [("lfu:4", 16), ("lruf:8:2.5", 16)]


def test_a_picture_is_drawn(trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[ReplayReport] = []

    def draw(report: ReplayReport, path: Path) -> None:  # tests/bench draws one
        drawn.append(report)
        path.write_bytes(b"picture")

    monkeypatch.setattr("edgemoe.bench.replay_plot.draw_replay", draw)
    results = replayed(trace_file, tmp_path, "--plot", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == b"picture"
    assert [len(report.rows) for report in drawn] == [len(results)]


def test_tables_without_speeds_or_without_a_choice() -> None:
    titles = [title for title, _ in replay_tables(small_report(rates=None))]
    assert not any("tokens/s" in title for title in titles)
    tables = dict(replay_tables(small_report(decode_tokens=0)))
    assert not any("generated" in title for title in tables)
    assert "repeats" not in dict(tables["trace"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "mru"], "expected one of lru, lfu, lruf, belady, found 'mru'"),
        (["--policy", "lfu:-2"], "expected a half-life above 0"),
        (["--capacity", "0%"], "expected more than 0 % and at most 100 %"),
        (["--capacity", "10%,101%"], "found 101 %"),
        (["--capacity", "nan"], "found nan %"),
        (["--capacity", "0.1%"], "0.1 % of 64 experts is not one slot. A token uses 8: 12 %"),
        (["--capacity", "lots"], "expected percentages of all experts, found 'lots'"),
        (["--disk-rate", "fast"], "--disk-rate: 'fast' is not a rate"),
        (["--json", "no/such/folder/figures.json"], "cannot be written"),
        (["--plot", "no/such/folder/curve.png"], "cannot be written"),
        (["--plot", "curve.gguf"], "expected a picture"),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: Sequence[str], message: str, trace_file: Path, capsys: Capture
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    assert run_command(["replay", str(trace_file), *RATES, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert message in shown.err


def test_a_trace_that_cannot_be_read_is_named_with_its_line(trace_file: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = trace_file.read_text().splitlines(keepends=True)
    header = [line for line in lines if line.startswith("#") or line.startswith("turn")]
    wrong = {
        "missing.csv": (None, "No such file"),
        "empty.csv": ("", "empty.csv"),
        "text.csv": ("to be, or not to be\n", "text.csv"),
        "rows.csv": ("".join(header), "no rows"),
        "cut.csv": ("".join(lines)[:-3], "cut"),
        "bad.csv": ("".join([*lines[:-1], "0,1,x,0,0,3,0.5,0,0\n"]), f"line {len(lines)}"),
        "range.csv": ("".join([*lines[:-1], "0,1,3,0,0,99,0.5,0,0\n"]), f"line {len(lines)}: expert"),
    }
    for name, (text, message) in wrong.items():
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        assert run_command(["replay", str(path), *RATES]) == 1, name
        shown = capsys.readouterr()
        assert shown.out == "", name
        assert shown.err.startswith("error: "), name
        assert name in shown.err or name == "rows.csv"
        assert message in shown.err, shown.err


def test_a_disk_that_fills_is_one_error(trace_file: Path, capsys: Capture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    assert run_command(["replay", str(trace_file), *RATES, "--json", "/dev/full"]) == 1
    assert capsys.readouterr().err.startswith("error: No space left on device")
