"""`edgemoe bench`: what it shows, writes and refuses."""

import inspect
import io
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgemoe.bench.benchmark import Benchmark
from edgemoe.bench.report import Report
from edgemoe.cli.bench import UNUSED, bench
from edgemoe.cli.main import run_command
from edgemoe.cli.terminal.bench_tables import report_tables
from edgemoe.cli.terminal.render import ProgressBar
from tests.bench.conftest import FAKE_LLAMA_CPP
from tests.bench.reports import made_up_report

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Benchmark]]:
    """Benchmarks that were to be run, each of which has the made-up report for its result."""
    benchmarks: list[Benchmark] = []

    def run(benchmark: Benchmark) -> Report:
        benchmarks.append(benchmark)
        return made_up_report(beside=benchmark.peer is not None)

    monkeypatch.setattr(Benchmark, "run", run)
    monkeypatch.syspath_prepend(str(FAKE_LLAMA_CPP))
    yield benchmarks
    sys.modules.pop("llama_cpp", None)


def test_options_that_a_measurement_has_no_use_for_exist() -> None:
    options = inspect.signature(bench).parameters
    for other, unused in UNUSED.items():
        assert {other, *unused.split()} <= set(options)


def test_tables_say_what_was_found() -> None:
    tables = dict(report_tables(made_up_report()))
    assert len(tables) == 5
    ours, theirs, ratios, decoded, prompt = (dict(rows) for rows in tables.values())
    assert ours["model"] == "some-moe (mixtral)"
    assert ours["decode"] == "32.0 (30.0 to 34.0) tokens/s, 64 tokens after a prompt of 32"
    assert ours["budget"] == "3.00 GiB, 40 of 64 experts in memory"
    assert ours["reads per token"] == "500.0 MB from memory"
    assert ours["roofline"].startswith("79% (76% to 85%) of the memory's read rate, 20.0 (19.0 to 21.0) GB/s")
    assert ours["experts used"] == "55.2 of 64 per layer (50.0 to 60.5), 8 per token"
    assert ours["expert hits"] == "92.5% (first round 92.0%, last 93.0%), 5.0 MiB per token from disk"
    assert ours["disk"] == "1.10 (1.00 to 1.20) GB/s, direct reads of 3.0 MiB by 4 threads"
    assert ours["disk's limit"] == "220.0 (192.0 to 235.0) tokens/s: 5.1 MB missed per token"
    assert ours["memory's limit"] == "40.0 (38.0 to 42.0) tokens/s"
    assert ours["reached"] == "80% (76% to 85%) of the lower limit"
    assert ours["prefetch"] == "recall 81%, 0.25 experts read per token, 60% of them used"
    assert ours["predicted"] == (
        "30.0 (20.0 to 38.0) tokens/s, -6%, for 90.0% hits (uniform routing); for the measured hit rate 33.0, +3%"
    )
    assert "limit" not in ours
    assert theirs["limit"] == "3.00 GiB, at most 3.00 GiB taken, page cache included (1.00 GiB of it at the end)"
    assert theirs["major faults"] == "321.4 per decoded token"
    assert ours["start-up"] == "0.55 (0.50 to 0.60) s to the first token"
    assert "7% of a core" in ours["note"]
    assert theirs["version"] == "llama-cpp-python 9"
    assert "start-up" not in theirs
    assert ratios == {"decode": "2.00 (1.90 to 2.10)", "prefill": "3.20 (3.00 to 3.40)"}
    assert decoded["experts"] == "20.000 ms, 65.6%, reads 18.0 GB/s"
    assert decoded["disk wait"] == "4.000 ms, 13.1%"
    assert decoded["all parts"] == "30.500 ms, of 31.000 ms by the wall clock"
    assert prompt["attention"] == "2.000 ms, 33.3%"


def test_a_python_that_compiles_at_every_start_is_told() -> None:
    report = made_up_report()
    compiling = replace(report, machine={**report.machine, "python_keeps_bytecode": False})
    ours = next(iter(dict(report_tables(compiling)).values()))
    assert "PYTHONDONTWRITEBYTECODE" in dict(ours)["note"]


