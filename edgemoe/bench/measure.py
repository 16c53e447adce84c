"""Measurement in rounds: engines run alternately on the same token ids.

A round is one reading of the memory's read rate and, if experts are streamed, of the disk's, one run of decoding
for each engine (A B A B over the rounds), then one run of prefill for each. A disturbance of the machine affects
neighbouring runs alike, so engines are compared round by round. The first round warms up and is not counted; an
engine whose cache is not full by then decodes on alone until it is. While one engine runs the others wait for a
request, and their threads sleep; the processor time that waiting engines use is counted and reported, and so is that
of other programs: engines slow down to different degrees beside other programs, so ratios from a busy machine say
little.

Token ids are random, and differ from round to round: greedy decoding of random weights repeats one token, and then
routing never changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from edgemoe.bench.protocol import Worker
from edgemoe.bench.rates import DiskRate
from edgemoe.bench.roofline import ReadRate
from edgemoe.errors import UsageError

SETTLE_SECONDS = 0.05
"""Pause between two runs: longer than any pool's threads spin before they sleep."""
REPEATS_MAX = 1000
WARM_UP_RUNS_MAX = 20
"""An engine that is not warm after this many runs is measured as it is."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the current step, the number of finished steps, and the number of all steps."""


@dataclass(frozen=True)
class Settings:
    """How much is measured. Raises UsageError for numbers out of range."""

    prompt_tokens: int = 32
    decode_tokens: int = 64
    prefill_tokens: int = 256
    repeats: int = 5
    seed: int = 0
    peer_decode_tokens: int | None = None
    """Tokens that another engine decodes per run; None for all."""
    room_tokens: int | None = None
    """Context length for all engines; None: a chat's default in edgemoe, the longest run's length in other engines."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "decode_tokens", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}`: expected 1 token or more, found {getattr(self, name)}.")
        if self.peer_decode_tokens is not None and not 1 <= self.peer_decode_tokens <= self.decode_tokens:
            raise UsageError(
                f"`peer_decode_tokens`: expected 1 to {self.decode_tokens} (`decode_tokens`),"
                f" found {self.peer_decode_tokens}."
            )
        if self.room_tokens is not None and self.room_tokens < self.longest_run_tokens:
            raise UsageError(
                f"`room_tokens`: expected {self.longest_run_tokens} or more, as the longest run has,"
                f" found {self.room_tokens}.",
                "Give a larger one, or smaller `prompt_tokens`, `decode_tokens` or `prefill_tokens`.",
            )
        if not 1 <= self.repeats <= REPEATS_MAX:
            raise UsageError(f"`repeats`: expected 1 to {REPEATS_MAX}, found {self.repeats}.")

    @property
    def longest_run_tokens(self) -> int:
        return max(self.prompt_tokens + self.decode_tokens, self.prefill_tokens)

    @property
    def context_tokens(self) -> int:
        """Context length that an engine needs."""
        return self.room_tokens or self.longest_run_tokens

    @property
    def mean_decode_position(self) -> float:
        """Mean position of the decoded tokens."""
        return self.prompt_tokens + (self.decode_tokens - 1) / 2


@dataclass(frozen=True)
class Contestant:
    """A worker under a name of its own, with arguments of its own for each run."""

    name: str
    worker: Worker
    arguments: Mapping[str, Any] = field(default_factory=dict)
    own_ids: bool = False
    """Whether it runs on ids of its own: its worker has just run the shared ids, and may hold the experts they used."""
    decode_tokens: int | None = None
    """Maximum number of tokens that it decodes in a run; None: all."""


@dataclass(frozen=True)
class Round:
    """Answers of all contestants, by name (see `run` in `protocol.py`)."""

    read_rate: ReadRate | None
    disk_rate: DiskRate | None
    decode: Mapping[str, Mapping[str, Any]]
    prefill: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """All rounds, and how much other activity disturbed them."""

    rounds: Sequence[Round]
    idle_cpu_share: float
    """Share of one core that waiting workers used while another one ran."""
    others_busy_cores: float
    """Number of cores that other programs kept busy meanwhile, on average."""
    warm_up_runs: int = 0
    """Runs of decoding that the first contestant made alone to fill its cache."""


class Measurement:
    """Takes the rounds of some contestants."""

    def __init__(
        self,
        contestants: Sequence[Contestant],
        settings: Settings,
        vocabulary: int,
        read_rate: Callable[[], ReadRate] | None = None,
        progress: Progress = lambda doing, done, total: None,
        disk_rate: Callable[[], DiskRate] | None = None,
        is_warm: Callable[[Mapping[str, Any]], bool] = lambda answer: True,
    ) -> None:
        """`read_rate` and `disk_rate` measure memory and disk; None if that is impossible or not wanted.

        `is_warm` takes the first contestant's latest answer, after decoding, and returns whether its cache is past its
        cold start.
        """
        self._contestants = contestants
        self._settings = settings
        self._vocabulary = vocabulary
        self._read_rate = read_rate
        self._disk_rate = disk_rate
        self._is_warm = is_warm
        self._progress = progress
        self._random = np.random.default_rng(settings.seed)
        self._idle_cpu_s = self._others_cpu_s = self._runs_s = 0.0

    def take(self) -> Measured:
        """The counted rounds, after one that warms up. Raises what a worker raises."""
        repeats, rounds = self._settings.repeats, []
        self._progress("warming up", 0, 1 + repeats)
        warm_up_runs = self._warm_up(self._round())
        self._idle_cpu_s = self._others_cpu_s = self._runs_s = 0.0
        for number in range(1, 1 + repeats):
            self._progress(f"round {number} of {repeats}", number, 1 + repeats)
            rounds.append(self._round())
        idle, others = self._idle_cpu_s / self._runs_s, self._others_cpu_s / self._runs_s
        return Measured(rounds, idle, others, warm_up_runs)

    def _warm_up(self, first: Round) -> int:
        """Let the first contestant decode until it is warm; returns how many runs that took."""
        who, settings = self._contestants[0], self._settings
        answer, runs = first.decode[who.name], 0
        while not self._is_warm(answer) and runs < WARM_UP_RUNS_MAX:
            answer = self._run(who, self._ids(settings.prompt_tokens), self._ids(settings.decode_tokens))
            runs += 1
        return runs

    def _round(self) -> Round:
        settings = self._settings
        read_rate = self._read_rate() if self._read_rate else None
        disk_rate = self._disk_rate() if self._disk_rate else None
        decode = self._run_all(settings.prompt_tokens, settings.decode_tokens)
        return Round(read_rate, disk_rate, decode, self._run_all(settings.prefill_tokens, 0))

    def _run_all(self, prompt_tokens: int, continuation_tokens: int) -> dict[str, dict[str, Any]]:
        shared = self._ids(prompt_tokens), self._ids(continuation_tokens)
        answers = {}
        for who in self._contestants:
            ids = (self._ids(prompt_tokens), self._ids(continuation_tokens)) if who.own_ids else shared
            answers[who.name] = self._run(who, *ids)
        return answers

    def _run(self, who: Contestant, prompt: list[int], continuation: list[int]) -> dict[str, Any]:
        time.sleep(SETTLE_SECONDS)
        continuation = continuation[: who.decode_tokens]
        workers = {other.worker for other in self._contestants}
        used_s = {worker: worker.cpu_seconds() for worker in workers}
        own_s, busy_s, began_s = time.process_time(), _busy_seconds(), time.perf_counter()
        answer = who.worker.ask("run", prompt=prompt, continuation=continuation, **who.arguments)
        self._runs_s += time.perf_counter() - began_s
        busy_s, own_s = _busy_seconds() - busy_s, time.process_time() - own_s
        used_s = {worker: worker.cpu_seconds() - before_s for worker, before_s in used_s.items()}
        self._idle_cpu_s += sum(seconds for worker, seconds in used_s.items() if worker is not who.worker)
        self._others_cpu_s += max(0.0, busy_s - own_s - sum(used_s.values()))
        return answer

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._vocabulary, count).tolist()
        return ids


def _busy_seconds() -> float:
    """Processor time that all programs of the machine have used, plus the time that its host has taken from it."""
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, kind, 0.0) for kind in kinds))
