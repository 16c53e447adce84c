"""Whether reading ahead goes on follows from the times of tokens, by trial."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from edgemoe.errors import UsageError
from edgemoe.experts.device_trial import HALF, DeviceTrial
from edgemoe.experts.prefetch import (
    BLOCK_TOKENS,
    HOLD_TOKENS,
    TRIAL_BLOCKS,
    WARM_UP_TOKENS,
    PrefetchTrial,
    record_in_turn,
)
from tests.support.every_case import every_case

TRIAL_TOKENS = BLOCK_TOKENS * TRIAL_BLOCKS


def opened(switch: PrefetchTrial, tokens: int, with_ns: int, without_ns: int) -> list[bool]:
    """Whether the switch was open for each of some tokens, which take so long with prefetched reads and without."""
    found = []
    for _ in range(tokens):
        found.append(switch.open)
        switch.record(with_ns if switch.open else without_ns)
    return found


@every_case(("with_ns", "pays"), [(90, True), (98, True), (100, False), (130, False)])
def test_what_is_faster_is_kept(with_ns: int, pays: bool) -> None:
    switch = PrefetchTrial()
    assert not any(opened(switch, WARM_UP_TOKENS, with_ns, 100))
    trial = opened(switch, TRIAL_TOKENS, with_ns, 100)
    assert sum(trial) == TRIAL_TOKENS // 2
    assert trial[:BLOCK_TOKENS] == [False] * BLOCK_TOKENS
    assert trial[BLOCK_TOKENS : 2 * BLOCK_TOKENS] == [True] * BLOCK_TOKENS
    assert switch.verdict == pays
    assert set(opened(switch, HOLD_TOKENS[0], with_ns, 100)) == {pays}


def test_a_few_slow_tokens_decide_nothing() -> None:
    switch = PrefetchTrial()
    opened(switch, WARM_UP_TOKENS, 90, 100)
    for number in range(TRIAL_TOKENS):
        slow = number % 9 == 0
        switch.record(100_000 if slow else 90 if switch.open else 100)
    assert switch.verdict


def share_of_trials_that_open(with_ns: float, scatter: float) -> float:
    """Where tokens take 100 ns without prefetched reads, and each time scatters by that share."""
    generator, found = random.Random(1), []
    for _ in range(400):
        switch = PrefetchTrial()
        for _ in range(WARM_UP_TOKENS + TRIAL_TOKENS):
            switch.record(round(1e6 * (with_ns if switch.open else 100) * generator.gauss(1, scatter)))
        found.append(switch.verdict)
    return sum(found) / len(found)


def test_what_cannot_be_told_apart_is_not_kept() -> None:
    assert share_of_trials_that_open(with_ns=110, scatter=0.25) < 0.05
    assert share_of_trials_that_open(with_ns=100, scatter=0.25) < 0.25
    assert share_of_trials_that_open(with_ns=95, scatter=0.05) > 0.9
    assert share_of_trials_that_open(with_ns=70, scatter=0.25) > 0.9


def test_trials_come_again_and_more_rarely() -> None:
    switch = PrefetchTrial()
    opened(switch, WARM_UP_TOKENS, 130, 100)
    tokens_open = []
    for _ in range(12):
        opened(switch, TRIAL_TOKENS, 130, 100)
        held = 0
        while switch._trial is None:
            assert not switch.open
            switch.record(100)
            held += 1
        tokens_open.append(held)
    assert tokens_open[0] >= HOLD_TOKENS[0]
    assert tokens_open == sorted(tokens_open)
    assert tokens_open[-1] == HOLD_TOKENS[1]
    # what trials cost where prefetch makes tokens 30 % slower
    assert TRIAL_TOKENS / 2 * 30 / (HOLD_TOKENS[0] * 100) < 0.03
    opened(switch, TRIAL_TOKENS, 50, 100)
    assert switch.verdict
    assert len(set(opened(switch, HOLD_TOKENS[0], 50, 100))) == 1


def test_modes() -> None:
    for mode, always in (("on", True), ("off", False)):
        switch = PrefetchTrial(mode)
        assert set(opened(switch, 500, 10, 100)) == {always}
    with pytest.raises(UsageError, match="auto, on, off"):
        PrefetchTrial("sometimes")


@every_case(("half_ns", "all_ns", "share"), [(90, 80, 1.0), (80, 90, HALF), (110, 120, 0.0), (105, 80, 1.0)])
def test_device_slots_are_used_as_far_as_they_pay(half_ns: int, all_ns: int, share: float) -> None:
    """With all of them first, then with half; never while prefetch is tried, which is as fast either way."""
    trial, tier, prefetch = DeviceTrial(), SimpleNamespace(share=0.0, fills=False), PrefetchTrial()
    took_ns, filled, seen = {0.0: 100, HALF: half_ns, 1.0: all_ns}, [], set()
    for _ in range(WARM_UP_TOKENS + 6 * TRIAL_TOKENS):
        trial.set(tier)  # type: ignore[arg-type]
        filled.append(tier.fills)
        seen.add((tier.share, prefetch.open))
        assert trial.use.trying + trial.all.trying + prefetch.trying <= 1
        record_in_turn([prefetch, *trial.trials()], took_ns[tier.share])
    assert all(filled[: WARM_UP_TOKENS + 2 * TRIAL_TOKENS])
    assert tier.share == share
    assert filled[-1] == (share > 0)
    assert {(0.0, True), (0.0, False), (1.0, False)} <= seen
