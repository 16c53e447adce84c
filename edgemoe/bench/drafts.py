"""Steps with drafts, compared with steps of one token: what verifying guessed tokens costs, and what it can gain.

Random tokens cannot be guessed, so here all drafts are right by definition: the rate is what a perfect guesser would
reach, and the cost of a step says how many of its drafts must be right to pay. A draft model adds the time of its
guesses. One engine runs each number of drafts in turn, round by round. Prompts and tokens are random, or routing is a
trace's.

Beside each gain stands that of the byte model (`speed.py`): of the different experts that the tokens of a step used,
and of the bytes of them that came from the disk, both counted, at this machine's rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.bench.benchmark import COMMAND
from edgemoe.bench.counts import SETTLE_STEPS, CountsReport, context_for, rounds
from edgemoe.bench.expert_rate import measure_experts
from edgemoe.bench.limits import missed_bytes
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.rates import measure_memory, measure_store_disk
from edgemoe.bench.speed import MachineRates, step_seconds, work_of_model
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import MOST_DRAFTS, EngineOptions
from edgemoe.engine.traffic import TokenTraffic
from edgemoe.errors import UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.trace import read_trace
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import open_store
from edgemoe.store.reader import Store

RatesOf = Callable[[Store, bool], MachineRates]
"""A function from a store, and whether all of its experts are in memory, to the machine's rates."""


@dataclass(frozen=True)
class DraftedReport:
    """Steps with a number of drafts, all of which are right."""

    drafts: int
    tokens_per_s: Spread
    against_none: Spread
    """`tokens_per_s` over that without drafts, round by round."""
    step_cost: Spread
    """The time of a step over that of one without drafts, round by round."""
    distinct_experts: float
    """Different experts that a step used in a layer that has some, on average."""
    missed_experts: Spread
    """How many of them came from the disk."""
    by_bytes: Spread
    """The gain by the byte model, in the place of `against_none`; it knows nothing of a draft model's time."""
    against_bytes: Spread
    """`against_none` over that."""


