"""Replays recorded routing over policies and cache sizes, and counts the hits that each would have had.

The policies are those of a running model (`policy.py`), their very functions, compiled by Numba. One cache serves all
layers; accesses come in the order of the trace, one for each routed expert.

Letters: `A` accesses. A key is `layer * experts + expert`.

Invariants:
- The experts that a token uses in a layer stay until all of them are in the cache, as in a running model, which pins
  them meanwhile. Only `belady`, the upper bound for all policies, is exempt.
- Memory is a few bytes for each access, whatever the policy and cache size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.phase import DECODE
from edgemoe.errors import TraceError, UsageError
from edgemoe.experts import policy as policies
from edgemoe.experts.policy import BELADY, KINDS, PolicyState, make_state, parse_policy
from edgemoe.kernels.jit.compile import jit, jit_calling
from edgemoe.lab.trace import Trace
from edgemoe.lab.trace_figures import read_routing

Keys = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_use_lru = jit(policies.use_lru)
_use_lfu = jit(policies.use_lfu)
_use_lruf = jit(policies.use_lruf)
_use_belady = jit(policies.use_belady)
_use_scan = jit(policies.use_scan)
_pick_victim = jit(policies.pick_victim)
_NUMBERS: dict[policies.Use, int] = {
    use: number for number, use in enumerate((policies.use_lru, policies.use_lfu, policies.use_lruf))
}


@jit_calling(policies.__file__)
def _use(number: int, state: PolicyState, key: int, slot: int) -> None:
    """Call the use function of the policy with this number in `_NUMBERS`, or else that of `belady`."""
    if number == 0:
        _use_lru(state, key, slot)
    elif number == 1:
        _use_lfu(state, key, slot)
    elif number == 2:
        _use_lruf(state, key, slot)
    else:
        _use_belady(state, key, slot)


@jit_calling(policies.__file__)
def _replay(
    number: int,
    state: PolicyState,
    keys: Keys,
    begins: Mask,
    scans: Mask,
    pins: bool,
    at_once: bool,
    slot_of: npt.NDArray[np.int32],
    key_of: Keys,
    hits: Mask,
    victims: npt.NDArray[np.int32],
) -> None:
    """Run accesses through a cache that is empty at first; see `simulate`, which makes the arrays."""
    slots, filled = len(key_of), 0
    may_leave = np.ones(slots, np.bool_)
    pinned, pinned_count = np.empty(slots, np.int64), 0
    for place in range(len(keys)):
        key = keys[place]
        if begins[place]:
            for one in range(pinned_count):
                may_leave[pinned[one]] = True
            pinned_count = 0
            ahead = place
            while at_once and ahead < len(keys) and (ahead == place or not begins[ahead]):
                slot = int(slot_of[keys[ahead]])
                if slot >= 0:
                    hits[ahead] = True
                    if not scans[ahead]:
                        _use(number, state, keys[ahead], slot)
                    may_leave[slot] = False
                    pinned[pinned_count] = slot
                    pinned_count += 1
                ahead += 1
        if hits[place]:  # it was there when its token's experts were requested
            continue
        slot, victim = int(slot_of[key]), -1
        hits[place] = slot >= 0
        if slot < 0:
            if filled < slots:
                slot, filled = filled, filled + 1
            else:
                victim = _pick_victim(state.scores, may_leave)
                if victim < 0:  # fewer slots than a token uses in a layer: unpin experts already used
                    may_leave[:] = True
                    pinned_count = 0
                    victim = _pick_victim(state.scores, may_leave)
                slot = victim
                slot_of[key_of[slot]] = -1
            key_of[slot] = key
            slot_of[key] = slot
        if not scans[place]:
            _use(number, state, key, slot)
        elif not hits[place]:
            _use_scan(state, slot)
        if pins and may_leave[slot]:
            may_leave[slot] = False
            pinned[pinned_count] = slot
            pinned_count += 1
        if len(victims):
            victims[place] = victim


@dataclass(frozen=True)
class Simulation:
    """The outcome of every access, and the keys in memory at the end."""

    hits: Mask
    """Whether the expert was in memory, `(A,)`."""
    resident: Mask
    """Which keys are in memory at the end, `(keys,)`."""
    victims: npt.NDArray[np.int32]
    """The slot whose expert left for an access, or -1, `(A,)`; `(0,)` where they were not requested."""


def simulate(
    policy: str,
    slots: int,
    keys: int,
    accesses: Keys,
    begins: Mask,
    keep_victims: bool = False,
    at_once: bool = False,
    scans: Mask | None = None,
) -> Simulation:
    """Replay accesses to `keys` different keys over a policy with a number of slots (1 or more).

    `begins` says for each access whether another token or layer begins with it. Shapes: both `(A,)`. With `at_once` the
    accesses up to the next beginning, all of different keys, are requested together, as the engine does: those in
    memory are used first. This matters where there are hardly more slots than a token uses. `scans`, `(A,)`:
    marks accesses such as an engine makes for prompts that a cache cannot hold (`policy.use_scan`). Raises
    UsageError for an unknown policy, or for `belady`, which depends on the order of uses, with either option.
    """
    kind, settings = parse_policy(policy)
    if (at_once or scans is not None) and kind is KINDS[BELADY]:
        raise UsageError(f"{BELADY} replays one access after the other.", "Take another policy.")
    state = make_state(kind, settings, slots, keys, next_uses(accesses) if kind is KINDS[BELADY] else None)
    slot_of, key_of = np.full(keys, -1, np.int32), np.full(slots, -1, np.int64)
    hits = np.zeros(len(accesses), np.bool_)
    victims = np.full(len(accesses) if keep_victims else 0, -1, np.int32)
    number = _NUMBERS.get(kind.use, len(_NUMBERS))
    scanned = np.zeros(len(accesses), np.bool_) if scans is None else scans
    pins = kind is not KINDS[BELADY]
    _replay(number, state, accesses, begins, scanned, pins, at_once, slot_of, key_of, hits, victims)
    return Simulation(hits, slot_of >= 0, victims)


def next_uses(accesses: Keys) -> npt.NDArray[np.float64]:
    """For each access the number of the next access to its key, infinite where there is none. `(A,)`."""
    order = np.argsort(accesses, kind="stable")
    again = accesses[order[1:]] == accesses[order[:-1]]
    following = np.full(len(accesses), math.inf)
    following[order[:-1][again]] = order[1:][again]
    return following


@dataclass(frozen=True)
class ReplayResult:
    """The result of replaying a trace over a policy and a cache size."""

    policy: str
    capacity_percent: float
    """The requested cache size, as a share of all experts of all layers."""
    slots: int
    budget_bytes: int
    """Bytes of the slots, each as large as the largest expert."""
    prompt_uses: int
    prompt_hits: int
    decode_uses: int
    decode_hits: int
    bytes_per_decode_token: float | None
    """Bytes read from disk per generated token; None where no token was generated."""
    bytes_read: int
    """Bytes read from disk in all."""
    resident: Mask
    """Which experts are in memory at the end, `(layers, experts)`."""

    @property
    def hit_rate(self) -> float:
        """The hit rate of all uses, including those of prompts."""
        return (self.prompt_hits + self.decode_hits) / (self.prompt_uses + self.decode_uses)

    @property
    def prompt_hit_rate(self) -> float | None:
        return self.prompt_hits / self.prompt_uses if self.prompt_uses else None

    @property
    def decode_hit_rate(self) -> float | None:
        return self.decode_hits / self.decode_uses if self.decode_uses else None


class Replay:
    """A trace, made ready to be replayed many times."""

    def __init__(self, trace: Trace) -> None:
        """Raises TraceError where the trace has no rows."""
        if not len(trace):
            raise TraceError("There are no rows in the trace: nothing was routed.", "Record one with edgemoe trace.")
        self.shape = trace.shape
        self._keys = trace.keys
        self._decode = trace.phase == DECODE
        self._begins = np.ones(len(trace), np.bool_)
        self._begins[1:] = False
        for column in (trace.turn, trace.phase, trace.step, trace.layer):
            self._begins[1:] |= column[1:] != column[:-1]
        layer_bytes = np.array(trace.shape.expert_bytes, np.int64)
        self._bytes = layer_bytes[trace.layer]
        self.record_bytes = int(layer_bytes.max())
        """Bytes of the largest expert."""
        self.routing = read_routing(trace)
        routed = layer_bytes > 0
        routed[trace.layer] = True
        self.total_experts = int(routed.sum()) * trace.shape.experts
        """Experts of all layers with routed experts."""
        self.cycle_experts = int(routed.sum()) * trace.shape.experts_used
        """Experts that one token uses over all layers; with fewer slots LRU has evicted each before its next use."""

    def __len__(self) -> int:
        return len(self._keys)

    def slots(self, capacity_percent: float) -> int:
        """The slots of a cache for a share of all experts. Raises UsageError for an invalid share."""
        if not 0 < capacity_percent <= 100:
            raise UsageError(
                f"`capacity`: expected more than 0 % and at most 100 % of all experts, found {capacity_percent:g} %.",
                "Such as `capacity=10%,20%,30%`.",
            )
        slots = math.floor(capacity_percent * self.total_experts / 100 + 0.5)
        if slots == 0:
            raise UsageError(
                f"capacity: {capacity_percent:g} % of {self.total_experts} experts is not one slot.",
                f"A token uses {self.cycle_experts}: {self.cycle_percent:.2g} %.",
            )
        return slots

    @property
    def cycle_percent(self) -> float:
        """The share of all experts that one token uses."""
        return 100 * self.cycle_experts / self.total_experts

    def run(self, policy: str, capacity_percent: float) -> ReplayResult:
        """Replay the trace once. Raises UsageError for an unknown policy or an invalid capacity."""
        slots = self.slots(capacity_percent)
        done = simulate(policy, slots, self.shape.keys, self._keys, self._begins)
        decode_hits, missed = done.hits[self._decode], ~done.hits
        decode_bytes = int(self._bytes[missed & self._decode].sum())
        return ReplayResult(
            policy=policy,
            capacity_percent=capacity_percent,
            slots=slots,
            budget_bytes=slots * self.record_bytes,
            prompt_uses=len(self) - len(decode_hits),
            prompt_hits=int(done.hits.sum()) - int(decode_hits.sum()),
            decode_uses=len(decode_hits),
            decode_hits=int(decode_hits.sum()),
            bytes_per_decode_token=decode_bytes / self.routing.decode_tokens if self.routing.decode_tokens else None,
            bytes_read=int(self._bytes[missed].sum()),
            resident=done.resident.reshape(self.shape.layers, self.shape.experts),
        )
