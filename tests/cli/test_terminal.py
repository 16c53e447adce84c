"""The conversation as a person has it: in a pseudo-terminal, key by key."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PROMPT, Start

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")

ANSWER = "Hello, world!"


def send(child: Any, text: str, expected: str) -> str:
    """Type a line, wait for what is expected and for the prompt; returns what came between."""
    child.send(text + "\r")
    child.expect_exact(expected)
    child.expect_exact(PROMPT)
    return str(child.before)


def test_a_conversation_with_its_commands(start: Start, tmp_path: Path) -> None:
    child = start()
    assert "tokens/s" in send(child, "Hi there", ANSWER)
    send(child, "/undo", "undone: Hi there")
    send(child, "/undo", "nothing to undo")
    send(child, "/retry", "there is no answer to try again.")
    send(child, "Again", ANSWER)
    send(child, "/retry", ANSWER)
    send(child, "/set temperature 0.5", "temperature is 0.5")
    send(child, "/set", "0.5")
    send(child, "/set temperature -1", "temperature: expected")
    send(child, "/set nonsense 1", "there is no option nonsense")
    send(child, "/system Be brief.", "with the next message")
    send(child, "/system", "Be brief.")
    talk = tmp_path / "talk.json"
    send(child, f"/save {talk}", "saved to")
    send(child, "/reset", "a new conversation")
    send(child, f"/load {talk}", "last message: Again")
    send(child, "/stats", "peak memory")
    send(child, "/help", "/experts")
    send(child, "/hlep", "did you mean /help?")
    send(child, "/no_think Hi", ANSWER)
    child.send("/quit\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_several_lines_and_the_end(start: Start, tmp_path: Path) -> None:
    child = start()
    child.send("first\\\r")
    child.expect_exact("·")
    child.send("second\x1b\r")
    child.expect_exact("·")
    child.send("third\r")
    child.expect_exact(ANSWER)
    child.expect_exact(PROMPT)
    # a paste with line ends is one message, sent by Enter
    child.send("\x1b[200~pasted one\npasted two\x1b[201~")
    child.expect_exact("pasted two")
    child.send("\r")
    child.expect_exact(ANSWER)
    child.expect_exact(PROMPT)
    talk = tmp_path / "talk.json"
    send(child, f"/save {talk}", "saved to")
    assert re.findall(r'"(first.*?|pasted.*?)"', talk.read_text()) == [
        "first\\nsecond\\nthird",
        "pasted one\\npasted two",
    ]
    child.send("\x03")  # Ctrl-C at the prompt only clears it
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(start: Start) -> None:
    child = start(FAKE_SAYS="xyzw" * 60, FAKE_SECONDS="0.05")
    child.send("Go on\r")
    child.expect_exact("xyz")
    child.send("\x03")
    child.expect_exact("stopped; the text so far is kept")
    child.expect_exact(PROMPT)
    send(child, "/undo", "undone: Go on")


def test_history_is_kept_across_runs(start: Start) -> None:
    first = start()
    send(first, "Remember me", ANSWER)
    first.send("\x04")
    first.expect(pexpect.EOF)
    second = start()
    second.send("\x1b[A\r")
    second.expect_exact("Remember me")
    second.expect_exact(ANSWER)


def test_the_map_of_experts_and_a_history_that_cannot_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder would be")
    child = start()
    send(child, "/experts", "the map is drawn with each answer")
    send(child, "Hi", "4 layers down, 8 experts across")
    send(child, "/experts", "the map is off")


def test_no_color_is_respected(start: Start) -> None:
    child = start(NO_COLOR="1", FAKE_SAYS="# Title\n\n`code` and **bold**")
    send(child, "/experts on", "the map is drawn")
    shown = send(child, "Hi", "'|': in memory")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|38;|48;)[0-9;]*m", shown)
