"""`edgemoe plan`: what it shows, writes and refuses."""

import json
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from edgemoe.conversion.shapes import SHAPES
from tests.support.checkpoints import SMALL_MIXTRAL

Capture = pytest.CaptureFixture[str]
RATES = ["--disk-rate", "1.2GB/s", "--memory-rate", "30 GB/s"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A large model's config.json, and nothing else."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(SHAPES["qwen3-30b-a3b"])))
    return path


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """A small model's config.json, of which a plan is made in an instant."""
    path = tmp_path / "small" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SMALL_MIXTRAL))
    return path


def test_a_config_is_enough_for_a_plan(config: Path, capsys: Capture) -> None:
    file = config.with_name("plan.json")
    assert run_command(["plan", str(config), "--ram", "6GiB", "--dense", "q4", *RATES, "--json", str(file)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = dict(line.split(": ", 1) for line in shown.out.splitlines() if ": " in line)
    assert lines["source"].endswith("known from config.json alone")
    assert lines["dense weights"] == "703.4 MiB"
    assert lines["on disk, read row by row"] == "embedding: 166.9 MiB, q4"
    assert "slots for 6144 (" in lines["experts"]
    assert lines["memory's rate"] == "30.00 GB/s, as given"
    assert lines["disk's rate"] == "1.20 GB/s, as given"
    assert lines["expert hits"].count("%") == 3
    assert lines["speed"].startswith("about ")
    assert "all experts in memory" in shown.out
    data = json.loads(file.read_text())
    assert data["memory"]["total_experts"] == 6144
    assert data["memory"]["budget_bytes"] == 6 << 30
    assert data["memory_rate"]["bytes_per_s"] == 30e9


def test_the_floor_is_named_below_it(small_config: Path, capsys: Capture) -> None:
    assert run_command(["plan", str(small_config), "--ram", "1MiB", *RATES]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "This model needs at least" in shown.err
    assert "the budget is 1.0 MiB" in shown.err


def test_a_table_of_rows_stays_on_disk(capsys: Capture) -> None:
    golden = Path(__file__).parents[1] / "golden" / "qwen4_exp" / "config.json"
    assert run_command(["plan", str(golden), "--ram", "floor", *RATES]) == 0
    shown = capsys.readouterr().out
    assert "on disk, read row by row: row_tables: " in shown
    assert "in memory: table: " in shown


def test_a_model_without_experts(tmp_path: Path, capsys: Capture) -> None:
    golden = Path(__file__).parents[1] / "golden" / "llama" / "config.json"
    assert run_command(["plan", str(golden), "--ram", "floor", *RATES]) == 0
    shown = capsys.readouterr().out
    assert "experts" not in shown
    assert "disk's" not in shown
    assert "other budgets" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["no-such-model"], 1, "no such folder or file"),
        (["{config}", "--ram", "lots"], 2, "'lots' is not a size"),
        (["{config}", "--context", "1000000"], 2, "1 to 256"),
        (["{config}", "--experts", "q5"], 2, "--experts"),
        (["{config}", "--kv", "q4"], 2, "kv"),
        (["{config}", "--disk-rate", "fast"], 2, "--disk-rate: 'fast' is not a rate"),
        (["{config}", "--memory-rate", "0"], 2, "--memory-rate: '0' is not a rate"),
        (["{config}", "--json", "{tmp}/none/x.json"], 2, "cannot be written"),
        (["--experts", "q8"], 2, "is a store"),
        (["{config}", "--threads", "0"], 2, "0 threads"),
    ],
)
def test_what_cannot_be_is_refused(
    small_config: Path, arguments: list[str], code: int, says: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("measure_memory", "measure_disk", "measure_store_disk", "measure_folder_disk"):
        monkeypatch.setattr(f"edgemoe.bench.plan_model.{name}", None)
    places = {"{config}": str(small_config), "{tmp}": str(small_config.parent)}
    given = [text.replace("{config}", places["{config}"]).replace("{tmp}", places["{tmp}"]) for text in arguments]
    assert run_command(["plan", *given]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert says in shown.err
