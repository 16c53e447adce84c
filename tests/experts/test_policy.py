"""Policies: the decisions of each against its plain definition, and the compiled ones against the interpreted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import UsageError
from edgemoe.experts import policy as policies
from edgemoe.experts.policy import (
    BELADY,
    KINDS,
    POLICIES,
    ScorePolicy,
    is_scan,
    make_policy,
    make_state,
    parse_policy,
)
from edgemoe.lab.replay import next_uses, simulate
from tests.support.every_case import every_case

KEYS = 12
NAMES = ("lru", "lfu", "lfu:0.25", "lfu:50", "lruf", "lruf:1:20", "lruf:4:0.5", BELADY)

accesses_and_begins = st.lists(st.tuples(st.integers(0, KEYS - 1), st.booleans()), min_size=1, max_size=120)
accesses_with_scans = st.lists(
    st.tuples(st.integers(0, KEYS - 1), st.booleans(), st.booleans()), min_size=1, max_size=120
)


class InterpretedCache:
    """A cache as a running model has one, but for the bytes; see `edgemoe.lab.replay` for what is pinned."""

    def __init__(self, policy: ScorePolicy, slots: int, pins: bool) -> None:
        self.policy, self.pins = policy, pins
        self.key_of: list[int | None] = [None] * slots
        self.may_leave = np.ones(slots, np.bool_)

    def access(self, key: int, begins: bool, scan: bool = False) -> tuple[bool, int]:
        """Whether it was a hit, and the slot whose expert left, or -1."""
        if begins:
            self.may_leave[:] = True
        hit, victim = key in self.key_of, -1
        if hit:
            slot = self.key_of.index(key)
        elif None in self.key_of:
            slot = self.key_of.index(None)
        else:
            victim = slot = self.policy.victim(self.may_leave)
            if slot < 0:
                assert not self.may_leave.any()
                self.may_leave[:] = True
                victim = slot = self.policy.victim(self.may_leave)
        self.key_of[slot] = key
        if not scan:
            self.policy.use(key, slot)
        elif not hit:
            self.policy.scan(slot)
        self.may_leave[slot] = not self.pins
        return hit, victim


def interpreted(name: str, slots: int, keys: Sequence[int]) -> ScorePolicy:
    kind, values = parse_policy(name)
    state = make_state(kind, values, slots, KEYS, next_uses(np.array(keys)) if name == BELADY else None)
    return ScorePolicy(name, kind.use, state)


@pytest.mark.parametrize("name", NAMES)
@given(accesses=accesses_with_scans, slots=st.integers(1, KEYS + 1))
@settings(deadline=None)  # the first call compiles
def test_compiled_and_interpreted_policies_take_the_same_decisions(
    name: str, accesses: list[tuple[int, bool, bool]], slots: int
) -> None:
    keys, begins, passing = (np.array(column) for column in zip(*accesses, strict=True))
    passing &= name != BELADY  # which counts on the order of uses
    cache = InterpretedCache(interpreted(name, slots, keys), slots, pins=name != BELADY)
    expected = [cache.access(*access) for access in zip(keys.tolist(), begins, passing, strict=True)]
    done = simulate(name, slots, KEYS, keys, begins, keep_victims=True, scans=None if name == BELADY else passing)
    assert done.hits.tolist() == [hit for hit, _ in expected]
    assert done.victims.tolist() == [victim for _, victim in expected]
    assert set(np.flatnonzero(done.resident)) == {key for key in cache.key_of if key is not None}


class History:
    """Every use of every key, from which a policy's plain definition says how much each is worth."""

    def __init__(self, name: str, slots: int) -> None:
        kind, values = parse_policy(name)
        self.use, self.values, self.slots = kind.use, values, slots
        self.uses: dict[int, list[int]] = {}
        self.now = 0

    def add(self, key: int) -> None:
        self.now += 1
        self.uses.setdefault(key, []).append(self.now)

    def count(self, key: int, at: int) -> float:
        return math.fsum(2.0 ** ((time - at) / (self.values[0] * self.slots)) for time in self.uses[key])

    def worth(self, key: int) -> float:
        last = self.uses[key][-1]
        if self.use is policies.use_lru:
            return last
        if self.use is policies.use_lfu:
            return math.log(self.count(key, self.now)) if self.count(key, self.now) else -math.inf
        return last + self.values[1] * self.slots * math.log(self.count(key, last))


