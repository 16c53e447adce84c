"""The staging area: two buffers on the device through which weights of experts pass, one filled as the other is used.

It lies in what the budget leaves once programs have their weights and mirrors. So it is made when the first chunk is
streamed, and is as large as the largest layer's experts twice, or as there is room for.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.device.memory import DeviceMemory
from edgemoe.kernels.device.runtime import Block, Mark, Place


class Half:
    """One of the two buffers, and the experts of a layer that are in it, or on their way."""

    def __init__(self, block: Block, size: int) -> None:
        self.block, self.bytes = block, size
        self.owner: Any = None
        """What knows the experts by their numbers: those of another one are others."""
        self.experts: op.Integers = np.zeros(0, np.int32)
        """In the order in which they lie there."""
        self._copied: Mark = None
        self._read: Mark = None

    def fill(self, memory: DeviceMemory, owner: Any, experts: op.Integers, slots: op.Integers, arena: op.Bytes) -> None:
        """Copy records from slots of the host's arena, beside what runs, once what reads the buffer has run."""
        begins = np.flatnonzero(np.diff(slots, prepend=-2) != 1)  # of runs of slots, which are copied as one
        copies = []
        for at, end in itertools.pairwise([*begins.tolist(), slots.size]):
            records = arena[slots[at] : slots[at] + end - at]
            copies.append((Place(self.block, at * arena.shape[1]), records.reshape(-1)))
        self._copied = memory.runtime.copy_beside(copies, self._read)
        self.owner, self.experts = owner, experts

    def use(self, memory: DeviceMemory) -> None:
        """Let what is launched from now on wait for the copies."""
        memory.runtime.wait_for(self._copied)

    def used(self, memory: DeviceMemory) -> None:
        """Note that what has been launched reads the buffer."""
        self._read = memory.runtime.mark()


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
    """Return the size of each buffer in what is left of a budget; 0 where that is no room for one expert each."""
    size = min(wanted_bytes, left_bytes // 2)
    return size if size >= least_bytes else 0
