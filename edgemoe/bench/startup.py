"""Time from starting a process to its first token, with the model's files in the page cache."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemoe.bench.protocol import LAST_LINES, Start, Worker, start_process
from edgemoe.errors import EdgemoeError

PROMPT = "The sea is"


Within = Callable[[Sequence[str]], Sequence[str]]


def command_seconds(model: Path, ram: str | int | None, threads: int, within: Within = list) -> float:
    """Seconds of `edgemoe run` until the first piece of its answer, including the interpreter's start.

    `within` turns a command into one that runs in the intended place, such as a memory group.
    """
    command = [sys.executable, "-m", "edgemoe", "run", str(model), "--raw", "-p", PROMPT]
    command += ["--max-tokens", "1", "--temperature", "0", "--threads", str(threads)]
    if ram is not None:
        command += ["--ram", str(ram)]
    with tempfile.TemporaryFile() as stderr:
        began_s = time.perf_counter()
        with subprocess.Popen(
            within(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        ) as process:
            assert process.stdout is not None
            process.stdout.read(1)  # a token without visible text shows as the newline at the end
            seconds = time.perf_counter() - began_s
            process.stdout.read()
        if process.returncode != 0:
            stderr.seek(0)
            lines = stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise EdgemoeError(f"edgemoe run ended with code {process.returncode}: {' / '.join(lines[-LAST_LINES:])}")
    return seconds


def worker_seconds(
    name: str,
    command: Sequence[str],
    options: Mapping[str, Any],
    prompt_ids: Sequence[int],
    start: Start = start_process,
) -> float:
    """Seconds until a fresh worker has the logits of a prompt."""
    began_s = time.perf_counter()
    with Worker(name, command, start) as worker:
        worker.ask("open", **options)
        worker.ask("run", prompt=list(prompt_ids), continuation=[])
        return time.perf_counter() - began_s
