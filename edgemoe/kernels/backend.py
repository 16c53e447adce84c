"""The interface of a kernel backend.

A backend turns a list of operations (`operations.py`) into a `Program`; after that a step of the model is
`program.run(tokens)`, which for the native backend is one call into C for the whole list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.operations import Operation

Nanoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class ProgramTimes:
    """Time spent in the runs of a program since timing was switched on."""

    elapsed_ns: int
    """Total of whole runs, measured by the backend: slightly more than the sum over operations."""
    operations_ns: Nanoseconds  # (operations,)
    waited_ns: Nanoseconds  # (operations,)
    """The part of `operations_ns` spent waking worker threads and waiting for them; 0 if it cannot be measured."""
    disk_ns: Nanoseconds  # (operations,)
    """The part of `operations_ns` spent blocked on expert reads."""


Pause = Callable[[float], None]
"""Called now and then between two operations of a run, with the share of them that is done. It may raise: the run then
ends there."""


class Program(Protocol):
    """A list of operations, bound to buffers and ready to run."""

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run every operation in order for the first `tokens` rows of the buffers, with pauses if asked."""

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""

    def times(self) -> ProgramTimes:
        """Return the times of all runs since `time_runs(True)`."""


class ExpertTier(Protocol):
    """Memory of a device that has some of the routed experts; its settings may change between two runs."""

    most_rows: int
    """The most tokens of a run for which it is used."""
    share: float
    """How many of the chosen experts that are there the device computes: from 0, none, to 1, all."""
    fills: bool
    """Whether experts that the processor computed are copied there."""

    def holds(self, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return which experts it has now, `(L, E)`."""


class Backend(Protocol):
    """One implementation of all operations."""

    name: str
    """`reference`, `jit` or `native`."""
    isa: str
    """The instruction set in use, such as `avx2`; `-` where it does not apply."""
    threads: int
    growth_bytes: int
    """Memory that the backend will still allocate besides buffers and scratch, such as that of a compiler."""
    scratch_grows_with_context: bool
    """Whether `scratch_bytes` depends on the number of pages of a sequence."""

    device: str | None
    """The name of the device that runs a part of the operations; None without one, and once it has failed."""

    @property
    def tier(self) -> ExpertTier | None:
        """The experts in a device's memory, once there is a program that has some there and others not."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The kinds of operations that it has no kernel for, and runs as the reference does."""

    def program(self, operations: Sequence[Operation]) -> Program:
        """Check and bind a list of operations. Raises KernelError for an operation that the backend cannot run."""

    def scratch_bytes(self, operations: Sequence[Operation]) -> int:
        """Bytes that `program` will allocate for these operations besides their buffers, which may be placeholders."""

    def forget_copies(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Note that the caller writes to state of sequences, which programs write to otherwise."""

    def close(self) -> None:
        """Stop the threads and free what the backend holds."""
