"""The measuring itself: engines take turns, in rounds, on the same token ids.

A round is one reading of the memory's read rate, one turn of decoding for each engine (A B A B over the rounds), then
one turn of prefill for each. Whatever befalls the machine befalls neighbours alike, so engines are compared round by
round. The first round warms up and is not counted. While one engine runs the others wait for a request, and their
threads sleep; what they used of the processor all the same is counted and told, and so is what other programs used:
engines suffer from company in different degrees, so ratios of a busy machine say little.

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
from edgemoe.bench.roofline import ReadRate
from edgemoe.errors import UsageError

SETTLE_SECONDS = 0.05
"""Between two turns: longer than any pool's threads spin before they sleep."""
REPEATS_MAX = 1000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many steps are behind."""


@dataclass(frozen=True)
class Settings:
    """How much is measured. Raises UsageError for numbers out of range."""

    prompt_tokens: int = 32
    decode_tokens: int = 64
    prefill_tokens: int = 256
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, option in (("prompt_tokens", "prompt"), ("decode_tokens", "decode"), ("prefill_tokens", "prefill")):
            if getattr(self, name) < 1:
                raise UsageError(f"--{option}: expected 1 token or more, found {getattr(self, name)}.")
        if not 1 <= self.repeats <= REPEATS_MAX:
            raise UsageError(f"--repeats: expected 1 to {REPEATS_MAX}, found {self.repeats}.")

    @property
    def context_tokens(self) -> int:
        """The longest sequence of any turn."""
        return max(self.prompt_tokens + self.decode_tokens, self.prefill_tokens)

    @property
    def mean_decode_position(self) -> float:
        """Of the tokens that are decoded."""
        return self.prompt_tokens + (self.decode_tokens - 1) / 2


@dataclass(frozen=True)
class Contestant:
    """A worker that takes turns, under a name of its own and with arguments of its own for each run."""

    name: str
    worker: Worker
    arguments: Mapping[str, Any] = field(default_factory=dict)
    own_ids: bool = False
    """Runs on ids that no other has: its worker has just run those, and may hold the experts that they used."""


@dataclass(frozen=True)
class Round:
    """What each contestant answered, by its name (see `run` in `protocol.py`)."""

    read_rate: ReadRate | None
    decode: Mapping[str, Mapping[str, Any]]
    prefill: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """All rounds, and how far they were disturbed."""

    rounds: Sequence[Round]
    idle_cpu_share: float
    """Share of one core that waiting workers used while another one ran."""
    others_busy_cores: float
    """How many cores other programs kept busy meanwhile, on average."""


class Measurement:
    """Takes the rounds of some contestants."""

    def __init__(
        self,
        contestants: Sequence[Contestant],
        settings: Settings,
        vocabulary: int,
        read_rate: Callable[[], ReadRate] | None = None,
        progress: Progress = lambda doing, done, total: None,
    ) -> None:
        """`read_rate` measures how fast memory is read; None where that cannot be."""
        self._contestants = contestants
        self._settings = settings
        self._vocabulary = vocabulary
        self._read_rate = read_rate
        self._progress = progress
        self._random = np.random.default_rng(settings.seed)
        self._idle_cpu_s = self._others_cpu_s = self._turns_s = 0.0

    def take(self) -> Measured:
        """The counted rounds, after one that warms up. Raises what a worker raises."""
        rounds = []
        for number in range(1 + self._settings.repeats):
            doing = f"round {number} of {self._settings.repeats}" if number else "warming up"
            self._progress(doing, number, 1 + self._settings.repeats)
            if number == 1:
                self._idle_cpu_s = self._others_cpu_s = self._turns_s = 0.0
            rounds.append(self._round())
        return Measured(rounds[1:], self._idle_cpu_s / self._turns_s, self._others_cpu_s / self._turns_s)

    def _round(self) -> Round:
        settings = self._settings
        read_rate = self._read_rate() if self._read_rate else None
        decode = self._turns(settings.prompt_tokens, settings.decode_tokens)
        return Round(read_rate, decode, self._turns(settings.prefill_tokens, 0))

    def _turns(self, prompt_tokens: int, continuation_tokens: int) -> dict[str, dict[str, Any]]:
        shared = self._ids(prompt_tokens), self._ids(continuation_tokens)
        answers = {}
        for who in self._contestants:
            ids = (self._ids(prompt_tokens), self._ids(continuation_tokens)) if who.own_ids else shared
            answers[who.name] = self._turn(who, *ids)
        return answers

    def _turn(self, who: Contestant, prompt: list[int], continuation: list[int]) -> dict[str, Any]:
        time.sleep(SETTLE_SECONDS)
        workers = {other.worker for other in self._contestants}
        used_s = {worker: worker.cpu_seconds() for worker in workers}
        own_s, busy_s, began_s = time.process_time(), _busy_seconds(), time.perf_counter()
        answer = who.worker.ask("run", prompt=prompt, continuation=continuation, **who.arguments)
        self._turns_s += time.perf_counter() - began_s
        busy_s, own_s = _busy_seconds() - busy_s, time.process_time() - own_s
        used_s = {worker: worker.cpu_seconds() - before_s for worker, before_s in used_s.items()}
        self._idle_cpu_s += sum(seconds for worker, seconds in used_s.items() if worker is not who.worker)
        self._others_cpu_s += max(0.0, busy_s - own_s - sum(used_s.values()))
        return answer

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._vocabulary, count).tolist()
        return ids


def _busy_seconds() -> float:
    """Processor time that all programs of the machine have used, and what its host has taken from it."""
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, kind, 0.0) for kind in kinds))
