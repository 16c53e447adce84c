"""Streaming compared with the disk's limit, the memory's limit, and the forecast made before.

All figures are of decoding, in tokens per second, and of the same rounds: limits change from one moment to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemoe.bench.hit_rates import HitRates
from edgemoe.bench.measure import Measured, Round
from edgemoe.bench.plan import HitRateAssumption, expected_speed
from edgemoe.bench.speed import MachineRates, SpeedEstimate, TokenWork, predict_speed
from edgemoe.bench.spread import Spread


@dataclass(frozen=True)
class LimitReport:
    """Decoding against the lower of the two limits.

    Missed bytes are those of experts that a token asked for and that were not in memory. Useless reads of wrong guesses
    are not counted; useful prefetches are, since the disk had to deliver those bytes all the same.
    """

    disk_bytes_per_s: Spread
    read_bytes: int
    readers: int
    direct: bool
    """Whether the disk's rate was measured past the page cache."""
    missed_bytes_per_token: Spread
    disk_tokens_per_s: Spread | None
    """Tokens per second at the disk's rate; None if nothing was missed in some round."""
    memory_tokens_per_s: Spread | None
    """Tokens per second at the memory's rate; None if that rate could not be measured."""
    share: Spread | None
    """Share reached of the lower of the two limits in the same round."""


@dataclass(frozen=True)
class GuessReport:
    """Quality of the guesses at the next layer's routing."""

    recall: float | None
    """Prefetch recall: the share of requested experts that a guess, where one was made, had named."""
    reads_per_token: float
    useful_share: float | None
    """Prefetch precision: the share of experts read on a guess that were used before eviction; None without reads."""
    bytes_per_token: float


@dataclass(frozen=True)
class ForecastReport:
    """The speed model's estimate for this store, budget and routing, on the rates that were measured."""

    routing: str
    hit_rates: HitRates
    tokens_per_s: SpeedEstimate
    error_percent: float
    """Error of the likely figure against the measured median: above 0 the forecast was too high."""
    at_measured_hits: SpeedEstimate
    """The same speed model, given the measured hit rate: the remaining error is the speed model's alone."""
    error_at_measured_hits_percent: float


def limit_report(
    measured: Measured, name: str, bytes_per_token: float, decode_tokens: int, record_bytes: int
) -> LimitReport | None:
    """The limits of a contestant's decoding, round by round; None where the disk's rate was not measured."""
    rounds = [one for one in measured.rounds if one.disk_rate is not None]
    if not rounds:
        return None
    disk_rates = [one.disk_rate for one in rounds if one.disk_rate is not None]
    reached = [decode_tokens / one.decode[name]["continuation_s"] for one in rounds]
    missed = [missed_bytes(one.decode[name], record_bytes) / decode_tokens for one in rounds]
    disk = [rate.bytes_per_s / size if size else None for rate, size in zip(disk_rates, missed, strict=True)]
    memory = [_memory_limit(one, bytes_per_token) for one in rounds]
    lower = [
        min((limit for limit in pair if limit is not None), default=None) for pair in zip(disk, memory, strict=True)
    ]
    return LimitReport(
        Spread.of(rate.bytes_per_s for rate in disk_rates),
        disk_rates[0].read_bytes,
        disk_rates[0].readers,
        all(rate.direct for rate in disk_rates),
        Spread.of(missed),
        _spread(disk),
        _spread(memory),
        _spread([rate / limit if limit else None for rate, limit in zip(reached, lower, strict=True)]),
    )


def missed_bytes(answer: Mapping[str, Any], record_bytes: int) -> float:
    """Bytes of experts, of `record_bytes` on the disk each, that had to come from there for the tokens of a run."""
    in_vain = answer["prefetched_reads"] - answer["useful_prefetches"]
    return max(0.0, float(answer["disk_bytes"] - max(0, in_vain) * record_bytes))


def guess_report(answers: Sequence[Mapping[str, Any]], decode_tokens: int) -> GuessReport:
    """Quality of the guesses of some runs."""

    def total(name: str) -> int:
        return sum(answer[name] for answer in answers)

    tokens, reads = decode_tokens * len(answers), total("prefetched_reads")
    guessed = total("guessable_uses")
    return GuessReport(
        total("guessed_uses") / guessed if guessed else None,
        reads / tokens,
        min(1.0, total("useful_prefetches") / reads) if reads else None,
        total("prefetched_bytes") / tokens,
    )


def forecast_report(
    slots: int,
    total_experts: int,
    work: TokenWork,
    assumption: HitRateAssumption,
    rates: MachineRates,
    missed_bytes_per_token: float,
    measured: float,
) -> ForecastReport:
    """Forecast for a number of slots, compared with the measured tokens per second and missed bytes."""
    resident = slots >= total_experts
    hits, tokens_per_s = expected_speed(slots, total_experts, work, assumption, rates)
    all_missed = work.missed_bytes(0.0)
    hit_rate = 1.0 - missed_bytes_per_token / all_missed if all_missed else 1.0
    at_measured_hits = predict_speed(work, hit_rate, rates, resident)
    return ForecastReport(
        "all experts in memory" if resident else assumption.basis,
        hits,
        tokens_per_s,
        100 * (tokens_per_s.likely / measured - 1),
        at_measured_hits,
        100 * (at_measured_hits.likely / measured - 1),
    )


def _memory_limit(one: Round, bytes_per_token: float) -> float | None:
    return one.read_rate.bytes_per_s / bytes_per_token if one.read_rate is not None else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of a figure; None if any round lacks it."""
    known = [value for value in values if value is not None]
    return Spread.of(known) if len(known) == len(values) else None
