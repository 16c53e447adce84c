"""Models of the hub on the command line: `pull`, `list` and `rm`, and hub ids where commands take a model."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgemoe.cli.convert import Report
from edgemoe.cli.main import run_command
from edgemoe.cli.terminal.figures import format_age
from edgemoe.conversion.progress import Download
from edgemoe.sizes import format_size
from tests.support.every_case import every_case
from tests.support.hub_models import GGUF_MODEL, LARGE, PLAIN, SPLIT
from tests.support.hub_server import COMMIT, Repository

Capture = pytest.CaptureFixture[str]


def edgemoe(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; its code, and what it says, with single spaces."""
    code = run_command([*arguments])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, " ".join(shown.err.split())


def path_of(cache: Path, name: str = PLAIN) -> Path:
    return cache / f"models--{GGUF_MODEL.replace('/', '--')}" / "snapshots" / COMMIT / name


def test_pull_list_and_rm(
    gguf_model: Repository, hub_cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edgemoe(capsys, "list") == (0, f"There are no models in {hub_cache}; edgemoe pull downloads one.\n", "")
    code, shown, errors = edgemoe(capsys, "pull", f"{GGUF_MODEL}:q4_k_m")
    assert (code, errors) == (0, "")
    size = format_size(len(gguf_model.files[PLAIN]))
    assert shown == f"{GGUF_MODEL}:q4_k_m: {size} in {path_of(hub_cache)}. Try it: edgemoe chat {GGUF_MODEL}:q4_k_m\n"
    assert edgemoe(capsys, "pull", f"{GGUF_MODEL}:Q4_1")[0] == 0
    code, shown, errors = edgemoe(capsys, "list")
    assert (code, errors) == (0, "")
    assert f"models in {hub_cache}:" in shown
    assert f"{GGUF_MODEL}:Q4_K_M: GGUF of llama, {size}, used just now" in shown
    assert f"{GGUF_MODEL}:Q4_1: GGUF of llama, 3 files, " in shown
    code, shown, _ = edgemoe(capsys, "list", "--json")
    found = json.loads(shown)
    assert (code, found["folder"], found["problems"]) == (0, str(hub_cache), [])
    assert [one["id"] for one in found["models"]] == [f"{GGUF_MODEL}:Q4_1", f"{GGUF_MODEL}:Q4_K_M"]
    assert found["models"][1] | {"used": ""} == {
        "id": f"{GGUF_MODEL}:Q4_K_M", "kind": "gguf", "architecture": "llama", "files": 1,
        "bytes": len(gguf_model.files[PLAIN]), "whole": True, "used": "",
    }  # fmt: skip
    code, _, errors = edgemoe(capsys, "rm", f"{GGUF_MODEL}:Q4_1")
    assert code == 2
    assert "nobody can be asked. Give --yes" in errors
    for answer, removed in (("", False), ("n\n", False), ("y\n", True)):
        monkeypatch.setattr("sys.stdin", Typed(answer))
        code, shown, errors = edgemoe(capsys, "rm", f"{GGUF_MODEL}:Q4_1")
        assert "(3 files in " in shown
        assert "It frees " in shown
        assert code == (0 if removed else 1)
        assert ("Nothing was removed." in shown) != removed
        assert path_of(hub_cache, SPLIT[0]).exists() != removed
    assert edgemoe(capsys, "rm", GGUF_MODEL, "--yes") == (0, f"{GGUF_MODEL}: removed 1 file, freed {size}.\n", "")
    assert "no models in" in edgemoe(capsys, "list")[1]


class Typed(io.StringIO):
    """A terminal on which a person has typed something."""

    def isatty(self) -> bool:
        return True


def test_a_model_runs_by_its_id(
    gguf_model: Repository, hub_files: dict[str, bytes], hub_cache: Path, capsys: Capture
) -> None:
    more = ("--raw", "-p", "Hello", "--max-tokens", "4", "--temperature", "0", "--no-warm-start")
    code, said, errors = edgemoe(capsys, "run", f"{GGUF_MODEL}:Q4_1", *more)
    assert (code, errors.replace("the answer was cut at 4 tokens: --max-tokens N allows more", "")) == (0, "")
    for name in SPLIT:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(hub_files[name])
    assert edgemoe(capsys, "run", SPLIT[0], *more)[1] == said
    gguf_model.error = (503, "")
    assert edgemoe(capsys, "run", f"{GGUF_MODEL}:Q4_1", *more)[1] == said
    assert edgemoe(capsys, "run", GGUF_MODEL, *more)[1] == said
    assert gguf_model.gets(SPLIT[0]) == [None]


def test_a_conversation(
    gguf_model: Repository, hub_cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    code, said, _ = edgemoe(capsys, "chat", GGUF_MODEL, "--max-tokens", "3", "--no-warm-start")
    assert code == 0
    assert said
    assert path_of(hub_cache).exists()


def test_inspect_and_info_show_the_file(gguf_model: Repository, hub_cache: Path, capsys: Capture) -> None:
    code, shown, _ = edgemoe(capsys, "inspect", f"{GGUF_MODEL}:Q8_0", "--json")
    assert code == 0
    assert json.loads(shown)["files"] == {LARGE: len(gguf_model.files[LARGE])}
    code, shown, _ = edgemoe(capsys, "info", f"{GGUF_MODEL}:Q8_0", "--json")
    assert json.loads(shown)["model"]["path"] == str(path_of(hub_cache, LARGE))


def test_a_plan_needs_the_header_alone(
    gguf_model: Repository, hub_cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    figures = tmp_path / "plan.json"
    rates = ("--disk-rate", "1GB/s", "--memory-rate", "10GB/s", "--json", str(figures))
    plans = []
    for pulled in (False, True):
        if pulled:
            assert edgemoe(capsys, "pull", f"{GGUF_MODEL}:Q4_1")[0] == 0
        assert edgemoe(capsys, "plan", f"{GGUF_MODEL}:Q4_1", *rates)[0] == 0
        plans.append(json.loads(figures.read_text()))
        assert (gguf_model.gets(SPLIT[0]) == []) != pulled
    before, after = plans
    assert before["known_from"] == "the header of the file on the hub, opened as it is"
    assert before["source"] == f"{GGUF_MODEL}@{COMMIT}/{SPLIT[0]}"
    assert after["known_from"] == "the file, opened as it is"
    for key in ("store_bytes", "record_bytes", "dense_parts", "bytes_per_token"):
        assert before[key] == after[key]
    assert edgemoe(capsys, "plan", f"{GGUF_MODEL}:Q8_0", "--experts", "q4", *rates)[0] == 0
    assert json.loads(figures.read_text())["known_from"] == "config.json and the headers of the weights"
    assert gguf_model.gets(LARGE) == []


@pytest.mark.slow
def test_a_benchmark_opens_the_file(gguf_model: Repository, hub_cache: Path, capsys: Capture) -> None:
    arguments = ("--prompt", "4", "--decode", "2", "--prefill", "4", "--repeats", "1", "--context", "32")
    code, shown, errors = edgemoe(capsys, "bench", f"{GGUF_MODEL}:Q8_0", *arguments)
    assert (code, errors) == (0, "")
    assert LARGE.removesuffix(".gguf") in shown


def test_convert_and_update_take_the_id(
    gguf_model: Repository, hub_files: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    assert edgemoe(capsys, "convert", f"{GGUF_MODEL}:Q4_K_M", "store")[0] == 0
    store = tmp_path / "store"
    tokenizer = (store / "tokenizer.json").read_bytes()
    (store / "tokenizer.json").write_bytes(tokenizer.replace(b'"', b'"', 1) + b"\n")
    gguf_model.requests.clear()
    code, shown, errors = edgemoe(capsys, "update", str(store), "--from", f"{GGUF_MODEL}:Q4_K_M")
    assert (code, errors) == (0, "")
    assert "1 side file updated" in shown
    assert (store / "tokenizer.json").read_bytes() == tokenizer
    assert gguf_model.gets(PLAIN) == []


def test_without_a_network_it_is_told_that_the_file_is_an_old_one(
    gguf_model: Repository, hub_cache: Path, capsys: Capture
) -> None:
    assert edgemoe(capsys, "pull", f"{GGUF_MODEL}:Q8_0")[0] == 0
    gguf_model.error = (503, "")
    code, shown, errors = edgemoe(capsys, "pull", f"{GGUF_MODEL}:Q8_0")
    assert (code, errors) == (
        0, f"note: The hub cannot be reached: {GGUF_MODEL}:Q8_0 is read from the Hugging Face cache on this machine.",
    )  # fmt: skip
    assert str(path_of(hub_cache, LARGE)) in shown
    code, _, errors = edgemoe(capsys, "run", f"{GGUF_MODEL}:Q4_K_M", "-p", "x")
    assert code == 1
    assert errors.count("error: ") == 1
    assert f"{GGUF_MODEL}: the hub answered HTTP 503." in errors


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ["pull", f"{GGUF_MODEL}:Q2_K"],
            1,
            "among its GGUF files. Name one of these after a colon: Q4_K_M (",
        ),
        (["run", f"{GGUF_MODEL}:Q2_K", "-p", "x"], 1, "found no Q2_K among its GGUF files."),
        (["convert", f"{GGUF_MODEL}:Q2_K", "store"], 1, "found no Q2_K among its GGUF files."),
        (["chat", "maker/absent"], 1, "maker/absent: there is no such folder here, and the hub has no such model"),
        (["pull", "here"], 2, "here: expected the id of a model of the hub, found a folder on this machine."),
        (["pull", "maker/here"], 2, "found a folder on this machine. Other commands take it as it is; from another"),
        (["rm", "./here"], 2, "found a folder on this machine."),
        (["pull", "nothing"], 2, "'nothing': expected the id of a model of the hub, owner/name or owner/name:QUANT."),
        (["rm", "maker/absent:Q4_0"], 1, "expected a model in the Hugging Face cache"),
        (["rm", f"{GGUF_MODEL}@main"], 2, "expected an id without a revision"),
    ],
)
def test_an_error_is_one_paragraph(
    arguments: list[str], code: int, told: str, gguf_model: Repository, tmp_path: Path, capsys: Capture
) -> None:
    for folder in ("here", "maker/here"):
        (tmp_path / folder).mkdir(parents=True)
    found, shown, errors = edgemoe(capsys, *arguments)
    assert (found, shown) == (code, "")
    assert errors.startswith("error: ")
    assert told in errors


def test_progress_counts_the_files_that_are_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("edgemoe.cli.convert.time", SimpleNamespace(monotonic=lambda: next(now)))

    class Bar:
        def update(self, title: str, done: int, total: int | None, beside: str) -> None:
            shown.append(f"{title}: {beside}")

    report = Report(Bar())  # type: ignore[arg-type]
    mib = 1 << 20
    report.download(Download("a-1.gguf", 0, 100 * mib, 50 * mib))
    report.download(Download("a-1.gguf", 50 * mib, 100 * mib, 50 * mib))
    report.download(Download("a-1.gguf", 50 * mib, 100 * mib, 50 * mib, checking=True))
    assert shown == [
        "downloading a-1.gguf: 0 bytes of 100.0 MiB",
        "downloading a-1.gguf: 50.0 MiB of 100.0 MiB · 5.0 MiB/s · about 20 s left",
        "checking a-1.gguf: 50.0 MiB of 100.0 MiB",
    ]


@every_case(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (86_400 * 3.5, "3 days ago"),
        (86_400 * 70, "2 months ago"),
        (86_400 * 800, "2 years ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    assert edgemoe(capsys, "list") == (
        0, "There are no models in the Hugging Face cache, which needs a home folder or HF_HOME; edgemoe pull downloads"
        " one.\n", "",
    )  # fmt: skip
    assert not os.path.lexists("~")
