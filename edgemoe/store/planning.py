"""Plans a store before it is written: the sizes and offsets of all its tensors and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import Format
from edgemoe.kernels.operations import ExpertLayout
from edgemoe.store.headers import MAX_HEADER_BYTES
from edgemoe.store.manifest import (
    RESIDENT_NAME,
    ExpertLayer,
    FileEntry,
    Manifest,
    RecordPlace,
    ResidentTensor,
    record_bytes,
)

SMALL_STORE_BYTES = 1_000_000_000
SMALL_FILE_BYTES = 90_000_000
"""The most bytes of an expert file in a small store, below the file size limit of source hosts."""
LARGE_FILE_BYTES = 4_000_000_000
_HEADER_ENTRY_BYTES = 128
"""Upper bound of a record's entry in a header: a name, a dtype and two offsets."""


@dataclass(frozen=True)
class ExpertPlan:
    """The plan for the routed experts of one layer."""

    count: int
    model_width: int
    ffn_width: int
    gate_up_format: Format
    down_format: Format

    def layout(self) -> ExpertLayout:
        """The layout of a record: gate and up, followed directly by down (matrices are multiples of 64 bytes)."""
        layout = ExpertLayout(self.model_width, self.ffn_width, self.gate_up_format, self.down_format, 0)
        return replace(layout, down_offset=layout.gate_up_bytes)


def plan_store(
    model: Mapping[str, Any],
    resident: Sequence[tuple[str, Format | None, int, int]],
    experts: Sequence[ExpertPlan | None],
    provenance: Mapping[str, Any] | None = None,
    file_limit_bytes: int | None = None,
) -> Manifest:
    """Make a manifest with all places and no checksums.

    `resident` gives (name, format, rows, columns) of each tensor; format None is a float32 vector of `rows`.
    Matrices go before vectors. Records go layer by layer into files of at most `file_limit_bytes`.
    """
    tensors = _place_resident(model, resident)
    layouts = [plan.layout() if plan else None for plan in experts]
    counts = [plan.count if plan else 0 for plan in experts]
    resident_bytes = tensors[-1].offset + tensors[-1].bytes
    if file_limit_bytes is None:
        total = resident_bytes + sum(n * record_bytes(x) for n, x in zip(counts, layouts, strict=True) if x)
        file_limit_bytes = SMALL_FILE_BYTES if total < SMALL_STORE_BYTES else LARGE_FILE_BYTES
    files: list[list[tuple[int, int, int]]] = []  # of each file: (layer, expert, bytes)
    room = 0
    for number, (count, layout) in enumerate(zip(counts, layouts, strict=True)):
        for expert in range(count):
            assert layout is not None
            needed = record_bytes(layout) + _HEADER_ENTRY_BYTES
            if needed > room:
                files.append([])
                room = file_limit_bytes - 4096
            files[-1].append((number, expert, record_bytes(layout)))
            room -= needed
    return replace(_place_records(model, tensors, layouts, files), provenance=dict(provenance or {}))


def _place_resident(
    model: Mapping[str, Any], resident: Sequence[tuple[str, Format | None, int, int]]
) -> tuple[ResidentTensor, ...]:
    ordered = sorted(resident, key=lambda entry: entry[1] is None)
    tensors = tuple(ResidentTensor(name, fmt, rows, columns, 0) for name, fmt, rows, columns in ordered)
    header = Manifest(model, FileEntry(RESIDENT_NAME, 0), tensors, (), ()).resident_header()
    if len(header) > MAX_HEADER_BYTES:
        raise StoreError(f"{len(tensors)} resident tensors: more than a safetensors header can hold.")
    position = len(header)
    placed = []
    for tensor in tensors:
        placed.append(replace(tensor, offset=position))
        position += tensor.bytes
    return tuple(placed)


def _place_records(
    model: Mapping[str, Any],
    tensors: tuple[ResidentTensor, ...],
    layouts: Sequence[ExpertLayout | None],
    files: Sequence[Sequence[tuple[int, int, int]]],
) -> Manifest:
    def layers(starts: Sequence[int]) -> tuple[ExpertLayer | None, ...]:
        places: list[list[RecordPlace]] = [[] for _ in layouts]
        for file, (start, records) in enumerate(zip(starts, files, strict=True)):
            position = start
            for layer, _, size in records:
                places[layer].append(RecordPlace(file, position))
                position += size
        return tuple(
            ExpertLayer(layout, record_bytes(layout), tuple(places[number])) if layout else None
            for number, layout in enumerate(layouts)
        )

    resident_file = FileEntry(RESIDENT_NAME, tensors[-1].offset + tensors[-1].bytes)
    nameless = tuple(FileEntry("", 0) for _ in files)
    # A header's length does not depend on the offset of its file's first record, so one round finds the offsets.
    headers = Manifest(model, resident_file, tensors, nameless, layers([0] * len(files))).expert_headers()
    expert_files = tuple(
        FileEntry(f"experts-{number:05d}.safetensors", len(header) + sum(size for _, _, size in records))
        for number, (header, records) in enumerate(zip(headers, files, strict=True))
    )
    return Manifest(model, resident_file, tensors, expert_files, layers([len(h) for h in headers]))
