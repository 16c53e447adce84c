import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgemoe.cli.main import run_command
from tests.support.fake_main import open_fake_engine
from tests.support.forks import ROOT, Argument, Forked, ForkServer
from tests.support.small_tokenizer import write_model_folder
from tests.support.template_workers import one_template_worker

FAKE_COMMAND = [sys.executable, "-m", "tests.support.fake_main"]
"""The command with a fake engine, started anew, for tests of what a start does; others fork it (`Fakes`)."""
FAKE_PROGRAM = "from tests.support.fake_main import run; run()"
FAKE_IMPORTS = (
    "tests.support.fake_main",
    "tests.support.made_verbs",
    "edgemoe.cli.run",
    "edgemoe.cli.chat",
    "edgemoe.cli.kept_chat",
    "edgemoe.cli.remarks",
    "edgemoe.cli.repl",
    "edgemoe.cli.terminal.prompt_input",
    "edgemoe.cli.terminal.render",
    "edgemoe.cli.terminal.screen",
    "edgemoe.session.model",
)
"""Modules that all commands with a fake engine import."""

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
TERMINAL = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
"""Variables of a terminal that has colours, and that is not asked where its cursor is."""
PROMPT = "\x1b[?2004h"
"""The terminal is told to mark pastes whenever an input begins."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command in a test: a home of its own, and this checkout's modules."""
    return {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(autouse=True, scope="module")
def _one_template_worker() -> Iterator[None]:
    with one_template_worker():
        yield


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


class Fakes:
    """Commands with a fake engine, each a process of its own with a home of its own."""

    def __init__(self, server: ForkServer, home: Path) -> None:
        self._server = server
        self._home = home
        self._started: list[Any] = []

    def run(
        self, *arguments: Argument, closed: Sequence[int] = (), program: str = FAKE_PROGRAM, **variables: str
    ) -> Done:
        """Run a command to its end; streams with a number in `closed` are closed from the beginning on."""
        code, said, errors = self._server.run(program, arguments, environment(self._home, **variables), closed)
        return Done(code, said.decode(), errors.decode())

    def start(self, *arguments: Argument, stdin: bool = False, ignored: Sequence[int] = (), **variables: str) -> Forked:
        """Start a command, with a pipe for its stdin if asked for; signals in `ignored` it ignores."""
        variables = environment(self._home, **variables)
        self._started.append(self._server.start(FAKE_PROGRAM, arguments, variables, stdin, ignored))
        return self._started[-1]

    def start_in_terminal(self, *arguments: Argument, **variables: str) -> Any:
        """Start a command in a pseudo-terminal."""
        pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
        from tests.support.terminals import Terminal

        variables = environment(self._home, **TERMINAL, **variables)
        self._started.append(Terminal(*self._server.start_in_terminal(FAKE_PROGRAM, arguments, variables)))
        return self._started[-1]

    def close(self) -> None:
        for started in self._started:
            started.close()


@pytest.fixture(scope="session")
def fake_server() -> Iterator[ForkServer]:
    with ForkServer(*FAKE_IMPORTS) as server:
        yield server


@pytest.fixture
def fakes(fake_server: ForkServer, tmp_path: Path) -> Iterator[Fakes]:
    made = Fakes(fake_server, tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(folder: Path, fakes: Fakes) -> Start:
    """Starts a conversation with a fake engine in a pseudo-terminal, up to its first prompt."""

    def run(*arguments: str, **variables: str) -> Any:
        child = fakes.start_in_terminal("chat", folder, *arguments, **variables)
        child.expect_exact("/help for commands")
        child.expect_exact(PROMPT)
        return child

    return run
