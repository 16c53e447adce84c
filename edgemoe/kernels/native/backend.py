"""The native backend: programs that run as one call into the C library."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError, KernelError, ReadError
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import ExpertTier, Pause, Program, ProgramTimes
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.binding import BoundOperations, has_kernel
from edgemoe.kernels.native.library import Status, available_isas, load_library, status_text
from edgemoe.process import no_threads

if TYPE_CHECKING:
    from edgemoe.kernels.native.segments import Where

_SCRATCH_ALIGNMENT_BYTES = 64

# How long a worker spins before it sleeps: longer than the gaps between the operations of a step and between the steps
# of a decode without cache misses, short enough to cost no measurable power.
OPERATIONS_BETWEEN_PAUSES = 8
"""About those of a layer: Python handles a signal between two calls into C."""
_SPIN_US = 100


class NativeBackend:
    """Kernels in C on the backend's own thread pool. All its programs share one scratch; one may run at a time."""

    name = "native"
    growth_bytes = 0
    scratch_grows_with_context = False
    device: str | None = None
    tier: ExpertTier | None = None

    def __init__(self, threads: int, isa: str | None = None) -> None:
        library = load_library()
        available = available_isas()
        self.isa = isa or available[0]
        self.threads = threads
        if self.isa not in available:
            raise KernelError(
                f"The instruction set {self.isa} is not available here; found {', '.join(available)}.",
                "Choose one of those.",
            )
        pool = ctypes.c_void_p()
        status = library.em_pool_create(threads, _SPIN_US, ctypes.byref(pool))
        if status == Status.NO_THREADS:
            raise no_threads(f"A pool of {threads} threads cannot be made")
        if status != Status.OK:
            raise KernelError(
                f"A pool of {threads} threads could not be made: {status_text(status)}.", "Ask for fewer threads."
            )
        self.pool_address = pool.value
        self.kernels_address: int = library.em_kernels_for(self.isa.encode())
        self.scratch = st.ScratchStruct()
        self._scratch_memory = np.empty(0, np.uint8)
        self._destroy_pool = weakref.finalize(self, library.em_pool_destroy, pool.value)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The kinds of operations that the C library does not have, and that are run as the reference does."""
        from edgemoe.kernels.native import segments

        return segments.fallbacks()

    def program(self, operations: Sequence[op.Operation]) -> Program:
        """Check and bind operations. Raises KernelError that names the operation and the buffer."""
        self._check_open()
        if all(has_kernel(type(operation)) for operation in operations):
            return self._native_program(operations)
        from edgemoe.kernels.native.segments import SegmentedProgram, places_without_device

        return SegmentedProgram(operations, places_without_device, self._bind)

    def _bind(self, where: Where, operations: Sequence[op.Operation], first: int) -> Program:
        """Bind operations of one place, the first of which has that number in a longer list."""
        if where == "native":
            return self._native_program(operations, first)
        from edgemoe.kernels.reference.backend import REFERENCE
        from edgemoe.kernels.stepwise import StepwiseProgram

        return StepwiseProgram(REFERENCE, operations, first)

    def _native_program(self, operations: Sequence[op.Operation], first: int = 0) -> NativeProgram:
        bound = BoundOperations(operations, first=first)
        scratch_bytes = _scratch_bytes(bound)
        self._reserve(scratch_bytes)
        return NativeProgram(self, bound, scratch_bytes)

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        """Return the bytes of scratch of the operation that needs most; all programs share this scratch.

        The reference, which runs operations that the library does not have, takes memory of its own.
        """
        native = [operation for operation in operations if has_kernel(type(operation))]
        size = _scratch_bytes(BoundOperations(native, planned=True)) + _SCRATCH_ALIGNMENT_BYTES
        if len(native) == len(operations):
            return size
        from edgemoe.kernels.reference.backend import REFERENCE

        return size + REFERENCE.scratch_bytes([o for o in operations if not has_kernel(type(o))])

    def read_memory(self, memory: op.Bytes) -> tuple[int, int]:
        """Read all of `memory` once on all threads; returns nanoseconds, and the sum of the first word of each line.

        Raises KernelError unless it begins at a multiple of 64 bytes and is a multiple of 64 bytes long.
        """
        self._check_open()
        elapsed_ns, total = ctypes.c_uint64(), ctypes.c_uint64()
        address = memory.__array_interface__["data"][0]
        status = load_library().em_read_memory(
            self.pool_address, address, memory.nbytes, ctypes.byref(total), ctypes.byref(elapsed_ns)
        )
        if status:
            raise KernelError(f"{memory.nbytes} bytes of memory cannot be read: {status_text(status)}.")
        return elapsed_ns.value, total.value

    def forget_copies(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Forget nothing: programs work on the caller's arrays."""

    def close(self) -> None:
        """Stop the threads. Programs cannot run after this."""
        self.pool_address = None
        self._destroy_pool()
        self.scratch.data, self.scratch.bytes = None, 0
        self._scratch_memory = np.empty(0, np.uint8)

    def _check_open(self) -> None:
        if self.pool_address is None:
            raise KernelError("The native backend is closed.", "Make a new one.")

    def _reserve(self, size: int) -> None:
        """Make the shared scratch at least this large. Programs find it through `scratch`, so it may move."""
        if size <= self.scratch.bytes:
            return
        self._scratch_memory = np.empty(size + _SCRATCH_ALIGNMENT_BYTES, np.uint8)
        address = self._scratch_memory.__array_interface__["data"][0]
        self.scratch.data = address + -address % _SCRATCH_ALIGNMENT_BYTES
        self.scratch.bytes = size


