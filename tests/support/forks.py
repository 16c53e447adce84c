"""Commands in processes of their own that a server forks (`fork_server.py`), for tests that need no start of Python.

A start takes a third of a second of processor time, nearly all of it for imports; a fork takes ten milliseconds. What
a command does from its first line on is the same: tests of what Python does before that start one.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import pty
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
Argument = str | bytes | os.PathLike[str]


class Forked:
    """A process that the server began, in the manner of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._status = status

    def read(self, size: int) -> bytes:
        """Return the next bytes of stdout."""
        assert self.stdout is not None
        return self.stdout.read(size)

    def poll(self) -> int | None:
        """Return how the process ended, None if it has not."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Wait until the process has ended; returns its code, or less than 0 for a signal."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 60) -> tuple[bytes, bytes]:
        """Wait for the end; returns what the process still said, and everything that it said on stderr."""
        if self.stdin is not None:
            self.stdin.close()
        said = b"" if self.stdout is None else self.stdout.read()
        self.wait(timeout)
        return said, self.errors()

    def errors(self) -> bytes:
        """Return what the process said on stderr."""
        assert self._errors is not None
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> None:
        """End the process if it still runs, and close everything."""
        if self.poll() is None:
            os.kill(self.pid, 9)
            self.wait()
        for file in (self.stdin, self.stdout, self._errors):
            if file is not None:
                with contextlib.suppress(OSError):  # the process has not read its input
                    file.close()


class ForkServer:
    """A server that has imported some modules, started when it is first needed. A context manager."""

    def __init__(self, *imports: str) -> None:
        self._imports = imports
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(
        self, program: str, arguments: Sequence[Argument], environment: Mapping[str, str], stdin: bool = False,
        ignored: Sequence[int] = (), errors: IO[bytes] | None = None,
    ) -> Forked:  # fmt: skip
        """Begin a program whose stdout is a pipe, and whose stdin is one if asked for, or else is empty.

        Signals in `ignored` are ignored from the beginning on. Its stderr goes to the file `errors`, if one is given.
        """
        errors = tempfile.TemporaryFile() if errors is None else errors  # noqa: SIM115 - closed with the process
        reads, writes = os.pipe()
        given, gives = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), None)
        streams = {0: given, 1: writes, 2: errors.fileno()}
        forked = self._begin(program, arguments, environment, streams, ignored=ignored)
        for descriptor in (given, writes):
            os.close(descriptor)
        forked.stdout, forked._errors = os.fdopen(reads, "rb"), errors
        if gives is not None:
            forked.stdin = os.fdopen(gives, "wb")
        return forked

    def run(
        self, program: str, arguments: Sequence[Argument], environment: Mapping[str, str], closed: Sequence[int] = ()
    ) -> tuple[int, bytes, bytes]:
        """Run a program to its end; returns its code, and what it said on stdout and stderr.

        Streams with a number in `closed` are closed from the beginning on.
        """
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors, Path(os.devnull).open() as nothing:
            streams = {number: file.fileno() for number, file in enumerate((nothing, said, errors))}
            for number in closed:
                del streams[number]
            code = self._begin(program, arguments, environment, streams).wait()
            for file in (said, errors):
                file.seek(0)
            return code, said.read(), errors.read()

    def start_in_terminal(
        self, program: str, arguments: Sequence[Argument], environment: Mapping[str, str]
    ) -> tuple[Forked, int]:
        """Begin a program in a pseudo-terminal of its own, of 40 lines; returns the terminal's other end too."""
        ours, theirs = pty.openpty()
        _set_size(theirs, 40, 100)
        forked = self._begin(program, arguments, environment, dict.fromkeys(range(3), theirs), terminal=True)
        os.close(theirs)
        return forked, ours

    def _begin(
        self, program: str, arguments: Sequence[Argument], environment: Mapping[str, str], streams: Mapping[int, int],
        *, terminal: bool = False, ignored: Sequence[int] = (),
    ) -> Forked:  # fmt: skip
        control = self._connection()
        request: dict[str, Any] = {
            "program": program,
            "arguments": [*map(os.fsencode, arguments)],
            "environment": dict(environment),
            "folder": str(ROOT),
            "streams": [*streams],
            "terminal": terminal,
            "ignored": [*map(int, ignored)],
        }
        told, tells = os.pipe()
        content = marshal.dumps(request)
        socket.send_fds(control, [len(content).to_bytes(4, "big")], [tells, *streams.values()])
        control.sendall(content)
        os.close(tells)
        return Forked(int.from_bytes(control.recv(4, socket.MSG_WAITALL), "big"), told)

    def _connection(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair()
            command = [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno()), *self._imports]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
            theirs.close()
        return self._control

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait()


def _set_size(terminal: int, lines: int, columns: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
