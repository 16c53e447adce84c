"""The weights of a model that runs layer by layer: those of the store that is being written, or the checkpoint's.

Those of the checkpoint come at its own precision: each matrix in the smallest format that holds it, as in a store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Union

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.formats import KEEP, FormatChoice, expert_of
from edgemoe.conversion.plan import Piece, plan_conversion
from edgemoe.conversion.source import Source, read_slice
from edgemoe.kernels.blocks import dequantise
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import PANEL_ROWS, Matrix
from edgemoe.store.manifest import DenseTensor
from edgemoe.store.reader import Store
from edgemoe.store.records import record_name

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
DenseValue = Union[Matrix, Floats]

EXACT = FormatChoice(KEEP, KEEP, KEEP)


class Weights(Protocol):
    """The weights of a model."""

    @property
    def store(self) -> Store:
        """The store that has them, or that is only planned: it says formats and layouts."""

    def dense(self, name: str) -> DenseValue:
        """Read a dense tensor of the store. Raises SourceError or OSError."""

    def load_record(self, layer: int, expert: int, slot: Bytes) -> None:
        """Read an expert's record into memory. Raises as `dense`."""


class StoreWeights:
    """The weights of a store, which need not be finished: what is asked for must be."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._dense = {tensor.name: tensor for tensor in store.manifest.dense}

    @property
    def store(self) -> Store:
        return self._store

    def dense(self, name: str) -> DenseValue:
        tensor = self._dense[name]
        return _value(read_aligned(self._store.dense_path, tensor.offset, tensor.bytes), tensor)

    def load_record(self, layer: int, expert: int, slot: Bytes) -> None:
        record = self._store.record(layer, expert)
        slot[: record.length] = np.fromfile(record.path, np.uint8, record.length, offset=record.offset)


class SourceWeights:
    """The weights of a checkpoint, read and encoded whenever they are asked for."""

    def __init__(self, source: Source, choice: FormatChoice = EXACT) -> None:
        """Raises SourceError as a conversion does."""
        plan = plan_conversion(source, choice, {})
        self._source = source
        self._store = Store(Path(), plan.manifest)
        self._dense = {tensor.name: tensor for tensor in plan.manifest.dense}
        self._offsets = {name: part.offset for name, part in plan.parts.items()}
        self._by_name = {piece.name: piece for piece in plan.pieces if not piece.repeats}
        self._pieces: dict[str, list[Piece]] = {}
        for piece in self._by_name.values():
            self._pieces.setdefault(piece.place.part, []).append(piece)

    @property
    def store(self) -> Store:
        return self._store

    def dense(self, name: str) -> DenseValue:
        tensor = self._dense[name]
        data = aligned_bytes(tensor.bytes)
        self._fill(name, data)
        return _value(data, tensor)

    def load_record(self, layer: int, expert: int, slot: Bytes) -> None:
        self._fill(record_name(layer, expert), slot)

    def experts(self) -> dict[int, list[int]]:
        """The numbers of the experts of each layer that has some."""
        found: dict[int, set[int]] = {}
        for name in self._by_name:
            if which := expert_of(name):
                found.setdefault(which[0], set()).add(which[1])
        return {layer: sorted(numbers) for layer, numbers in sorted(found.items())}

    def matrices(self, layer: int, expert: int) -> list[Floats]:
        """An expert's gate, if it has one, up and down, as floats. Raises SourceError."""
        names = (f"layers.{layer}.experts.{expert}.{part}" for part in ("gate", "up", "down"))
        return [self._floats(name) for name in names if name in self._by_name]

    def biases(self, layer: int, expert: int) -> list[Floats | None]:
        """The biases of an expert's gate, if it has one, and up; None for one without. Raises SourceError."""
        names = (f"layers.{layer}.experts.{expert}.{part}" for part in ("gate", "up"))
        both = (name for name in names if name in self._by_name)
        return [self._floats(f"{name}_bias").reshape(-1) if f"{name}_bias" in self._by_name else None for name in both]

    def _floats(self, name: str) -> Floats:
        piece = self._by_name[name]
        rows = read_slice(self._source, piece.source, 0, piece.place.rows)
        return rows if isinstance(rows, np.ndarray) else dequantise(rows)

    def _fill(self, name: str, data: Bytes) -> None:
        """Encode the pieces of a part to where it has them."""
        for piece in self._pieces[name]:
            place = piece.place
            begin = place.offset - self._offsets[name]
            for start, stop in place.row_slices():
                rows = read_slice(self._source, piece.source, start, stop)
                encoded = encode(rows, place.format, piece.source.tensor)
                if place.format is None:
                    at = begin + 4 * start
                    data[at : at + len(encoded.data)] = encoded.data
                    continue
                head = place.head_offset - self._offsets[name]
                data[head : head + len(encoded.head)] = encoded.head
                at = begin + start // PANEL_ROWS * place.panel_stride
                for panel in encoded.data.reshape(-1, place.panel_bytes):
                    data[at : at + len(panel)] = panel
                    at += place.panel_stride


def _value(data: Bytes, tensor: DenseTensor) -> DenseValue:
    if tensor.format is None:
        return data.view(np.float32)
    return Matrix(data, tensor.format, tensor.rows, tensor.columns)


def aligned_bytes(size: int) -> Bytes:
    """Zeros that begin at a multiple of `MATRIX_ALIGNMENT_BYTES`."""
    memory = np.zeros(size + MATRIX_ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % MATRIX_ALIGNMENT_BYTES
    return memory[start : start + size]


def read_aligned(path: Path, offset: int, size: int) -> Bytes:
    """Bytes of a file, in memory of their own."""
    data = aligned_bytes(size)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        read = 0
        while read < size:
            count = file.readinto(memoryview(data.data)[read:])
            if not count:
                raise OSError(f"{path}: ends at byte {offset + read}")
            read += count
    return data
