"""The expert cache as a state machine: never over its slots, contents always right, nothing leaves while pinned.

The same machine holds the pager in C to the cache in Python, step by step.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgemoe.errors import KernelError, ReadError
from edgemoe.experts.cache import ExpertCache
from edgemoe.experts.policy import POLICIES, make_policy
from edgemoe.kernels.paging import DECODE, PROMPT
from tests.support.examples import examples
from tests.support.paired_caches import FakeFiles, FakeTable, PairedCaches, await_wave
from tests.support.slow_reader import SteppedReader

LAYERS, EXPERTS, RECORD_BYTES = 3, 6, 8
experts_of_a_layer = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True)


def make_cache(slots: int, policy: str = "lru") -> tuple[ExpertCache, SteppedReader]:
    arena, disk = np.zeros((slots, RECORD_BYTES), np.uint8), make_disk()
    reader = SteppedReader(arena, disk, set())
    order = make_policy(policy, slots, LAYERS * EXPERTS)
    table = FakeTable(EXPERTS, RECORD_BYTES)
    return ExpertCache(arena, [EXPERTS] * LAYERS, table, FakeFiles(), reader, order), reader


def make_disk() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 255, LAYERS * EXPERTS * RECORD_BYTES).astype(np.uint8)


class CacheMachine(RuleBasedStateMachine):
    """Drives the cache in Python and the pager in C; after each step they must be in the same state."""

    @initialize(slots=st.integers(1, LAYERS * EXPERTS + 2), policy=st.sampled_from(POLICIES))
    def start(self, slots: int, policy: str) -> None:
        self.slots, self.disk = slots, make_disk()
        self.both = PairedCaches(slots, LAYERS, EXPERTS, self.disk, policy)

    def use(self, layer: int, wave: dict[int, int]) -> None:
        """Do as kernels do with a wave: wait for the pending reads, then read the slots."""
        self.both.await_wave(wave)
        for expert, slot in wave.items():
            assert np.array_equal(self.both.arenas[0][slot], self.contents(layer, expert))

    def contents(self, layer: int, expert: int) -> np.ndarray:
        offset = (layer * EXPERTS + expert) * RECORD_BYTES
        return self.disk[offset : offset + RECORD_BYTES]

    @rule(layer=st.integers(0, LAYERS - 1), experts=experts_of_a_layer, scan=st.booleans(), data=st.data())
    def stream(self, layer: int, experts: list[int], scan: bool, data: st.DataObject) -> None:
        self.both.choose = lambda tickets: data.draw(st.lists(st.sampled_from(tickets), unique=True)) if tickets else []
        failing = {layer * EXPERTS + expert for expert in experts} & {o // RECORD_BYTES for o in self.both.failing}
        seen: list[int] = []
        try:
            for wave in self.both.stream(layer, experts, scan):
                assert len(set(wave.values())) == len(wave)
                self.both.finish_some()
                self.use(layer, wave)
                seen += wave
            assert sorted(seen) == sorted(experts)
        except ReadError as error:
            assert failing, "a read failed that should not have"
            assert f"Layer {layer}, expert" in str(error)

    @rule(layer=st.integers(0, LAYERS - 1), experts=experts_of_a_layer)
    def prefetch(self, layer: int, experts: list[int]) -> None:
        self.both.prefetch(layer, experts)

    @rule(layer=st.integers(0, LAYERS - 1), experts=experts_of_a_layer)
    def warm(self, layer: int, experts: list[int]) -> None:
        self.both.warm([(layer, expert) for expert in experts])

    @rule(layer=st.integers(0, LAYERS - 1), expert=st.integers(0, EXPERTS - 1))
    def give_up(self, layer: int, expert: int) -> None:
        """Nothing is in use, so whatever is in a slot and not being read leaves it."""
        slot = int(self.both.python.residency[layer, expert])
        loading = slot >= 0 and bool(self.both.python.tickets[slot] >= 0)
        self.both.give_up(layer, expert)
        assert (self.both.python.residency[layer, expert] >= 0) == loading

    @rule(layer=st.integers(0, LAYERS - 1), experts=experts_of_a_layer, taken=st.integers(0, 2))
    def abandon(self, layer: int, experts: list[int], taken: int) -> None:
        waves = self.both.stream(layer, experts)
        try:
            for number in range(taken):
                wave = next(waves, None)
                if wave is not None and number + 1 < taken:
                    self.use(layer, wave)
        except ReadError:
            pass
        waves.close()

    @rule()
    def disk_makes_progress(self) -> None:
        self.both.choose = lambda tickets: tickets
        self.both.finish_some()

    @rule(layer=st.integers(0, LAYERS - 1), expert=st.integers(0, EXPERTS - 1))
    def disk_breaks(self, layer: int, expert: int) -> None:
        self.both.failing.add((layer * EXPERTS + expert) * RECORD_BYTES)

    @precondition(lambda self: self.both.failing)
    @rule()
    def disk_is_mended(self) -> None:
        self.both.failing.clear()

    @invariant()
    def within_bounds(self) -> None:
        present = int((self.both.python.residency >= 0).sum())
        assert present <= self.slots
        assert self.both.readers[0].outstanding() <= present
        self.both.compare()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=examples(120), stateful_step_count=25, deadline=None)


def run(cache: ExpertCache, layer: int, *experts: int) -> None:
    """Use experts as one generated token does."""
    cache.phase = DECODE
    cache.fetch(layer, np.array([experts], np.int32))
    assert sorted(expert for expert, _ in cache.landings(layer)) == sorted(experts)


def holds(cache: ExpertCache, layer: int, expert: int) -> bool:
    return bool(cache.residency[layer, expert] >= 0)


def test_hits_and_misses_follow_least_recent_use() -> None:
    cache, _ = make_cache(slots=2)
    for expert in (0, 1, 0, 2, 1):  # 2 evicts 1, since 0 was used later
        run(cache, 0, expert)
    assert (cache.statistics.hits, cache.statistics.misses) == (1, 4)
    assert [holds(cache, 0, expert) for expert in range(3)] == [False, True, True]


def test_a_predicted_expert_is_useful_and_named() -> None:
    cache, reader = make_cache(slots=4)
    cache.prefetch(1, [2, 3])
    reader.choose = lambda tickets: tickets
    reader.finish_some()
    run(cache, 1, 2, 5)
    statistics = cache.statistics
    assert (statistics.prefetched_reads, statistics.useful_prefetches, statistics.hits) == (2, 1, 1)
    assert (statistics.guessed_uses, statistics.guessable_uses) == (1, 2)


def test_a_warm_start_reads_the_hottest_first_and_is_no_prediction() -> None:
    cache, reader = make_cache(slots=3)
    hot = [(1, 4), (0, 2), (0, 3), (1, 1)]
    cache.warm(hot)
    order: list[int] = []
    reader.choose = lambda tickets: order.extend(tickets) or tickets
    reader.finish_some()
    assert order == sorted(order)
    assert [cache.loaded(*key) for key in hot] == [True, True, True, False]
    run(cache, 1, 4)
    statistics = cache.statistics
    assert (statistics.hits, statistics.misses, statistics.prefetched_reads, statistics.late_prefetches) == (1, 0, 0, 0)
    assert (statistics.warm_bytes, statistics.read_bytes) == (3 * RECORD_BYTES, 0)
    run(cache, 1, 5)  # the coldest leaves
    assert [holds(cache, *key) for key in hot] == [True, True, False, False]


def test_a_warm_start_makes_way_for_what_is_wanted() -> None:
    cache, _ = make_cache(slots=3)
    cache.warm([(0, 2), (1, 4), (0, 3)])
    run(cache, 0, 0, 2)  # of the three reads only the second one can still be cancelled
    assert [holds(cache, *key) for key in ((0, 0), (0, 2), (1, 4), (0, 3))] == [True, True, False, True]
    statistics = cache.statistics
    assert (statistics.misses, statistics.late_prefetches) == (2, 0)
    assert (statistics.warm_bytes, statistics.demand_bytes) == (2 * RECORD_BYTES, RECORD_BYTES)


def test_a_warm_read_that_fails_is_no_error_until_its_expert_is_wanted() -> None:
    cache, reader = make_cache(slots=3)
    reader.failing.add(2 * RECORD_BYTES)
    cache.warm([(0, 2), (0, 3)])
    reader.choose = lambda tickets: tickets
    reader.finish_some()
    run(cache, 0, 3, 4)
    with pytest.raises(ReadError, match="Layer 0, expert 2"):
        run(cache, 0, 2)
    reader.failing.clear()
    run(cache, 0, 2)


def test_a_wrong_guess_that_has_not_begun_is_not_read() -> None:
    cache, reader = make_cache(slots=4)
    cache.prefetch(1, [0, 2])
    prefetched = cache.statistics.prefetched_bytes
    run(cache, 1, 3)
    # one of the two tickets could still be cancelled
    assert sum(holds(cache, 1, expert) for expert in (0, 2)) == 1
    assert cache.statistics.prefetched_bytes == prefetched - RECORD_BYTES
    assert cache.statistics.prefetched_reads == 1
    assert holds(cache, 1, 3)
    assert reader.outstanding() == 1


def test_a_prompt_takes_experts_by_number_and_a_token_in_the_order_of_its_router() -> None:
    cache, _ = make_cache(slots=6)
    chosen = np.array([[4, 1], [0, 4]], np.int32)
    for phase, order in ((PROMPT, [0, 1, 4]), (DECODE, [4, 1, 0])):
        cache.phase = phase
        layer = phase
        cache.fetch(layer, chosen)
        assert [expert for expert, _ in cache.landings(layer)] == order
        slots = [int(cache.residency[layer, expert]) for expert in order]
        assert slots == sorted(slots)


def test_only_a_prompt_that_uses_more_than_fits_is_a_scan() -> None:
    for phase, stays in ((PROMPT, [True, False]), (DECODE, [False, True])):
        cache, _ = make_cache(slots=4)
        run(cache, 0, 0, 1)
        cache.phase = phase
        for first in (0, 2):  # two experts in each of three layers are more than four
            cache.fetch(1, np.array([[first, first + 1]], np.int32))
            list(cache.landings(1))
        assert [holds(cache, 0, 0), holds(cache, 1, 0)] == stays


def test_an_interrupted_use_pins_nothing_once_the_next_one_begins() -> None:
    cache, _ = make_cache(slots=2)
    cache.fetch(0, np.array([[0, 1]], np.int32))
    run(cache, 1, 3, 4)
    assert holds(cache, 1, 4)
    with pytest.raises(KernelError, match="Layer 0: its experts were not fetched"):
        next(cache.landings(0))


def test_a_guess_pushes_out_nothing_that_it_names() -> None:
    cache, _ = make_cache(slots=2)
    run(cache, 1, 4, 5)
    run(cache, 1, 5)
    cache.prefetch(1, [4, 3])
    assert holds(cache, 1, 4)
    assert holds(cache, 1, 3)


def test_all_at_once_where_there_are_slots_enough_and_by_halves_where_not() -> None:
    cache, reader = make_cache(slots=4)
    for layer, experts, sizes in ((0, [0, 1, 2, 3], [4]), (1, [0, 1, 2, 3, 4, 5], [2, 4])):
        for wave in cache.stream(layer, experts):
            assert len(wave) == sizes.pop(0)
            assert await_wave(cache, reader, wave) is None
        assert not sizes


def test_what_kernels_await_is_not_awaited_before() -> None:
    cache, reader = make_cache(slots=4)
    for wave in cache.stream(0, [0, 1]):
        assert reader.outstanding() == 2
        assert await_wave(cache, reader, wave) is None
    assert reader.outstanding() == 0
    assert cache.loaded(0, 0)
    assert cache.loaded(0, 1)


def test_a_read_that_kernels_await_in_vain_is_named() -> None:
    cache, reader = make_cache(slots=4)
    reader.failing.add((1 * EXPERTS + 4) * RECORD_BYTES)
    waves = cache.stream(1, [3, 4])
    wave = next(waves)
    failed = await_wave(cache, reader, wave)
    assert failed is not None
    error = cache.failure(wave, failed)
    assert "Layer 1, expert 4: the disk said no" in str(error)
    waves.close()
    assert not holds(cache, 1, 4)
    waves = cache.stream(1, [5])
    wave = next(waves)
    assert "Layer 1, expert 5: its read did not end within 60 s" in str(cache.failure(wave, ReadError("too long")))
    waves.close()
    assert holds(cache, 1, 5)  # the read may yet write to its slot


def test_a_failed_read_names_layer_and_expert_and_leaves_the_cache_usable() -> None:
    cache, reader = make_cache(slots=2)
    reader.failing.add((1 * EXPERTS + 4) * RECORD_BYTES)
    with pytest.raises(ReadError, match="Layer 1, expert 4: the disk said no"):
        run(cache, 1, 3, 4)
    reader.failing.clear()
    run(cache, 1, 3, 4)
    assert cache.loaded(1, 4)


def test_a_stalled_read_keeps_its_slot_until_it_has_ended() -> None:
    cache, reader = make_cache(slots=2)
    wait = reader.wait

    def stalled_wait(ticket: int, timeout_seconds: float | None = None) -> None:
        if ticket == 1:
            raise ReadError("not finished in time")
        wait(ticket, timeout_seconds)

    reader.wait = stalled_wait  # type: ignore[method-assign]
    with pytest.raises(ReadError, match="Layer 0, expert 0: its read did not end within 60 s"):
        run(cache, 0, 0)
    stalled = int(cache.residency[0, 0])
    for expert in range(1, EXPERTS):
        run(cache, 0, expert)
        assert cache.residency[0, expert] == 1 - stalled  # since the read may yet write to its own slot
    reader.finish_some()
    reader.wait = wait  # type: ignore[method-assign]
    run(cache, 0, 0)
    assert cache.statistics.demand_bytes == EXPERTS * RECORD_BYTES  # it was not read again


@pytest.mark.parametrize("steps", [50, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["lru", "lfu", "lfu:0.25", "lruf", "lruf:1:20"])
def test_the_pager_in_c_takes_every_decision_of_the_cache_in_python(policy: str, steps: int) -> None:
    """Long random ways with skewed uses: the same slots, reads and counts after each step, so the same victims."""
    layers, experts, used, slots = 4, 24, 4, 30
    random = np.random.default_rng(len(policy))
    both = PairedCaches(slots, layers, experts, random.integers(0, 255, layers * experts * 8).astype(np.uint8), policy)
    both.choose = lambda tickets: [ticket for ticket in tickets if random.random() < 0.6]
    skew = 1 / np.arange(1, experts + 1)

    def some(count: int) -> list[int]:
        return random.choice(experts, count, replace=False, p=skew / skew.sum()).tolist()

    both.warm([(layer, expert) for layer in range(layers) for expert in some(6)])
    for step in range(steps):
        for layer in range(layers):
            scan = step % 17 == 0
            if step % 3 == 0 and layer + 1 < layers:
                both.prefetch(layer + 1, some(used))
            for wave in both.stream(layer, sorted(some(16)) if scan else some(used), scan):
                both.finish_some()
                both.await_wave(wave)
    statistics = both.native.statistics
    assert min(statistics.hits, statistics.misses) > 3 * steps
    assert statistics.late_prefetches > steps / 15
    assert statistics.useful_prefetches > statistics.late_prefetches
