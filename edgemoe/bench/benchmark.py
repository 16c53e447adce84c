"""A whole benchmark of one store: rounds of turns, then starts, then what they amount to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgemoe.bench import report as reports
from edgemoe.bench.machine import describe_machine
from edgemoe.bench.measure import Contestant, Measured, Measurement, Progress, Settings
from edgemoe.bench.peers import Peer
from edgemoe.bench.protocol import Worker
from edgemoe.bench.report import EDGEMOE, WITH_LEDGER, Report
from edgemoe.bench.roofline import ReadRates
from edgemoe.bench.startup import PROMPT, command_seconds, worker_seconds
from edgemoe.errors import UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.model.description import store_spec
from edgemoe.model.memory import LEAST_CONTEXT_TOKENS
from edgemoe.model.spec import ModelSpec
from edgemoe.model.traffic import TokenTraffic
from edgemoe.session.tokenizer import has_tokenizer, load_library_tokenizer
from edgemoe.store.reader import Store

COMMAND = [sys.executable, "-m", "edgemoe.bench.edgemoe_worker"]


class Benchmark:
    """Measures a store with edgemoe, and beside it another engine on the same weights."""

    def __init__(
        self,
        model: Path,
        settings: Settings,
        kernels: KernelChoice,
        ram: str | None = None,
        peer: Peer | None = None,
        progress: Progress = lambda doing, done, total: None,
    ) -> None:
        """`kernels` is what `describe_backend` chose. Raises StoreError, and UsageError for what cannot fit."""
        self.model = model
        self.settings = settings
        self.kernels = kernels
        self.ram = ram
        self.peer = peer
        self.store = Store.open(model)
        self.spec: ModelSpec = store_spec(self.store)
        self._progress = progress
        check_context(settings, self.spec)

    def run(self) -> Report:
        """Raises what the engines raise, and EdgemoeError where one of them dies."""
        with ExitStack() as stack:
            ours = stack.enter_context(Worker(EDGEMOE, COMMAND))
            about = {EDGEMOE: ours.ask("open", **self._options())}
            contestants = [Contestant(EDGEMOE, ours)]
            if self.peer is not None:
                theirs = stack.enter_context(Worker(self.peer.name, self.peer.command))
                about[self.peer.name] = theirs.ask("open", **self.peer.options)
                self.peer.check_sizes(about[self.peer.name], self.spec)
                contestants.append(Contestant(self.peer.name, theirs))
            contestants.append(Contestant(WITH_LEDGER, ours, {"ledger": True}, own_ids=True))
            read_rate = stack.enter_context(ReadRates(self.kernels)) if self.kernels.backend == "native" else None
            measured = Measurement(contestants, self.settings, self.spec.vocabulary, read_rate, self._progress).take()
            peaks = {who.name: who.worker.ask("end")["peak_rss_bytes"] for who in contestants}
        return self._report(measured, about, self._measure_startup(), peaks)

    def _options(self) -> dict[str, Any]:
        """Of edgemoe's worker: the context that a chat would get, unless it is too short."""
        wanted = self.settings.context_tokens
        context = wanted if wanted > LEAST_CONTEXT_TOKENS else None
        return {"model": str(self.model), "ram": self.ram, "threads": self.kernels.threads, "context": context}

    def _measure_startup(self) -> dict[str, list[float]]:
        """Seconds of each engine, in turn; none for a model without text."""
        starts: dict[str, Callable[[], float]] = {}
        if has_tokenizer(self.model):
            starts[EDGEMOE] = lambda: command_seconds(self.model, self.ram, self.kernels.threads)
            peer = self.peer
            if peer is not None:
                ids = _encode(self.model, PROMPT)
                starts[peer.name] = lambda: worker_seconds(peer.name, peer.command, peer.options, ids)
        times: dict[str, list[float]] = {name: [] for name in starts}
        for number in range(1 + self.settings.repeats):  # the first fills the system's cache
            self._progress("starting up", number, 1 + self.settings.repeats)
            for name, start in starts.items():
                times[name].append(start())
        return {name: seconds[1:] for name, seconds in times.items()}

    def _report(
        self,
        measured: Measured,
        about: Mapping[str, Mapping[str, Any]],
        started_s: Mapping[str, Sequence[float]],
        peaks: Mapping[str, int],
    ) -> Report:
        settings, engines = self.settings, {}
        for name in about:
            engines[name] = reports.engine_report(
                name, about[name], measured, settings, started_s.get(name, ()), peaks[name]
            )
        ours, theirs = engines[EDGEMOE], engines[self.peer.name] if self.peer else None
        traffic = TokenTraffic(about[EDGEMOE]["weight_bytes"], about[EDGEMOE]["kv_bytes_per_position"])
        position = settings.mean_decode_position
        timed = [(one.decode[WITH_LEDGER], one.prefill[WITH_LEDGER]) for one in measured.rounds]
        decodes = [one.decode[EDGEMOE] for one in measured.rounds]
        return Report(
            edgemoe_bench=reports.REPORT_VERSION,
            version=version("edgemoe"),
            machine=describe_machine(),
            model={
                "path": str(self.model),
                "family": self.spec.family,
                "layers": len(self.spec.layers),
                "vocabulary": self.spec.vocabulary,
                "formats": {name: part["formats"] for name, part in self.store.manifest.quantisation.items()},
            },
            settings=settings,
            bytes_per_token=traffic.at(position),
            edgemoe=ours,
            roofline=reports.roofline_report(measured, ours.decode_tokens_per_s, traffic.at(position)),
            decode_ledger=reports.ledger_report(
                [decode for decode, _ in timed],
                "continuation",
                settings.decode_tokens,
                reports.part_traffic(traffic, position),
            ),
            prefill_ledger=reports.ledger_report(
                [prefill for _, prefill in timed], "prompt", settings.prefill_tokens, {}
            ),
            experts=reports.experts_report(decodes, self.spec, settings.decode_tokens),
            peer=theirs,
            ratios=reports.ratio_report(ours, theirs) if theirs else None,
            idle_cpu_share=measured.idle_cpu_share,
            others_busy_cores=measured.others_busy_cores,
        )


def check_context(settings: Settings, spec: ModelSpec) -> None:
    """Raises UsageError where the model has fewer positions than a turn has tokens."""
    if settings.context_tokens > spec.max_positions:
        raise UsageError(
            f"{settings.context_tokens} tokens in one sequence were asked for; this model has {spec.max_positions}"
            " positions.",
            "Give smaller --prompt, --decode or --prefill.",
        )


def _encode(model: Path, text: str) -> list[int]:
    ids: list[int] = load_library_tokenizer(model).encode(text).ids
    return ids
