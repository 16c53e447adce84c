"""A whole benchmark of one store: rounds of runs, then starts, then the report on them."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemoe.bench import report as reports
from edgemoe.bench.cached_files import bring_into_cache, drop_from_cache
from edgemoe.bench.control_group import GroupUsage, MemoryGroup
from edgemoe.bench.expert_rate import measure_experts
from edgemoe.bench.forced import RoutingReport, largest_top_k, routing_report
from edgemoe.bench.limits import ForecastReport, LimitReport, forecast_report, guess_report, limit_report
from edgemoe.bench.measure import Contestant, Measured, Measurement, Progress, Settings
from edgemoe.bench.peers import Peer
from edgemoe.bench.plan import HitRateAssumption, assume_traced, assume_uniform
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.rates import DiskRates
from edgemoe.bench.report import EDGEMOE, WITH_LEDGER, EngineReport, Report
from edgemoe.bench.roofline import ReadRates
from edgemoe.bench.speed import MachineRates, work_of_model
from edgemoe.bench.startup import PROMPT, Within, command_seconds, worker_seconds
from edgemoe.engine.memory import LEAST_CONTEXT_TOKENS
from edgemoe.engine.options import DEFAULTS, EngineOptions
from edgemoe.engine.traffic import TokenTraffic
from edgemoe.errors import UsageError
from edgemoe.experts.read_rate import piece_bytes_of, store_places
from edgemoe.kernels.select import KernelChoice
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.trace import read_trace
from edgemoe.model.description import store_spec
from edgemoe.model.spec import ModelSpec
from edgemoe.session.stores import open_store
from edgemoe.session.tokenizer import has_tokenizer, load_library_tokenizer
from edgemoe.sizes import format_size, parse_size

COMMAND = [sys.executable, "-m", "edgemoe.bench.edgemoe_worker"]


class Benchmark:
    """Measures a store with edgemoe, and beside it another engine on the same weights."""

    def __init__(
        self,
        model: Path,
        settings: Settings,
        kernels: KernelChoice,
        options: EngineOptions = DEFAULTS,
        peer: Peer | None = None,
        progress: Progress = lambda doing, done, total: None,
        limit_bytes: int | None = None,
        routing: Path | None = None,
        recall: float | None = None,
        trace: Path | None = None,
        start: Start = start_process,
    ) -> None:
        """`kernels` is `describe_backend`'s choice; with `limit_bytes` each engine runs in a group with that limit.

        `options` are edgemoe's; its thread count is that of `kernels`. `routing` is a trace to take the routing from,
        with made-up guesses of a `recall`; `trace` is a trace to be written. `start` starts workers. Raises StoreError,
        TraceError, and UsageError for settings that cannot fit.
        """
        self.model = model
        self.settings = settings
        self.kernels = kernels
        self.options = options
        self.peer = peer
        self.limit_bytes = limit_bytes
        self.store = open_store(model)
        self.routing = ForcedRouting(read_trace(routing), str(routing), recall) if routing is not None else None
        self.trace = trace
        self._stored: ModelSpec = options.lossy.applied_to(store_spec(self.store))
        self.spec = self._stored if self.routing is None else self.routing.apply_to(self._stored)
        self.assumption: HitRateAssumption = assume_uniform() if routing is None else assume_traced(routing)
        """Forecasts assume these hit rates: those of random tokens, or those of a trace."""
        self._progress = progress
        self._start = start
        self._groups: dict[str, MemoryGroup] = {}
        check_context(settings, self.spec)
        _check_limit(options.ram, limit_bytes)

    def run(self) -> Report:
        """Raises what the engines raise, and EdgemoeError where one of them dies."""
        with ExitStack() as groups:
            self._make_groups(groups)
            with ExitStack() as stack:
                ours = stack.enter_context(Worker(EDGEMOE, self._within(EDGEMOE)(COMMAND), self._start))
                about = {EDGEMOE: ours.ask("open", **self._options())}
                contestants = [Contestant(EDGEMOE, ours)]
                if self.peer is not None:
                    name, decode_tokens = self.peer.name, self.settings.peer_decode_tokens
                    theirs = stack.enter_context(Worker(name, self._within(name)(self.peer.command), self._start))
                    about[name] = theirs.ask("open", **self.peer.options)
                    self.peer.check_sizes(about[name], self.spec)
                    contestants.append(Contestant(name, theirs, decode_tokens=decode_tokens))
                contestants.append(Contestant(WITH_LEDGER, ours, {"ledger": True}, own_ids=True))
                measured = self._measure(stack, contestants, about[EDGEMOE]["memory"])
                ends = {who.name: who.worker.ask("end") for who in contestants}
                usage = {name: group.usage() for name, group in self._groups.items()}
            started_s = self._measure_startup()
        return self._report(measured, about, started_s, ends, usage)

    def _make_groups(self, stack: ExitStack) -> None:
        """Make a group for each engine; drop their files from the page cache, where no group would pay for them."""
        if self.limit_bytes is None:
            return
        for number, name in enumerate([EDGEMOE, *([self.peer.name] if self.peer else [])]):
            self._groups[name] = stack.enter_context(MemoryGroup(str(number), self.limit_bytes))
        drop_from_cache(self.store.folder / file.name for file in self.store.manifest.files)
        if self.peer is not None:
            drop_from_cache([Path(self.peer.options["gguf"])])

    def _within(self, name: str) -> Within:
        """Return a function that turns an engine's command into one that runs in the engine's group."""
        group = self._groups.get(name)
        return list if group is None else group.command

    def _measure(self, stack: ExitStack, contestants: Sequence[Contestant], memory: Mapping[str, Any]) -> Measured:
        read_rate = stack.enter_context(ReadRates(self.kernels)) if self.kernels.backend == "native" else None
        disk_rate = None
        if not memory["all_resident"]:
            places, piece_bytes = store_places(self.store), piece_bytes_of(self.store)
            disk_rate = stack.enter_context(DiskRates(places, memory["direct_reads"], piece_bytes))
        return Measurement(
            contestants,
            self.settings,
            self.spec.vocab_size,
            read_rate,
            self._progress,
            disk_rate,
            _FullCache(memory["slots"]),
        ).take()

    def _options(self) -> dict[str, Any]:
        """Options of edgemoe's worker: a chat's default context, unless it is too short or another was asked for."""
        context, wanted = self.settings.room_tokens, self.settings.context_tokens
        if context is None and wanted > LEAST_CONTEXT_TOKENS:
            context = wanted
        options = replace(self.options, threads=self.kernels.threads, context_length=context)
        return {
            "model": str(self.model),
            "options": options.to_json(),
            "routing": self.routing.name if self.routing is not None else None,
            "recall": self.routing.recall if self.routing is not None else None,
            "trace": str(self.trace) if self.trace is not None else None,
        }

    def _measure_startup(self) -> dict[str, list[float]]:
        """Seconds that each engine takes to start, interleaved; empty for a model without text."""
        starts: dict[str, Callable[[], float]] = {}
        if has_tokenizer(self.model):
            within = self._within(EDGEMOE)
            files = [path for path in self.model.iterdir() if path.is_file()]
            starts[EDGEMOE] = lambda: command_seconds(self.model, self.options.ram, self.kernels.threads, within)
            peer = self.peer
            if peer is not None:
                ids = _encode(self.model, PROMPT)
                command = self._within(peer.name)(peer.command)
                options = {**peer.options, "context": max(peer.options["context"], len(ids))}
                files.append(Path(peer.options["gguf"]))
                starts[peer.name] = lambda: worker_seconds(peer.name, command, options, ids, self._start)
            if self.limit_bytes is None:
                bring_into_cache(files)
        times: dict[str, list[float]] = {name: [] for name in starts}
        for number in range(1 + self.settings.repeats):  # the first warms up
            self._progress("starting up", number, 1 + self.settings.repeats)
            for name, start in starts.items():
                times[name].append(start())
        return {name: seconds[1:] for name, seconds in times.items()}

    def _report(
        self,
        measured: Measured,
        about: Mapping[str, Mapping[str, Any]],
        started_s: Mapping[str, Sequence[float]],
        ends: Mapping[str, Mapping[str, Any]],
        usage: Mapping[str, GroupUsage],
    ) -> Report:
        settings, engines = self.settings, {}
        for name in about:
            tokens = settings.decode_tokens if name == EDGEMOE else settings.peer_decode_tokens
            engines[name] = reports.engine_report(
                name,
                about[name],
                measured,
                settings,
                started_s.get(name, ()),
                ends[name]["peak_rss_bytes"],
                tokens,
                usage.get(name),
            )
        ours, theirs = engines[EDGEMOE], engines[self.peer.name] if self.peer else None
        traffic = TokenTraffic(about[EDGEMOE]["weight_bytes"], about[EDGEMOE]["kv_bytes"])
        position = settings.mean_decode_position
        timed = [(one.decode[WITH_LEDGER], one.prefill[WITH_LEDGER]) for one in measured.rounds]
        decodes = [one.decode[EDGEMOE] for one in measured.rounds]
        record_bytes = self.store.record_bytes
        limits = limit_report(measured, EDGEMOE, traffic.at(position), settings.decode_tokens, record_bytes)
        experts = reports.experts_report(decodes, self.spec, settings.decode_tokens)
        return Report(
            model={
                "path": str(self.model),
                "family": self.spec.family,
                "layers": len(self.spec.layers),
                "vocab_size": self.spec.vocab_size,
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
            experts=experts,
            routing=self._routing_report(about[EDGEMOE], decodes, ends[EDGEMOE]),
            trace=ends[EDGEMOE].get("trace"),
            limits=limits,
            guesses=guess_report(decodes, settings.decode_tokens) if limits else None,
            forecast=self._forecast(measured, about[EDGEMOE]["memory"], traffic, limits, ours),
            peer=theirs,
            ratios=reports.ratio_report(ours, theirs) if theirs else None,
            idle_cpu_share=measured.idle_cpu_share,
            others_busy_cores=measured.others_busy_cores,
        )

    def _routing_report(
        self, about: Mapping[str, Any], decodes: Sequence[Mapping[str, Any]], end: Mapping[str, Any]
    ) -> RoutingReport | None:
        if self.routing is None:
            return None
        model_top_k = largest_top_k(self._stored)
        policy = self.options.policy
        return routing_report(self.routing, model_top_k, about["memory"], decodes, end["routing_runs"], policy)

    def _forecast(
        self,
        measured: Measured,
        memory: Mapping[str, Any],
        traffic: TokenTraffic,
        limits: LimitReport | None,
        ours: EngineReport,
    ) -> ForecastReport | None:
        """Predict the speed for this store, budget and routing with the speed model, on the rates of these rounds."""
        read = [one.read_rate.bytes_per_s for one in measured.rounds if one.read_rate is not None]
        if not read:
            return None
        disk_rate = limits.disk_bytes_per_s.median if limits else math.inf
        return forecast_report(
            memory["slots"],
            memory["total_experts"],
            work_of_model(self.spec, traffic, self.store.record_bytes, self.settings.mean_decode_position),
            self.assumption,
            MachineRates(statistics.median(read), disk_rate, measure_experts(self.store.manifest, self.kernels)),
            limits.missed_bytes_per_token.median if limits else 0.0,
            ours.decode_tokens_per_s.median,
        )


class _FullCache:
    """Says whether a cache is past its cold start: full, or no fuller than the last time."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._loaded = -1

    def __call__(self, answer: Mapping[str, Any]) -> bool:
        before, self._loaded = self._loaded, answer["loaded_experts"]
        return self._loaded in (before, self._slots)


def _check_limit(ram: str | int | None, limit_bytes: int | None) -> None:
    """Raises UsageError where a budget in bytes does not fit the limit."""
    if limit_bytes is None or ram is None or str(ram).strip().lower() in ("auto", "floor"):
        return
    if parse_size(str(ram)) > limit_bytes:
        raise UsageError(
            f"`ram={ram}`: expected at most `limit={format_size(limit_bytes)}`, the memory that an engine may use.",
            "Give a budget that fits the limit, or leave it out.",
        )


def check_context(settings: Settings, spec: ModelSpec) -> None:
    """Raises UsageError where the model has fewer positions than a run has tokens."""
    if settings.context_tokens > spec.max_positions:
        raise UsageError(
            f"one sequence would have {settings.context_tokens} tokens: expected at most {spec.max_positions},"
            " the positions of this model.",
            "Give smaller `prompt_tokens`, `decode_tokens` or `prefill_tokens`.",
        )


def _encode(model: Path, text: str) -> list[int]:
    ids: list[int] = load_library_tokenizer(model).encode(text).ids
    return ids
