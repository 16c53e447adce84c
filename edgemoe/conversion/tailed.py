"""A checkpoint whose tensors have others as their last rows or columns, shown as one tensor each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import Tail, tail_in
from edgemoe.conversion.source import FLOAT_DTYPES, Source, TensorInfo
from edgemoe.kernels.file_rows import BLOCK_FORMATS, Rows
from edgemoe.kernels.formats import Blocks, dequantise

Floats = npt.NDArray[np.float32]


def with_tails(source: Source) -> Source:
    """The same checkpoint with tails joined; the source itself if it has none. Raises SourceError."""
    infos = source.tensors()
    named = {name: tail_in(source.config, name) for name in infos}
    tails = {
        name: tail
        for name, tail in named.items()
        if tail and tail.tensor in infos and _joined_shape(infos[name], infos[tail.tensor], tail)
    }
    return TailedSource(source, tails) if tails else source


def without_tails(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The names of the tensors that a source would show of these. Raises SourceError."""
    names = list(names)
    hidden = {tail.tensor for name in names if (tail := tail_in(config, name))}
    return [name for name in names if name not in hidden]


def _joined_shape(own: TensorInfo, tail: TensorInfo, how: Tail) -> tuple[int, ...]:
    """The shape of both as one; empty where they do not fit each other, which the family's table then says."""
    if len(own.shape) != 2 or len(tail.shape) != 2 or own.shape[how.columns - 1] != tail.shape[how.columns - 1]:
        return ()
    rows, columns = own.shape
    return (rows, columns + tail.shape[1]) if how.columns else (rows + tail.shape[0], columns)


class TailedSource:
    """A `Source` over another one."""

    def __init__(self, source: Source, tails: Mapping[str, Tail]) -> None:
        self._source, self._tails = source, tails
        self._infos = source.tensors()
        self.name, self.fingerprint, self.config = source.name, source.fingerprint, source.config
        self._released: set[str] = set()
        self._needed: dict[str, set[str]] = {}
        order = {shard: place for place, shard in enumerate(source.shards())}
        hidden = {tail.tensor for tail in tails.values()}
        self._tensors = {name: info for name, info in self._infos.items() if name not in hidden}
        for name, tail in tails.items():
            own, other = self._infos[name], self._infos[tail.tensor]
            earlier, last = sorted((own.shard, other.shard), key=order.__getitem__)
            if earlier != last:
                self._needed.setdefault(last, set()).add(earlier)
            dtype = own.dtype if tail.factor == 1 else "F32"
            for part in (own, other):  # the plan refuses a tensor of which a part cannot be read
                dtype = dtype if part.dtype in FLOAT_DTYPES or part.dtype in BLOCK_FORMATS else part.dtype
            self._tensors[name] = replace(own, shape=_joined_shape(own, other, tail), dtype=dtype, shard=last)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def shards(self) -> Sequence[str]:
        return self._source.shards()

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        tail = self._tails.get(tensor)
        if tail is None:
            return self._source.read_rows(tensor, index, row_start, row_stop)
        if tail.columns:
            both = (self._floats(name, row_start, row_stop) for name in (tensor, tail.tensor))
            own, other = both
            return np.concatenate([own, np.float32(tail.factor) * other], axis=1)
        rows = self._infos[tensor].shape[0]
        pieces = [
            self._floats(tensor, min(row_start, rows), min(row_stop, rows)),
            np.float32(tail.factor) * self._floats(tail.tensor, max(row_start - rows, 0), max(row_stop - rows, 0)),
        ]
        return np.concatenate(pieces)

    def _floats(self, tensor: str, start: int, stop: int) -> Floats:
        if start == stop:
            return np.empty((0, self._infos[tensor].shape[1]), np.float32)
        rows = self._source.read_rows(tensor, None, start, stop)
        return dequantise(rows) if isinstance(rows, Blocks) else rows

    def read_columns(self, tensor: str, index: int | None, start: int, stop: int, height: int = 0) -> Floats:
        return self._source.read_columns(tensor, index, start, stop, height)

    def release(self, shard: str) -> None:
        """Release what no tensor of a shard that is still to be read needs."""
        self._released.add(shard)
        held = {own for last, needed in self._needed.items() if last not in self._released for own in needed}
        for name in sorted(self._released - held):
            self._source.release(name)

    def side_files(self) -> Mapping[str, bytes | Path]:
        return self._source.side_files()

    def unlisted(self) -> Mapping[str, str]:
        return self._source.unlisted()

    def notices(self) -> Sequence[str]:
        return self._source.notices()

    def close(self) -> None:
        self._source.close()
