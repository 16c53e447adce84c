"""Workers of benchmarks that a server forks (`forks.py`): nearly all of a worker's start is imports."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, cast

from edgemoe.bench.protocol import Start
from tests.support.forks import Forked, ForkServer

IMPORTS = (
    "edgemoe.bench.protocol",
    "edgemoe.conversion.gguf_store",
    "edgemoe.engine.opening",
    "edgemoe.kernels.native.backend",
    "edgemoe.lab.forced_routing",
    "edgemoe.lab.recorder",
)
"""Modules that workers import."""
PROGRAM = """
import os, runpy, sys
sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class _Process:
    """A forked process as far as `Worker` knows `subprocess.Popen`."""

    def __init__(self, forked: Forked) -> None:
        assert forked.stdin is not None
        assert forked.stdout is not None
        self.pid = forked.pid
        self.stdin = io.TextIOWrapper(forked.stdin, "utf-8")
        self.stdout = io.TextIOWrapper(forked.stdout, "utf-8")
        self._forked = forked

    def wait(self, timeout: float = 60) -> int:
        return self._forked.wait(timeout)

    def kill(self) -> None:
        self._forked.send_signal(signal.SIGKILL)


def forked_start(server: ForkServer) -> Start:
    """Return a way to start workers whose command is `python -m MODULE ...`, with the environment of the moment."""

    def start(command: Sequence[str], stderr: IO[bytes]) -> subprocess.Popen[str]:
        python, option, *arguments = command
        assert (python, option) == (sys.executable, "-m")
        forked = server.start(PROGRAM, arguments, os.environ, stdin=True, errors=stderr)
        return cast("subprocess.Popen[str]", _Process(forked))

    return start
