"""Layouts of expert records: which matrices a record holds, in which weight formats, and at which offsets.

A store has a short list of layouts, and every record names one of them by its number, so records of one layer may
differ in formats and lengths. A layout describes a record as it stands in memory, in a slot of the expert cache.

*Landing* says how the bytes of the file become the bytes of the slot. Records that land `as is` are used exactly as
they lie in the file, so their stored length is the layout's `slot_bytes`. The stored length is a column of the record
table, apart from the layout, because a landing that decodes will store fewer bytes, and as many as each record needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal, get_args

from edgemoe.io.pages import PAGE_BYTES, round_up
from edgemoe.kernels.expert_operations import ExpertLayout
from edgemoe.kernels.formats import FORMATS, Format

MATRIX_ALIGNMENT_BYTES = 64

Landing = Literal["as is"]
LANDINGS: tuple[str, ...] = get_args(Landing)

SECTIONS = ("gate_up", "down")
"""The sections of every layout: gate and up, interleaved panel by panel, and down."""

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
    """Bytes that a record takes in memory, a multiple of 4096."""
    landing: Landing = "as is"

    @functools.cached_property
    def matrices(self) -> ExpertLayout:
        """The same layout in the terms of kernels."""
        places = {section.name: section for section in self.sections}
        gate_up, down, biases = places["gate_up"], places["down"], places.get(BIASES)
        offset = biases.offset if biases else 0
        return ExpertLayout(self.hidden_size, self.intermediate_size, gate_up.format, down.format, down.offset, offset)

    @property
    def has_biases(self) -> bool:
        return any(section.name == BIASES for section in self.sections)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices and biases, without padding: what kernels read of a record."""
        return sum(self._bytes_of(section) for section in self.sections)

    def fault(self) -> str | None:
        """Describe the first fault of a layout from a file; None if kernels can use records of this layout."""
        names = tuple(section.name for section in self.sections)
        if sorted(names) not in (sorted(SECTIONS), sorted((*SECTIONS, BIASES))):
            return (
                f"expected the sections {', '.join(SECTIONS)}, with or without {BIASES},"
                f" found {', '.join(names)[:80] or 'none'}."
            )
        if self.slot_bytes % PAGE_BYTES:
            return f"expected a length that is a multiple of {PAGE_BYTES}, found {self.slot_bytes}."
        end, before = 0, ""
        for section in sorted(self.sections, key=lambda section: section.offset):
            if section.offset % MATRIX_ALIGNMENT_BYTES or (section.name == SECTIONS[0] and section.offset):
                place = "byte 0" if section.name == SECTIONS[0] else f"a multiple of {MATRIX_ALIGNMENT_BYTES} bytes"
                return f"section {section.name}: expected at {place}, found at byte {section.offset}."
            if section.name == BIASES and section.format.name != "f32":
                return f"section {section.name}: expected the format f32, found {section.format.name}."
            if section.offset < end:
                return f"section {section.name} begins at byte {section.offset}, within {before}, which ends at {end}."
            end, before = section.offset + self._bytes_of(section), section.name
            if end > self.slot_bytes:
                return f"section {section.name} ends at byte {end}, beyond the record's {self.slot_bytes} bytes."
        return None

    def _bytes_of(self, section: Section) -> int:
        own, biases = self.matrices, self.matrices.bias_offsets()
        # `bias_bytes` would be 0 for biases that a damaged file has at byte 0, and hide that they overlap.
        sizes = {"gate_up": own.gate_up_bytes, "down": own.down_bytes, BIASES: biases["end"] - biases["gate"]}
        return sizes[section.name]


@functools.cache
def packed_layout(
    hidden_size: int, intermediate_size: int, gate_up_format: Format, down_format: Format, bias: bool = False
) -> RecordLayout:
    """The layout that conversion writes: gate and up, directly followed by down, then biases, padded to whole pages."""
    matrices = ExpertLayout(hidden_size, intermediate_size, gate_up_format, down_format, 0)
    sections = [Section("gate_up", gate_up_format, 0), Section("down", down_format, matrices.gate_up_bytes)]
    end = matrices.gate_up_bytes + matrices.down_bytes
    if bias:
        sections.append(Section(BIASES, FORMATS["f32"], end))
        end = replace(matrices, biases_offset=end).bias_offsets()["end"]
    return RecordLayout(hidden_size, intermediate_size, tuple(sections), round_up(end, PAGE_BYTES))
