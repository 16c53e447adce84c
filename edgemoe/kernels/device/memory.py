"""The memory of a device: weights, copies of what the host keeps of sequences, and the activations of a segment."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from edgemoe.kernels.device.runtime import Block, DeviceError, DeviceMemoryError, Place, Runtime
from edgemoe.kernels.operations import Bytes, Integers

Key = tuple[int, int]
"""The address and the bytes of an array."""

RUN_BYTES = 1 << 20
"""The most bytes of neighbouring units that are copied at once, unless one has more."""


class Resident:
    """An array on the device, and that of the host, whose memory so is no other array's."""

    may_share = True
    """Whether it may be the host's memory, where the device has that."""

    def __init__(self, host: Any) -> None:
        self.block = Block(None)
        self.host = host
        self.bytes: Bytes = host.reshape(-1).view(np.uint8)
        self.shared = False
        """Whether the two are one memory, and see at once what the other writes."""
        self._is_copied = False

    def copy(self, runtime: Runtime) -> None:
        """Copy it to the device, where that has not been done."""
        if not (self.shared or self._is_copied):
            runtime.upload(Place(self.block, 0), self.bytes)
            self._is_copied = True


class Mirror(Resident):
    """A copy of an array of units, such as pages: one is copied to the device when it is used first, or has changed."""

    def __init__(self, host: Any, repeatable: bool) -> None:
        """`repeatable`: whether a run that has failed can be repeated on what it left."""
        super().__init__(host)
        self.may_share = self.repeatable = repeatable
        self.unit_bytes = host.nbytes // host.shape[0]
        self._current = np.zeros(host.shape[0], bool)

    def bring(self, runtime: Runtime, units: Integers) -> None:
        """Copy to the device those of these units that are not as on the host, neighbours in one copy."""
        if self.shared:
            return
        missing = units[~self._current[units]]
        for begin, end in self._runs(missing):
            runtime.upload(Place(self.block, begin), self.bytes[begin:end])
        self._current[missing] = True

    def parts(self, units: Integers) -> Iterator[tuple[Bytes, tuple[Place, int]]]:
        """Yield memory of the host, and where on the device lies what is to be written there, of all these units."""
        for begin, end in () if self.shared else self._runs(units):
            yield self.bytes[begin:end], (Place(self.block, begin), end - begin)

    def _runs(self, units: Integers) -> Iterator[tuple[int, int]]:
        """Yield the begin and end of the bytes of units that are neighbours; of one, or of not many bytes."""
        if not units.size:
            return
        most = max(1, RUN_BYTES // self.unit_bytes)
        ordered = np.sort(units)
        for neighbours in np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1):
            first, end = int(neighbours[0]), int(neighbours[-1]) + 1
            for begin in range(first, end, most):
                yield begin * self.unit_bytes, min(begin + most, end) * self.unit_bytes

    def forget(self, begin: int, end: int) -> None:
        """Take the units that have bytes from `begin` to `end` for changed."""
        self._current[max(0, begin) // self.unit_bytes : -(-end // self.unit_bytes)] = False


class DeviceMemory:
    """Weights and mirrors, and one block for the activations of whichever segment runs."""

    def __init__(self, runtime: Runtime, most_bytes: int | None = None) -> None:
        """`most_bytes` is the budget: no more is ever taken. What the device shares with the host does not count."""
        self.runtime = runtime
        self.shared = Block(None)
        self.shared_bytes = 0
        self.most_bytes = most_bytes
        self.used_bytes = 0
        self._resident: WeakValueDictionary[Key, Resident] = WeakValueDictionary()
        self._mirrors: WeakValueDictionary[Key, Mirror] = WeakValueDictionary()

    def resident(self, array: Any) -> Resident:
        """Return an array that has a place on the device, once `make_room` has made one. It is copied there by whoever
        runs first: when programs are made, weights may not have been read.
        """
        key = key_of(array)
        found = self._resident.get(key)
        if found is None:
            found = self._resident[key] = Resident(array)
        return found

    def mirror(self, array: Any, repeatable: bool) -> Mirror:
        """Return the mirror of an array, which all programs share, and of which no unit is copied yet if it is new.

        It is memory of its own unless it is `repeatable`.
        """
        key = key_of(array)
        found = self._mirrors.get(key)
        if found is None:
            found = self._mirrors[key] = Mirror(array, repeatable)
        return found

    def keys(self) -> set[Key]:
        """Return the keys of all arrays that have memory on the device."""
        both = (*self._resident.items(), *self._mirrors.items())
        return {key for key, one in both if one.block.buffer is not None}

    def make_room(self, one: Resident) -> None:
        """Take memory for an array, unless it has some. Raises DeviceMemoryError if that passes the budget."""
        if one.block.buffer is not None:
            return
        buffer = self.runtime.adopt(one.bytes) if one.may_share else None
        one.shared = buffer is not None and self.runtime.coherent
        if buffer is None:
            self.take(one, one.bytes.nbytes)
        else:
            one.block.buffer = buffer

    def take(self, one: Resident, size: int) -> None:
        """Take bytes of the device for an object, as long as there is it. Raises DeviceMemoryError as `make_room`."""
        one.block.buffer = self._allocate(size)
        weakref.finalize(one, self._give_back, size)

    def keep(self, mirror: Mirror) -> None:
        """Have a mirror that its owner fills, as long as there is it."""
        self._mirrors[key_of(mirror.host)] = mirror

    def forget_copies(self, arrays: Iterable[Any]) -> None:
        """Take mirrored units for changed that have memory of some arrays."""
        for array in arrays:
            begin = address_of(array)
            for mirror in self._mirrors.values():
                start = address_of(mirror.host)
                if start < begin + array.nbytes and begin < start + mirror.host.nbytes:
                    mirror.forget(begin - start, begin - start + array.nbytes)

    def forget_mirrors(self, arrays: Iterable[Any]) -> None:
        """Take all of the mirrors of some arrays for changed."""
        for array in arrays:
            mirror = self._mirrors.get(key_of(array))
            if mirror is not None:
                mirror.forget(0, array.nbytes)

    def reserve(self, size: int) -> None:
        """Make the block for activations at least so large."""
        if size <= self.shared_bytes:
            return
        more = size - self.shared_bytes
        self._claim(more)
        self.shared.buffer = None  # free the old one before there is a new one
        try:
            self.shared.buffer = self.runtime.allocate(size)
        except DeviceMemoryError as error:
            self._give_back(more)
            if not self.shared_bytes:
                raise
            raise DeviceError(error.message, error.hint) from error  # segments that are bound have lost their block
        self.shared_bytes = size

    @property
    def left_bytes(self) -> int:
        """The bytes of the budget that nothing has taken; 0 without a budget."""
        return 0 if self.most_bytes is None else self.most_bytes - self.used_bytes

    def block(self, size: int) -> Block:
        """Return memory, which is freed when nobody refers to it. Raises DeviceMemoryError if it passes the budget."""
        block = Block(self._allocate(size))
        weakref.finalize(block, self._give_back, size)
        return block

    def _allocate(self, size: int) -> Any:
        """Return memory that counts in the budget until `_give_back`. Raises DeviceMemoryError if it passes that."""
        self._claim(size)
        try:
            return self.runtime.allocate(size)
        except DeviceError:
            self._give_back(size)
            raise

    def _claim(self, size: int) -> None:
        """Count bytes that are about to be taken. Raises DeviceMemoryError if they pass the budget."""
        if self.most_bytes is not None and self.used_bytes + size > self.most_bytes:
            raise DeviceMemoryError(f"The device {self.runtime.name} has no {size:,} bytes left of its budget.")
        self.used_bytes += size

    def _give_back(self, size: int) -> None:
        self.used_bytes -= size


def address_of(array: Any) -> int:
    """Return the address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address


def key_of(array: Any) -> Key:
    """Return the key of an array; of a placeholder, which has no address, what it is known by in its place."""
    address = address_of(array) if hasattr(array, "__array_interface__") else id(array)
    return address, array.nbytes
