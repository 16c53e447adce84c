"""Estimates of the share of a token's experts that is in memory, given only the number of slots.

All estimates are for a least-recently-used cache over the experts of all layers, past its cold start and without
prediction. With fewer slots than a token uses experts in all layers (its *cycle*) such a cache hits nothing: each
expert is evicted before its layer comes round again.

- *Uniform* routing draws a token's experts evenly and anew for each token, as random weights do: the share of hits is
  the share of experts that have a slot.
- *Skewed* routing is that of trained models: some experts are used far more than others, and neighbouring tokens
  share experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

SKEWED_HIT_RATES = ((0.0, 0.0), (0.1, 0.53), (0.2, 0.72), (0.3, 0.83), (0.5, 0.91), (1.0, 1.0))
"""Hit rates by the share of all experts that have a slot, interpolated linearly.

Source: LRU replays, prompt and decode, of the routing recorded from Qwen3-30B-A3B and Gemma-4-26B-A4B (BigMoeOnEdge,
docs/bench-data/2026-07-15-route-trace): .528 and .529, .727 and .718, .841 and .821, .910 and .911. The values
at shares 0 and 1 are not measured.
"""


@dataclass(frozen=True)
class HitRates:
    """Shares of routed experts that are in memory when they are asked for, 0 to 1."""

    low: float
    likely: float
    high: float


def uniform_hit_rate(slots: int, total_experts: int, cycle: int) -> float:
    """The share of hits where every token draws its experts evenly. `cycle`: see the module's docstring."""
    if slots >= total_experts:
        return 1.0
    return slots / total_experts if slots >= cycle else 0.0


def skewed_hit_rate(slots: int, total_experts: int, cycle: int) -> float:
    """The share of hits where routing is as skewed as in the recorded traces."""
    if slots >= total_experts:
        return 1.0
    if slots < cycle:
        return 0.0
    share = slots / total_experts
    for (left, low), (right, high) in pairwise(SKEWED_HIT_RATES):
        if share <= right:
            return low + (high - low) * (share - left) / (right - left)
    return 1.0
