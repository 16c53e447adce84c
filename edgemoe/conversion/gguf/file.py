"""Reads the header of a GGUF file: its metadata and the places of its tensors. Every length is checked before use.

    file = magic, version, tensor count, pair count | key, type, value ... | name, dimensions, type, offset ... | data

The package `gguf` gives the names and sizes of the types. Its reader is not used: it makes several array
objects per token (3 s and 190 MB for a vocabulary of 49,152, before any weight is read), and with a damaged
length it allocates until memory runs out. Here a length that exceeds the file is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgemoe.conversion.folder_contents import refuse_lfs_pointer
from edgemoe.conversion.gguf.package import GGUF_MAGIC, GGMLQuantizationType, GGUFValueType
from edgemoe.errors import SourceError
from edgemoe.kernels.pages import round_up
from edgemoe.kernels.row_types import ROW_TYPES

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT_BYTES = 32
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_ARRAY_LENGTH = 1 << 22
_MAX_STRING_BYTES = 1 << 24
_MAX_DIMENSIONS = 4
_WHOLE_NUMBERS = ".ffn_gate_tid2eid.weight"
"""The end of the name of a table of experts by token, of whole numbers (DeepSeek-V4)."""
_MAX_HEADER_BYTES = 1 << 28
_TYPES = {kind.number: kind for kind in ROW_TYPES.values()}
CHECK_THE_FILE = "Check its permissions and the disk."
_DAMAGED = "The file may be damaged or cut short: download it again."

_SCALARS = {
    GGUFValueType.UINT8: "u1",
    GGUFValueType.INT8: "i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file. `shape` is outermost first, the reverse of the order in the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    path: Path
    offset: int
    """First byte in the file."""
    row_bytes: int
    """Bytes of one row of `shape[-1]` elements."""
    scales: tuple[float, ...] = ()
    """The number that multiplies each of its matrices, or all of them; nothing for none."""

    def scale(self, matrix: int) -> float:
        """The number that multiplies the blocks of one of its matrices."""
        if len(self.scales) > 1:
            return self.scales[matrix]
        return self.scales[0] if self.scales else 1.0

    @property
    def rows(self) -> int:
        """Number of rows, all outer dimensions flattened."""
        return math.prod(self.shape[:-1])

    @property
    def end(self) -> int:
        """The first byte of the file behind it."""
        return self.offset + self.rows * self.row_bytes

    def read(self, row_start: int, row_stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read rows as bytes, `(row_stop - row_start, row_bytes)`. Raises SourceError if the file is too short."""
        count = (row_stop - row_start) * self.row_bytes
        try:
            data = np.fromfile(self.path, np.uint8, count, offset=self.offset + row_start * self.row_bytes)
        except OSError as error:
            raise SourceError(
                f"{self.path}: cannot read {self.name}: {error.strerror or error}.", CHECK_THE_FILE
            ) from error
        if data.size != count:
            raise SourceError(
                f"{self.path}: {self.name}: expected {count} bytes, found {data.size}; the file has become shorter.",
                "Restore the file, then run the same command again.",
            )
        return data.reshape(row_stop - row_start, self.row_bytes)


@dataclass(frozen=True)
class GgufFile:
    """The header of one GGUF file."""

    path: Path
    metadata: dict[str, Any]
    """Values by key: int, float, bool, str, or a list of them."""
    tensors: dict[str, GgufTensor]
    header_sha256: str
    bytes: int
    modified_ns: int
    """The time of the file's last modification, when the header was read."""

    def change(self) -> str | None:
        """The change of the file since its header was read, as the rest of a sentence; None where there is none."""
        try:
            status = self.path.stat()
        except OSError as error:
            return f"it can no longer be read ({error.strerror or error})"
        if status.st_size != self.bytes:
            return f"its size changed from {self.bytes} to {status.st_size} bytes"
        return None if status.st_mtime_ns == self.modified_ns else "it was modified"


def read_gguf(path: Path) -> GgufFile:
    """Read a header. Raises SourceError if the file is not GGUF, damaged, or of an unsupported type."""
    refuse_lfs_pointer(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return _Header(path, file, status.st_size, status.st_mtime_ns).parse()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}.", CHECK_THE_FILE) from error


def read_gguf_from(path: Path, file: BinaryIO, size: int) -> GgufFile:
    """As `read_gguf`, for a file of `size` bytes that is read elsewhere; `path` is its name in messages."""
    return _Header(path, file, size, 0).parse()


