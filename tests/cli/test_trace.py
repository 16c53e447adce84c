"""`edgemoe trace` and `--trace`: what is recorded, what is said, and how it ends when something goes wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.lab import trace as trace_module
from edgemoe.lab.trace import read_trace
from tests.cli.conftest import Done, environment
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer
from tests.support.traces import made_up_trace, same_rows, write_csv

Command = Callable[..., Done]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that talks in letters; its vocabulary has five ids that stand for none."""
    folder = tmp_path_factory.mktemp("trace")
    write_checkpoint(folder / "tiny", {**SMALL_MIXTRAL, "max_position_embeddings": 4096})
    write_letters_tokenizer(folder / "tiny")
    return convert_checkpoint(str(folder / "tiny"), folder / "tiny-moe", experts="q4", dense="q8")


@pytest.fixture
def edgemoe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in this process, with a real engine."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Done:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_command([*map(str, arguments)])
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


def test_an_answer_is_recorded_and_stays_the_same(edgemoe: Command, store: Path, tmp_path: Path) -> None:
    question = ("-p", "hello", "--max-tokens", "9", "--temperature", "0", "--seed", "1")
    plain = edgemoe("run", store, *question)
    beside = edgemoe("run", store, *question, "--trace", tmp_path / "beside")
    traced = edgemoe("trace", store, *question, "--out", tmp_path / "t", "--ram", "floor")
    assert (plain.code, beside.code, traced.code) == (0, 0, 0)
    assert beside.output == plain.output
    assert traced.output.startswith(plain.output)
    assert beside.errors.startswith(f"{plain.errors}trace: 18 tokens; ")
    trace = read_trace(tmp_path / "t")
    # the template says "u:", the text, a line feed and "a:"; the last letter said is not read again
    assert trace.select(trace.phase == PROMPT).tokens == 2 + 5 + 1 + 2
    assert trace.select(trace.phase == DECODE).tokens == 8
    assert (trace.shape.model, trace.shape.architecture) == ("tiny-moe", "mixtral")
    other = read_trace(tmp_path / "beside")
    places = [sorted(zip(t.step, t.layer, t.slot, t.expert, strict=True)) for t in (trace, other)]
    assert places[0] == places[1]  # the order is that of the prompt's pieces, which are smaller where memory is
    summary = traced.output[len(plain.output) :].splitlines()
    assert summary[0] == "trace:"
    assert "tokens: 10 of prompts, 8 generated, in 1 turn" in summary
    assert any(line.startswith("by layer: ") and len(line.split()) == 4 for line in summary)


def test_a_conversation_is_recorded_in_turns(edgemoe: Command, store: Path, tmp_path: Path) -> None:
    done = edgemoe(
        "trace", store, "--chat", "--out", tmp_path / "t", "--max-tokens", "4", "--temperature", "0", stdin=b"hi\nyes\n"
    )
    assert done.code == 0
    assert [line.partition(":")[0] for line in done.errors.splitlines()] == ["the answer was cut at 4 tokens"] * 2
    trace = read_trace(tmp_path / "t")
    assert set(trace.turn.tolist()) == {0, 1}
    for turn in (0, 1):
        steps = trace.step[trace.turn == turn]
        assert set(steps.tolist()) == set(range(int(steps.max()) + 1))
    assert "in 2 turns" in done.output
    settings = ("--max-tokens", "4", "--temperature", "0")
    again = edgemoe("chat", store, "--trace", tmp_path / "u", *settings, stdin=b"hi\nyes\n")
    assert again.errors.splitlines()[-1].startswith("trace: ")
    assert same_rows(read_trace(tmp_path / "u"), trace)


