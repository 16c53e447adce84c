"""A GGUF file opened as a store, without a copy: `edgemoe run FILE.gguf`.

Experts are read where they lie in the file, a few at a time, and land in their slots as they are read
(`kernels/landing.py`); no weight changes. What every token needs is converted when the model is opened, as `edgemoe
convert` would, and so are the config, the tokenizer and the chat template, from the metadata. The store that a
conversion with `experts="keep"` makes computes the same bits.

A GGUF file has no checksums. What is checked instead: that every tensor lies in the file, by its type and sizes; that
the file is not modified while it is open; that scales and weights are finite as they are read.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from edgemoe.architectures import SourceSlice
from edgemoe.conversion.formats import KEEP, FormatChoice, expert_of
from edgemoe.conversion.gguf.source import FilePart, GgufSource
from edgemoe.conversion.gguf_dense import GgufDenseReading, part_as_it_is, room_of
from edgemoe.conversion.plan import Plan, plan_conversion
from edgemoe.conversion.side_files import side_files_of
from edgemoe.conversion.statistics import statistics_of
from edgemoe.errors import SourceError, StoreError
from edgemoe.kernels.landing import time_mark
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.row_types import ROW_TYPES
from edgemoe.store.layouts import RecordLayout
from edgemoe.store.manifest import DenseTensor, FileEntry, Manifest, is_table
from edgemoe.store.panels import FilePanels
from edgemoe.store.reader import Store
from edgemoe.store.records import PartPlaces
from edgemoe.store.writer import side_file_entries

EMBEDDING = "embedding"
PARTS = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")


class GgufStore(Store):
    """A GGUF file, or the first part of a split one, as a store. Nothing is written but small files of its text."""

    def __init__(self, path: Path, source: GgufSource, plan: Plan, side_files: Mapping[str, bytes]) -> None:
        super().__init__(path, _manifest(source, plan, side_files))
        self._source = source
        self._dense = [piece for piece in plan.pieces if expert_of(piece.name) is None and not piece.repeats]
        try:
            self._text_folder = Path(tempfile.mkdtemp(prefix="edgemoe-gguf-"))
            weakref.finalize(self, shutil.rmtree, self._text_folder, ignore_errors=True)
            for name, content in side_files.items():
                (self._text_folder / name).write_bytes(content)
        except OSError as error:
            raise StoreError(
                f"{path}: its tokenizer cannot be written to a temporary folder ({error.strerror or error}).",
                "Free some space there, or name another folder in TMPDIR.",
            ) from error

    @classmethod
    def open_file(cls, path: Path) -> GgufStore:
        """Open a file. Raises SourceError where it is damaged, or of a model or type that cannot be used as it is."""
        source = GgufSource(path)
        try:
            plan = plan_conversion(source, FormatChoice(experts=KEEP), {"source": source.name})
        except SourceError as error:  # about a tensor, of which a checkpoint has one, and a folder many files
            raise SourceError(f"{path}: {error.message}", error.hint) from error
        if any(is_table(tensor.name) for tensor in plan.manifest.dense):
            raise SourceError(
                f"{path}: it has a table of rows that stays on the disk; expected one that a conversion has arranged.",
                f"Convert the file once: edgemoe convert {path} DEST.",
            )
        store = cls(path, source, plan, side_files_of(source, plan.manifest.model["vocab_size"]))
        source.forget_text()
        return store

    @property
    def folder(self) -> Path:
        return self.path.parent

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for file in self._source.files:
            digest.update(f"{file.header_sha256} {file.bytes} {file.modified_ns} ".encode())
        return digest.hexdigest()

    @property
    def text_folder(self) -> Path:
        return self._text_folder

    @property
    def notices(self) -> Sequence[str]:
        return self._source.notices()

    @cached_property
    def embedding_panels(self) -> FilePanels | None:
        pieces = [piece for piece in self._dense if piece.place.part == EMBEDDING]
        tensors = [tensor for tensor in self.manifest.dense if tensor.name == EMBEDDING]
        if len(pieces) != 1 or len(tensors) != 1:
            return None
        tensor, part = tensors[0], part_as_it_is(self._source, pieces[0])
        if part is None or tensor.format is None:
            return None
        mark, sides = self._source.time_mark(part.path), (tensor.rows, tensor.columns)
        return FilePanels(part.path, mark, part.type_name, part.offset, tensor.format, *sides, part.scale)

    def dense_bytes(self, embedding: bool = True) -> int:
        return round_up(sum(map(room_of, self._tensors(embedding))), PAGE_BYTES)

    def begin_dense(self, embedding: bool = True) -> GgufDenseReading:
        self.check_unchanged()
        tensors = self._tensors(embedding)
        names = {tensor.name for tensor in tensors}
        pieces = [piece for piece in self._dense if piece.place.part in names]
        return GgufDenseReading(self._source, tensors, pieces, self.dense_bytes(embedding), self.check_unchanged)

    def _tensors(self, embedding: bool) -> Sequence[DenseTensor]:
        tensors = self.manifest.dense
        if embedding or self.embedding_panels is None:
            return tensors
        return [tensor for tensor in tensors if tensor.name != EMBEDDING]

    def modified_ns(self, file: int) -> int:
        return time_mark(self._source.files[file].modified_ns)

    def check_unchanged(self) -> None:
        """Raise StoreError for a file that was modified or cut short since its header was read."""
        for file in self._source.files:
            fault = file.change()
            if fault is not None:
                raise StoreError(
                    f"{file.path}: {fault} while it was open.", "Open it again when nothing writes to the file."
                )


# ---- records -----------------------------------------------------------------------------------------------------


def _manifest(source: GgufSource, plan: Plan, side_files: Mapping[str, bytes]) -> Manifest:
    """The manifest of the file as a store: dense weights as they will be converted, records where they lie.

    Raises SourceError for experts that do not land as they are.
    """
    planned = plan.manifest
    files = tuple(FileEntry(file.path.name, file.bytes) for file in source.files)
    numbers = {file.path: number for number, file in enumerate(source.files)}
    slices = {piece.name: piece.source for piece in plan.pieces if expert_of(piece.name)}
    layouts: dict[RecordLayout, int] = {}
    of_record: list[int] = []
    first, lengths = [0], []
    file_of: list[int] = []
    offset_of: list[int] = []
    scale_of: list[float] = []
    for record in planned.records:
        layout = planned.layouts[record.layout]
        names = [name for name in PARTS if f"{record.name}.{name}" in slices]
        found = [
            _part(source, slices[f"{record.name}.{name}"], f"{record.name}.{name}", layout, name) for name in names
        ]
        landing = replace(layout, row_types=tuple((n, part.type_name) for n, part in zip(names, found, strict=True)))
        of_record.append(layouts.setdefault(landing, len(layouts)))
        file_of += [numbers[part.path] for part in found]
        offset_of += [part.offset for part in found]
        scale_of += [part.scale for part in found]
        lengths.append(sum(part.bytes for part in found))
        first.append(len(file_of))
    file, offset, firsts = np.array(file_of, np.int32), np.array(offset_of, np.int64), np.array(first, np.int64)
    records = replace(
        planned.records,
        file=file[firsts[:-1]],
        offset=offset[firsts[:-1]],
        length=np.array(lengths, np.int64),
        layout=np.array(of_record, np.int32),
        crc32c=None,
        places=PartPlaces(firsts, file, offset, np.array(scale_of, np.float32)),
    )
    return replace(
        planned,
        dense_file=files[0],
        expert_files=files,
        layouts=tuple(layouts),
        records=records,
        record_file=None,
        side_files=side_file_entries(side_files),
        quantisation=statistics_of(plan.pieces, None),
    )


def _part(source: GgufSource, where: SourceSlice, tensor: str, layout: RecordLayout, name: str) -> FilePart:
    """The place of one matrix or bias of an expert. Raises SourceError if it does not land as it is."""
    part = source.file_part(where)
    fmt = "f32" if name.endswith("_bias") else layout.matrices.format_of(name).name
    kind = None if part is None else ROW_TYPES.get(part.type_name)
    if part is not None and kind is not None and (kind.is_float if name.endswith("_bias") else kind.twin == fmt):
        return part
    found = "rows that lie apart" if part is None else f"{part.type_name}, which would become {fmt}"
    path = source.files[0].path
    raise SourceError(
        f"{path}: {where.tensor}: expected experts that can be used as they are, found {found} ({tensor}).",
        f"Convert the file once: edgemoe convert {path} DEST.",
    )
