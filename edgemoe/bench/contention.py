"""Decoding while other processes compete for the processors, compared with a fair share of them.

A fair scheduler gives N threads beside B processes that do nothing but run N / (N + B) of the processors. Decoding
makes good use of that share if it is as fast as one thread alone would be on that many processors. One thread alone,
all threads alone, and all threads beside each number of busy processes are measured alternately, round by round.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgemoe.bench.benchmark import COMMAND
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.plain_report import PlainReport
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.model.description import store_spec
from edgemoe.process import usable_processors
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import open_store

BUSY_MAX = 64
RUN_SECONDS = 2.0
"""A run lasts at least this long: hundreds of a scheduler's slices, which are 3 to 10 ms."""
SETTLE_SECONDS = 1.0
"""Decoding beside busy processes before a run is counted: the pool finds the best number of threads by trial."""

# It ends with the process that started it, whatever ends that.
_BUSY_PROGRAM = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(100000): pass"


@dataclass(frozen=True)
class CompanyReport:
    """Decoding beside a number of busy processes."""

    busy: int
    share_processors: float
    """The fair share, in processors."""
    tokens_per_s: Spread
    of_fair_share: Spread
    """Speed, divided by (speed of one thread alone times `share_processors`)."""


@dataclass(frozen=True)
class ContentionReport(PlainReport):
    """Results of a contention measurement."""

    model: str
    threads: int
    processors: int
    one_thread_alone: Spread
    """Tokens a second."""
    alone: Spread
    """Tokens a second of all threads alone."""
    company: Sequence[CompanyReport]


def fair_share(threads: int, busy: int, processors: int) -> float:
    """Processors that a fair scheduler gives to `threads` threads beside `busy` processes; at most one a thread."""
    return min(float(threads), threads * processors / (threads + busy))


class BusyProcesses:
    """Processes that keep a processor busy, while they are allowed to run. A context manager."""

    def __init__(self, count: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                process = subprocess.Popen([sys.executable, "-S", "-c", _BUSY_PROGRAM])
                self._processes.append(process)
                process.send_signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        """Let `count` of the processes run."""
        try:
            for process in self._processes[:count]:
                process.send_signal(signal.SIGCONT)
            yield
        finally:
            for process in self._processes[:count]:
                process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.wait()

    def __enter__(self) -> BusyProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ContentionMeasurement:
    """Measures one model. Raises UsageError for numbers of busy processes that are out of range."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        kernels: KernelChoice,
        options: EngineOptions,
        busy_counts: Sequence[int],
        progress: Progress = lambda doing, done, total: None,
        start: Start = start_process,
    ) -> None:
        if not busy_counts or any(not 1 <= count <= BUSY_MAX for count in busy_counts):
            found = ", ".join(map(str, busy_counts)) or "none"
            raise UsageError(f"busy processes: expected numbers of 1 to {BUSY_MAX}, found {found}.")
        self._folder = folder
        self._start = start
        self._settings = settings
        self._kernels = kernels
        self._options = replace(options, threads=kernels.threads, context_length=settings.room_tokens)
        self._busy_counts = tuple(busy_counts)
        self._progress = progress
        self._vocabulary = store_spec(open_store(folder)).vocab_size
        self._random = np.random.default_rng(settings.seed)

    def run(self) -> ContentionReport:
        """Raises what the engine raises, and EdgemoeError where a worker dies."""
        threads, processors, repeats = self._kernels.threads, usable_processors(), self._settings.repeats
        one: list[float] = []
        alone: list[float] = []
        beside: dict[int, list[float]] = {count: [] for count in self._busy_counts}
        with ExitStack() as stack:
            busy = stack.enter_context(BusyProcesses(max(self._busy_counts)))
            single = stack.enter_context(Worker("one thread", COMMAND, self._start))
            full = stack.enter_context(Worker("all threads", COMMAND, self._start))
            for worker, options in ((single, replace(self._options, threads=1)), (full, self._options)):
                worker.ask("open", model=str(self._folder), options=options.to_json())
                self._decode(worker, 0)  # warms up
            for number in range(repeats):
                self._progress(f"round {number + 1} of {repeats}", number, repeats)
                one.append(self._decode(single, RUN_SECONDS))
                alone.append(self._decode(full, RUN_SECONDS))
                for count, rates in beside.items():
                    with busy.running(count):
                        self._decode(full, SETTLE_SECONDS)
                        rates.append(self._decode(full, RUN_SECONDS))
        one_thread = Spread.of(one)
        company = []
        for count, rates in beside.items():
            share = fair_share(threads, count, processors)
            fair = Spread.of(rate * share for rate in one)
            rate = Spread.of(rates)
            company.append(CompanyReport(count, share, rate, rate.over(fair)))
        return ContentionReport(model_name(self._folder), threads, processors, one_thread, Spread.of(alone), company)

    def _decode(self, worker: Worker, seconds: float) -> float:
        """Tokens a second of decoding, over runs that take at least `seconds` together."""
        began_s, tokens, took_s = time.perf_counter(), 0, 0.0
        while tokens == 0 or time.perf_counter() - began_s < seconds:
            prompt, continuation = self._ids(self._settings.prompt_tokens), self._ids(self._settings.decode_tokens)
            took_s += worker.ask("run", prompt=prompt, continuation=continuation)["continuation_s"]
            tokens += len(continuation)
        return tokens / took_s

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._vocabulary, count).tolist()
        return ids