def test_ids_and_random_tokens(edgemoe: Command, store: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("[5, 6,\n7]")
    assert edgemoe("trace", store, "--ids", tmp_path / "ids", "--max-tokens", "3", "--out", tmp_path / "a").code == 0
    trace = read_trace(tmp_path / "a")
    assert trace.select(trace.phase == PROMPT).tokens == 3
    for name in ("b", "c"):
        done = edgemoe("trace", store, "--random", "200", "--max-tokens", "30", "--seed", "7", "--out", tmp_path / name)
        assert done.code == 0
    trace = read_trace(tmp_path / "b")
    assert trace.select(trace.phase == PROMPT).tokens == 200
    assert trace.select(trace.phase == DECODE).tokens == 30
    assert same_rows(read_trace(tmp_path / "c"), trace)


def test_a_trace_written_anew(edgemoe: Command, tmp_path: Path) -> None:
    trace = made_up_trace(tokens=30)
    write_csv(tmp_path / "a.csv", trace)
    done = edgemoe("trace", "--from", tmp_path / "a.csv", "--out", tmp_path / "a")
    assert (done.code, done.errors) == (0, "")
    assert f"30 tokens, {len(trace)} rows" in done.output
    assert same_rows(read_trace(tmp_path / "a"), trace)
    whole = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "cut.csv").write_bytes(whole[:-3])
    refused = edgemoe("bench", "--routing", tmp_path / "cut.csv")
    assert refused.code == 1
    assert "the last line has no end" in refused.errors
    assert f"edgemoe trace can keep the intact part: --from {tmp_path / 'cut.csv'}" in refused.errors
    mended = edgemoe("trace", "--from", tmp_path / "cut.csv", "--out", tmp_path / "b")
    assert mended.code == 0
    assert "The intact part is kept" in mended.errors
    assert same_rows(read_trace(tmp_path / "b"), trace.select(slice(0, -1)))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--out", "{tmp}/t"], 2, "expected one of -p, --ids, --random, --chat and --from, found none"),
        (["--out", "{tmp}/t", "-p", "x", "--chat"], 2, "found 2 of them"),
        (["-p", "x"], 2, "expected --out FILE"),
        (["-p", "x", "--out", "{tmp}"], 2, "cannot be written"),
        (["-p", "x", "--out", "{tmp}/none/t"], 2, "cannot be written"),
        (["-p", "x", "--out", "{tmp}/t.csv"], 2, "t.csv: expected a name that does not end in .csv"),
        (["-p", "x", "--out", "{tmp}/t", "--max-tokens", "0"], 2, "--max-tokens"),
        (["--chat", "--raw", "--out", "{tmp}/t"], 2, "--raw"),
        (["--random", "0", "--out", "{tmp}/t"], 2, "--random: expected 1 to"),
        (["--random", "4000", "--max-tokens", "4000", "--out", "{tmp}/t"], 2, "context"),
        (["--ids", "{tmp}/none", "--out", "{tmp}/t"], 2, "none: cannot be read"),
        (["--ids", "{tmp}/ids", "--out", "{tmp}/t"], 2, "expected token ids, found 'x'"),
        (["--ids", "{tmp}/big", "--out", "{tmp}/t"], 2, "id 101"),
        (["--from", "{tmp}/none", "--out", "{tmp}/t"], 1, "none: cannot be read"),
        (["--from", "{tmp}/ids", "--out", "{tmp}/ids"], 2, "the same file"),
        (["--from", "{tmp}/ids", "--out", "{tmp}/t"], 1, "line 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_error(
    edgemoe: Command, store: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    (tmp_path / "ids").write_text("1 x")
    (tmp_path / "big").write_text("1 101")
    model = [] if "--from" in arguments else [store]
    done = edgemoe("trace", *model, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert done.code == code
    assert done.output == ""
    assert done.errors.startswith("error: ")
    assert done.errors.count("\n") == 1
    assert says in done.errors
    assert not (tmp_path / "t").exists() or len(read_trace(tmp_path / "t")) == 0
    if "{tmp}/ids" in arguments:
        assert (tmp_path / "ids").read_text() == "1 x"


@pytest.mark.parametrize("verb", ["run", "chat", "bench"])
def test_a_trace_that_cannot_be_written_is_refused_before_work(edgemoe: Command, tmp_path: Path, verb: str) -> None:
    prompt = ["-p", "x"] if verb == "run" else []
    done = edgemoe(verb, *prompt, "--trace", tmp_path / "none" / "t")
    assert (done.code, done.output) == (2, "")
    assert "cannot be written" in done.errors


def test_a_disk_that_fills_ends_the_trace_and_not_the_answer(
    edgemoe: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ("run", store, "-p", "hello", "--max-tokens", "40", "--temperature", "0")
    plain = edgemoe(*question)
    monkeypatch.setattr(trace_module, "BUFFERED_ROWS", 8)
    really = trace_module._write_at

    def write_at(descriptor: int, position: int, data: bytes) -> None:
        if position + len(data) > 1500:
            raise OSError(28, "No space left on device")
        really(descriptor, position, data)

    monkeypatch.setattr(trace_module, "_write_at", write_at)
    done = edgemoe(*question, "--trace", tmp_path / "t")
    assert (done.code, done.output) == (0, plain.output)
    assert done.errors.count("No space left on device") == 1
    assert done.errors.startswith("error: ")
    assert 0 < len(read_trace(tmp_path / "t")) < 40 * 4


@pytest.mark.slow
def test_a_benchmark_is_recorded_and_its_routing_taken_again(edgemoe: Command, store: Path, tmp_path: Path) -> None:
    sizes = ("--prompt", "4", "--decode", "6", "--prefill", "5", "--repeats", "1", "--threads", "1")
    done = edgemoe("bench", store, *sizes, "--trace", tmp_path / "t")
    assert done.code == 0
    assert done.errors.splitlines()[-1].startswith("trace: 60 tokens; ")
    again = edgemoe("bench", store, *sizes, "--routing", tmp_path / "t", "--json", tmp_path / "j")
    assert again.code == 0
    assert f"routing: {tmp_path / 't'}, recorded from tiny-moe; 2 experts per token" in again.output
    assert "steps: 6 measured, 6 distinct, of 24 recorded" in again.output
    assert json.loads((tmp_path / "j").read_text())["routing"]["top_k"] == 2
    refused = edgemoe("bench", store, "--routing", tmp_path / "t", "--against", "llama.cpp")
    assert refused.code == 2
    assert "--routing works with edgemoe only" in refused.errors


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),  # ends as SIGINT does, but for its code
    ],
)
def test_a_signal_in_the_middle_leaves_a_whole_trace(store: Path, tmp_path: Path, number: int, code: int) -> None:
    path = tmp_path / "t"
    arguments = ["trace", str(store), "--random", "8", "--max-tokens", "4000", "--out", str(path)]
    program = "from edgemoe.lab import trace; trace.BUFFERED_SECONDS = 0; from edgemoe.__main__ import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment(tmp_path), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 2000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    trace = read_trace(path)
    assert 8 < trace.tokens < 4008
    if number == signal.SIGINT:
        assert f"{trace.tokens - 8} generated" in output
