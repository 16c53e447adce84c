"""A checkpoint whose tensors have others as their last rows or columns, shown as one tensor each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import Tail, tail_in
from edgemoe.conversion.formats import block_format
from edgemoe.conversion.over import SourceOver
from edgemoe.conversion.source import FLOAT_DTYPES, Source, TensorInfo
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.file_rows import Rows

Floats = npt.NDArray[np.float32]


def with_tails(source: Source) -> Source:
    """The same checkpoint with tails joined; the source itself if it has none. Raises SourceError."""
    infos = source.tensors()
    found = {name: tails for name in infos if (tails := _tails_of(name, source.config, infos))}
    hidden = {tail.tensor for tails in found.values() for tail in tails}
    whole = {name: tails for name, tails in found.items() if name not in hidden}
    return TailedSource(source, whole) if whole else source


def without_tails(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The names of the tensors that a source would show of these. Raises SourceError."""
    names = list(names)
    hidden = {tail.tensor for name in names if (tail := tail_in(config, name))}
    return [name for name in names if name not in hidden]


def _tails_of(name: str, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> tuple[Tail, ...]:
    """The tails of a tensor, each of them the tail of the one before; one that does not fit ends them.

    The family's table then says what is missing.
    """
    tails: list[Tail] = []
    own = infos[name].shape
    while (tail := tail_in(config, name)) and (other := infos.get(tail.tensor)):
        if len(own) != 2 or len(other.shape) != 2 or own[tail.columns - 1] != other.shape[tail.columns - 1]:
            break
        tails.append(tail)
        name = tail.tensor
    return tuple(tails)


class TailedSource(SourceOver):
    """A `Source` over another one."""

    def __init__(self, source: Source, tails: Mapping[str, Sequence[Tail]]) -> None:
        super().__init__(source)
        self._tails = tails
        self._infos = source.tensors()
        hidden = {tail.tensor for own_tails in tails.values() for tail in own_tails}
        self._tensors = {name: info for name, info in self._infos.items() if name not in hidden}
        for name, own_tails in tails.items():
            parts = [self._infos[name], *(self._infos[tail.tensor] for tail in own_tails)]
            rows, columns = parts[0].shape
            if own_tails[0].columns:
                columns = sum(part.shape[1] for part in parts)
            else:
                rows = sum(part.shape[0] for part in parts)
            alone = all(tail.factor == 1 for tail in own_tails) and not any(block_format(part.dtype) for part in parts)
            dtype = parts[0].dtype if alone else "F32"
            for part in parts:  # the plan refuses a tensor of which a part cannot be read
                dtype = dtype if part.dtype in FLOAT_DTYPES or block_format(part.dtype) else part.dtype
            self._tensors[name] = TensorInfo((rows, columns), dtype, self._last_shard(parts))

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        tails = self._tails.get(tensor)
        if tails is None:
            return self._source.read_rows(tensor, index, row_start, row_stop)
        pieces, before = [], 0
        for name, factor in ((tensor, 1.0), *((tail.tensor, tail.factor) for tail in tails)):
            rows = self._infos[name].shape[0]
            start, stop = (min(max(row - before, 0), rows) for row in (row_start, row_stop))
            pieces.append(np.float32(factor) * self._floats(name, start, stop))
            before += 0 if tails[0].columns else rows
        return np.concatenate(pieces, axis=1 if tails[0].columns else 0)

    def _floats(self, tensor: str, start: int, stop: int) -> Floats:
        if start == stop:
            return np.empty((0, self._infos[tensor].shape[1]), np.float32)
        rows = self._source.read_rows(tensor, None, start, stop)
        return dequantise(rows) if isinstance(rows, Blocks) else rows

    def read_columns(self, tensor: str, index: int | None, start: int, stop: int, height: int = 0) -> Floats:
        return self._source.read_columns(tensor, index, start, stop, height)
