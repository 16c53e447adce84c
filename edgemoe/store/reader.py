"""A store, opened for use: its manifest, its dense tensors in memory, and the place of each expert."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.errors import StoreError
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES, MOST_LAYOUTS, RecordLayouts
from edgemoe.kernels.formats import panel_count
from edgemoe.kernels.landing import Parts, staging_bytes
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.store.dense import DenseReading, DenseValue, DenseWeights, read_vector, unreadable
from edgemoe.store.first_bytes import LFS_FOUND, LFS_WAY_OUT, is_lfs_pointer
from edgemoe.store.layouts import RecordLayout
from edgemoe.store.manifest import MANIFEST_NAME, TABLE_CHECKSUMS, DenseTensor, FileEntry, Manifest, is_table
from edgemoe.store.manifest_parser import DAMAGED_HINT, parse_manifest
from edgemoe.store.neurons import NeuronTable, neuron_table
from edgemoe.store.panels import DiskPanels, Panels
from edgemoe.store.records import record_name

MAX_MANIFEST_BYTES = 1 << 28


class PartPlace(NamedTuple):
    """The place of a part of a record."""

    path: Path
    offset: int
    modified_ns: int
    """The time of the file's last modification; -1 where it is not compared."""
    scale: float
    """The number that multiplies all of its blocks, where their type leaves that open (NVFP4)."""


@dataclass(frozen=True)
class ExpertRecord:
    """The place of one expert's bytes: offset and length are multiples of 4096, unless it lies in parts."""

    path: Path
    offset: int
    length: int
    crc32c: int | None
    parts: Parts | None = None
    """How the parts land; None for a record that lands as it is."""
    places: tuple[PartPlace, ...] = ()
    """Where each part lies."""


