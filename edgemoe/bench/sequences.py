"""Sequences that decode together, compared with one alone: weights and experts are read once for all of them.

One engine with room for all sequences runs each number of them in turn, round by round, so that all have the same slots
and the same machine. Prompts and tokens are random, or routing is a trace's, of which each sequence takes another part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.bench.benchmark import COMMAND
from edgemoe.bench.counts import SETTLE_STEPS, CountsReport, context_for, rounds
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import MOST_SEQUENCES, EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import open_store


@dataclass(frozen=True)
class TogetherReport:
    """A number of sequences that decode together."""

    sequences: int
    tokens_per_s: Spread
    """The rate of all sequences together."""
    against_one: Spread
    """`tokens_per_s` over that of one sequence alone, round by round."""
    hit_rate: float
    """Share of the experts that a step used which were in memory; 1 where all are."""
    disk_bytes_per_token: float


@dataclass(frozen=True)
class SequencesReport(CountsReport):
    """Results of a measurement of sequences that decode together."""

    recall: float | None
    one: TogetherReport
    together: Sequence[TogetherReport]


class SequencesMeasurement:
    """Measures one model. Raises UsageError for numbers that are out of range."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        kernels: KernelChoice,
        options: EngineOptions,
        counts: Sequence[int],
        progress: Progress = lambda doing, done, total: None,
        routing: Path | None = None,
        recall: float | None = None,
        start: Start = start_process,
    ) -> None:
        """`counts` are the numbers of sequences; `routing`, `recall` and `start` are as in `Benchmark`."""
        if not counts or any(not 2 <= count <= MOST_SEQUENCES for count in counts):
            found = ", ".join(map(str, counts)) or "none"
            raise UsageError(
                f"`sequences`: expected numbers of 2 to {MOST_SEQUENCES}, found {found}.", "Give numbers such as 2,4,8."
            )
        spec = store_spec(open_store(folder))
        context = context_for(settings, spec, settings.decode_tokens)
        self._folder = folder
        self._settings = settings
        self._options = replace(options, threads=kernels.threads, context_length=context, sequences=max(counts))
        self._counts = (1, *counts)
        self._progress = progress
        self._start = start
        self._routing = routing
        self._recall = recall
        self._vocabulary = spec.vocab_size
        self._random = np.random.default_rng(settings.seed)

    def run(self) -> SequencesReport:
        """Raises what the engine raises, and EdgemoeError where a worker dies."""
        repeats = self._settings.repeats
        answers: dict[int, list[dict[str, Any]]] = {count: [] for count in self._counts}
        with Worker("edgemoe", COMMAND, self._start) as worker:
            routing = None if self._routing is None else str(self._routing)
            options = self._options.to_json()
            about = worker.ask("open", model=str(self._folder), options=options, routing=routing, recall=self._recall)
            for _ in rounds(repeats, self._progress):
                for count, found in answers.items():
                    found.append(self._decode(worker, count))
        rates = {count: self._rate(count, found[1:]) for count, found in answers.items()}
        reports = [self._report(count, rates[count], rates[1], answers[count][1:]) for count in self._counts]
        return SequencesReport(
            model_name(self._folder),
            about["kernels"],
            about["memory"],
            self._settings.prompt_tokens,
            self._settings.decode_tokens,
            repeats,
            routing,
            self._recall,
            reports[0],
            reports[1:],
        )

    def _decode(self, worker: Worker, count: int) -> dict[str, Any]:
        settings = self._settings
        prompts = self._random.integers(0, self._vocabulary, (count, settings.prompt_tokens))
        continuations = self._random.integers(0, self._vocabulary, (count, SETTLE_STEPS + settings.decode_tokens))
        return worker.ask(
            "run_together", prompts=prompts.tolist(), continuations=continuations.tolist(), settle=SETTLE_STEPS
        )

    def _rate(self, count: int, answers: Sequence[Mapping[str, Any]]) -> Spread:
        return Spread.of(count * self._settings.decode_tokens / answer["continuation_s"] for answer in answers)

    def _report(self, count: int, rate: Spread, one: Spread, answers: Sequence[Mapping[str, Any]]) -> TogetherReport:
        hits, misses, read = (
            sum(answer[name] for answer in answers) for name in ("expert_hits", "expert_misses", "disk_bytes")
        )
        tokens = count * self._settings.decode_tokens * len(answers)
        return TogetherReport(count, rate, rate.over(one), hits / (hits + misses or 1), read / tokens)
