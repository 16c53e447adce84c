"""The contract of a source: a checkpoint that can be converted.

A source knows its tensors by the names that they have in the checkpoint; `edgemoe.architectures` says which
slice of which of them is which tensor of the model. The pipeline goes through the shards in the order of
`shards()`, reads a few rows at a time, and releases each shard when all that it took from it is safe on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import SourceSlice
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks, dequantise, join_blocks
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS

PANEL_NUMBERS = PANEL_ROWS * GROUP_COLUMNS
"""The numbers of a panel that is one group wide."""

FLOAT_DTYPES: dict[str, npt.DTypeLike] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The dtypes of weights in a safetensors file that are read, and what NumPy reads them as."""
_WHOLE_DTYPES: dict[str, npt.DTypeLike] = {"I64": "<i8"}
"""The dtypes of the tables of whole numbers that some models have (`table.Change`)."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint. `shape` as the checkpoint has it, outermost first; `dtype` such as BF16 or Q4_0."""

    shape: tuple[int, ...]
    dtype: str
    shard: str
    """The shard that holds it, as in `Source.shards`."""


def take_rows(rows: Rows, order: npt.NDArray[np.int64] | slice) -> Rows:
    """Select rows by the indices in `order`, in that order, or by a slice."""
    return rows.rows(order) if isinstance(rows, Blocks) else rows[order]


def take_columns(rows: Rows, order: npt.NDArray[np.int64]) -> Rows:
    """Put columns in another order, in which those of a block stay together."""
    return rows.columns(order) if isinstance(rows, Blocks) else np.ascontiguousarray(rows[:, order])


def join_rows(pieces: Sequence[Rows]) -> Rows:
    """Put pieces of one tensor together, in order: all of them floats, or all of them blocks of one format."""
    if len(pieces) == 1:
        return pieces[0]
    blocks = [piece for piece in pieces if isinstance(piece, Blocks)]
    return join_blocks(blocks) if blocks else np.concatenate([p for p in pieces if not isinstance(p, Blocks)])


def float_dtype(tensor: str, info: TensorInfo, *, whole: bool = True) -> np.dtype[Any]:
    """The NumPy dtype that reads a tensor of a safetensors file. Raises SourceError for an unsupported dtype.

    `whole` says whether the tensor may be a table of whole numbers.
    """
    dtypes = FLOAT_DTYPES | _WHOLE_DTYPES if whole else FLOAT_DTYPES
    if info.dtype not in dtypes:
        kind = "whole numbers" if info.dtype in _WHOLE_DTYPES else "quantised"
        raise SourceError(
            f"{tensor}: expected weights of {', '.join(FLOAT_DTYPES)}, found {info.dtype}: they are {kind}.",
            "Use the checkpoint's unquantised version.",
        )
    return np.dtype(dtypes[info.dtype])


def column_spans(
    info: TensorInfo, dtype: np.dtype[Any], index: int | None, start: int, stop: int, height: int = 0
) -> tuple[npt.NDArray[Any], Iterator[tuple[int, memoryview]]]:
    """Memory for columns of a matrix of floats, `(rows, columns)`, and for each row its place to read.

    A place is an offset from the beginning of the tensor in bytes, and the memory that what lies there goes to.
    """
    rows, columns = height or info.shape[-2], info.shape[-1]
    first = (index or 0) * rows * columns + start
    raw = np.empty((rows, stop - start), dtype)
    spans = (((first + row * columns) * dtype.itemsize, memoryview(raw[row].data).cast("B")) for row in range(rows))
    return raw, spans


def read_slice(source: Source, where: SourceSlice, start: int, stop: int) -> Rows:
    """Read rows `start` to `stop` of a tensor of the model, as the table of its family locates it. Raises SourceError.

    Rows that lie between those of another tensor are read with them and left out.
    """
    if where.turned:
        return _turned_rows(source, where, start, stop)
    if where.whole_rows:
        return _whole_rows(source, where, start, stop)
    rows = join_rows([_read_place(source, where, place) for place in where.places(start, stop)])
    return rows if where.change == "none" else _changed(rows, where)


def _read_place(source: Source, where: SourceSlice, place: range) -> Rows:
    first, last = place[0], place[-1] + 1
    rows: Rows
    if where.as_vector:
        rows = source.read_rows(where.tensor, None, 0, source.tensors()[where.tensor].shape[0])
        assert not isinstance(rows, Blocks)  # the plan takes no quantised vector
        return rows.reshape(-1)[first:last]
    if where.row_width:
        elements = source.read_rows(where.tensor, None, first * where.row_width, last * where.row_width)
        assert not isinstance(elements, Blocks)  # the plan takes no quantised tensor of such a shape
        rows = elements.reshape(-1, where.row_width)
    elif where.transposed:
        rows = source.read_columns(where.tensor, where.index, first, last, where.height)
    else:
        rows = source.read_rows(where.tensor, where.index, first, last)
    return rows if place.step == 1 else take_rows(rows, slice(None, None, place.step))


