"""The roof over decoding: how fast all threads together can read memory when they do nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.io.direct import allocate_pages
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.select import KernelChoice
from edgemoe.process import available_bytes

BUFFER_BYTES = 1 << 30
"""Larger than a last-level cache, so that data of one pass is evicted before the next pass reads it again."""
LEAST_BUFFER_BYTES = 64 << 20
MEMORY_SHARE = 4
"""The buffer takes at most one part in `MEMORY_SHARE` of the available memory."""
PASSES = 5


@dataclass(frozen=True)
class ReadRate:
    """Reads of a buffer larger than the caches, the fastest of some passes."""

    bytes_per_s: float
    buffer_bytes: int


def measure_read_rate(backend: NativeBackend, buffer_bytes: int) -> ReadRate:
    """Read a buffer with all threads of a backend, then free it.

    The buffer is smaller if little memory is free; the result has its size. Raises EdgemoeError if almost no memory is
    free.
    """
    memory = allocate_buffer(buffer_bytes)
    fastest_ns = min(backend.read_memory(memory)[0] for _ in range(PASSES))
    return ReadRate(memory.nbytes / fastest_ns * 1e9, memory.nbytes)


def allocate_buffer(buffer_bytes: int) -> npt.NDArray[np.uint8]:
    """Allocate memory to be read, smaller than asked for if little is free.

    Raises EdgemoeError if almost no memory is free.
    """
    size = min(buffer_bytes, available_bytes() // MEMORY_SHARE) // 64 * 64
    if size < min(buffer_bytes, LEAST_BUFFER_BYTES):
        raise EdgemoeError("Too little memory is free to measure its read rate.", "Close other programs.")
    memory = np.frombuffer(allocate_pages(size), np.uint8)
    memory[:] = 1  # unwritten pages may all map to one zero page
    return memory


class ReadRates:
    """Measures the read rate repeatedly, with threads of its own that sleep in between. A context manager."""

    def __init__(self, kernels: KernelChoice) -> None:
        """`kernels` must be native ones: only they reach the memory's full read rate."""
        self._backend = NativeBackend(kernels.threads, kernels.isa)

    def __call__(self) -> ReadRate:
        return measure_read_rate(self._backend, BUFFER_BYTES)

    def __enter__(self) -> ReadRates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.close()
