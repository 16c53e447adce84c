"""Copies of state on a device: when they are made anew, and what of the device's budget they take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as st
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.device_slots import UPLOADS, DeviceSlots
from edgemoe.kernels.device.runtime import Place
from edgemoe.kernels.native.backend import NativeBackend
from tests.kernels.builders import aligned, aligned_copy, numbers, random_ffn
from tests.kernels.test_products import pack_experts
from tests.support.failing_device import FailingDevice

TOKENS, HEADS, WIDTH, PAGES = 2, 1, 32, 3
PAGE_BYTES = 4 * HEADS * op.PAGE_TOKENS * WIDTH


class Watched(FailingDevice):
    """A device that never fails, and notes the sizes of what is copied to it."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.adopts = False
        self.arrives = True
        self.sizes: list[int] = []

    def adopt(self, host: op.Bytes) -> op.Bytes | None:
        """Return a copy, as drivers may."""
        return host.copy() if self.adopts else None

    def upload(self, to: Place, host: op.Bytes) -> None:
        self.sizes.append(host.size)

    def arrived(self, copy: object) -> bool:
        return self.arrives

    def pages(self) -> int:
        """Return how many pages have been copied since it was asked last."""
        found, self.sizes = self.sizes.count(PAGE_BYTES), []
        return found


def storing() -> st.StoreKv:
    """Return an operation that writes keys and values to the second of three pages."""
    keys, values = np.ones((2, TOKENS, HEADS * WIDTH), np.float32)
    key_cache, value_cache = np.zeros((2, PAGES, HEADS, op.PAGE_TOKENS, WIDTH), np.float32)
    positions, sequences = np.arange(TOKENS, dtype=np.int32), np.zeros(TOKENS, np.int32)
    return st.StoreKv(keys, values, positions, sequences, np.array([[1]], np.int32), key_cache, value_cache)


@pytest.fixture
def runtime() -> Watched:
    return Watched()


@pytest.mark.parametrize("adopts", [False, True])
def test_a_page_is_copied_when_it_is_used_first_or_has_changed(runtime: Watched, adopts: bool) -> None:
    runtime.adopts = adopts
    operation, device = storing(), DeviceBackend(runtime, 1)
    program = device.program([operation])
    (segment,) = device.segments
    program.run(TOKENS)
    assert runtime.pages() == 2  # of keys, and of values
    program.run(TOKENS)
    assert runtime.pages() == 0
    assert isinstance(operation.key_cache, np.ndarray)
    device.forget_copies([operation.key_cache[1]])
    device.forget_copies([operation.key_cache[0]])
    program.run(TOKENS)
    assert runtime.pages() == 1
    segment.on = False
    program.run(TOKENS)
    segment.on = True
    assert runtime.pages() == 0
    program.run(TOKENS)
    assert runtime.pages() == 2
    device.close()


def test_a_program_of_the_processor_makes_copies_old(runtime: Watched) -> None:
    operation, device = storing(), DeviceBackend(runtime, 1)
    on_device = device.program([operation])
    device.memory.most_bytes = 0  # no room for any other
    on_processor = device.program([operation])
    assert len(device.segments) == 1
    for program, copied in ((on_device, 2), (on_processor, 0), (on_device, 2)):
        program.run(TOKENS)
        assert runtime.pages() == copied
    device.close()


def test_mirrors_take_of_the_budget_as_long_as_a_program_has_them(runtime: Watched) -> None:
    operation, device = storing(), DeviceBackend(runtime, 1)
    program, memory = device.program([operation]), device.memory
    mirrors = 2 * PAGES * PAGE_BYTES
    assert memory.used_bytes == memory.shared_bytes + mirrors + operation.pages.nbytes
    all_of_it = memory.used_bytes
    del program
    assert memory.used_bytes == memory.shared_bytes
    for most_bytes, found in ((all_of_it, 1), (all_of_it - 1, 0)):
        memory.most_bytes = most_bytes
        program = device.program([operation])
        assert len(device.segments) == found
        assert memory.used_bytes <= most_bytes
        assert device.planned_use([[operation]], 1 << 20).on_device <= found
        del program
    memory.most_bytes = None
    assert device.planned_use([[operation]], 1 << 20).state_bytes == mirrors
    device.close()


EXPERTS = 40


