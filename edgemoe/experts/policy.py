"""Replacement policies: every slot has a score, and the expert in the slot of the least score leaves first.

Policies differ only in how a use changes the score of the slot that was used. The functions that do so, and the one
that picks the victim, are written once, in code that both the interpreter (with NumPy) and Numba can run: the cache of
a running model interprets them, a replay of recorded routing compiles them.

Letters: a `key` is an expert of a layer, `layer * experts + expert`; `t` is the number of uses so far.

Invariants:
- A policy does not depend on bytes or files, and its only state is the arrays that it was made with.
- The history of a key outlives the key's stay in the cache; the only state of a slot is the score of its last use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError

Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

DEFAULT_POLICY = "lru"
BELADY = "belady"


class PolicyState(NamedTuple):
    """The state of a policy, in arrays, which interpreted and compiled code update alike.

    Shapes: clock `(1,)`, which is `t`; scores `(slots,)`; history `(keys,)`, or `(0,)` where a policy needs none;
    settings, by policy; next_uses, one for each use to come, or `(0,)` for policies that do not look ahead.
    """

    clock: npt.NDArray[np.int64]
    scores: Scores
    history: Scores
    settings: Scores
    next_uses: Scores


Use = Callable[[PolicyState, int, int], None]


def use_lru(state: PolicyState, key: int, slot: int) -> None:
    """Least recently used: the score is the time of the last use."""
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    state.scores[slot] = t


def use_lfu(state: PolicyState, key: int, slot: int) -> None:
    """Least frequently used, with decay: the count of a use is halved every half-life.

    The score is the logarithm of the sum of `exp(rate * t)` over the key's uses at times `t`. With time all
    these sums decay by the same factor, so their order holds until a key is used again, and their logarithms never
    overflow. settings: `rate`, which is log(2) by the half-life.
    """
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    now = float(state.settings[0]) * t
    total = now + math.log1p(math.exp(float(state.history[key]) - now))
    state.history[key] = total
    state.scores[slot] = total


def use_lruf(state: PolicyState, key: int, slot: int) -> None:
    """Least recently used, plus a bonus for frequent use: a weight times the logarithm of the decayed count of uses.

    settings: `rate` as in `use_lfu`, and the weight, in uses.
    """
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    now = float(state.settings[0]) * t
    count = math.log1p(math.exp(float(state.history[key]) - now))
    state.history[key] = now + count
    state.scores[slot] = t + float(state.settings[1]) * count


def use_belady(state: PolicyState, key: int, slot: int) -> None:
    """Belady's optimal policy, which needs the future: the expert whose next use is furthest away leaves first.

    Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.
    """
    t = int(state.clock[0])
    state.clock[0] = t + 1
    state.scores[slot] = -state.next_uses[t]


def use_scan(state: PolicyState, slot: int) -> None:
    """Scan insertion: the expert that was read into `slot` leaves first; among several, the newest.

    So a scan over more experts than the cache holds passes through few slots, and the experts that were there stay.
    The score is the negative time: less than that of any use.
    """
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    state.scores[slot] = -t


def is_scan(experts: int, layers: int, slots: int) -> bool:
    """Whether a piece of a prompt that uses `experts` experts in each of `layers` layers uses more than fit.

    Under LRU each expert would then have left before its layer runs again. Generated tokens never scan, since their
    experts predict those of the next ones.
    """
    return experts * layers > slots


def pick_victim(scores: Scores, may_leave: Mask) -> int:
    """The slot of least score among those that may leave, the first of equals, or -1. Shapes: both `(slots,)`."""
    slot = scores.argmin()
    if not may_leave[slot]:  # rare, and the code below takes longer
        others = scores.copy()
        others[~may_leave] = np.inf  # np.where would do the same, but takes Numba seconds to compile
        slot = others.argmin()
    return int(slot) if may_leave[slot] else -1


class Policy(Protocol):
    """Orders the slots of a cache by how soon their experts should leave."""

    @property
    def name(self) -> str: ...

    def use(self, key: int, slot: int) -> None:
        """Called when the expert `key` in `slot` is used, whether it was there or has just been given the slot."""

    def scan(self, slot: int) -> None:
        """Called when a slot is given an expert by a scan: that expert should leave before others."""

    def victim(self, may_leave: Mask) -> int:
        """The slot whose expert should leave first among those in `may_leave` `(slots,)`, or -1 where none may."""


class ScorePolicy:
    """A policy run by the interpreter: its functions, not compiled, on a state."""

    def __init__(self, name: str, use: Use, state: PolicyState) -> None:
        self.name = name
        self._use = use
        self._state = state

    def use(self, key: int, slot: int) -> None:
        self._use(self._state, key, slot)

    def scan(self, slot: int) -> None:
        use_scan(self._state, slot)

    def victim(self, may_leave: Mask) -> int:
        return pick_victim(self._state.scores, may_leave)


class PolicyKind(NamedTuple):
    """The description of a policy, from which it can be made."""

    use: Use
    summary: str
    settings: Mapping[str, float]
    """Names and defaults, all in multiples of the number of slots."""
    has_history: bool


KINDS: Mapping[str, PolicyKind] = {
    "lru": PolicyKind(use_lru, "least recently used", {}, False),
    "lfu": PolicyKind(use_lfu, "least frequently used, with decay", {"half-life": 2.0}, True),
    "lruf": PolicyKind(
        use_lruf, "least recently used, frequent use buys time", {"half-life": 8.0, "weight": 2.5}, True
    ),
    BELADY: PolicyKind(use_belady, "the optimum, which knows the future", {}, False),
}

POLICIES = tuple(name for name in KINDS if name != BELADY)
"""The policies of a running model; a replay can use `belady` too."""

MOST_SETTING = 1e9
"""The largest setting, in multiples of the number of slots: longer than any trace."""


def make_policy(name: str, slots: int, keys: int) -> ScorePolicy:
    """A policy for a running cache of `slots` slots over `keys` experts of all layers.

    `name` is one of `POLICIES`; settings may follow it, such as `lfu:4`, a half-life of four times the number of slots,
    in uses. Raises UsageError for an unknown name or invalid settings.
    """
    kind, settings = parse_policy(name)
    if kind is KINDS[BELADY]:
        raise UsageError(f"policy: {BELADY} knows the future, so only edgemoe replay has it.", _choices(POLICIES))
    return ScorePolicy(name, kind.use, make_state(kind, settings, slots, keys))


def parse_policy(name: str) -> tuple[PolicyKind, tuple[float, ...]]:
    """Parse a name such as `lruf:8:2.5` into kind and settings. Raises UsageError for an unknown or invalid one."""
    base, *given = name.split(":")
    kind = KINDS.get(base)
    if kind is None:
        raise UsageError(f"policy: expected one of {', '.join(KINDS)}, found {name!r}.", _choices(POLICIES))
    names = list(kind.settings)
    if len(given) > len(names):
        expected = " and ".join(names) if names else "no settings"
        raise UsageError(f"policy {name!r}: expected {expected} after {base}, found {len(given)} numbers.")
    values = list(kind.settings.values())
    for place, text in enumerate(given):
        values[place] = _setting(name, names[place], text)
    return kind, tuple(values)


def make_state(
    kind: PolicyKind, settings: tuple[float, ...], slots: int, keys: int, next_uses: Scores | None = None
) -> PolicyState:
    """The state of a policy before the first use. `next_uses`: see `PolicyState`; only `belady` needs it."""
    return PolicyState(
        clock=np.zeros(1, np.int64),
        scores=np.zeros(slots),
        history=np.full(keys if kind.has_history else 0, -math.inf),
        settings=np.array(_in_uses(settings, slots)),
        next_uses=np.zeros(0) if next_uses is None else next_uses,
    )


def policy_numbers(name: str, slots: int) -> tuple[int, float, float]:
    """A policy as C code takes it: its place in `KINDS`, its rate and its weight, 0 for a setting that it lacks.

    Raises UsageError for an unknown name or invalid settings.
    """
    kind, settings = parse_policy(name)
    rate, weight, *_ = *_in_uses(settings, slots), 0.0, 0.0
    return list(KINDS.values()).index(kind), rate, weight


def _in_uses(settings: tuple[float, ...], slots: int) -> list[float]:
    """The settings of a policy in uses; its half-life, which is the first, as a rate."""
    in_uses = [setting * slots for setting in settings]
    return [math.log(2) / in_uses[0], *in_uses[1:]] if in_uses else []


def _setting(policy: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 / MOST_SETTING <= value <= MOST_SETTING:
        raise UsageError(
            f"policy {policy!r}: expected a {name} above 0, in multiples of the slots, found {text!r}.",
            "Such as lfu:2 or lruf:8:2.5.",
        )
    return value


def _choices(names: tuple[str, ...]) -> str:
    return f"Choose one of {', '.join(names)}; {DEFAULT_POLICY} is the default."
