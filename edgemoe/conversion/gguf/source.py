"""Reads a GGUF file, or the first part of a split one, as a source.

Blocks equal those of our formats (`kernels/row_types.py`) and are passed on unchanged; F32, F16 and BF16 become
float32.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import SourceSlice, model_spec
from edgemoe.conversion.gguf.config import checkpoint_config
from edgemoe.conversion.gguf.families import FAMILIES
from edgemoe.conversion.gguf.file import CHECK_THE_FILE, GgufFile, GgufTensor, read_gguf
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.latent import latent_notices
from edgemoe.conversion.gguf.linear import Turns
from edgemoe.conversion.gguf.names import TensorView, checkpoint_tensors, halves_order
from edgemoe.conversion.gguf.scales import with_scales
from edgemoe.conversion.gguf.tokenizer import notices, side_files
from edgemoe.conversion.sampling import sample_sha256
from edgemoe.conversion.source import TensorInfo, join_rows, take_columns, take_rows
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.file_rows import Rows, decode_rows, scaled
from edgemoe.kernels.landing import time_mark
from edgemoe.kernels.row_types import BLOCK_FORMATS

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


class FilePart(NamedTuple):
    """Rows of a matrix, or elements of a vector, that follow one another in a file as the model has them."""

    type_name: str
    path: Path
    offset: int
    bytes: int
    scale: float = 1.0
    """The number that multiplies its blocks, where their type leaves that open."""


class GgufSource:
    """A GGUF model as a checkpoint of its family (see `Source`). Opening it reads headers, not weights."""

    def __init__(self, path: Path) -> None:
        self.files = _read_files(path)
        first = self.files[0]
        tensors: dict[str, GgufTensor] = {}
        for file in self.files:
            twice = tensors.keys() & file.tensors.keys()
            if twice:
                raise SourceError(
                    f"{file.path}: {min(twice)}: the tensor is in another file of this model too.",
                    "Download the files again.",
                )
            tensors |= file.tensors
        metadata = Metadata(first.path, first.metadata)
        tensors = with_scales(tensors, FAMILIES[metadata.architecture])
        self._config = checkpoint_config(metadata, tensors)
        self._views = checkpoint_tensors(
            FAMILIES[metadata.architecture], model_spec(self._config), self._config["head_dim"] or 0, tensors
        )
        # Convert the tokenizer now: an unsupported one should be reported at the start, not after an hour.
        self._side_files = side_files(first.path, first.metadata)
        self._notices = [
            *notices(first.path, first.metadata),
            *latent_notices(metadata, first.path),
        ]

    @property
    def name(self) -> str:
        return self.files[0].path.name

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            try:
                digest.update((file.header_sha256 + sample_sha256(file.path)).encode())
            except OSError as error:
                raise SourceError(f"{file.path}: cannot be read: {error.strerror or error}.", CHECK_THE_FILE) from error
        return digest.hexdigest()

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(view.shape, _dtype(view), view.parts[0].path.name) for name, view in self._views.items()
        }

    def shards(self) -> Sequence[str]:
        return [file.path.name for file in self.files]

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        view = self._views.get(tensor)
        if view is None:
            raise SourceError(f"{self.name}: it has no tensor {tensor}.")
        return _read_rows(view, index, row_start, row_stop)

    def file_part(self, where: SourceSlice) -> FilePart | None:
        """Where a slice lies in one piece, as it is; None if its rows lie apart or in another order."""
        view = self._views.get(where.tensor)
        if view is None or view.elements or view.head_dim is not None or where.row_step != 1 or where.transposed:
            return None
        if view.turns is not None or where.runs or where.change != "none":
            return None
        part_rows = view.parts[0].shape[-2] if len(view.parts[0].shape) > 1 else 1
        if len(view.shape) == 1:  # elements of a vector, which may be one row of a matrix
            part, first = view.parts[0], (view.expert or 0) * view.parts[0].row_bytes
            size = part.row_bytes // part.shape[-1]
            if part.type_name in BLOCK_FORMATS:
                return None
            return FilePart(part.type_name, part.path, part.offset + first + where.row_start * size, where.rows * size)
        number = where.row_start // part_rows
        if (where.row_stop - 1) // part_rows != number:
            return None
        part, expert = view.parts[number], where.index if where.index is not None else view.expert or 0
        row = expert * part_rows + view.first_row + where.row_start - number * part_rows
        offset = part.offset + row * part.row_bytes
        return FilePart(part.type_name, part.path, offset, where.rows * part.row_bytes, part.scale(expert))

    def time_mark(self, path: Path) -> int:
        """The mark (`kernels/landing.py`) of the time at which a file of this model was modified last."""
        return time_mark(next(file.modified_ns for file in self.files if file.path == path))

    def forget_text(self) -> None:
        """Give back the memory of metadata and side files, which nobody will ask for again."""
        self.files = [replace(file, metadata={}) for file in self.files]
        self._side_files = {}

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        raise AssertionError("no tensor of a GGUF is transposed")

    def release(self, shard: str) -> None:
        """Nothing to delete: the file is the user's."""

    def side_files(self) -> Mapping[str, bytes | Path]:
        return self._side_files

    def unlisted(self) -> Mapping[str, str]:
        return {}

    def notices(self) -> Sequence[str]:
        return self._notices

    def close(self) -> None:
        """Nothing stays open between reads."""


