"""A checkpoint of any tensors in memory, as a source of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.conversion.safetensors_rows import SafetensorsRows
from edgemoe.conversion.source import TensorInfo

DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
}
"""Dtypes in safetensors files, by those of NumPy; halves of float32 (uint16) are bfloat16."""


class BytesSource(SafetensorsRows):
    """A `Source` of arrays. `dtypes` and `shards` say more about some of them by name."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        config: Mapping[str, Any],
        dtypes: Mapping[str, str] | None = None,
        shards: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.fingerprint, self.config = "bytes", "0", config
        self._arrays = {name: np.ascontiguousarray(values).tobytes() for name, values in arrays.items()}
        self._infos = {
            name: TensorInfo(
                values.shape,
                (dtypes or {}).get(name) or DTYPES[values.dtype.name],
                (shards or {}).get(name, "all"),
            )
            for name, values in arrays.items()
        }
        self.released: list[str] = []
        self.bytes_read = 0

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def shards(self) -> Sequence[str]:
        return sorted({info.shard for info in self._infos.values()})

    def read_spans(self, tensor: str, spans: Iterable[tuple[int, memoryview]]) -> None:
        for start, into in spans:
            into[:] = self._arrays[tensor][start : start + len(into)]
            self.bytes_read += len(into)

    def release(self, shard: str) -> None:
        self.released.append(shard)

    def side_files(self) -> Mapping[str, bytes | Path]:
        return {}

    def unlisted(self) -> Mapping[str, str]:
        return {}

    def notices(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        pass
