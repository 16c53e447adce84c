"""Rows and columns of the tensors of safetensors files, for the sources that hold such files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.source import Source, TensorInfo, column_spans, float_dtype

Spans = Iterable[tuple[int, memoryview]]
"""Places in a tensor, in bytes from its beginning, with the memory that takes what lies there."""


class BytesSource(Source, Protocol):
    """A source that has tensors of bytes, whatever they stand for."""

    def read_spans(self, tensor: str, spans: Spans) -> None:
        """Fill memory with what lies in a tensor. Raises SourceError."""


class SafetensorsRows(ABC):
    """The methods of a `Source` that give numbers, over one that reads bytes."""

    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""

    @abstractmethod
    def read_spans(self, tensor: str, spans: Spans) -> None:
        """Fill memory with what lies in a tensor. Raises SourceError."""

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> npt.NDArray[np.float32]:
        info = self.tensors()[tensor]
        dtype = float_dtype(tensor, info)
        shape = info.shape if index is None else info.shape[1:]
        columns = shape[1] if len(shape) == 2 else 1
        first = ((index or 0) * shape[0] + row_start) * columns
        raw = np.empty((row_stop - row_start) * columns, dtype)
        self.read_spans(tensor, [(first * dtype.itemsize, memoryview(raw.data).cast("B"))])
        values = to_float32(raw)
        return values.reshape(-1, columns) if len(shape) == 2 else values

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        info = self.tensors()[tensor]
        raw, spans = column_spans(info, float_dtype(tensor, info), index, start, stop, height)
        self.read_spans(tensor, spans)
        return to_float32(raw).T


def to_float32(raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert a checkpoint's floats to float32. bfloat16 arrives as uint16: it is the upper half of a float32."""
    if raw.dtype == np.uint16:
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # values that overflow become infinite, and are refused later
        return raw.astype(np.float32, copy=False)