class Sharing:
    """Experts, two for each token, of which a device has room for some: results that it gives are zeros."""

    def __init__(self, runtime: Watched) -> None:
        random = np.random.default_rng(8)
        slots = aligned_copy(random.permutation(EXPERTS).astype(np.int32))
        arena, layouts = pack_experts([random_ffn("q4", 64, 64, random) for _ in range(EXPERTS)], slots)
        self.chosen, self.output = aligned((1, 2), np.int32), aligned((1, 2, 64), np.float32)
        given = numbers("normal", (1, 64), random), self.chosen, slots, arena
        operation = ex.Experts(*given, *layouts, self.output)
        self.native, self.device = NativeBackend(1), DeviceBackend(runtime, 1, most_bytes=arena.nbytes - 1)
        self._alone, self.program = (one.program([operation]) for one in (self.native, self.device))
        assert isinstance(self.device.tier, DeviceSlots)
        self.tier = self.device.tier
        self.tier.share = 1.0

    def run(self, *chosen: int) -> list[bool]:
        """Return of each of two experts whether the device computed it; whatever it did not is as it must be."""
        self.chosen[:] = chosen
        self._alone.run(1)
        wanted = self.output.copy()
        self.program.run(1)
        assert self.device.memory.used_bytes <= (self.device.memory.most_bytes or 0)
        here = (self.output == 0).all(axis=2)
        assert (self.output[~here] == wanted[~here]).all()
        return here[0].tolist()

    def held(self) -> set[int]:
        """Return the experts in device slots."""
        return set(np.flatnonzero(self.tier.holds((1, EXPERTS))[0]).tolist())


@pytest.fixture
def sharing(runtime: Watched) -> Iterator[Sharing]:
    made = Sharing(runtime)
    yield made
    made.device.close()
    made.native.close()


def test_an_expert_is_on_the_device_after_it_was_used(sharing: Sharing) -> None:
    assert sharing.run(3, 5) == [False, False]
    assert sharing.run(5, 4) == [True, False]
    assert sharing.tier.uploads == 2 * UPLOADS - 1
    assert sharing.run(-1, 4) == [False, True]
    sharing.tier.share = 0.5
    assert sharing.run(3, 4) == [True, False]
    sharing.tier.share = 0.0
    assert sharing.run(3, 4) == [False, False]
    assert sharing.tier.hits == 3


def test_times_of_experts_are_those_of_both_places(sharing: Sharing) -> None:
    sharing.run(3, 5)
    assert not sharing.program.times().elapsed_ns
    sharing.program.time_runs(True)
    sharing.run(3, 5)
    times = sharing.program.times()
    assert 0 < times.operations_ns.sum() <= times.elapsed_ns
    sharing.program.time_runs(False)
    sharing.run(3, 5)
    assert not sharing.program.times().elapsed_ns


def test_the_coldest_expert_leaves_for_one_that_is_hotter(sharing: Sharing) -> None:
    for expert in range(0, EXPERTS, 2):
        sharing.run(expert, expert + 1)
    sharing.run(0, 1)
    count, held = sharing.tier.count, sharing.held()
    assert UPLOADS < count < EXPERTS
    assert held == set(range(count))  # one use of another is not enough
    new = count
    assert sharing.run(new, 0) == [False, True]
    assert sharing.run(new, 0) == [True, True]
    assert len(held & sharing.held()) == count - 1
    assert {0, new} < sharing.held()


def test_copies_that_never_end_are_not_used(sharing: Sharing, runtime: Watched) -> None:
    runtime.arrives = False
    for expert in [*range(EXPERTS), *range(EXPERTS)]:
        assert sharing.run(expert, (expert + 7) % EXPERTS) == [False, False]
    assert sharing.tier.uploads == sharing.tier.count
    assert not sharing.held()
    runtime.arrives = True
    assert sum(sharing.run(0, 1)) > 0


@pytest.mark.slow
def test_a_device_that_fails_at_any_call_leaves_experts_to_the_processor() -> None:
    ends = set()
    for calls in range(0, 200, 9):
        runtime = Watched()
        sharing = Sharing(runtime)
        runtime.left = calls
        here = [sharing.run(*pair) for pair in [(3, 5), (5, 4), (3, 4)]]
        ends.add(sharing.device.failure is None)
        if sharing.device.failure is not None:
            assert sharing.run(3, 5) == [False, False]
            assert runtime.failures == 1
        else:
            assert here[2] == [True, True]
        sharing.device.close()
        sharing.native.close()
    assert ends == {False, True}
