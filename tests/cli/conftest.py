import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgemoe.cli.main import run_command
from tests.support.fake_main import open_fake_engine
from tests.support.small_tokenizer import write_model_folder

ROOT = Path(__file__).parents[2]
FAKE_COMMAND = [sys.executable, "-m", "tests.support.fake_main"]
"""The command with a fake engine, in a process of its own."""

# A shell lets what it runs in the background ignore SIGINT, and commands that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    errors: str


Edgemoe = Callable[..., Done]
Start = Callable[..., Any]
PROMPT = "\x1b[?2004h"
"""The terminal is told to mark pastes whenever an input begins."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command in a test: a home of its own, and this checkout's modules."""
    return {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("store"))


@pytest.fixture
def edgemoe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Edgemoe:
    """Runs the command with a fake engine, in this process."""

    def run(*arguments: str | Path, stdin: bytes = b"", says: str = "Hello, world!") -> Done:
        monkeypatch.setattr("edgemoe.engine.opening.open_engine", open_fake_engine)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setenv("FAKE_SAYS", says)
        code = run_command([*map(str, arguments)])
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a conversation with a fake engine in a pseudo-terminal, up to its first prompt."""
    pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
    children = []

    def run(*arguments: str, **variables: str) -> Any:
        child = pexpect.spawn(
            FAKE_COMMAND[0],
            [*FAKE_COMMAND[1:], "chat", str(folder), *arguments],
            cwd=str(ROOT),
            env=environment(tmp_path, TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1", **variables),
            dimensions=(40, 100),
            encoding="utf-8",
            timeout=60,
        )
        # pexpect waits before each line that it sends and after each end, for programs that are not ready: this one is,
        # once its prompt is there
        child.delaybeforesend = None
        child.ptyproc.delayafterclose = 0
        children.append(child)
        child.expect_exact("/help for commands")
        child.expect_exact(PROMPT)
        return child

    yield run
    for child in children:
        if not child.closed:
            if child.isalive():
                child.kill(signal.SIGKILL)
                child.wait()
            child.close()
