"""Ctrl-C at any time: code 130, and not a word of Python's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import environment
from tests.support.forks import ForkServer

INTERRUPTED_AT_AN_IMPORT = """
import os, signal, sys
from edgemoe.__main__ import main

left = int(sys.argv.pop(1))

def count(event, arguments):
    global left
    if event == "import":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(count)
try:
    main()
finally:
    if left > 0:
        print("not interrupted", file=sys.stderr)
"""
"""The command, interrupted where it imports its n-th module: early in its life that is all that it does."""

INTERRUPTED_AT_THE_END = """
import atexit, os, signal
from edgemoe.__main__ import main

atexit.register(os.kill, os.getpid(), signal.SIGINT)
main()
"""


@pytest.fixture(scope="module")
def bare_server() -> Iterator[ForkServer]:
    """Forks a Python that has imported next to nothing."""
    with ForkServer() as server:
        yield server


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144])
def test_while_the_command_imports(number: int, bare_server: ForkServer, tmp_path: Path) -> None:
    arguments = [str(number), "info"]
    code, _, errors = bare_server.run(INTERRUPTED_AT_AN_IMPORT, arguments, environment(tmp_path))
    assert (code, errors) == (130, b"")


def test_after_the_work_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED_AT_THE_END, "--version"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_caller_that_ignores_it_is_left_its_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED_AT_AN_IMPORT, "5", "info", "--json"]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    done = subprocess.run(ignoring, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["kernels"]


def test_python_m_is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgemoe", "--version"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # importing it here has changed nothing
