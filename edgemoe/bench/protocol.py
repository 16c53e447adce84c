"""Workers: engines in processes of their own that answer requests in lines of JSON.

Each engine has its memory and its threads to itself, and all get the same requests, so that the comparison is fair.
A worker reads requests from stdin and answers each by one line on stdout:

    {"do": NAME, ...arguments}    ->    {"ok": {...}}  or  {"error": {"kind", "message", "hint"}}

It ends when stdin does. The requests that an engine's worker understands:

    open   makes the engine ready; the arguments are the engine's own. Answers with a description of itself.
    run    prompt, continuation (token ids): forgets what it held, reads the prompt in one piece, then the
           continuation token by token, computing the logits of the last one each time. Answers with `prompt_s` and
           `continuation_s`, and with `major_faults`, the pages that the continuation waited for.
    end    answers with `peak_rss_bytes`.

That of edgemoe also understands `run_together` (`sequences.py`) and `run_drafted` (`drafts.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from edgemoe import errors
from edgemoe.errors import EdgemoeError

END_TIMEOUT_SECONDS = 10.0
LAST_LINES = 3
"""The last lines of a dead worker's stderr that the error shows."""

Handler = Callable[..., Mapping[str, Any]]


def start_process(command: Sequence[str], stderr: IO[bytes]) -> subprocess.Popen[str]:
    """Start a worker's process, with pipes for its stdin and stdout."""
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8"
    )


Start = Callable[[Sequence[str], IO[bytes]], "subprocess.Popen[str]"]
"""A way to start a worker's process from its command and the file for its stderr, as `start_process` does."""


class Worker:
    """A worker's process, seen from where it was started. A context manager."""

    def __init__(self, name: str, command: Sequence[str], start: Start = start_process) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._process = start(command, self._stderr)

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request. Raises the error that the worker reports, EdgemoeError if it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": request, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            kind: type[EdgemoeError] = getattr(errors, error["kind"], EdgemoeError)
            raise kind(error["message"], error["hint"])
        result: dict[str, Any] = answer["ok"]
        return result

    def cpu_seconds(self) -> float:
        """Processor time that the process has used on all its threads."""
        import psutil

        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End the process, and wait for its end. Closing twice is harmless."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # the worker died before it read all of its input
                pipe.close()
        try:
            self._process.wait(END_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()  # nobody waits for the result of its computation
        self.close()

    def _death(self) -> EdgemoeError:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        said = f"; its last output: {' / '.join(lines[-LAST_LINES:])}" if lines else ""
        return EdgemoeError(f"{self.name}: its process {how}{said}.", "It may need more memory than there is.")


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests until stdin ends. Everything else that is written to stdout goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process, which then closes stdin
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            arguments = json.loads(line)
            try:
                answer: dict[str, Any] = {"ok": handlers[arguments.pop("do")](**arguments)}
            except EdgemoeError as error:
                answer = {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}
            except Exception as error:
                traceback.print_exc()
                message = f"{type(error).__name__}: {error}."
                answer = {"error": {"kind": "EdgemoeError", "message": message, "hint": ""}}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