def _turned_rows(source: Source, where: SourceSlice, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Read rows of matrices that the source has transposed, one after the other in one run of blocks."""
    (run,) = where.runs
    pieces = []
    for number in range(start // where.turned, -(-stop // where.turned)):
        first, before = run.start + number * run.period, number * where.turned
        rows = source.read_rows(where.tensor, where.index, first, first + run.length)
        values = dequantise(rows) if isinstance(rows, Blocks) else rows
        pieces.append(values.T[max(0, start - before) : stop - before])
    return np.ascontiguousarray(np.concatenate(pieces))


def _whole_rows(source: Source, where: SourceSlice, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Read rows of a matrix whose panels hold the rows of the source in one piece; from a panel's first row on."""
    first, end = start * GROUP_COLUMNS, stop * GROUP_COLUMNS
    numbers = np.zeros(-(-(end - first) // PANEL_NUMBERS) * PANEL_NUMBERS, np.float32)
    found = _numbers_of_rows(source, where, first, min(end, where.row_stop * where.whole_rows))
    numbers[: len(found)] = found
    panels = numbers.reshape(-1, GROUP_COLUMNS, PANEL_ROWS).swapaxes(1, 2)
    return np.ascontiguousarray(panels).reshape(-1, GROUP_COLUMNS)[: stop - start]


def _numbers_of_rows(source: Source, where: SourceSlice, first: int, end: int) -> npt.NDArray[np.float32]:
    """Read numbers `first` to `end` of all rows, one row after the other."""
    shape = source.tensors()[where.tensor].shape
    if len(shape) == 2:
        each = where.whole_rows
        rows = source.read_rows(where.tensor, None, first // each, -(-end // each))
        assert not isinstance(rows, Blocks)  # the plan takes no quantised rows
    else:  # elements, of equal matrices one after the other
        each = math.prod(shape[1:])
        start = first // each * each
        values = source.read_rows(where.tensor, None, start, -(-end // each) * each)
        assert not isinstance(values, Blocks)
        rows = values.reshape(-1, *shape[-2:])
        rows = rows.swapaxes(1, 2) if where.transposed else rows
    return rows.reshape(-1)[first - first // each * each :][: end - first]


def _changed(rows: Rows, where: SourceSlice) -> npt.NDArray[np.float32]:
    """The numbers in the form that the model has; each is rounded to float32 once."""
    values, change = (dequantise(rows) if isinstance(rows, Blocks) else rows).astype(np.float64), where.change
    if change == "whole":
        wrong = values[~((values >= 0) & (values < where.limit) & (values == np.floor(values)))]
        if wrong.size:
            raise SourceError(
                f"{where.tensor}: expected whole numbers from 0 to {where.limit - 1}, found {wrong.flat[0]:g}.",
                "Was the checkpoint damaged? Download it again.",
            )
        return values.astype(np.float32)
    with np.errstate(over="ignore"):  # conversion refuses numbers that are not finite
        made = {"plus_one": 1 + values, "minus_exp": -np.exp(values), "minus": -values}
        return made[change].astype(np.float32)


class Source(Protocol):
    """A checkpoint that can be read a few rows at a time. Every method raises SourceError."""

    @property
    def name(self) -> str:
        """For provenance and messages: a folder's name, a file's name or a hub id."""

    @property
    def fingerprint(self) -> str:
        """A value equal only for equal checkpoints (config, headers and samples, or the hub's commit): guards a resume.

        It must be known without the weights, and not depend on where they lie or when they were written.
        """

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's config.json (a GGUF source makes one from its metadata)."""

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by their names in the checkpoint; known without reading (or downloading) the weights."""

    def shards(self) -> Sequence[str]:
        """The shards in the order in which they are best read."""

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        """Rows `row_start` to `row_stop` of a tensor, float32 or, where `block_format` has one for its dtype, Blocks.

        Shapes: of `(rows, columns)` the result is `(row_stop - row_start, columns)`, always so for Blocks; of
        `(experts, rows, columns)` it is the same within expert `index`; of `(elements,)`, or of more than two
        dimensions without an `index`, it is those elements.
        Needs memory in proportion to the rows asked for, not to the tensor; fetches the shard where it must.
        """

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        """Columns `start` to `stop` of a matrix of floats, or of matrix `index` of several: `(stop - start, rows)`.

        With a `height` the matrices have that many rows each, one below the other in two dimensions. Only for tensors
        that a family's table has as transposed. Memory as for `read_rows`.
        """

    def release(self, shard: str) -> None:
        """Declare that this shard will not be read again: a source may delete its download. May be called twice."""

    def side_files(self) -> Mapping[str, bytes | Path]:
        """The checkpoint's files among the store's `SIDE_FILES`, as contents or as the path of a local file.

        Without a tokenizer.json, also the file that it is made from (`tokenizers/files.py`).
        """

    def unlisted(self) -> Mapping[str, str]:
        """Tensors that the shards hold and their index leaves out, each with its shard. They are not in `tensors()`."""

    def notices(self) -> Sequence[str]:
        """Paragraphs about the checkpoint that a person should read before it is converted."""

    def close(self) -> None:
        """Close files and connections."""
