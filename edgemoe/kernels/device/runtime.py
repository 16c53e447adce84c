"""The interface of a device: memory of its own, copies to and from it, and kernels that run one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Union

from edgemoe.errors import KernelError
from edgemoe.kernels.operations import Bytes


class DeviceError(KernelError):
    """A device that cannot be opened, or that failed: what it ran is run again by the processor."""


class DeviceMemoryError(DeviceError):
    """A device that has no memory left for what was asked of it, and goes on with what it has."""


@dataclass
class Block:
    """Memory of the device, of which a larger buffer may take the place: a `Place` in it stays what it is."""

    buffer: Any
    """An object that the runtime's `allocate` or `adopt` returned."""


class Place(NamedTuple):
    """Where an array begins on the device."""

    block: Block
    at: int


Argument = Union[Place, int, float, None]
"""An argument of a kernel; None in the place of a buffer that it will not touch."""


class Launch(NamedTuple):
    """A kernel with its arguments, to be run for a number of work-items for each token, or `once` for so many."""

    kernel: str
    arguments: tuple[Argument, ...]
    items: int
    once: bool = False


class Runtime(Protocol):
    """One device. All calls take effect in their order. Each may raise DeviceError."""

    name: str
    """The device as a person knows it."""
    unified: bool
    """Whether its memory is the host's, which has the one budget of both."""
    coherent: bool
    """Whether the device and the host see at once what the other writes to bytes that were adopted. Where they do not,
    `upload` from these very bytes and `download` make it seen."""

    def free_bytes(self) -> int:
        """Return the bytes of memory that nobody has; of all there are, where the device does not tell."""

    def allocate(self, size: int) -> Any:
        """Return memory of so many bytes, at least one; it is freed when nobody refers to it.

        Raises DeviceMemoryError where there are not so many.
        """

    def adopt(self, host: Bytes) -> Any | None:
        """Return bytes of the host as memory of the device, where the two are one; None where they are not."""

    def upload(self, to: Place, host: Bytes) -> None:
        """Copy bytes to the device; the caller may change them at once."""

    def download(self, of: Place, size: int) -> Bytes:
        """Return a copy of bytes of the device, once all kernels before have run."""

    def download_all(self, parts: Sequence[tuple[Place, int]]) -> Iterator[Bytes]:
        """Yield a copy of each of some parts of the device's memory, in their order, as `download`.

        It waits for the device as seldom as it can, and holds a few megabytes at a time besides what was yielded.
        """

    def upload_beside(self, to: Place, host: Bytes) -> Any | None:
        """Begin to copy bytes to the device, beside what it computes where it can; the caller may change them at once.

        Return what `arrived` is asked about; None, if the copies before have not ended and there is no room for more.
        """

    def arrived(self, copy: Any) -> bool:
        """Return whether a copy beside has ended: kernels may read it. Raises DeviceError if it never ends."""

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        """Run a kernel of `table.kernels()` for items 0 to `items - 1`, in any order."""

    def finish(self) -> None:
        """Return once all that was launched has run."""

    def close(self) -> None:
        """Free what the device holds. Nothing runs after this."""


class CopiesInLine(ABC):
    """A part of runtimes: copies that are waited for one by one, and none beside what the device computes."""

    @abstractmethod
    def upload(self, to: Place, host: Bytes) -> None:
        """Copy bytes to the device, as `Runtime.upload`."""

    @abstractmethod
    def download(self, of: Place, size: int) -> Bytes:
        """Return a copy of bytes of the device, as `Runtime.download`."""

    def download_all(self, parts: Sequence[tuple[Place, int]]) -> Iterator[Bytes]:
        """Yield copies, waiting for each."""
        for place, size in parts:
            yield self.download(place, size)

    def upload_beside(self, to: Place, host: Bytes) -> Any | None:
        """Copy at once."""
        self.upload(to, host)
        return ()

    def arrived(self, copy: Any) -> bool:
        """Return that it has."""
        return True
