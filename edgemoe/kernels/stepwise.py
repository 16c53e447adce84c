"""Runs a list of operations one by one in Python, for the backends whose kernels are Python functions.

`reference` registers here what operations mean: one step for each kind, which calls a function of a backend on the
operation's arrays. A backend that has no such function of its own runs the reference's.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import ExpertTier, Pause, ProgramTimes
from edgemoe.kernels.definition import NO_LIMIT, Misfit, Sizes, refusal, unknown
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, group_count, panel_count

_PYTHON_OBJECTS_BYTES = 1 << 16
"""Memory that the interpreter and NumPy take for a step besides arrays."""

Step = Callable[[Any, Any, int], "int | None"]
"""Runs an operation: the functions of a backend, the operation, and the tokens of the run.

It returns the nanoseconds for which it waited for records, if it did.
"""

Scratch = Callable[["StepwiseBackend", Any, Sizes], int]
"""Bytes of temporaries of an operation of these sizes."""


class Meaning(NamedTuple):
    """The step of a kind of operation, and the function that other backends may have for it."""

    step: Step
    function: str | None
    """Name of the function that a backend with a twin of its own has; empty if the step is all of it, and None if it
    computes nothing, so that every backend has it."""
    scratch: Scratch


MEANINGS: dict[type[op.Operation], Meaning] = {}
"""Every kind of operation that there is. `reference` fills it."""


def means(
    kind: type[op.Operation], function: str | None = "", scratch: Scratch | None = None
) -> Callable[[Step], Step]:
    """Register a step as the meaning of a kind of operation.

    `scratch` says how much memory it takes on top of its buffers; without it some temporaries as large as the largest
    buffer with a row for each token.
    """

    def register(step: Step) -> Step:
        MEANINGS[kind] = Meaning(step, function, scratch or _element_scratch)
        return step

    return register


def _element_scratch(kernels: StepwiseBackend, operation: op.Operation, sizes: Sizes) -> int:
    return kernels.element_scratch_bytes * op.largest_rows(operation)


class StepwiseBackend(ABC):
    """Base of the `reference` and `jit` backends: a function for each meaning, or the reference's in its place."""

    name: str
    isa = "-"
    threads = 1
    growth_bytes = 0
    scratch_grows_with_context = True
    device: str | None = None
    tier: ExpertTier | None = None

    element_scratch_bytes: int
    """Bytes of temporaries of an operation without a matrix, for each number of its output."""

    def program(self, operations: Sequence[op.Operation]) -> StepwiseProgram:
        return StepwiseProgram(self, operations)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Kinds of operations that this backend runs by the reference's functions."""
        return tuple(sorted(kind.__name__ for kind in MEANINGS if self.kernels_for(kind) is not self))

    @abstractmethod
    def kernels_for(self, kind: type[op.Operation]) -> StepwiseBackend:
        """Return the backend whose functions run this kind of operation: this one, or the reference."""

    @abstractmethod
    def product_scratch_bytes(self, tokens: int, rows: int, columns: int) -> int:
        """Bytes of temporaries of one `matmul`, its result included."""

    @abstractmethod
    def attention_scratch_bytes(self, tokens: int, heads: int, kv_heads: int, width: int, context_length: int) -> int:
        """Bytes of temporaries of one `attention` at the end of the context, its result included."""

    def forget_copies(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Forget nothing: programs work on the caller's arrays."""
        return

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        """Return the largest scratch of any one operation: temporaries are freed when their operation ends."""
        sizes = [0]
        for number, operation in enumerate(operations):
            measured = measured_operation(number, operation)
            kernels = self.kernels_for(type(operation))
            sizes.append(MEANINGS[type(operation)].scratch(kernels, operation, measured))
        return _PYTHON_OBJECTS_BYTES + max(sizes)

    def store_scratch_bytes(self, tokens: int, kv_heads: int, width: int) -> int:
        """Bytes of temporaries of `StoreKv`; an 8-bit cache pads rows to whole groups."""
        return tokens * kv_heads * group_count(width) * GROUP_COLUMNS * self.element_scratch_bytes

    def ffn_scratch_bytes(self, tokens: int, hidden_size: int, intermediate_size: int) -> int:
        """Bytes of temporaries of `gated_ffn`, its result included; `plain_ffn` takes no more."""
        gate_up_rows = 2 * PANEL_ROWS * panel_count(intermediate_size)
        hidden = tokens * gate_up_rows * self.element_scratch_bytes
        gate_up = self.product_scratch_bytes(tokens, gate_up_rows, hidden_size)
        return hidden + max(gate_up, self.product_scratch_bytes(tokens, hidden_size, intermediate_size))

    def experts_scratch_bytes(self, tokens: int, used: int, hidden_size: int, intermediate_size: int) -> int:
        """Bytes of temporaries of `Experts`."""
        gathered = tokens * (4 * hidden_size + 3 * 4 * used + 16)
        return gathered + self.ffn_scratch_bytes(tokens, hidden_size, intermediate_size)

    def close(self) -> None:  # noqa: B027 - nothing to stop unless a backend has threads
        """Stop the backend's threads, if it has any."""


def measured_operation(number: int, operation: op.Operation) -> Sizes:
    """Measure an operation, the `number`-th of a program. Raises KernelError if it is unknown, or not as defined."""
    if type(operation) not in MEANINGS:
        raise unknown(number, operation)
    try:
        return operation.measure()
    except Misfit as misfit:
        raise refusal(number, operation, misfit) from None


class RunBounds(NamedTuple):
    """The longest run of a program that its buffers have room for."""

    rows: int

    @classmethod
    def of(cls, sizes: Sequence[Sizes]) -> RunBounds:
        """Return the bounds of operations of these sizes."""
        return cls(min((own.rows for own in sizes), default=NO_LIMIT))

    def check(self, tokens: int) -> None:
        """Raise KernelError if the buffers are too short for this number of tokens."""
        if not 1 <= tokens <= self.rows:
            raise KernelError(
                f"program: {tokens} tokens in a run; its buffers hold 1 to {self.rows}.",
                "Cut the prompt into smaller runs.",
            )


class StepwiseProgram:
    """Runs a list of operations, each as one call of its meaning's step."""

    def __init__(self, backend: StepwiseBackend, operations: Sequence[op.Operation], first: int = 0) -> None:
        """`first` is the number, for errors, of the first of these operations in a longer list."""
        self._bounds = RunBounds.of([measured_operation(number, o) for number, o in enumerate(operations, first)])
        self._steps = [(MEANINGS[type(o)].step, backend.kernels_for(type(o)), o) for o in operations]
        self._timed = False
        self._elapsed_ns = 0
        self._operations_ns = np.zeros(len(self._steps), np.int64)
        self._disk_ns = np.zeros(len(self._steps), np.int64)

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Raises KernelError if the buffers are too short, or where a row's position or page does not exist."""
        self._bounds.check(tokens)
        if self._timed:
            self._run_timed(tokens, pause)
            return
        for number, (step, kernels, operation) in enumerate(self._steps, 1):
            step(kernels, operation, tokens)
            if pause is not None:
                pause(number / len(self._steps))

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""
        self._timed = on
        self._elapsed_ns = 0
        self._operations_ns[:] = 0
        self._disk_ns[:] = 0

    def times(self) -> ProgramTimes:
        """Return the times. `waited_ns` is 0: a Python kernel does not report how long it waits for its threads."""
        waited_ns = np.zeros_like(self._operations_ns)
        return ProgramTimes(self._elapsed_ns, self._operations_ns.copy(), waited_ns, self._disk_ns.copy())

    def _run_timed(self, tokens: int, pause: Pause | None) -> None:
        start = before = time.perf_counter_ns()
        try:
            for number, (step, kernels, operation) in enumerate(self._steps):
                disk_ns = step(kernels, operation, tokens)
                now = time.perf_counter_ns()
                self._operations_ns[number] += now - before
                self._disk_ns[number] += disk_ns or 0
                before = now
                if pause is not None:
                    pause((number + 1) / len(self._steps))
        finally:
            self._elapsed_ns += time.perf_counter_ns() - start
