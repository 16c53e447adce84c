"""The staging area: two buffers on the device through which weights of experts pass, one filled as the other is used.

It lies in what the budget leaves once programs have their weights and mirrors. So it is made when the first chunk is
streamed, and is as large as the largest layer's experts twice, or as there is room for.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.device.memory import DeviceMemory
from edgemoe.kernels.device.runtime import Block, DeviceError, Place, Runtime

LONGEST_WAIT_SECONDS = 60.0
_PAUSE_SECONDS = 1e-4


class Half:
    """One of the two buffers, and the experts of a layer that are in it, or on their way."""

    def __init__(self, block: Block, size: int) -> None:
        self.block, self.bytes = block, size
        self.owner: Any = None
        """The layer whose experts these are."""
        self.experts: op.Integers = np.zeros(0, np.int32)
        """Their numbers, in the order in which they lie there."""
        self._copies: list[Any] = []
        """Copies under way."""

    def fill(self, memory: DeviceMemory, owner: Any, experts: op.Integers, slots: op.Integers, arena: op.Bytes) -> None:
        """Copy records from slots of the host's arena, beside what runs; nothing may read the buffer any more."""
        self.owner, runtime = None, memory.runtime  # of nobody, should a copy fail
        for number, slot in enumerate(slots.tolist()):
            place, began = Place(self.block, number * arena.shape[1]), time.monotonic()
            while (begun := runtime.upload_beside(place, arena[slot])) is None:
                self._under_way(runtime)
                _pause(runtime, began)
            self._copies.append(begun)
        self.owner, self.experts = owner, experts

    def wait(self, memory: DeviceMemory) -> None:
        """Return once all has been copied."""
        began = time.monotonic()
        while self._under_way(memory.runtime):
            _pause(memory.runtime, began)

    def _under_way(self, runtime: Runtime) -> bool:
        """Forget the copies that have arrived, and return whether there are others."""
        self._copies = [one for one in self._copies if not runtime.arrived(one)]
        return bool(self._copies)


def _pause(runtime: Runtime, began: float) -> None:
    """Wait a little. Raises DeviceError if that has gone on for too long."""
    waited = time.monotonic() - began
    if waited > LONGEST_WAIT_SECONDS:
        raise DeviceError(f"The device {runtime.name} has not copied for {waited:.0f} s.", "Go without it.")
    time.sleep(_PAUSE_SECONDS)


class Staging:
    """The two buffers."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._halves: tuple[Half, Half] | None = None
        self.wanted_bytes = 0
        """The bytes of the experts of the layer that has most."""
        self.least_bytes = 0
        """The bytes of the largest expert."""

    def want(self, experts: int, slot_bytes: int) -> None:
        """Note a layer of so many experts, before there are buffers."""
        self.wanted_bytes = max(self.wanted_bytes, experts * slot_bytes)
        self.least_bytes = max(self.least_bytes, slot_bytes)

    def halves(self) -> tuple[Half, Half] | None:
        """Return the buffers; None where each would not have room for an expert of any layer.

        Raises DeviceMemoryError where the device has less memory than its budget.
        """
        if self._halves is None:
            size = half_bytes(self.wanted_bytes, self.least_bytes, self._memory.left_bytes)
            if not size:
                return None
            first, second = (self._memory.block(size) for _ in range(2))
            self._halves = Half(first, size), Half(second, size)
        elif any(half.bytes < self.least_bytes for half in self._halves):
            return None
        return self._halves


def half_bytes(wanted_bytes: int, least_bytes: int, left_bytes: int) -> int:
    """Return the size of each buffer in what is left of a budget, half of which is for device slots.

    It is 0 where that is no room for one expert each.
    """
    size = min(wanted_bytes, left_bytes // 4)
    return size if size >= least_bytes else 0
