"""Layouts of expert records: which matrices a record holds, in which weight formats, and at which offsets.

A store has a short list of layouts, and every record names one of them by its number, so records of one layer may
differ in formats and lengths. A layout describes a record as it stands in memory, in a slot of the expert cache.

*Landing* says how the bytes of the file become the bytes of the slot. Records that land `as is` are used exactly as
they lie in the file, so their stored length is the layout's `slot_bytes`; those of every store on disk do. Records of a
GGUF file that is opened as it is land `in parts`: the layout says of which type gate, up, down and the biases are in
the file, each of which has a place of its own there, and a reader thread brings them into the sections
(`kernels/landing.py`). So bytes in the file and bytes in a slot are two figures.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES, ExpertLayout
from edgemoe.kernels.formats import FORMATS, Format
from edgemoe.kernels.landing import PART, Parts, part_of_matrix, part_of_vector
from edgemoe.kernels.pages import PAGE_BYTES, round_up

AS_IS, IN_PARTS = "as is", "in parts"
"""The landings. A store on disk has records that land as they are, and no others."""

GATED_SECTIONS, APART_SECTIONS, PLAIN_SECTIONS = ("gate_up", "down"), ("gate", "up", "down"), ("up", "down")
"""The sections of a layout: gate and up, interleaved panel by panel or, in unlike formats, one after the other; or up
of experts without a gate; and down."""
_SECTIONS = (GATED_SECTIONS, APART_SECTIONS, PLAIN_SECTIONS)

BIASES = "biases"
"""The section that a layout has beside them if its experts have biases (`ExpertLayout.bias_offsets`), in f32."""


@dataclass(frozen=True)
class Section:
    """A matrix or the biases of a record: name, weight format, and offset within the record in bytes."""

    name: str
    format: Format
    offset: int


@dataclass(frozen=True)
class RecordLayout:
    """The layout of an expert's record in memory."""

    hidden_size: int
    intermediate_size: int
    sections: tuple[Section, ...]
    slot_bytes: int
    """Bytes that a record takes in memory, a multiple of 4096; of records that differ in length, the longest one."""
    row_types: tuple[tuple[str, str], ...] = ()
    """For a record in parts: the name (`gate`, `up`, `down`, `gate_bias` ...) of each, and its type in the file."""

    @property
    def landing(self) -> str:
        return IN_PARTS if self.row_types else AS_IS

    @functools.cached_property
    def parts(self) -> Parts:
        """How each part lands, in the order of `row_types`; none for a record that lands as it is."""
        return np.concatenate([np.zeros(0, PART), *(self._part(name, kind) for name, kind in self.row_types)])

    def _part(self, name: str, row_type: str) -> Parts:
        own, F, D = self.matrices, self.intermediate_size, self.hidden_size
        if name.endswith("_bias"):
            matrix = name.removesuffix("_bias")
            return part_of_vector(row_type, D if matrix == "down" else F, own.bias_offsets()[matrix])
        fmt, sizes = own.format_of(name), (D, F) if name == "down" else (F, D)
        return part_of_matrix(row_type, fmt.name, *sizes, *own.panels_of(name))

    @functools.cached_property
    def stored_bytes(self) -> int:
        """Bytes that a record takes in its files."""
        return int(self.parts["bytes"].sum()) if self.row_types else self.slot_bytes

    @functools.cached_property
    def matrices(self) -> ExpertLayout:
        """The same layout in the terms of kernels."""
        places = {section.name: section for section in self.sections}
        both, down, biases = places.get("gate_up"), places["down"], places.get(BIASES)
        gate, up = both or places.get("gate"), both or places["up"]
        offset = biases.offset if biases else 0
        return ExpertLayout(
            self.hidden_size,
            self.intermediate_size,
            (gate or up).format,
            up.format,
            down.format,
            down.offset,
            offset,
            gated=gate is not None,
            up_offset=up.offset,
        )

    @property
    def has_biases(self) -> bool:
        return any(section.name == BIASES for section in self.sections)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices and biases, without padding: what kernels read of a record (or of the longest)."""
        if self.matrices.varying:
            return self.slot_bytes
        return sum(self._bytes_of(section) for section in self.sections)

    def fault(self) -> str | None:
        """Describe the first fault of a layout from a file; None if kernels can use records of this layout."""
        names = tuple(section.name for section in self.sections)
        matrices = sorted(set(names) - {BIASES})
        if len(names) > len(set(names)) or matrices not in map(sorted, _SECTIONS):
            return (
                f"expected the sections {' or '.join(map(', '.join, _SECTIONS))}, with or without {BIASES},"
                f" found {', '.join(names)[:80] or 'none'}."
            )
        first = next(name for name in ("gate_up", "gate", "up") if name in names)
        if self.slot_bytes % PAGE_BYTES:
            return f"expected a length that is a multiple of {PAGE_BYTES}, found {self.slot_bytes}."
        if self.matrices.varying:
            return self._varying_fault()
        end, before = 0, ""
        for section in sorted(self.sections, key=lambda section: section.offset):
            leads = section.name == first
            if section.offset % MATRIX_ALIGNMENT_BYTES or (leads and section.offset):
                place = "byte 0" if leads else f"a multiple of {MATRIX_ALIGNMENT_BYTES} bytes"
                return f"section {section.name}: expected at {place}, found at byte {section.offset}."
            if section.name == BIASES and section.format.name != "f32":
                return f"section {section.name}: expected the format f32, found {section.format.name}."
            if section.offset < end:
                return f"section {section.name} begins at byte {section.offset}, within {before}, which ends at {end}."
            end, before = section.offset + self._bytes_of(section), section.name
            if end > self.slot_bytes:
                return f"section {section.name} ends at byte {end}, beyond the record's {self.slot_bytes} bytes."
        return None

    def _varying_fault(self) -> str | None:
        """The fault of a layout whose records differ in length: they are as conversion writes them, or none at all."""
        own = self.matrices
        if own.gate_format != own.up_format and (own.gate_format.varying or own.up_format.varying):
            return f"expected gate and up in one format, found {own.gate_format.name} and {own.up_format.name}."
        sizes, formats = (self.hidden_size, self.intermediate_size), (own.up_format, own.down_format)
        expected = packed_layout(*sizes, *formats, gated=own.gated, gate_format=own.gate_format)
        if self.sections != expected.sections:
            places = (", ".join(f"{s.name} at byte {s.offset}" for s in x.sections) for x in (expected, self))
            return "expected {}, found {}.".format(*places)
        return None

    def _bytes_of(self, section: Section) -> int:
        own, biases = self.matrices, self.matrices.bias_offsets()
        # `bias_bytes` would be 0 for biases that a damaged file has at byte 0, and hide that they overlap.
        sizes = {"gate": own.gate_bytes, "up": own.up_bytes, "down": own.down_bytes}
        return (sizes | {"gate_up": own.gate_up_bytes, BIASES: biases["end"] - own.biases_offset})[section.name]


@functools.cache
def packed_layout(
    hidden_size: int,
    intermediate_size: int,
    up_format: Format,
    down_format: Format,
    bias: bool = False,
    gated: bool = True,
    gate_format: Format | None = None,
    longest: int = 0,
) -> RecordLayout:
    """The layout that conversion writes: gate and up, or up alone where experts are not `gated`, directly followed by
    down, then biases, padded to whole pages. A `gate_format` that is not up's sets gate apart. `longest` is the longest
    record, where records differ in length; its `down` is at 0 where gate and up do.
    """
    gate = gate_format or up_format
    matrices = ExpertLayout(hidden_size, intermediate_size, gate, up_format, down_format, 0, gated=gated)
    if gate != up_format:
        sections = [Section("gate", gate, 0), Section("up", up_format, matrices.gate_bytes)]
    else:
        sections = [Section("gate_up" if gated else "up", up_format, 0)]
    sections.append(Section("down", down_format, 0 if up_format.varying else matrices.gate_up_bytes))
    if matrices.varying:
        return RecordLayout(hidden_size, intermediate_size, tuple(sections), longest)
    end = matrices.gate_up_bytes + matrices.down_bytes
    if bias:
        sections.append(Section(BIASES, FORMATS["f32"], end))
        end = replace(matrices, biases_offset=end).bias_offsets()["end"]
    return RecordLayout(hidden_size, intermediate_size, tuple(sections), round_up(end, PAGE_BYTES))
