"""The main loop of a conversion: reads a few rows, encodes them, writes them, and records progress.

Rows are read and written by one thread and encoded by a few others; the window between them is short, so
memory does not depend on the size of any tensor. What is written is made durable and then noted in the
journal every `CHECKPOINT_BYTES`, and before a shard is released.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.architectures.table import HEAD
from edgemoe.conversion.encoding import Encoded, encode, encode_planes, encode_rows
from edgemoe.conversion.journal import Journal
from edgemoe.conversion.plan import Piece, Plan
from edgemoe.conversion.progress import Callback, ProgressMeter
from edgemoe.conversion.records import join_record
from edgemoe.conversion.source import Source, read_slice
from edgemoe.conversion.statistics import statistics_of
from edgemoe.errors import SourceError
from edgemoe.kernels.file_rows import Rows
from edgemoe.store.manifest import TABLE_CHECKSUMS, Checksums, Manifest, is_table
from edgemoe.store.panels import Panels
from edgemoe.store.writer import StoreWriter, with_checksums

CHECKPOINT_BYTES = 1 << 26
ENCODER_THREADS = min(4, os.cpu_count() or 1)
LEAST_SHARED_ELEMENTS = 1 << 14
"""The fewest elements that another thread encodes: to hand over fewer takes longer than to encode them."""


class Transfer:
    """One run of a conversion over the pieces that the journal does not have yet."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        writer: StoreWriter,
        journal: Journal,
        progress: Callback | None,
        importance: Mapping[int, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """`importance`: that of the columns of some pieces, by their numbers."""
        self._importance = importance or {}
        self._source = source
        self._plan = plan
        self._writer = writer
        self._journal = journal
        self._pieces_left = {name: part.pieces for name, part in plan.parts.items()}
        resumed = 0
        for piece in plan.pieces:
            if piece.number in journal.errors:
                for own in self._with_base(piece):
                    self._pieces_left[own.place.part] -= 1
                    resumed += own.place.stored_bytes
        total = sum(own.place.stored_bytes for piece in plan.pieces for own in self._with_base(piece))
        self._meter = ProgressMeter(progress, total, resumed)
        self._errors: dict[int, tuple[float, float]] = {}
        self._checksums: dict[str, Checksums] = {}
        self._unnoted_bytes = 0
        self._unjoined: dict[str, dict[str, list[bytes]]] = {}
        """The panels so far of records that are written as a whole, by the record's name and the matrix's."""
        self._waiting: dict[str, dict[int, tuple[float, float]]] = {}
        """The sums that `_errors` gets once these records are written."""

    def _with_base(self, piece: Piece) -> tuple[Piece, ...]:
        """The piece, and its base plane if it has one."""
        base = self._plan.bases.get(piece.number)
        return (piece,) if base is None else (piece, base)

    def run(self, apart: Collection[int] = (), release: bool = True) -> None:
        """Write every piece that is missing, shard by shard, but for those with numbers in `apart` (`put`).

        A shard with such pieces is not released, and without `release` none is. Raises SourceError or OSError.
        """
        infos = self._source.tensors()
        by_shard: dict[str, list[Piece]] = {}
        kept: set[str] = set()
        for piece in self._plan.pieces:
            shard = infos[piece.source.tensor].shard
            missing = by_shard.setdefault(shard, [])
            if piece.number in apart:
                kept.add(shard)
            elif piece.number not in self._journal.errors:
                missing.append(piece)
        by_shard |= {shard: [] for shard in self._source.shards() if shard not in by_shard}
        with ThreadPoolExecutor(ENCODER_THREADS, "edgemoe-encode") as pool:
            for shard, pieces in by_shard.items():
                self._convert(shard, pieces, pool)
                self.checkpoint()
                if release and shard not in kept:
                    self._source.release(shard)

    def begin_apart(self) -> None:
        """Begin with the pieces that are written apart, whose rate is another one."""
        self._meter = self._meter.again()

    def put(self, doing: str, piece: Piece, slices: Iterable[tuple[int, int, Encoded]]) -> None:
        """Write a piece that was encoded apart, from the first rows to the last, unless it is there already."""
        if piece.number not in self._journal.errors and piece.number not in self._errors:
            for start, stop, encoded in slices:
                self._write(doing, piece, start, stop, encoded)

    def finish(self) -> None:
        """Write what follows from the pieces, and release all shards. Raises OSError."""
        if TABLE_CHECKSUMS in self._plan.parts.keys() - self._journal.checksums.keys():
            self._write_table_checksums()
        # An interruption may have come between the last piece of a part and its checksum.
        for name in self._plan.parts.keys() - self._journal.checksums.keys():
            self._take_checksum(name)
        self.checkpoint()
        for shard in self._source.shards():
            self._source.release(shard)

    def _write_table_checksums(self) -> None:
        """Write the checksums of all panels of tables, of which single ones will be read."""
        self._writer.sync()
        manifest, file = self._plan.manifest, self._plan.manifest.dense_file.name
        place = next((tensor.offset for tensor in manifest.dense if tensor.name == TABLE_CHECKSUMS), 0)
        for tensor in manifest.dense:
            if is_table(tensor.name):
                found = Panels(self._writer.folder / file, tensor).checksums(direct=False)
                self._writer.write(file, place, found)
                place += found.nbytes

    def _convert(self, shard: str, pieces: list[Piece], pool: ThreadPoolExecutor) -> None:
        window: deque[tuple[Piece, int, int, Future[Encoded] | Encoded]] = deque()
        try:
            for piece, start, stop in _steps(pieces):
                if len(window) > ENCODER_THREADS:
                    self._write(shard, *window.popleft())
                rows = read_slice(self._source, piece.source, start, stop)
                encoding = self._encoding(piece, rows, f"{shard}: {piece.source.tensor}")
                shared = (stop - start) * piece.place.columns >= LEAST_SHARED_ELEMENTS
                window.append((piece, start, stop, pool.submit(encoding) if shared else encoding()))
            while window:
                self._write(shard, *window.popleft())
        finally:
            for *_, work in window:
                if isinstance(work, Future):
                    work.cancel()

    def _encoding(self, piece: Piece, rows: Rows, tensor: str) -> Callable[[], Encoded]:
        """The work that encodes some rows of a piece."""
        base = self._plan.bases.get(piece.number)
        if piece.place.row_by_row:
            assert piece.place.format is not None
            return functools.partial(encode_rows, rows, piece.place.format, tensor)
        if base is None:
            return functools.partial(encode, rows, piece.place.format, tensor, self._importance.get(piece.number))
        assert base.place.format is not None
        assert piece.place.format is not None
        return functools.partial(encode_planes, rows, base.place.format, piece.place.format, tensor)

    def _write(self, shard: str, piece: Piece, start: int, stop: int, work: Future[Encoded] | Encoded) -> None:
        encoded = work.result() if isinstance(work, Future) else work
        if piece.repeats:
            self._compare(piece, start, stop, encoded.data)
        elif piece.place.varying:
            matrices = self._unjoined.setdefault(piece.place.part, {})
            matrices.setdefault(piece.name.rpartition(".")[2], []).extend(encoded.panels)
        elif piece.place.format is None:
            self._writer.write(piece.place.file, piece.place.offset + 4 * start, encoded.data)
        else:
            self._write_rows(piece, start, encoded)
        errors = self._waiting.setdefault(piece.place.part, {}) if piece.place.varying else self._errors
        error, weight = errors.get(piece.number, (0.0, 0.0))
        errors[piece.number] = (error + encoded.squared_error, weight + encoded.squared_weight)
        self._unnoted_bytes += len(encoded.data)
        self._meter.advance(shard, len(encoded.data))
        if encoded.base is not None:
            self._write(shard, self._plan.bases[piece.number], start, stop, encoded.base)
        if stop == piece.place.rows:
            self._end_piece(piece)

    def _write_rows(self, piece: Piece, start: int, encoded: Encoded) -> None:
        """Write rows of a matrix, with its head before the first."""
        if start == 0 and encoded.head.size:
            self._writer.write(piece.place.file, piece.place.head_offset, encoded.head)
        self._write_panels(piece, _panel_offset(piece, start), encoded.data)

    def _write_panels(self, piece: Piece, offset: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        if piece.place.panel_stride == piece.place.panel_bytes:
            self._writer.write(piece.place.file, offset, data)
            return
        for panel in data.reshape(-1, piece.place.panel_bytes):
            self._writer.write(piece.place.file, offset, panel)
            offset += piece.place.panel_stride

    def _compare(self, piece: Piece, start: int, stop: int, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Compare the second copy of rows in the checkpoint with the store. Raises SourceError if they differ."""
        place = piece.place
        assert place.panel_stride == place.panel_bytes > 0
        written = self._writer.checksums(place.file, _panel_offset(piece, start), data.nbytes).sha256
        if hashlib.sha256(data.tobytes()).hexdigest() != written:
            other = next(one for one in self._plan.pieces if one.name == piece.name and not one.repeats)
            where = f"found others in rows {start} to {stop - 1}"
            if piece.source.tensor != HEAD:
                raise SourceError(
                    f"{piece.source.tensor}: expected the numbers of {other.source.tensor}, which encoder and decoder"
                    f" share, {where}.",
                    "Download the checkpoint again; edgemoe runs no model whose encoder or decoder has an embedding of"
                    " its own.",
                )
            raise SourceError(
                f"{piece.source.tensor}: expected the numbers of {other.source.tensor}, to which config.json ties it"
                f" (tie_word_embeddings), {where}.",
                "If it is meant to differ, set tie_word_embeddings to false in the config.json of a copy of the"
                " checkpoint, and convert that with `force`; if not, download the checkpoint again.",
            )

    def _end_piece(self, piece: Piece) -> None:
        self._pieces_left[piece.place.part] -= 1
        if not self._pieces_left[piece.place.part]:
            if piece.place.varying:
                self._write_record(piece)
            self._take_checksum(piece.place.part)
        if self._unnoted_bytes >= CHECKPOINT_BYTES and piece.number < len(self._plan.pieces):  # its base has ended too
            self.checkpoint()

    def _write_record(self, last: Piece) -> None:
        """Write a record of which all panels are there; before, an interruption leaves nothing of its pieces."""
        panels = self._unjoined.pop(last.place.part)
        sizes = (last.place.rows, last.place.columns)
        hidden_size, intermediate_size = sizes if last.name.endswith(".down") else sizes[::-1]
        size = self._plan.parts[last.place.part].bytes
        self._writer.write(
            last.place.file, last.place.offset, join_record(panels, hidden_size, intermediate_size, size)
        )
        self._errors |= self._waiting.pop(last.place.part)

    def _take_checksum(self, name: str) -> None:
        part = self._plan.parts[name]
        self._checksums[name] = self._writer.checksums(part.file, part.offset, part.bytes)

    def checkpoint(self) -> None:
        """Make written bytes durable, then record them. Called only between pieces, when error sums are complete."""
        if not self._errors and not self._checksums:
            return
        self._writer.sync()
        self._journal.record(self._errors, self._checksums)
        self._errors.clear()
        self._checksums.clear()
        self._unnoted_bytes = 0

    def manifest(self) -> Manifest:
        """The manifest of the finished store, with checksums and statistics."""
        manifest = with_checksums(self._plan.manifest, self._journal.checksums)
        everything = (*self._plan.pieces, *self._plan.bases.values())
        return replace(manifest, quantisation=statistics_of(everything, self._journal.errors))


def _panel_offset(piece: Piece, row: int) -> int:
    """Offset in its file of the panel that holds a row of the piece's tensor."""
    return piece.place.offset + row // piece.place.panel_rows * piece.place.panel_stride


def _steps(pieces: list[Piece]) -> Iterator[tuple[Piece, int, int]]:
    for piece in pieces:
        for start, stop in piece.place.row_slices():
            yield piece, start, stop
