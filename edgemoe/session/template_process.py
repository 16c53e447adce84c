"""Runs the process that renders chat templates, and reports when it breaks a limit.

It is started for the first rendering and kept for those that follow, since starting Python takes longer than rendering.
`template_worker` limits its memory and, for each rendering, its processor time. The wait for it is limited here, to far
more: it is counted in short slices, so that the time in which this process was stopped (Ctrl-Z) does not count.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemoe.errors import EdgemoeError, StoreError

CPU_LIMIT_SECONDS = 10
WAIT_LIMIT_SECONDS = 120.0
SLICE_SECONDS = 0.25
ANSWER_LIMIT_BYTES = 256 << 20
"""More than the longest text that the worker lets pass can take as JSON."""
HOSTILE_HINT = (
    "Such a template is broken or hostile: do not trust this model's files. A plain text (`raw`) needs no template."
)


class TemplateProcess:
    """A worker, running or not; it ends with this object at the latest."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., TemplateProcess] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's answer to a request.

        Raises StoreError where the template breaks a limit, EdgemoeError where no answer comes.
        """
        process = self._running()
        line = json.dumps({**request, "path": [entry for entry in sys.path if entry], "cpu_s": CPU_LIMIT_SECONDS})
        try:
            answer: dict[str, Any] = json.loads(_exchange(process, line.encode() + b"\n"))
        except BaseException as error:
            # Whatever happened, a late answer must not be taken for the next one.
            self.close()
            if isinstance(error, TimeoutError):
                raise EdgemoeError(
                    "chat template: the process that renders it gave no answer within"
                    f" {WAIT_LIMIT_SECONDS:.0f} seconds.",
                    "Is this machine overloaded, or was that process stopped? Try again.",
                ) from None
            if isinstance(error, (EOFError, BrokenPipeError)):
                raise _broken_limit(process.returncode) from None
            raise
        if answer.get("error") in ("size", "memory"):
            self.close()
            raise StoreError(f"chat template: it needs {answer['message']}, and was stopped.", HOSTILE_HINT)
        return answer

    def close(self) -> None:
        """End the worker, if there is one. The next request starts another."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # Started by path, isolated (-I) and without site (-S): nothing in the current folder or the environment can
            # stand in for the modules it imports. Its own session, so that Ctrl-C in the terminal does not end it.
            command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("template_worker.py"))]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
            )
            self._end = weakref.finalize(self, _end, self._process)
        return self._process


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """Send a line, receive one. Raises TimeoutError, and EOFError or BrokenPipeError where the worker ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    answer = bytearray()
    sent, waited_s = 0, 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while not answer.endswith(b"\n"):
            events = selector.select(SLICE_SECONDS)
            if not events:
                waited_s += SLICE_SECONDS
                if waited_s >= WAIT_LIMIT_SECONDS:
                    raise TimeoutError
            for key, _ in events:
                if key.fileobj is process.stdin:
                    # A pipe that is ready takes this much without blocking.
                    sent += os.write(process.stdin.fileno(), line[sent : sent + select.PIPE_BUF])
                    if sent == len(line):
                        selector.unregister(process.stdin)
                    continue
                received = os.read(process.stdout.fileno(), 1 << 20)
                answer += received
                if not received or len(answer) > ANSWER_LIMIT_BYTES:
                    raise EOFError
    return bytes(answer)


def _broken_limit(returncode: int) -> StoreError:
    """The error for a worker that ended in the middle of a rendering. Unix only: the code of a signal is negative."""
    if returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        what = f"it took more than {CPU_LIMIT_SECONDS} seconds of processor time"
    else:
        what = f"it took too much memory, or crashed (code {returncode})"
    return StoreError(f"chat template: {what}, and was stopped.", HOSTILE_HINT)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