class _Header:
    """One pass over a header. All bytes are read through `_take`, which never reads beyond the end of the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int, modified_ns: int) -> None:
        self._path, self._file, self._size, self._modified_ns = path, file, size, modified_ns
        self._position = 0
        self._digest = hashlib.sha256()

    def parse(self) -> GgufFile:
        magic, version = self._unpack("<II")
        if magic != GGUF_MAGIC:
            raise SourceError(f"{self._path}: expected a GGUF file, found other data.", _DAMAGED)
        if version not in _VERSIONS:
            detail = "; this one is big-endian" if version & 0xFFFF == 0 else ""
            raise SourceError(
                f"{self._path}: expected GGUF version 2 or 3 (little-endian), found {version}{detail}.",
                "Convert the model to GGUF again with a current converter.",
            )
        tensor_count, pair_count = self._unpack("<QQ")
        self._check_count("tensors", tensor_count, _MAX_TENSORS)
        self._check_count("metadata pairs", pair_count, _MAX_PAIRS)
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._damaged(f"the metadata key {key!r} occurs twice")
            metadata[key] = self._value(key)
        raw = [self._tensor_entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment: expected a power of two, found {alignment}")
        data_start = round_up(self._position, alignment)
        tensors: dict[str, GgufTensor] = {}
        for entry in raw:
            tensor = self._place(*entry, data_start)
            if tensor.name in tensors:
                raise self._damaged(f"the tensor {tensor.name!r} occurs twice")
            tensors[tensor.name] = tensor
        self._check_neighbours(sorted(tensors.values(), key=lambda tensor: tensor.offset), data_start, alignment)
        return GgufFile(self._path, metadata, tensors, self._digest.hexdigest(), self._size, self._modified_ns)

    def _check_neighbours(self, ordered: Sequence[GgufTensor], data_start: int, alignment: int) -> None:
        """Raise SourceError where tensors overlap or lie apart: a type or shape is wrong then, or an offset.

        llama.cpp demands the same (ggml/src/gguf.cpp), so every file that it loads passes.
        """
        expected, before = data_start, "the header"
        for tensor in ordered:
            if tensor.offset != expected:
                raise self._damaged(
                    f"{tensor.name}: expected to begin at byte {expected}, where {before} ends, found {tensor.offset}"
                )
            expected, before = round_up(tensor.end, alignment), tensor.name

    def _damaged(self, what: str) -> SourceError:
        return SourceError(f"{self._path}: {what}.", _DAMAGED)

    def _check_count(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            raise self._damaged(f"expected at most {limit} {what}, found {count}")

    def _take(self, count: int, what: str) -> bytes:
        if count > self._size - self._position:
            raise self._damaged(f"{what} at byte {self._position} needs {count} bytes, the file ends at {self._size}")
        self._check_count("bytes of metadata", self._position + count, _MAX_HEADER_BYTES)
        data = self._file.read(count)
        if len(data) != count:
            raise self._damaged(f"{what} at byte {self._position} could not be read whole")
        self._position += count
        self._digest.update(data)
        return data

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout), "the header"))

    def _string(self, what: str) -> str:
        (length,) = self._unpack("<Q")
        self._check_count(f"bytes in {what}", length, _MAX_STRING_BYTES)
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} at byte {self._position - length} is not UTF-8") from error

    def _value(self, key: str) -> Any:
        kind = self._value_type(key)
        if kind == GGUFValueType.ARRAY:
            kind = self._value_type(key)
            (length,) = self._unpack("<Q")
            self._check_count(f"elements in {key!r}", length, _MAX_ARRAY_LENGTH)
            if kind == GGUFValueType.STRING:
                return [self._string(key) for _ in range(length)]
            if kind == GGUFValueType.ARRAY:
                raise self._damaged(f"{key!r} is an array of arrays")
            return self._numbers(kind, length, key)
        return self._string(key) if kind == GGUFValueType.STRING else self._numbers(kind, 1, key)[0]

    def _value_type(self, key: str) -> GGUFValueType:
        (code,) = self._unpack("<I")
        try:
            return GGUFValueType(code)
        except ValueError as error:
            raise self._damaged(f"{key!r} has the unknown value type {code}") from error

    def _numbers(self, kind: GGUFValueType, length: int, key: str) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self._take(length * dtype.itemsize, key), dtype)
        if kind == GGUFValueType.FLOAT32:
            # The shortest decimal for this float32: 1e-05, as the model's author wrote it, not 9.99999974e-06.
            return [float(str(value)) for value in values]
        return list(values.tolist())

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor's name")
        (dimensions,) = self._unpack("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"{name}: expected 1 to {_MAX_DIMENSIONS} dimensions, found {dimensions}")
        shape = self._unpack(f"<{dimensions}Q")
        type_code, offset = self._unpack("<IQ")
        return name, tuple(reversed(shape)), type_code, offset

    def _place(self, name: str, shape: tuple[int, ...], type_code: int, offset: int, data_start: int) -> GgufTensor:
        type_name, block_elements, block_bytes = self._type_sizes(name, type_code)
        if min(shape) < 1 or shape[-1] % block_elements:
            raise self._damaged(f"{name}: the shape {shape} does not fit blocks of {block_elements} ({type_name})")
        row_bytes = shape[-1] // block_elements * block_bytes
        tensor = GgufTensor(name, shape, type_name, self._path, data_start + offset, row_bytes)
        if tensor.end > self._size:
            raise self._damaged(
                f"{name}: expected bytes {tensor.offset} to {tensor.end}, the file ends at {self._size}"
            )
        return tensor

    def _type_sizes(self, name: str, type_code: int) -> tuple[str, int, int]:
        """The name of a type, the elements of a block and its bytes."""
        kind = _TYPES.get(type_code)
        if kind is not None:
            return kind.name, kind.columns, kind.bytes
        if type_code == GGMLQuantizationType.I32 and name.endswith(_WHOLE_NUMBERS):
            return "I32", 1, 4
        names = {other.value: other.name for other in GGMLQuantizationType}
        raise SourceError(
            f"{self._path}: {name}: expected a tensor type among {', '.join(ROW_TYPES)}, found"
            f" {names.get(type_code, f'number {type_code}')}.",
            "Use a GGUF of this model in those types.",
        )
