"""Copies of state on a device: when they are made anew, and what of the device's budget they take."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as st
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.runtime import Place
from tests.support.failing_device import FailingDevice

TOKENS, HEADS, WIDTH, PAGES = 2, 1, 32, 3
PAGE_BYTES = 4 * HEADS * op.PAGE_TOKENS * WIDTH


class Watched(FailingDevice):
    """A device that never fails, and notes the sizes of what is copied to it."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.adopts = False
        self.sizes: list[int] = []

    def adopt(self, host: op.Bytes) -> op.Bytes | None:
        """Return a copy, as drivers may."""
        return host.copy() if self.adopts else None

    def upload(self, to: Place, host: op.Bytes) -> None:
        self.sizes.append(host.size)

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
