"""Which expert leaves when a slot is wanted: every slot has a score, and the least leaves.

Policies differ only in how a use moves the score of the slot that was used. The functions that do so, and the one
that picks the victim, are written once, in what the interpreter (with NumPy) and Numba both run: in the cache of a
running model they run as they are, in a replay of recorded routing compiled.

Letters: a `key` is an expert of a layer, `layer * experts + expert`; `t` is the number of uses so far.

Invariants:
- A policy knows nothing of bytes and files, and keeps nothing but the arrays that it was made with.
- What it knows of a key outlives the key's stay in the cache; what it knows of a slot is the score of its last use.
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
    """All that a policy remembers, in arrays, so that compiled code moves the same.

    Shapes: clock `(1,)`, which is `t`; scores `(slots,)`; history `(keys,)`, or `(0,)` where a policy needs none;
    settings, by policy; next_uses, one for each use to come, or `(0,)` for those that know no future.
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
    """Least frequently used, with decay: a use counts half as much each time that a half-life has passed.

    The score is the logarithm of the sum of `exp(rate * t)` over the key's uses at times `t`: as time goes on all
    such sums would shrink alike, so that their order stands until a key is used again, and their logarithms never
    overflow. settings: `rate`, which is log(2) by the half-life.
    """
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    now = float(state.settings[0]) * t
    total = now + math.log1p(math.exp(float(state.history[key]) - now))
    state.history[key] = total
    state.scores[slot] = total


def use_lruf(state: PolicyState, key: int, slot: int) -> None:
    """Least recently used, but frequent use buys time: a weight times the logarithm of the decayed count of uses.

    settings: `rate` as in `use_lfu`, and the weight, in uses.
    """
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    now = float(state.settings[0]) * t
    count = math.log1p(math.exp(float(state.history[key]) - now))
    state.history[key] = now + count
    state.scores[slot] = t + float(state.settings[1]) * count


def use_belady(state: PolicyState, key: int, slot: int) -> None:
    """The optimum, for who knows the future: whose next use is furthest leaves first.

    Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.
    """
    t = int(state.clock[0])
    state.clock[0] = t + 1
    state.scores[slot] = -state.next_uses[t]


def use_in_passing(state: PolicyState, slot: int) -> None:
    """An expert came into `slot` for a use that says nothing of its next: it leaves first, the latest such before all.

    So what passes through a cache that cannot hold all of it goes through few slots, and what was there stays. The
    score is the time, negative: less than that of any use.
    """
    t = int(state.clock[0]) + 1
    state.clock[0] = t
    state.scores[slot] = -t


def passes_through(tokens: int, experts: int, layers: int, slots: int) -> bool:
    """Whether a run of `tokens` tokens that uses so many experts in one of its `layers` uses more in all than fit.

    A prompt does: least recently used first, each expert would have left again when its layer comes round. A single
    token, which says what the next one is likely to use, does not count as such.
    """
    return tokens > 1 and experts * layers > slots


def pick_victim(scores: Scores, may_leave: Mask) -> int:
    """The slot of least score among those that may leave, the first of equals, or -1. Shapes: both `(slots,)`."""
    slot = scores.argmin()
    if not may_leave[slot]:  # seldom, and what follows takes longer
        others = scores.copy()
        others[~may_leave] = np.inf  # np.where would say the same, but takes Numba seconds to compile
        slot = others.argmin()
    return int(slot) if may_leave[slot] else -1


class Policy(Protocol):
    """Orders the slots of a cache by how soon their experts should leave."""

    @property
    def name(self) -> str: ...

    def use(self, key: int, slot: int) -> None:
        """The expert `key` in `slot` was used: it was there, or has just been given the slot."""

    def use_in_passing(self, slot: int) -> None:
        """The slot was given an expert for a use that says nothing of its next: it should leave before others."""

    def victim(self, may_leave: Mask) -> int:
        """The slot that should leave first among those that may, `(slots,)`, or -1 where none may."""


class ScorePolicy:
    """A policy as the interpreter runs it: its functions as they are, on a state."""

    def __init__(self, name: str, use: Use, state: PolicyState) -> None:
        self.name = name
        self._use = use
        self._state = state

    def use(self, key: int, slot: int) -> None:
        self._use(self._state, key, slot)

    def use_in_passing(self, slot: int) -> None:
        use_in_passing(self._state, slot)

    def victim(self, may_leave: Mask) -> int:
        return pick_victim(self._state.scores, may_leave)


class PolicyKind(NamedTuple):
    """What there is to know of a policy before it is made."""

    use: Use
    summary: str
    settings: Mapping[str, float]
    """Names and what they are by default, all in multiples of the slots."""
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
"""What a running model can have; a replay can have `belady` too."""

MOST_SETTING = 1e9
"""In multiples of the slots: beyond what any trace is long."""


def make_policy(name: str, slots: int, keys: int) -> ScorePolicy:
    """A policy for a running cache of `slots` slots over `keys` experts of all layers.

    `name` is one of `POLICIES`; settings may follow it, such as `lfu:4`, a half-life of as many uses as four times
    the slots. Raises UsageError for what is none.
    """
    kind, settings = parse_policy(name)
    if kind is KINDS[BELADY]:
        raise UsageError(f"policy: {BELADY} knows the future, so only edgemoe replay has it.", _choices(POLICIES))
    return ScorePolicy(name, kind.use, make_state(kind, settings, slots, keys))


def parse_policy(name: str) -> tuple[PolicyKind, tuple[float, ...]]:
    """The kind and the settings that a name such as `lruf:8:2.5` stands for. Raises UsageError for what is none."""
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
    """The state of a policy that has seen nothing yet. `next_uses`: see `PolicyState`; only `belady` wants it."""
    in_uses = [setting * slots for setting in settings]
    if in_uses:  # the first of them is the half-life
        in_uses[0] = math.log(2) / in_uses[0]
    return PolicyState(
        clock=np.zeros(1, np.int64),
        scores=np.zeros(slots),
        history=np.full(keys if kind.has_history else 0, -math.inf),
        settings=np.array(in_uses),
        next_uses=np.zeros(0) if next_uses is None else next_uses,
    )


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
