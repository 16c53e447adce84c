"""Steps with drafts, compared with steps of one token: what verifying guessed tokens costs, and what it can gain.

Random tokens cannot be guessed, so here all drafts are right by definition: the rate is what a perfect guesser would
reach, and the cost of a step says how many of its drafts must be right to pay. One engine runs each number of drafts in
turn, round by round. Prompts and tokens are random, or routing is a trace's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgemoe.bench.benchmark import COMMAND
from edgemoe.bench.counts import SETTLE_STEPS, CountsReport, context_for, rounds
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import MOST_DRAFTS, EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import open_store


@dataclass(frozen=True)
class DraftedReport:
    """Steps with a number of drafts, all of which are right."""

    drafts: int
    tokens_per_s: Spread
    against_none: Spread
    """`tokens_per_s` over that without drafts, round by round."""
    step_cost: Spread
    """The time of a step over that of one without drafts, round by round."""


@dataclass(frozen=True)
class DraftsReport(CountsReport):
    """Results of a measurement of steps with drafts."""

    none: DraftedReport
    drafted: Sequence[DraftedReport]


class DraftsMeasurement:
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
        start: Start = start_process,
    ) -> None:
        """`counts` are the numbers of drafts; `routing` and `start` are as in `Benchmark`."""
        if not counts or any(not 1 <= count <= MOST_DRAFTS for count in counts):
            found = ", ".join(map(str, counts)) or "none"
            raise UsageError(
                f"`speculate`: expected numbers of 1 to {MOST_DRAFTS} drafts, found {found}.", "Such as 1,3,7."
            )
        spec = store_spec(open_store(folder))
        # Every number of drafts runs as many whole steps, so that the last one is not shorter.
        self._tokens = {count: -(-settings.decode_tokens // (1 + count)) * (1 + count) for count in (0, *counts)}
        context = context_for(settings, spec, max(self._tokens.values()))
        self._folder = folder
        self._settings = settings
        self._options = replace(options, threads=kernels.threads, context_length=context, speculate=max(counts))
        self._progress = progress
        self._start = start
        self._routing = routing
        self._vocabulary = spec.vocab_size
        self._random = np.random.default_rng(settings.seed)

    def run(self) -> DraftsReport:
        """Raises what the engine raises, and EdgemoeError where a worker dies."""
        repeats, settings = self._settings.repeats, self._settings
        seconds: dict[int, list[float]] = {count: [] for count in self._tokens}
        with Worker("edgemoe", COMMAND, self._start) as worker:
            routing = None if self._routing is None else str(self._routing)
            about = worker.ask("open", model=str(self._folder), options=self._options.to_json(), routing=routing)
            for _ in rounds(repeats, self._progress):
                for count, found in seconds.items():
                    found.append(self._decode(worker, count))
        rates = {count: Spread.of(self._tokens[count] / one for one in found[1:]) for count, found in seconds.items()}
        steps = {
            count: Spread.of(one * (1 + count) / self._tokens[count] for one in found[1:])
            for count, found in seconds.items()
        }
        reports = [
            DraftedReport(count, rate, rate.over(rates[0]), steps[count].over(steps[0]))
            for count, rate in rates.items()
        ]
        return DraftsReport(
            model_name(self._folder),
            about["kernels"],
            about["memory"],
            settings.prompt_tokens,
            settings.decode_tokens,
            repeats,
            routing,
            reports[0],
            reports[1:],
        )

    def _decode(self, worker: Worker, count: int) -> float:
        """The seconds of a continuation in steps of `count` drafts."""
        prompt = self._random.integers(0, self._vocabulary, self._settings.prompt_tokens)
        continuation = self._random.integers(0, self._vocabulary, SETTLE_STEPS + self._tokens[count])
        answer = worker.ask(
            "run_drafted",
            prompt=prompt.tolist(),
            continuation=continuation.tolist(),
            drafts=count,
            settle=SETTLE_STEPS,
        )
        return float(answer["continuation_s"])