@pytest.mark.parametrize("name", [name for name in NAMES if name != BELADY])
@given(accesses=accesses_and_begins, slots=st.integers(1, 6))
@settings(deadline=None)
def test_the_one_worth_least_leaves(name: str, accesses: list[tuple[int, bool]], slots: int) -> None:
    cache, history = InterpretedCache(make_policy(name, slots, KEYS), slots, pins=True), History(name, slots)
    for key, begins in accesses:
        before = list(cache.key_of)
        if begins:
            cache.may_leave[:] = True
        pinned = ~cache.may_leave if cache.may_leave.any() else np.zeros(slots, np.bool_)
        _, victim = cache.access(key, begins)
        if victim >= 0:
            worths = {slot: history.worth(before[slot]) for slot in range(slots) if not pinned[slot]}
            assert victim in worths
            assert worths[victim] <= min(worths.values()) + 1e-9
        history.add(key)


@given(accesses=st.lists(st.integers(0, 5), min_size=1, max_size=14), slots=st.integers(1, 4))
@settings(deadline=None)
def test_nothing_hits_more_than_belady(accesses: list[int], slots: int) -> None:
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for key in accesses:  # the most hits with which each content of the cache can be had
        following: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            if key in held:
                choices = [(held, hits + 1)]
            elif len(held) < slots:
                choices = [(held | {key}, hits)]
            else:
                choices = [(held - {leaving} | {key}, hits) for leaving in held]
            for content, count in choices:
                following[content] = max(count, following.get(content, 0))
        best = following
    done = simulate(BELADY, slots, 6, np.array(accesses), np.ones(len(accesses), np.bool_))
    assert done.hits.sum() == max(best.values())


@given(keys=st.lists(st.integers(0, 5), max_size=60))
@settings(deadline=None)
def test_next_uses_are_when_a_key_comes_again(keys: list[int]) -> None:
    found = next_uses(np.array(keys, np.int64))
    for place, key in enumerate(keys):
        later = [other for other in range(place + 1, len(keys)) if keys[other] == key]
        assert found[place] == (later[0] if later else math.inf)


def test_what_is_known_of_an_expert_outlives_its_stay() -> None:
    policy = make_policy("lfu:1000", slots=2, keys=4)
    for _ in range(5):
        policy.use(0, 0)
    policy.use(1, 1)
    policy.use(2, 0)  # 0 has left for 2, and comes back for 1
    policy.use(0, 1)
    everything = np.ones(2, np.bool_)
    assert policy.victim(everything) == 0  # 0 counts for six uses, 2 for one


@every_case("name", ["lfu", "lfu:0.000001", "lfu:1e9", "lruf", "lruf:0.000001:1e9"])
def test_scores_stay_finite_and_in_order_after_years(name: str) -> None:
    kind, values = parse_policy(name)
    state = make_state(kind, values, 3, 3)
    state.clock[0] = 10**14
    for key in (0, 1, 2, 2, 1, 2):
        kind.use(state, key, key)
    assert np.isfinite(state.scores).all()
    assert ScorePolicy(name, kind.use, state).victim(np.ones(3, np.bool_)) == 0


@every_case("name", [name for name in NAMES if name != BELADY])
def test_what_passes_through_takes_few_slots(name: str) -> None:
    """Six layers of four experts, all used in every round, through a cache of half of them."""
    keys = np.tile(np.arange(24), 5)
    begins = keys % 4 == 0
    passing = np.ones(len(keys), np.bool_)
    hits = simulate(name, 12, 24, keys, begins, at_once=True, scans=passing).hits.reshape(5, 24).sum(axis=1)
    assert hits[0] == 0
    assert (hits[1:] >= 8).all()  # all but the slots that one layer takes
    assert not simulate("lru", 12, 24, keys, begins, at_once=True).hits.any()


def test_a_prompt_is_a_scan_where_it_uses_more_than_fits() -> None:
    assert is_scan(experts=5, layers=2, slots=9)
    assert not is_scan(experts=5, layers=2, slots=10)


def test_nothing_leaves_where_nothing_may() -> None:
    for name in POLICIES:
        policy = make_policy(name, 3, 5)
        assert policy.name == name
        for key in range(3):
            policy.use(key, key)
        assert policy.victim(np.zeros(3, np.bool_)) == -1
        assert policy.victim(np.array([False, False, True])) == 2


@every_case(
    ("name", "message"),
    [
        ("mru", "expected one of lru, lfu, lruf, belady, found 'mru'"),
        ("", "found ''"),
        ("belady", "belady knows the future"),
        ("lru:3", "expected no settings after lru, found 1"),
        ("lfu:1:2", "expected half-life after lfu, found 2"),
        ("lfu:0", "expected a half-life above 0.*found '0'"),
        ("lfu:-1", "found '-1'"),
        ("lfu:nan", "found 'nan'"),
        ("lfu:inf", "found 'inf'"),
        ("lfu:", "found ''"),
        ("lruf:8:many", "expected a weight above 0.*found 'many'"),
    ],
)
def test_what_is_no_policy_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_policy(name, 4, 8)


def test_every_policy_says_what_it_is() -> None:
    assert all(kind.summary for kind in KINDS.values())
    assert POLICIES == ("lru", "lfu", "lruf")
