"""Results of a benchmark: rates, shares of the roof, where the time went, and ratios to another engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from edgemoe.bench.control_group import GroupUsage
from edgemoe.bench.device import DeviceReport
from edgemoe.bench.forced import RoutingReport
from edgemoe.bench.limits import ForecastReport, GuessReport, LimitReport
from edgemoe.bench.measure import Measured, Settings
from edgemoe.bench.plain_report import KeptReport
from edgemoe.bench.spread import Spread
from edgemoe.engine.ledger import TimeLedger
from edgemoe.engine.traffic import TokenTraffic
from edgemoe.model.graph import Part
from edgemoe.model.spec import ModelSpec

EDGEMOE = "edgemoe"
WITH_LEDGER = "edgemoe with its ledger on"


@dataclass(frozen=True)
class EngineReport:
    """One engine's speed and size."""

    name: str
    about: Mapping[str, Any]
    """The engine's description of itself and of the model as it opened it."""
    decode_tokens_per_s: Spread
    prefill_tokens_per_s: Spread
    startup_s: Spread | None
    """Seconds from the start of a process to its first token; None if the model has no text."""
    peak_rss_bytes: int
    major_faults_per_token: float | None = None
    """Major page faults per decoded token: pages that had to be read from a disk."""
    limit: GroupUsage | None = None
    """Usage of the memory group; None without a limit."""


@dataclass(frozen=True)
class RooflineReport:
    """Decoding compared with the memory's read rate, its upper bound while nothing comes from the disk."""

    read_bytes_per_s: Spread
    buffer_bytes: int
    share: Spread
    """bytes per token x tokens per second / read rate, round by round"""


@dataclass(frozen=True)
class LedgerReport:
    """Time per token of the runs with a ledger, by part."""

    tokens: int
    wall_ms: float
    parts_ms: Mapping[Part, float]
    """Parts that took any time, in the order of `Part`; their sum is `wall_ms`, within 3 %."""
    bytes_per_s: Mapping[Part, float]
    """Read rates of the parts that read weights (decoding only)."""


@dataclass(frozen=True)
class ExpertsReport:
    """Experts that decoding used."""

    per_layer: int
    per_token: int
    distinct_per_layer: Sequence[float]
    """Different experts that each layer used in one run of decoding, on average."""
    hit_rate: float | None
    disk_bytes_per_token: float
    round_hit_rates: Sequence[float]
    """Hit rate of each round: similar to each other if the cache was past its cold start."""


@dataclass(frozen=True)
class RatioReport:
    """Ratios of edgemoe to the other engine, round by round: above 1 edgemoe is faster (or, at the start, sooner)."""

    decode: Spread
    prefill: Spread
    startup: Spread | None


@dataclass(frozen=True)
class Report(KeptReport):
    """A whole benchmark."""

    form: ClassVar[tuple[str, int]] = ("edgemoe_bench", 1)
    model: Mapping[str, Any]
    settings: Settings
    bytes_per_token: float
    """Bytes that a decoded token must read from memory, on average: see `TokenTraffic`."""
    edgemoe: EngineReport
    roofline: RooflineReport | None
    decode_ledger: LedgerReport
    prefill_ledger: LedgerReport
    experts: ExpertsReport | None
    limits: LimitReport | None
    """None if all experts were in memory."""
    guesses: GuessReport | None
    """None if all experts were in memory."""
    forecast: ForecastReport | None
    """None if the memory's rate could not be measured."""
    routing: RoutingReport | None
    """Where the routing came from; None for the model's routers."""
    trace: Mapping[str, Any] | None
    """Summary of the trace that was written, and `failure`; None if no trace was asked for."""
    peer: EngineReport | None
    ratios: RatioReport | None
    idle_cpu_share: float
    """Share of one core that the waiting engines used."""
    others_busy_cores: float
    """Number of cores that other programs kept busy meanwhile, on average."""
    device: DeviceReport | None = None
    """None if no device was asked for."""


