"""Plans a store before it is written: the sizes and offsets of all its tensors and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import Format, panel_count
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.store.headers import MAX_HEADER_BYTES
from edgemoe.store.layouts import RecordLayout
from edgemoe.store.manifest import (
    DENSE_NAME,
    TABLE_CHECKSUMS,
    DenseTensor,
    FileEntry,
    Manifest,
    dense_header,
    is_table,
    with_record_file,
)
from edgemoe.store.records import RecordTable, first_rows

SMALL_STORE_BYTES = 1_000_000_000
SMALL_FILE_BYTES = 90_000_000
"""The most bytes of an expert file in a small store, below the file size limit of source hosts."""
LARGE_FILE_BYTES = 4_000_000_000
_HEADER_ENTRY_BYTES = 128
"""Upper bound of a record's entry in a header: a name, a dtype and two offsets."""


def plan_store(
    model: Mapping[str, Any],
    dense: Sequence[tuple[str, Format | None, int, int]],
    experts: Sequence[Sequence[RecordLayout]],
    provenance: Mapping[str, Any] | None = None,
    file_limit_bytes: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Manifest:
    """Make a manifest with all places and no checksums.

    `dense` gives (name, format, rows, columns) of each tensor; format None is a float32 vector of `rows`.
    Tables that stay on disk go first, with their checksums, then matrices, then vectors. `experts` gives the layout of
    each expert's record, layer by layer; a dense layer has none. Records go layer by layer into files of at most
    `file_limit_bytes`. `lengths` are those of all records, where they are not their slots'.
    """
    tensors = _place_dense(model, dense)
    every = [layout for layer in experts for layout in layer]
    layouts = {layout: number for number, layout in enumerate(dict.fromkeys(every))}
    sizes = [layout.slot_bytes for layout in every] if lengths is None else lengths
    dense_file = FileEntry(DENSE_NAME, tensors[-1].offset + tensors[-1].bytes)
    if file_limit_bytes is None:
        total = dense_file.bytes + sum(sizes)
        file_limit_bytes = SMALL_FILE_BYTES if total < SMALL_STORE_BYTES else LARGE_FILE_BYTES
    files = _share_out(sizes, file_limit_bytes)
    records = RecordTable(
        first=first_rows([len(layer) for layer in experts]),
        file=np.array(files, np.int32),
        offset=np.zeros(len(every), np.int64),
        length=np.array(sizes, np.int64),
        layout=np.array([layouts[layout] for layout in every], np.int32),
        sha256=np.zeros((len(every), 32), np.uint8),
        crc32c=np.zeros(len(every), np.uint32),
    )
    nameless = (FileEntry("", 0),) * (files[-1] + 1 if files else 0)
    plan = Manifest(model, dense_file, tensors, nameless, tuple(layouts), records, provenance=dict(provenance or {}))
    return with_record_file(_place_records(plan))


def _place_dense(
    model: Mapping[str, Any], dense: Sequence[tuple[str, Format | None, int, int]]
) -> tuple[DenseTensor, ...]:
    ordered = sorted(dense, key=lambda entry: (not is_table(entry[0]), entry[1] is None))
    tensors = tuple(DenseTensor(name, fmt, rows, columns, 0) for name, fmt, rows, columns in ordered)
    tables = [tensor for tensor in tensors if is_table(tensor.name)]
    if tables:
        size = sum(tensor.bytes for tensor in tables)
        checksums = 4 * sum(panel_count(tensor.rows) for tensor in tables)
        filled = round_up(size + checksums, PAGE_BYTES) - size
        vector = DenseTensor(TABLE_CHECKSUMS, None, filled // 4, 1, 0)
        tensors = (*tables, vector, *tensors[len(tables) :])
    header = dense_header(tensors)
    if len(header) > MAX_HEADER_BYTES:
        raise StoreError(f"{len(tensors)} dense tensors: more than a safetensors header can hold.")
    position = len(header)
    placed = []
    for tensor in tensors:
        placed.append(replace(tensor, offset=position))
        position += tensor.bytes
    return tuple(placed)


def _share_out(sizes: Sequence[int], limit_bytes: int) -> list[int]:
    """The number of the file of each record, for files that are filled one after another."""
    files: list[int] = []
    number, room = -1, 0
    for size in sizes:
        needed = size + _HEADER_ENTRY_BYTES
        if needed > room:
            number += 1
            room = limit_bytes - 4096
        files.append(number)
        room -= needed
    return files


def _place_records(plan: Manifest) -> Manifest:
    """The plan with the offset of each record, and the names and sizes of the expert files."""
    # A header's length does not depend on the offset of its file's first record, so one round finds the offsets.
    ends = [len(header) for header in plan.expert_headers()]
    offsets = []
    for record in plan.records:
        offsets.append(ends[record.file])
        ends[record.file] += record.length
    files = tuple(FileEntry(f"experts-{number:05d}.safetensors", end) for number, end in enumerate(ends))
    return replace(plan, expert_files=files, records=replace(plan.records, offset=np.array(offsets, np.int64)))
