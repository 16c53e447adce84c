"""Results of a replay: policies at every capacity beside the optimum, the speed to expect, and a recommendation.

Hit rates and bytes are counted. Tokens per second are estimates of the speed model (`bench/speed.py`) on rates of a
machine, for the layers of the model in the trace: a trace does not contain the sizes of embedding and head.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemoe.bench.speed import MachineRates, SpeedEstimate, TokenWork, predict_speed
from edgemoe.errors import UsageError
from edgemoe.experts.policy import BELADY, DEFAULT_POLICY, parse_policy
from edgemoe.lab.replay import Replay, ReplayResult
from edgemoe.lab.trace import TraceShape
from edgemoe.lab.trace_figures import Routing

REPORT_VERSION = 1

LEAST_GAIN = 0.01
"""A policy is recommended instead of the default if its hit rate over all uses is higher by at least this."""
LEAST_FOR_KNEE = 3
"""The fewest capacities that show where a curve bends."""


@dataclass(frozen=True)
class ReplayRow:
    """One policy at one capacity, beside the optimum there."""

    result: ReplayResult
    optimum_hit_rate: float
    below_cycle: bool
    """Whether there are fewer slots than experts used per token."""
    tokens_per_s: SpeedEstimate | None
    """None if nothing was generated, or no rates are known."""

    def to_json(self) -> dict[str, Any]:
        result = self.result
        return {
            "policy": result.policy,
            "capacity_percent": result.capacity_percent,
            "slots": result.slots,
            "budget_bytes": result.budget_bytes,
            "hit_rate": result.hit_rate,
            "prompt_hit_rate": result.prompt_hit_rate,
            "decode_hit_rate": result.decode_hit_rate,
            "optimum_hit_rate": self.optimum_hit_rate,
            "bytes_per_decode_token": result.bytes_per_decode_token,
            "bytes_read": result.bytes_read,
            "below_cycle": self.below_cycle,
            "tokens_per_s": None if self.tokens_per_s is None else asdict(self.tokens_per_s),
        }


@dataclass(frozen=True)
class Recommendation:
    """A policy and a capacity for traces like this one, and why."""

    policy: str
    capacity_percent: float
    slots: int
    budget_bytes: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ReplayReport:
    """All results of one replay."""

    trace: str
    shape: TraceShape
    routing: Routing
    accesses: int
    total_experts: int
    cycle_experts: int
    rates: MachineRates | None
    rates_basis: str
    """Where the rates come from, or why they are missing."""
    rows: tuple[ReplayRow, ...]
    """Rows by policy in the order asked for, and within a policy by capacity."""
    accesses_per_s: float | None
    """Replay speed on all cores, without the first replay, which may compile; None if there was only one."""
    recommendation: Recommendation | None
    """None if only the optimum was asked for, which no real cache can implement."""

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.result.policy for row in self.rows))

    def rows_of(self, policy: str) -> list[ReplayRow]:
        return [row for row in self.rows if row.result.policy == policy]

    @property
    def recommended(self) -> ReplayRow:
        """The row that is recommended; without one, the first."""
        chosen = self.recommendation
        if chosen is None:
            return self.rows[0]
        wanted = (chosen.policy, chosen.capacity_percent)
        return next(row for row in self.rows if (row.result.policy, row.result.capacity_percent) == wanted)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        shape, routing = self.shape, self.routing
        return {
            "version": REPORT_VERSION,
            "trace": self.trace,
            "model": {
                "name": shape.model,
                "architecture": shape.architecture,
                "layers": shape.layers,
                "experts_per_layer": shape.experts,
                "experts_per_token": shape.experts_used,
                "total_experts": self.total_experts,
                "cycle_experts": self.cycle_experts,
            },
            "routing": {
                "accesses": self.accesses,
                "accesses_per_s": self.accesses_per_s,
                "prompt_tokens": routing.prompt_tokens,
                "decode_tokens": routing.decode_tokens,
                "distinct_experts": routing.distinct_experts,
                "distinct_per_layer": list(routing.distinct_per_layer),
                "repeat_recall": routing.repeat_recall,
            },
            "rates": None if self.rates is None else self.rates.to_json(),
            "rates_basis": self.rates_basis,
            "results": [row.to_json() for row in self.rows],
            "recommendation": None if self.recommendation is None else asdict(self.recommendation),
        }


def replay_report(
    replay: Replay,
    path: Path,
    policies: Sequence[str],
    capacities_percent: Sequence[float],
    rates: MachineRates | None,
    rates_basis: str,
    report: Callable[[str, int, int], None] = lambda policy, done, total: None,
) -> ReplayReport:
    """Replay the trace of a file over policies (each with its settings) and capacities in percent of all experts.

    `report` is called with the next policy, the number of finished replays and the number of all. Raises UsageError for
    an unknown policy or an invalid capacity.
    """
    wanted = [(policy, capacity) for policy in dict.fromkeys((BELADY, *policies)) for capacity in capacities_percent]
    results, accesses_per_s = _run_all(replay, wanted, report)
    work, rows = work_of_trace(replay), []
    for policy in policies:
        for capacity in capacities_percent:
            result = results[policy, capacity]
            below = result.slots < replay.cycle_experts
            speed = _speed(result, work, rates, replay.total_experts)
            rows.append(ReplayRow(result, results[BELADY, capacity].hit_rate, below, speed))
    return ReplayReport(
        trace=str(path),
        shape=replay.shape,
        routing=replay.routing,
        accesses=len(replay),
        total_experts=replay.total_experts,
        cycle_experts=replay.cycle_experts,
        rates=rates,
        rates_basis=rates_basis,
        rows=tuple(rows),
        accesses_per_s=accesses_per_s,
        recommendation=recommend([row.result for row in rows]),
    )


def _run_all(
    replay: Replay, wanted: Sequence[tuple[str, float]], report: Callable[[str, int, int], None]
) -> tuple[dict[tuple[str, float], ReplayResult], float | None]:
    """Replay every (policy, capacity); also return the accesses per second; see `ReplayReport.accesses_per_s`."""
    results: dict[tuple[str, float], ReplayResult] = {}
    report(wanted[0][0], 0, len(wanted))
    results[wanted[0]] = replay.run(*wanted[0])
    rest, began_s = wanted[1:], time.perf_counter()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        running = [pool.submit(replay.run, *one) for one in rest]
        for one, run in zip(rest, running, strict=True):
            report(one[0], len(results), len(wanted))
            results[one] = run.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return results, len(replay) * len(rest) / (time.perf_counter() - began_s) if rest else None


def work_of_trace(replay: Replay) -> TokenWork:
    """The work of a token by the shape in the trace: its layers, without embedding and head."""
    shape = replay.shape
    moe_layers = replay.cycle_experts // shape.experts_used
    expert_bytes = sum(shape.expert_bytes) / moe_layers
    return TokenWork(
        layers=shape.layers,
        moe_layers=moe_layers,
        experts_per_token=shape.experts_used,
        expert_bytes=expert_bytes,
        record_bytes=expert_bytes,
        shared_bytes=0,  # included in the dense bytes of the layer
        rest_bytes=sum(shape.dense_bytes),
    )


def _speed(
    result: ReplayResult, work: TokenWork, rates: MachineRates | None, total_experts: int
) -> SpeedEstimate | None:
    if rates is None or result.decode_hit_rate is None or not work.bytes_per_token:
        return None
    return predict_speed(work, result.decode_hit_rate, rates, all_resident=result.slots >= total_experts)


def recommend(results: Sequence[ReplayResult]) -> Recommendation | None:
    """The capacity where the curve of hits bends, and the policy with the most hits there.

    Another policy than the default must hit `LEAST_GAIN` more of all uses to be recommended.
    """
    usable = [result for result in results if result.policy != BELADY]
    if not usable:
        return None
    names = dict.fromkeys(result.policy for result in usable)
    base = DEFAULT_POLICY if DEFAULT_POLICY in names else next(iter(names))
    capacity, why_capacity = _bend([result for result in usable if result.policy == base])
    there = {result.policy: result for result in usable if result.capacity_percent == capacity}
    best = max(there.values(), key=lambda result: result.hit_rate)
    gain = best.hit_rate - there[base].hit_rate
    chosen = best if gain >= LEAST_GAIN else there[base]
    if len(there) == 1:
        why_policy = f"only {base} was replayed"
    elif chosen.policy == base:
        why_policy = f"at this capacity no policy beats the hit rate of {base} by {100 * LEAST_GAIN:.0f} point or more"
    else:
        why_policy = f"at this capacity the hit rate of {chosen.policy} is {100 * gain:.1f} points above that of {base}"
    return Recommendation(chosen.policy, capacity, chosen.slots, chosen.budget_bytes, (why_capacity, why_policy))


def _bend(curve: Sequence[ReplayResult]) -> tuple[float, str]:
    """The capacity of a curve that lies furthest above the straight line between its ends, and the reason for it."""
    points = sorted((result.capacity_percent, result.hit_rate) for result in curve)
    (first, low), (last, high) = points[0], points[-1]
    if len(points) < LEAST_FOR_KNEE:
        return (
            last,
            "it is the largest that was replayed; three or more capacities would show where more memory stops helping",
        )
    above = [hits - low - (high - low) * (share - first) / (last - first) for share, hits in points]
    place = max(range(len(points)), key=above.__getitem__)
    share, hits = points[place]
    if above[place] <= 0:
        return last, "the hit rate rises with every step of memory, so it is the largest that was replayed"
    return share, (
        f"the curve of hit rates bends here: {share - first:g} % more of the experts added {100 * (hits - low):.1f}"
        f" points, and another {last - share:g} % would add {100 * (high - hits):.1f}"
    )


def parse_capacities(text: str) -> list[float]:
    """Parse the percentages of a list such as `10%,20%`; `Replay.slots` checks their range. Raises UsageError."""
    capacities = []
    for part in text.split(","):
        try:
            capacities.append(float(part.strip().removesuffix("%")))
        except ValueError:
            raise UsageError(
                f"`capacity`: expected percentages of all experts, found {part.strip()!r}.",
                "For example: `capacity=10%,20%,30%`.",
            ) from None
    return list(dict.fromkeys(capacities))


def parse_policies(text: str) -> list[str]:
    """Parse the policies of a list such as `lru,lfu:4,belady`. Raises UsageError for an unknown policy."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        parse_policy(name)
    return names
