"""The memory of a device: weights, copies of what the host keeps of sequences, and the activations of a segment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from edgemoe.kernels.device.runtime import Block, Place, Runtime
from edgemoe.kernels.operations import Bytes, Integers


class Resident:
    """An array on the device, and that of the host, whose memory so is no other array's."""

    def __init__(self, block: Block, shared: bool, host: Any) -> None:
        self.block = block
        self.host = host
        self.bytes: Bytes = host.reshape(-1).view(np.uint8)
        self.shared = shared
        """Whether the two are one memory."""
        self._is_copied = shared

    def copy(self, runtime: Runtime) -> None:
        """Copy it to the device, where that has not been done."""
        if not self._is_copied:
            runtime.upload(Place(self.block, 0), self.bytes)
            self._is_copied = True


class Mirror(Resident):
    """A copy of an array of units, such as pages: one is copied to the device when it is used first, or has changed."""

    def __init__(self, block: Block, shared: bool, host: Any) -> None:
        super().__init__(block, shared, host)
        self.unit_bytes = host.nbytes // host.shape[0]
        self._current = np.full(host.shape[0], shared)

    def bring(self, runtime: Runtime, units: Integers) -> None:
        """Copy to the device those of these units that are not as on the host."""
        for unit in units[~self._current[units]].tolist():
            begin = unit * self.unit_bytes
            runtime.upload(Place(self.block, begin), self.bytes[begin : begin + self.unit_bytes])
            self._current[unit] = True

    def take(self, runtime: Runtime, units: Integers) -> list[tuple[Bytes, Bytes]]:
        """Return memory of the host and what units of the device are to be written there."""
        if self.shared:
            return []
        size = self.unit_bytes
        begins = [unit * size for unit in units.tolist()]
        return [(self.bytes[at : at + size], runtime.download(Place(self.block, at), size)) for at in begins]

    def forget(self, begin: int, end: int) -> None:
        """Take the units that have bytes from `begin` to `end` for changed."""
        if not self.shared:
            self._current[max(0, begin) // self.unit_bytes : -(-end // self.unit_bytes)] = False


class DeviceMemory:
    """Weights and mirrors, and one block for the activations of whichever segment runs."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.shared = Block(None)
        self._shared_bytes = 0
        self._resident: WeakValueDictionary[tuple[int, int], Resident] = WeakValueDictionary()
        self._mirrors: WeakValueDictionary[tuple[int, int], Mirror] = WeakValueDictionary()

    def resident(self, array: Any) -> Resident:
        """Return an array that has a place on the device. It is copied there by whoever runs first: when programs are
        made, weights may not have been read.
        """
        key = (address_of(array), array.nbytes)
        found = self._resident.get(key)
        if found is None:
            block, shared = self._block(array)
            found = self._resident[key] = Resident(block, shared, array)
        return found

    def mirror(self, array: Any, repeatable: bool) -> Mirror:
        """Return the mirror of an array, which all programs share, and of which no unit is copied yet if it is new.

        It is memory of its own unless a run that has failed can be repeated on what it left there.
        """
        key = (address_of(array), array.nbytes)
        found = self._mirrors.get(key)
        if found is None:
            found = self._mirrors[key] = Mirror(*self._block(array, repeatable), array)
        return found

    def _block(self, array: Any, may_share: bool = True) -> tuple[Block, bool]:
        """Return memory for an array, and whether it is that of the host."""
        buffer = self.runtime.adopt(array.reshape(-1).view(np.uint8)) if may_share else None
        return Block(self.runtime.allocate(array.nbytes) if buffer is None else buffer), buffer is not None

    def forget_copies(self, arrays: Iterable[Any]) -> None:
        """Take mirrored units for changed that have memory of some arrays."""
        for array in arrays:
            begin = address_of(array)
            for mirror in self._mirrors.values():
                start = address_of(mirror.host)
                if start < begin + array.nbytes and begin < start + mirror.host.nbytes:
                    mirror.forget(begin - start, begin - start + array.nbytes)

    def reserve(self, size: int) -> None:
        """Make the block for activations at least so large."""
        if size > self._shared_bytes:
            self.shared.buffer = None  # free the old one before there is a new one
            self.shared.buffer = self.runtime.allocate(size)
            self._shared_bytes = size


def address_of(array: Any) -> int:
    """Return the address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address