def engine_report(
    name: str,
    about: Mapping[str, Any],
    measured: Measured,
    settings: Settings,
    startup_s: Sequence[float],
    peak_rss_bytes: int,
    decode_tokens: int | None = None,
    limit: GroupUsage | None = None,
) -> EngineReport:
    """The rates of one contestant, which decoded only `decode_tokens` of a run's tokens if that is given."""
    tokens = decode_tokens or settings.decode_tokens
    decode_s = (one.decode[name]["continuation_s"] for one in measured.rounds)
    faults = [one.decode[name].get("major_faults") for one in measured.rounds]
    prefill_s = (one.prefill[name]["prompt_s"] for one in measured.rounds)
    return EngineReport(
        name,
        about,
        Spread.of(tokens / seconds for seconds in decode_s),
        Spread.of(settings.prefill_tokens / seconds for seconds in prefill_s),
        Spread.of(startup_s) if startup_s else None,
        peak_rss_bytes,
        None if None in faults else sum(map(int, filter(None, faults))) / (tokens * len(faults)),
        limit,
    )


def roofline_report(measured: Measured, decode_tokens_per_s: Spread, bytes_per_token: float) -> RooflineReport | None:
    """Decoding compared with the read rates of the same rounds; None if those were not measured."""
    rates = [one.read_rate for one in measured.rounds if one.read_rate is not None]
    if not rates:
        return None
    read = Spread.of(rate.bytes_per_s for rate in rates)
    needed = Spread.of(bytes_per_token * rate for rate in decode_tokens_per_s.samples)
    return RooflineReport(read, rates[0].buffer_bytes, needed.over(read))


def ledger_report(
    answers: Sequence[Mapping[str, Any]], which: str, tokens: int, traffic: Mapping[Part, float]
) -> LedgerReport:
    """Merge the ledgers of some runs; `which` is `prompt` or `continuation`, `traffic` bytes of parts per token."""
    total = TimeLedger({})
    for answer in answers:
        total += TimeLedger(answer[f"{which}_ns"])
    tokens *= len(answers)
    parts_ms = {part: total.ns[part] / 1e6 / tokens for part in get_args(Part) if total.ns.get(part)}
    rates = {part: traffic[part] / (ms / 1e3) for part, ms in parts_ms.items() if traffic.get(part)}
    return LedgerReport(tokens, sum(answer[f"{which}_s"] for answer in answers) * 1e3 / tokens, parts_ms, rates)


def experts_report(answers: Sequence[Mapping[str, Any]], spec: ModelSpec, tokens: int) -> ExpertsReport | None:
    """Experts that runs of decoding used; None for a model without experts."""
    if not spec.routed:
        return None
    hits = sum(answer["expert_hits"] for answer in answers)
    asked = hits + sum(answer["expert_misses"] for answer in answers)
    by_round = [_hit_rate(answer["expert_hits"], answer["expert_misses"]) for answer in answers]
    layers = spec.routed_of_tokens
    distinct = [sum(answer["distinct_experts"][number] for answer in answers) / len(answers) for number in layers]
    return ExpertsReport(
        spec.most_experts,
        spec.most_top_k,
        distinct,
        hits / asked if asked else None,
        sum(answer["disk_bytes"] for answer in answers) / (tokens * len(answers)),
        [rate for rate in by_round if rate is not None],
    )


def _hit_rate(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def ratio_report(ours: EngineReport, theirs: EngineReport) -> RatioReport:
    """Edgemoe over another engine."""
    started = ours.startup_s is not None and theirs.startup_s is not None
    return RatioReport(
        ours.decode_tokens_per_s.over(theirs.decode_tokens_per_s),
        ours.prefill_tokens_per_s.over(theirs.prefill_tokens_per_s),
        theirs.startup_s.over(ours.startup_s) if started and theirs.startup_s and ours.startup_s else None,
    )


def part_traffic(traffic: TokenTraffic, position: float) -> dict[Part, float]:
    """Bytes of weights and cache that each part of a token's work reads."""
    return {part: traffic.of_part(part, position) for part in traffic.weight_bytes}