class Store:
    """A store with a valid manifest, whose files of weights all exist in full length.

    Weights are verified by their checksums when they are read, side files by `side_files.check_side_files`.
    """

    def __init__(self, path: Path, manifest: Manifest, text: bytes = b"") -> None:
        """`text`: the manifest's text as it was read; empty for a store that is only planned."""
        self.path = path
        self.manifest = manifest
        self.text = text

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Open the store in a folder. Raises StoreError where it is missing, damaged, or of another version."""
        folder = Path(path)
        text = read_manifest_text(folder)
        store = cls(folder, parse_manifest(text, partial(_read_table, folder)), text)
        store.check_sizes()
        return store

    @property
    def folder(self) -> Path:
        """The folder in which the files of weights lie."""
        return self.path

    @property
    def text_folder(self) -> Path:
        """The folder in which the side files lie."""
        return self.path

    @property
    def notices(self) -> Sequence[str]:
        """Paragraphs that inform whoever runs the model; a store's were shown when it was made."""
        return ()

    @cached_property
    def digest(self) -> str:
        """Digest of the manifest's text, and so of all contents whose checksums the manifest has."""
        import hashlib

        return hashlib.sha256(self.text).hexdigest()

    def check_sizes(self) -> None:
        """Raise StoreError where a file of weights is missing or of a wrong length, naming the first loss."""
        for entry in (self.manifest.dense_file, *self.manifest.expert_files):
            self._check_size(entry.name, entry.bytes)

    def _check_size(self, name: str, expected: int) -> None:
        found = _file_size(self.path / name)
        if found != expected:
            lost = self._first_lost(name, found) if found < expected else ""
            raise _wrong_size(self.path / name, expected, found, lost)

    def _first_lost(self, name: str, size: int) -> str:
        """The first tensor or expert lost by a file that ends at `size`, for the error message."""
        names = [file.name for file in self.manifest.expert_files]
        if name in names:
            number = names.index(name)
            for record in self.manifest.records:
                if record.file == number and record.offset + record.length > size:
                    return f"; the first expert lost is layer {record.layer}, expert {record.expert}"
        for tensor in self.manifest.dense if name == self.manifest.dense_file.name else ():
            if tensor.offset + tensor.bytes > size:
                return f"; the first tensor lost is {tensor.name}"
        return ""

    @property
    def model(self) -> dict[str, Any]:
        """The ModelSpec as JSON."""
        return dict(self.manifest.model)

    @cached_property
    def tables(self) -> tuple[DenseTensor, ...]:
        """The parts of tables of which tokens need single rows: they stay on disk."""
        return tuple(tensor for tensor in self.manifest.dense if is_table(tensor.name))

    @cached_property
    def neurons(self) -> NeuronTable | None:
        """The neurons of all layers; None for a store without such experts. Raises StoreError where they lie amiss."""
        return neuron_table(self.tables)

    def read_table_checksums(self) -> npt.NDArray[np.uint32]:
        """The CRC-32C of every panel of all tables, in their order.

        Raises StoreError where the file cannot be read, or they differ from their own checksum; BudgetError.
        """
        (tensor,) = (tensor for tensor in self.manifest.dense if tensor.name == TABLE_CHECKSUMS)
        found = read_vector(self.dense_path, tensor).view(np.uint32)
        return found[: sum(panel_count(table.rows) for table in self.tables)]

    @cached_property
    def embedding(self) -> DenseTensor | None:
        """The embedding, if it can be left on disk: it must be the first tensor after tables, and begin at a page."""
        first = next(iter(self._dense_tensors(True)), None)
        if first is None or first.name != "embedding" or first.format is None or first.offset % PAGE_BYTES:
            return None
        return first

    def dense_bytes(self, embedding: bool = True) -> int:
        """Bytes that `begin_dense` allocates: those of tables are not among them."""
        tensors = self._dense_tensors(embedding)
        vectors = sum(round_up(tensor.bytes, MATRIX_ALIGNMENT_BYTES) for tensor in tensors if tensor.format is None)
        span = self.manifest.dense_file.bytes - _first_page(tensors)
        return (round_up(span, PAGE_BYTES) if tensors else 0) + round_up(vectors, PAGE_BYTES)

    @property
    def embedding_panels(self) -> DiskPanels | None:
        """The panels of an embedding that can be left on disk; None where there is none."""
        if self.embedding is None:
            return None
        panels = Panels(self.dense_path, self.embedding)
        past_end = panels.pages(panels.count - 1)[1] > self.manifest.dense_file.bytes
        return None if past_end else panels

    def load_dense(self) -> dict[str, DenseValue]:
        """Every dense tensor but tables by its name, in one block of memory that lives as long as any of them.

        Matrices are in kernel layout, vectors float32 `(elements,)`; each begins at a multiple of 64 bytes.
        Raises StoreError where the file cannot be read, or a tensor differs from its checksum.
        """
        reading = self.begin_dense()
        reading.wait()
        return reading.tensors

    def begin_dense(self, embedding: bool = True) -> DenseWeights:
        """Begin to read the tensors of `load_dense`, with or, where it can be left on disk, without the embedding.

        Raises BudgetError, and StoreError where the file cannot be opened.
        """
        tensors = self._dense_tensors(embedding)
        return DenseReading(self.dense_path, _first_page(tensors), tensors, self.dense_bytes(embedding))

    @property
    def dense_path(self) -> Path:
        """The path of the file of dense tensors."""
        return self.path / self.manifest.dense_file.name

    def _dense_tensors(self, embedding: bool) -> Sequence[DenseTensor]:
        tensors = self.manifest.dense[len(self.tables) + bool(self.tables) :]
        return tensors if embedding or self.embedding is None else tensors[1:]

    @property
    def dense_format(self) -> str:
        """The format of the embedding, and so of a store's dense part unless that has mixed formats.

        An MTP head, which has no embedding, has a matrix for that of another model.
        """
        for tensor in self.manifest.dense:
            if tensor.name in ("embedding", "token_in") and tensor.format is not None:
                return tensor.format.name
        raise StoreError(f"{self.path}: the store has no embedding.", DAMAGED_HINT)

    @cached_property
    def record_layouts(self) -> tuple[RecordLayouts | None, ...]:
        """The layouts of each layer's records, as kernels take them; None for a layer without routed experts.

        Raises StoreError for a layer with more layouts than kernels take.
        """
        return tuple(self._record_layouts(layer) for layer in range(self.manifest.records.layers))

    def _record_layouts(self, layer: int) -> RecordLayouts | None:
        records = self.manifest.records
        if not records.count(layer):
            return None
        numbers, layout_of = np.unique(records.layout[records.rows(layer)], return_inverse=True)
        if len(numbers) > MOST_LAYOUTS:
            raise StoreError(
                f"{self.path}: expected at most {MOST_LAYOUTS} layouts of expert records in a layer,"
                f" found {len(numbers)} in layer {layer}.",
                "Convert the checkpoint again with fewer formats.",
            )
        matrices = tuple(self.manifest.layouts[number].matrices for number in numbers)
        return RecordLayouts(matrices, layout_of.astype(np.uint8))

    @cached_property
    def layouts_of_layers(self) -> tuple[tuple[RecordLayout, ...], ...]:
        """The layouts that occur in each layer; none in a layer without routed experts."""
        records, layouts = self.manifest.records, self.manifest.layouts
        return tuple(tuple(layouts[number] for number in records.layouts_of(layer)) for layer in range(records.layers))

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of the largest expert record in memory, or of a page of neurons: a slot's size. 0 without experts."""
        if self.neurons is not None:
            return self.neurons.page_bytes
        return max((layout.slot_bytes for layouts in self.layouts_of_layers for layout in layouts), default=0)

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of the largest expert record in its files, or of a page of neurons. 0 without experts."""
        if self.neurons is not None:
            return self.neurons.page_bytes
        return max((layout.stored_bytes for layouts in self.layouts_of_layers for layout in layouts), default=0)

    @cached_property
    def staging_bytes(self) -> int:
        """Bytes of the buffer that each reader thread needs for records in parts; 0 where all land as they are."""
        return max((staging_bytes(layout.parts) for layout in self.manifest.layouts), default=0)

    @cached_property
    def expert_paths(self) -> tuple[Path, ...]:
        """The paths of the expert files, in the order of their numbers."""
        return tuple(self.folder / file.name for file in self.manifest.expert_files)

    def record(self, layer: int, expert: int) -> ExpertRecord:
        """The place of an expert. Raises StoreError for an unknown layer or expert."""
        records = self.manifest.records
        row = records.row(layer, expert)
        if row is None:
            raise StoreError(f"{self.path}: there is no {record_name(layer, expert)}.")
        return ExpertRecord(
            self.expert_paths[records.file[row]],
            int(records.offset[row]),
            int(records.length[row]),
            None if records.crc32c is None else int(records.crc32c[row]),
            *self._parts(row),
        )

    def _parts(self, row: int) -> tuple[Parts | None, tuple[PartPlace, ...]]:
        """How the parts of a record land, and their places."""
        records, places = self.manifest.records, self.manifest.records.places
        if places is None:
            return None, ()
        numbers = range(places.first[row], places.first[row + 1])
        found = (
            PartPlace(
                self.expert_paths[file], int(places.offset[number]), self.modified_ns(file), float(places.scale[number])
            )
            for number in numbers
            for file in (int(places.file[number]),)
        )
        return self.manifest.layouts[records.layout[row]].parts, tuple(found)

    def modified_ns(self, file: int) -> int:
        """The time at which an expert file must have been modified last; -1 where checksums say more."""
        return -1


def _first_page(tensors: Sequence[DenseTensor]) -> int:
    """The offset of the page in which the first tensor begins."""
    return min((tensor.offset for tensor in tensors), default=0) // PAGE_BYTES * PAGE_BYTES


def read_manifest_text(folder: Path) -> bytes:
    """The text of a store's manifest, unchecked. Raises StoreError where it cannot be read."""
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise StoreError(
            f"{folder}: expected a store, but {MANIFEST_NAME} cannot be read ({reason}).",
            "Give the folder that edgemoe convert wrote.",
        ) from None
    if len(text) > MAX_MANIFEST_BYTES:
        raise StoreError(f"{path}: over {MAX_MANIFEST_BYTES} bytes, which no manifest is.", DAMAGED_HINT)
    return text


def _read_table(folder: Path, file: FileEntry) -> bytes:
    """Read the file of a store's record table. Raises StoreError where it is missing, or has another size."""
    path = folder / file.name
    found = _file_size(path)
    if found == file.bytes:
        try:
            with path.open("rb") as opened:
                content = opened.read(file.bytes + 1)
        except OSError as problem:
            raise unreadable(path, problem.strerror or str(problem)) from None
        found = len(content)
        if found == file.bytes:
            return content
    raise _wrong_size(path, file.bytes, found)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        raise StoreError(f"{path.parent}: {path.name} is missing.", DAMAGED_HINT) from None


def _wrong_size(path: Path, expected: int, found: int, lost: str = "") -> StoreError:
    if is_lfs_pointer(path):
        return StoreError(f"{path}: {LFS_FOUND}", LFS_WAY_OUT)
    return StoreError(f"{path}: expected {expected} bytes, found {found}{lost}.", DAMAGED_HINT)