def test_tables_without_another_engine_or_a_roofline() -> None:
    tables = dict(report_tables(made_up_report(beside=False, roofline=False)))
    assert len(tables) == 3
    assert dict(tables["time of a decoded token"])
    rows = dict(next(iter(tables.values())))
    assert "native kernels" in rows["roofline"]
    assert rows["note"].startswith("other programs kept 1.5 of 4 cores busy")


def test_options_reach_the_measurement(measured: list[Benchmark], tmp_path: Path, capsys: Capture) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_text("{}")
    file = tmp_path / "figures.json"
    options = ["--prompt", "3", "--decode", "5", "--prefill", "7", "--repeats", "9", "--threads", "3", "--ram", "floor"]
    beside = ["--against", "llama.cpp", "--gguf", str(gguf), "--mmap", "--peer-decode", "2"]
    options += ["--limit", "3GiB", "--policy", "lfu", "--prefetch", "off"]
    assert run_command(["bench", *options, *beside, "--json", str(file)]) == 0
    (benchmark,) = measured
    settings = benchmark.settings
    assert (settings.prompt_tokens, settings.decode_tokens, settings.prefill_tokens, settings.repeats) == (3, 5, 7, 9)
    assert (benchmark.kernels.threads, benchmark.options.ram) == (3, "floor")
    assert settings.peer_decode_tokens == 2
    assert benchmark.limit_bytes == 3 << 30
    assert (benchmark.options.policy, benchmark.options.prefetch) == ("lfu", "off")
    assert benchmark.peer is not None
    assert benchmark.peer.options == {"gguf": str(gguf), "threads": 3, "context": 8, "mmap": True}
    assert json.loads(file.read_text())["ratios"]["decode"]["median"] == 2
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "edgemoe over llama.cpp: above 1, edgemoe is faster:\ndecode: 2.00 (1.90 to 2.10)\n" in shown.out


def test_nothing_is_drawn_while_engines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    before = threading.active_count()
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", file)
    with ProgressBar("measuring", still=True) as bar:
        bar.update("round 1 of 5", 1, 6, "")
        assert "round 1 of 5" in file.getvalue()
        assert threading.active_count() == before  # no thread that would draw


def test_a_picture_is_drawn(measured: list[Benchmark], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[Report] = []

    def draw(report: Report, path: Path) -> None:  # tests/bench draws one
        drawn.append(report)
        path.write_bytes(b"picture")

    monkeypatch.setattr("edgemoe.bench.plot.draw_report", draw)
    assert run_command(["bench", "--plot", str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").read_bytes() == b"picture"
    assert len(drawn) == len(measured) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["no-such-model"], 1, "there is no such folder or model"),
        (["--threads", "0"], 2, "threads: expected 1 or more, found 0"),
        (["--threads", "257"], 2, "257 threads"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--prompt", "0"], 2, "--prompt"),
        (["--prefill", "100000"], 2, "positions"),
        (["--json", "{tmp}"], 2, "cannot be written"),
        (["--json", "{tmp}/none/x.json"], 2, "cannot be written"),
        (["--plot", "{tmp}/none/x.png"], 2, ""),
        (["--against", "gpt"], 2, "expected llama.cpp"),
        (["--gguf", "x.gguf"], 2, "--against"),
        (["--mmap"], 2, "--against"),
        (["--peer-decode", "4"], 2, "--against"),
        (["--against", "llama.cpp", "--peer-decode", "65"], 2, "--peer-decode: expected 1 to 64 (--decode), found 65"),
        (["--limit", "lots"], 2, "'lots' is not a size"),
        (["--limit", "1GiB", "--ram", "2GiB"], 2, "at most --limit 1.00 GiB"),
        (["--against", "llama.cpp", "--gguf", "{tmp}/none.gguf"], 1, "no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    measured: list[Benchmark], tmp_path: Path, arguments: list[str], code: int, says: str, capsys: Capture
) -> None:
    assert run_command(["bench", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err
    assert measured == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_peer_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("edgemoe.bench.peers.importlib.util.find_spec", lambda name: None)
    assert run_command(["bench", "--against", "llama.cpp"]) == 2
    assert "pip install 'edgemoe[peers]'" in capsys.readouterr().err