def _read_files(path: Path) -> list[GgufFile]:
    first = read_gguf(path)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return [first]
    match = _SPLIT_NAME.fullmatch(path.name)
    number = first.metadata.get("split.no")
    if not match or count != int(match[3]) or number != 0:
        name = f"{match[1] if match else 'model'}-00001-of-{count!s:0>5}.gguf"
        found = number + 1 if isinstance(number, int) else number  # the file counts from 0, its name from 1
        way_out = f"Give {name}" if match and number != 0 else "Give the first file, under its original name,"
        raise SourceError(
            f"{path}: expected the first of {count} files, named like {name}; found number {found}.",
            f"{way_out} with the others beside it.",
        )
    files = [first]
    for number in range(2, count + 1):
        part = path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf")
        if not part.is_file():
            raise SourceError(
                f"{part}: missing; the model is split into {count} files.", "Download it beside the first."
            )
        files.append(read_gguf(part))
        _check_part(files[-1], first, number, count)
    expected = first.metadata.get("split.tensors.count")
    found = sum(len(file.tensors) for file in files)
    if expected not in (None, found):
        raise SourceError(
            f"{path}: expected {expected} tensors in {count} files, found {found}.", "Download the files again."
        )
    return files


def _check_part(part: GgufFile, first: GgufFile, number: int, count: int) -> None:
    """Raise SourceError for a file that says it is another part, or one of another model."""
    expected = {"split.no": number - 1, "split.count": count}
    expected |= {key: first.metadata[key] for key in ("general.architecture",) if key in first.metadata}
    for key, value in expected.items():
        found = part.metadata.get(key, value)
        if found != value:
            raise SourceError(
                f"{part.path}: expected part {number} of {count} of {first.path.name}, with {key} {value!r};"
                f" found {found!r}.",
                "Download the files of one model again, under their original names.",
            )


def _dtype(view: TensorView) -> str:
    """The type of the parts; F32 if the types differ, are of whole numbers, a vector is quantised, as these are
    decoded.
    """
    names = {part.type_name for part in view.parts}
    vector = view.elements or 1 in (len(view.parts[0].shape), len(view.shape))
    if len(names) > 1 or "I32" in names or (vector and not names.isdisjoint(BLOCK_FORMATS)):
        return "F32"
    return next(iter(names))


def _read_rows(view: TensorView, index: int | None, row_start: int, row_stop: int) -> Rows:
    if view.turns is not None:
        return _rows_in_turn(replace(view, turns=None), view.turns, row_start, row_stop)
    if view.elements:
        return _elements(view, row_start, row_stop)
    rows = view.shape[-2] if len(view.shape) > 1 else view.shape[0]
    assert 0 <= row_start < row_stop <= rows
    assert (index is not None) == (len(view.shape) == 3)
    if 1 in (len(view.parts[0].shape), len(view.shape)):
        return _vector_rows(view, row_start, row_stop)
    if view.head_dim is None:
        return _plain_rows(view, index, row_start, row_stop)
    # The requested rows are scattered over a head in the file, so whole heads are read.
    first = row_start // view.head_dim * view.head_dim
    last = min(rows, -(-row_stop // view.head_dim) * view.head_dim)
    order = halves_order(row_start, row_stop, view.head_dim) - first
    return take_rows(_plain_rows(view, index, first, last), order)


def _rows_in_turn(view: TensorView, turns: Turns, start: int, stop: int) -> Rows:
    """Read rows of heads that lie in turn, or whole rows whose columns do; `view` is that of the file's order."""
    if turns.columns:
        return take_columns(_read_rows(view, None, start, stop), turns.places(0, view.shape[-1]))
    order = turns.places(start, stop)
    runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    return join_rows([_read_rows(view, None, int(run[0]), int(run[-1]) + 1) for run in runs])


def _vector_rows(view: TensorView, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Read elements of a vector, or the single row of a matrix that the file stores as a vector."""
    row = view.expert or 0
    values = _as_floats(decode_rows(view.parts[0].read(row, row + 1), view.parts[0].type_name))
    if len(view.shape) == 2:
        return values[start:stop]
    order = np.arange(start, stop) if view.head_dim is None else halves_order(start, stop, view.head_dim)
    return np.take(values[0], order)


def _elements(view: TensorView, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Read elements of a matrix, row after row."""
    columns = view.parts[0].shape[-1]
    first = start // columns
    values = _as_floats(_plain_rows(view, None, first, -(-stop // columns))).reshape(-1)
    return values[start - first * columns : stop - first * columns]


def _plain_rows(view: TensorView, index: int | None, start: int, stop: int) -> Rows:
    """Read rows in the file's order, from each part that holds some of them."""
    part_rows = view.parts[0].shape[-2]
    base = (index if index is not None else view.expert or 0) * part_rows + view.first_row
    pieces: list[Rows] = []
    for number, part in enumerate(view.parts):
        first, last = max(start - number * part_rows, 0), min(stop - number * part_rows, part_rows)
        if first < last:
            rows = decode_rows(part.read(base + first, base + last), part.type_name)
            pieces.append(scaled(rows, part.scale(base // part_rows)) if isinstance(rows, Blocks) else rows)
    if _dtype(view) not in BLOCK_FORMATS:
        pieces = [_as_floats(piece) for piece in pieces]
    return join_rows(pieces)


def _as_floats(rows: Rows) -> npt.NDArray[np.float32]:
    return dequantise(rows) if isinstance(rows, Blocks) else rows
