"""Reads the weights that every token needs from the dense file into memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Union

import numpy as np
import numpy.typing as npt

from edgemoe.errors import StoreError
from edgemoe.io.bulk import BulkRead, Span, SpanAlteredError
from edgemoe.io.direct import PageReadError, allocate_pages
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.store.manifest import DenseTensor
from edgemoe.store.manifest_parser import DAMAGED_HINT

DenseValue = Union[Matrix, npt.NDArray[np.float32]]


class DenseWeights(Protocol):
    """Weights that every token needs, on their way into memory; `tensors` are valid when `wait` has returned."""

    tensors: dict[str, DenseValue]
    bytes: int

    def wait(self) -> None: ...
    def close(self) -> None: ...


class DenseReading:
    """Reads dense tensors into one block of memory, which lives as long as any of them.

    The views in `tensors` are valid when `wait` has returned. Matrices are in kernel layout, vectors float32
    `(elements,)`; each begins at a multiple of 64 bytes.
    """

    def __init__(self, path: Path, start: int, tensors: Sequence[DenseTensor], memory_bytes: int) -> None:
        """Begins to read. The first tensor lies in the page that begins at `start`.

        Raises BudgetError, and StoreError where the file cannot be opened.
        """
        self.tensors: dict[str, DenseValue] = {}
        self.bytes = memory_bytes
        self._path = path
        self._tensors = tensors
        self._vectors: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        size = max((tensor.offset + tensor.bytes for tensor in tensors), default=start) - start
        whole = np.frombuffer(allocate_pages(memory_bytes), np.uint8) if size else np.zeros(0, np.uint8)
        # Vectors have no gaps in the file: they are moved to aligned places behind the file's bytes in memory.
        aligned = round_up(size, PAGE_BYTES)
        for tensor in tensors:
            data = whole[tensor.offset - start : tensor.offset - start + tensor.bytes]
            if tensor.format is not None:
                self.tensors[tensor.name] = Matrix(data, tensor.format, tensor.rows, tensor.columns)
                continue
            place = whole[aligned : aligned + tensor.bytes]
            self._vectors.append((place, data))
            self.tensors[tensor.name] = place.view(np.float32)
            aligned += round_up(tensor.bytes, MATRIX_ALIGNMENT_BYTES)
        self._reading = BulkRead(whole)
        try:
            self._reading.begin([Span(path, t.offset, t.bytes, t.offset - start, t.crc32c) for t in tensors])
        except OSError as problem:
            self._reading.close()
            raise unreadable(path, problem.strerror or str(problem)) from problem

    def wait(self) -> None:
        """Return when every tensor is in its place.

        Raises StoreError where the file cannot be read, or a tensor differs from its checksum.
        """
        try:
            self._reading.wait()
        except PageReadError as problem:
            raise not_read(problem) from problem
        except SpanAlteredError as problem:
            ends = [tensor.offset + tensor.bytes for tensor in self._tensors]
            raise not_as_written(self._path, self._tensors[bisect_right(ends, problem.offset)]) from problem
        self._reading.close()
        for place, data in self._vectors:
            place[:] = data

    def close(self) -> None:
        """Stop reading, if it has not ended."""
        self._reading.close()


def read_vector(path: Path, tensor: DenseTensor) -> npt.NDArray[np.float32]:
    """One vector alone, in memory of its own. Raises as `DenseReading`."""
    start = tensor.offset // PAGE_BYTES * PAGE_BYTES
    first, end = tensor.offset - start, tensor.offset - start + tensor.bytes
    memory = np.frombuffer(allocate_pages(round_up(end, PAGE_BYTES)), np.uint8)
    reading = BulkRead(memory)
    try:
        reading.begin([Span(path, tensor.offset, tensor.bytes, first, tensor.crc32c)])
        reading.wait()
    except OSError as problem:
        raise unreadable(path, problem.strerror or str(problem)) from problem
    except PageReadError as problem:
        raise not_read(problem) from problem
    except SpanAlteredError as problem:
        raise not_as_written(path, tensor) from problem
    finally:
        reading.close()
    return memory[first:end].view(np.float32)


def not_as_written(path: Path, tensor: DenseTensor) -> StoreError:
    """The error for a tensor that differs from its checksum."""
    return StoreError(
        f"{path}: {tensor.name} at byte {tensor.offset} is not what was written (its checksum differs).",
        "Copy the store again, or convert it again; edgemoe verify lists all damage.",
    )


def not_read(problem: PageReadError) -> StoreError:
    """The error for a file that could not be read, or that ends early."""
    if problem.reason is None:
        return StoreError(f"{problem.path.name}: ends at byte {problem.offset}.", DAMAGED_HINT)
    return unreadable(problem.path, problem.reason)


def unreadable(path: Path, reason: str) -> StoreError:
    """The error for a file that the system cannot read, with the system's reason."""
    return StoreError(f"{path.name}: cannot be read ({reason}).", "Check the disk, and the folder's permissions.")