@dataclass(frozen=True)
class DraftsReport(CountsReport):
    """Results of a measurement of steps with drafts."""

    none: DraftedReport
    drafted: Sequence[DraftedReport]
    rates: MachineRates
    """The machine's, on which the byte model's figures rest; the disk's is infinite where all experts are in memory."""
    draft: str | None = None
    """The draft model."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a rate that does not matter is null."""
        data = super().to_json()
        data["rates"] = {"disk_bytes_per_s": None} | self.rates.to_json()
        return data


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
        draft: str | None = None,
        rates_of: RatesOf | None = None,
    ) -> None:
        """`counts` are the numbers of drafts; `routing` and `start` are as in `Benchmark`; `draft`: a draft model.

        `rates_of` gives the machine's rates for a store, all of whose experts may be in memory; None measures them.
        """
        if not counts or any(not 1 <= count <= MOST_DRAFTS for count in counts):
            found = ", ".join(map(str, counts)) or "none"
            raise UsageError(
                f"`speculate`: expected numbers of 1 to {MOST_DRAFTS} drafts, found {found}.", "Such as 1,3,7."
            )
        self._store = open_store(folder)
        spec = options.lossy.applied_to(store_spec(self._store))
        if routing is not None:
            spec = ForcedRouting(read_trace(routing), str(routing)).apply_to(spec)
        # Every number of drafts runs as many whole steps, so that the last one is not shorter.
        self._tokens = {count: -(-settings.decode_tokens // (1 + count)) * (1 + count) for count in (0, *counts)}
        context = context_for(settings, spec, max(self._tokens.values()))
        self._folder = folder
        self._settings = settings
        self._options = replace(options, threads=kernels.threads, context_length=context, speculate=max(counts))
        self._progress = progress
        self._start = start
        self._routing = routing
        self._draft = draft
        self._rates_of = rates_of or (lambda store, resident: _measured_rates(store, kernels, resident))
        self._spec = spec
        self._random = np.random.default_rng(settings.seed)

    def run(self) -> DraftsReport:
        """Raises what the engine raises, and EdgemoeError where a worker dies."""
        repeats, settings = self._settings.repeats, self._settings
        found: dict[int, list[Mapping[str, Any]]] = {count: [] for count in self._tokens}
        with Worker("edgemoe", COMMAND, self._start) as worker:
            routing = None if self._routing is None else str(self._routing)
            about = worker.ask(
                "open", model=str(self._folder), options=self._options.to_json(), routing=routing, draft=self._draft
            )
            rates = self._rates_of(self._store, about["memory"]["all_resident"])
            for _ in rounds(repeats, self._progress):
                for count, answers in found.items():
                    answers.append(self._decode(worker, count))
        reports = self._reports({count: answers[1:] for count, answers in found.items()}, about, rates)
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
            rates,
            None if self._draft is None else model_name(open_store(self._draft).path),
        )

    def _reports(
        self, answers: Mapping[int, Sequence[Mapping[str, Any]]], about: Mapping[str, Any], rates: MachineRates
    ) -> list[DraftedReport]:
        """The figures of each number of drafts."""
        traffic = TokenTraffic(about["weight_bytes"], about["kv_bytes"])
        work = work_of_model(self._spec, traffic, self._store.record_bytes, self._settings.mean_decode_position)
        resident, layers = about["memory"]["all_resident"], max(1, work.moe_layers)

        def predicted_s(distinct: float, missed: float) -> float:
            return step_seconds(work, distinct, min(missed, distinct), rates, resident)

        steps = {count: self._tokens[count] // (1 + count) for count in answers}
        seconds, distinct, missed, by_bytes = {}, {}, {}, {}
        for count, ones in answers.items():
            in_layer = steps[count] * layers
            seconds[count] = Spread.of(one["continuation_s"] / steps[count] for one in ones)
            distinct[count] = [one["distinct_experts"] / in_layer for one in ones]
            missed[count] = [_missed_experts(one, self._store.record_bytes) / in_layer for one in ones]
            by_bytes[count] = Spread.of(map(predicted_s, distinct[count], missed[count]))

        def gain(took: Mapping[int, Spread], count: int) -> Spread:
            return Spread.of((1 + count) / cost for cost in took[count].over(took[0]).samples)

        return [
            DraftedReport(
                count,
                Spread.of((1 + count) / one for one in seconds[count].samples),
                gain(seconds, count),
                seconds[count].over(seconds[0]),
                sum(distinct[count]) / len(distinct[count]),
                Spread.of(missed[count]),
                gain(by_bytes, count),
                gain(seconds, count).over(gain(by_bytes, count)),
            )
            for count in answers
        ]

    def _decode(self, worker: Worker, count: int) -> Mapping[str, Any]:
        """The answer about a continuation in steps of `count` drafts."""
        vocabulary = self._spec.vocab_size
        prompt = self._random.integers(0, vocabulary, self._settings.prompt_tokens)
        continuation = self._random.integers(0, vocabulary, SETTLE_STEPS + self._tokens[count])
        return worker.ask(
            "run_drafted",
            prompt=prompt.tolist(),
            continuation=continuation.tolist(),
            drafts=count,
            settle=SETTLE_STEPS,
        )


def _missed_experts(answer: Mapping[str, Any], record_bytes: float) -> float:
    """Experts that came from the disk for the tokens of a run, in all layers."""
    return missed_bytes(answer, round(record_bytes)) / record_bytes if record_bytes else 0.0


def _measured_rates(store: Store, kernels: KernelChoice, resident: bool) -> MachineRates:
    """Rates of this machine, measured in some seconds."""
    disk = math.inf if resident else measure_store_disk(store).bytes_per_s
    return MachineRates(measure_memory(kernels).bytes_per_s, disk, measure_experts(store.manifest, kernels))
