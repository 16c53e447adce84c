"""SIGTERM, SIGHUP and a closed terminal, in the middle of an answer and at the prompt: a quick and quiet end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAKE_COMMAND, PROMPT, TERMINAL, Fakes, Start, environment
from tests.support.forks import ROOT

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")

LONG = {"FAKE_SAYS": "xyzw" * 200, "FAKE_SECONDS": "0.05"}
CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129}
EITHER = [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
"""Both go through one handler, and a closed terminal, which is tested too, sends SIGHUP."""


def end_of(child: Any) -> tuple[int, str]:
    """How the command ends, and what it still says."""
    child.expect(pexpect.EOF)
    said = str(child.before)
    child.wait()
    return child.exitstatus, said


@pytest.mark.parametrize("number", EITHER)
def test_run_ends_with_the_signal_s_code_and_says_nothing(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    """Started anew, as every caller does."""
    process = subprocess.Popen(
        [*FAKE_COMMAND, "run", str(folder), "-p", "Hi"],
        env=environment(tmp_path, **LONG),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"xyzw"
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (CODES[number], b"")
    assert set(rest) <= set(b"xyzw\n")


def test_a_caller_that_ignores_sighup_is_left_its_way(folder: Path, fakes: Fakes) -> None:
    arguments = ["run", folder, "-p", "Hi"]
    process = fakes.start(*arguments, ignored=[signal.SIGHUP], FAKE_SAYS="xyzw" * 5, FAKE_SECONDS="0.05")
    assert process.read(4) == b"xyzw"
    process.send_signal(signal.SIGHUP)
    rest, errors = process.communicate()
    assert (process.returncode, errors, rest) == (0, b"", b"xyzw" * 4 + b"\n")


@pytest.mark.parametrize("number", EITHER)
def test_in_mid_answer_the_terminal_is_given_back_and_the_conversation_kept(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    child = start(**LONG)
    child.send("Go on\r")
    child.expect_exact("xyz")
    child.kill(number)
    code, said = end_of(child)
    assert code == CODES[number]
    assert "Traceback" not in said
    assert "error" not in said
    kept = json.loads((tmp_path / "state" / "edgemoe" / "cut_off_chat.json").read_text())
    assert kept["messages"][0] == {"role": "user", "content": "Go on"}
    assert kept["messages"][1]["content"].startswith("xyz")


@pytest.mark.parametrize("number", EITHER)
def test_at_the_prompt_too(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    child = start()
    child.send("Hi\r")
    child.expect_exact("Hello, world!")
    child.expect_exact(PROMPT)
    child.send("half a li")
    child.expect_exact("half a li")
    child.kill(number)
    code, said = end_of(child)
    assert (code, "Traceback" in said) == (CODES[number], False)
    assert "\x1b[?2004l" in said  # no more marks around pastes
    kept = json.loads((tmp_path / "state" / "edgemoe" / "cut_off_chat.json").read_text())
    assert [message["content"] for message in kept["messages"]] == ["Hi", "Hello, world!"]
    again = start()
    again.send("/load " + str(tmp_path / "state" / "edgemoe" / "kept_chat.json") + "\r")
    again.expect_exact("last message: Hi")
    assert not (tmp_path / "state" / "edgemoe" / "cut_off_chat.json").exists()


def test_the_terminal_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    """A shell in the terminal starts the chat anew, and looks at the terminal afterwards."""
    command = " ".join([*FAKE_COMMAND, "chat", str(folder)])
    shell = pexpect.spawn(
        "/bin/sh",
        ["-c", f"stty -a > {tmp_path}/before; {command}; echo code=$?; stty -a > {tmp_path}/after; echo done"],
        cwd=str(ROOT),
        env=environment(tmp_path, **TERMINAL, **LONG),
        dimensions=(40, 100),
        encoding="utf-8",
        timeout=60,
    )
    shell.expect_exact(PROMPT)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(shell.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGTERM)
    shell.expect_exact("code=143")
    shell.expect_exact("done")
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
    shell.close(force=True)


@pytest.mark.parametrize("in_answer", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_closed_terminal_ends_it(start: Start, tmp_path: Path, in_answer: bool) -> None:
    child = start(**LONG)
    child.send("Go on\r")
    child.expect_exact("xyz")
    if not in_answer:
        child.send("\x03")
        child.expect_exact(PROMPT)
    child.hang_up()
    assert child.wait() == 129
    kept = json.loads((tmp_path / "state" / "edgemoe" / "cut_off_chat.json").read_text())
    assert kept["messages"][0]["content"] == "Go on"


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_a_call_that_never_returns_does_not_hold_it(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    child = start(FAKE_HANGS="9")
    child.send("Hi\r")
    child.expect_exact("Hello, world!")
    child.expect_exact(PROMPT)
    child.send("again\r")
    child.expect_exact("He")
    child.kill(number)
    code, said = end_of(child)
    assert code == CODES[number]
    assert "\x1b[?25h" in said  # the cursor is there again
    kept = json.loads((tmp_path / "state" / "edgemoe" / "cut_off_chat.json").read_text())
    assert kept["messages"][0]["content"] == "Hi"


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_call_that_never_returns(start: Start) -> None:
    child = start(FAKE_HANGS="4")
    child.send("Hi\r")
    child.expect_exact("He")
    child.delaybeforesend = 0.1  # the first one comes once the call hangs; two that come at once are one signal
    child.send("\x03")
    child.send("\x03")
    code, said = end_of(child)
    assert (code, "Traceback" in said) == (130, False)