def _scratch_bytes(bound: BoundOperations) -> int:
    size: int = load_library().em_program_scratch_bytes(bound.address, len(bound.structs), bound.tokens_max)
    return size


class NativeProgram:
    """Operations bound to their buffers; the program keeps the buffers alive."""

    def __init__(self, backend: NativeBackend, bound: BoundOperations, scratch_bytes: int) -> None:
        self._backend = backend
        self._bound = bound
        self._struct = st.ProgramStruct(
            kernels=backend.kernels_address,
            pool=backend.pool_address,
            operations=bound.address,
            scratch=ctypes.addressof(backend.scratch),
            scratch_bytes=scratch_bytes,
            operation_count=len(bound.structs),
            tokens_max=bound.tokens_max,
            failed_operation=-1,
        )
        self._run = load_library().em_program_run
        self._address = ctypes.c_void_p(ctypes.addressof(self._struct))
        self._times = st.ProgramTimesStruct()
        self._operation_times = np.zeros((len(bound.structs), 3), np.uint64)  # elapsed, waited, disk
        self._times.operations = self._operation_times.ctypes.data

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run in one call into C, or in one for some operations each, between which `pause` is called.

        Raises KernelError with the name of the refused operation, and ReadError as `Experts`.
        """
        if self._backend.pool_address is None:
            self._backend._check_open()
        if pause is None:
            status = self._run(self._address, tokens)
            if status:
                raise self._failure(status, tokens)
            return
        count = len(self._bound.structs)
        for first in range(0, count, OPERATIONS_BETWEEN_PAUSES):
            some = min(OPERATIONS_BETWEEN_PAUSES, count - first)
            status = load_library().em_program_run_some(self._address, tokens, first, some)
            if status:
                raise self._failure(status, tokens)
            pause((first + some) / count)

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""
        self._times.elapsed_ns = 0
        self._operation_times[:] = 0
        self._struct.times = ctypes.addressof(self._times) if on else None

    def times(self) -> ProgramTimes:
        return ProgramTimes(self._times.elapsed_ns, *self._operation_times.astype(np.int64).T)

    def _failure(self, status: int, tokens: int) -> EdgemoeError:
        failed = self._struct.failed_operation
        paged = getattr(self._bound.operations[failed], "paged", None) if failed >= 0 else None
        if paged is not None:
            error = paged.pager.failure(status)
            if isinstance(error, ReadError):
                return error
        where = self._bound.name(failed) if failed >= 0 else "program"
        if not 1 <= tokens <= self._bound.tokens_max:
            return KernelError(
                f"{where}: {tokens} tokens in a run; its buffers hold 1 to {self._bound.tokens_max}.",
                "Cut the prompt into smaller runs.",
            )
        return KernelError(f"{where}: {status_text(status)} ({tokens} tokens in the run).")
