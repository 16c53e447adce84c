"""The tensors behind quantised matrices, read as they are stored: words, bytes, and scales as float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.safetensors_rows import BytesSource, to_float32
from edgemoe.conversion.source import TensorInfo
from edgemoe.errors import SourceError
from edgemoe.kernels.formats import GROUP_COLUMNS, group_count

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

_STORED: Mapping[str, npt.DTypeLike] = {
    **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E8M0"), "u1"),
    **dict.fromkeys(("U32", "I32"), "<u4"),
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
}

DAMAGED = "Was the checkpoint cut short or altered? Download it again."
UNQUANTISED = "Use the checkpoint's unquantised version, or a GGUF of it."
"""The way out where no format holds what a checkpoint has."""


HELD_BYTES = 1 << 25
"""Bytes of whole matrices that are held, so that one whose rows are columns of a file is read in one piece."""


class Raw:
    """Reads a few rows, or a few columns, of tensors by their names. Every method raises SourceError."""

    def __init__(self, source: BytesSource) -> None:
        self._source = source
        self._infos: Mapping[str, TensorInfo] = source.tensors()
        self._held: dict[str, npt.NDArray[Any]] = {}

    def elements(self, tensor: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements in their order, which are counted through all dimensions. Raises SourceError beyond the last."""
        info = self._infos[tensor]
        if not 0 <= start <= stop <= math.prod(info.shape):
            raise SourceError(
                f"{info.shard}: {tensor}: expected {stop} elements at least, found {math.prod(info.shape)}.", DAMAGED
            )
        raw = np.empty(stop - start, _STORED[info.dtype])
        if raw.size:
            self._source.read_spans(tensor, [(start * raw.itemsize, memoryview(raw.data).cast("B"))])
        return _numbers(raw, info.dtype)

    def rows(self, tensor: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows of the last dimension, which are counted through all others: `(stop - start, last)`."""
        width = self._infos[tensor].shape[-1]
        return self.elements(tensor, start * width, stop * width).reshape(stop - start, width)

    def whole(self, tensor: str) -> npt.NDArray[Any]:
        """All elements in a row."""
        return self.elements(tensor, 0, math.prod(self._infos[tensor].shape))

    def turned(self, tensor: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Columns of a matrix `(height, width)` as rows: `(stop - start, height)`."""
        info = self._infos[tensor]
        height, width = info.shape
        if height * width * np.dtype(_STORED[info.dtype]).itemsize <= HELD_BYTES:
            raw = self._matrix(tensor)[:, start:stop]
        else:
            raw = np.empty((height, stop - start), _STORED[info.dtype])
            places = ((row * width + start) * raw.itemsize for row in range(height))
            self._source.read_spans(
                tensor, ((place, memoryview(raw[row].data).cast("B")) for row, place in enumerate(places))
            )
        return np.ascontiguousarray(_numbers(raw, info.dtype).T)

    def _matrix(self, tensor: str) -> npt.NDArray[Any]:
        """All of a small matrix as it is stored, which is held for the columns after these."""
        if tensor not in self._held:
            info = self._infos[tensor]
            raw = np.empty(info.shape, _STORED[info.dtype])
            self._source.read_spans(tensor, [(0, memoryview(raw.reshape(-1).data).cast("B"))])
            while self._held and sum(held.nbytes for held in self._held.values()) + raw.nbytes > HELD_BYTES:
                del self._held[next(iter(self._held))]
            self._held[tensor] = raw
        return self._held[tensor]


def _numbers(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Floats as float32, which holds those of each dtype exactly; anything else as it is."""
    return to_float32(raw) if dtype in ("F16", "BF16", "F32") else raw


def unpacked(words: npt.NDArray[Any], bits: int) -> Bytes:
    """The numbers of rows of words, which follow one another from the lowest bit of the first word on."""
    octets: Bytes = np.ascontiguousarray(words).view(np.uint8)
    rows, width = octets.shape
    if bits == 8:
        return octets
    if bits == 4:
        return np.stack([octets & 15, octets >> 4], axis=2).reshape(rows, width * 2)
    periods = -(-width // bits)  # of eight codes
    pairs: npt.NDArray[np.uint16] = np.zeros((rows, periods * bits + 1), np.uint16)
    pairs[:, :width] = octets
    pairs[:, :-1] |= pairs[:, 1:] << 8
    codes = np.empty((rows, periods, 8), np.uint8)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        codes[:, :, place] = pairs[:, first:-1:bits] >> shift & ((1 << bits) - 1)
    return codes.reshape(rows, periods * 8)[:, : width * 8 // bits]


def spread(per_group: npt.NDArray[Any], size: int, columns: int) -> npt.NDArray[Any]:
    """Numbers of groups of `size` columns (0: whole rows), repeated for each group of 32 of a row."""
    groups = group_count(columns)
    if not size:
        return np.repeat(per_group.reshape(-1, 1), groups, axis=1)
    return np.repeat(per_group, size // GROUP_COLUMNS, axis=1)[:, :groups]
