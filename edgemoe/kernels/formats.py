"""Weight formats: the bytes of a matrix in kernel layout, and the numbers that they encode.

A matrix `W` of shape `(rows, columns)` computes `y = W x`. In every format it is cut into *panels* of
16 rows, and a panel into *groups* of 32 columns; missing rows and columns are padded with zeros.

    matrix = panel 0 | panel 1 | ...
    panel  = payload of group 0 | payload of group 1 | ... | all scales | all minimums | zeros
    scales = 16 x f16 of group 0 | 16 x f16 of group 1 | ... (m4: 16 x e8m0, a byte each); minimums likewise
    (the zeros fill the panel up to a multiple of 64 bytes; payloads are therefore 64-byte aligned)

    format  payload of a group (r = row in the panel, c = column in the group)  bytes  scales  minimums  bits
    f32     element c * 16 + r, float32                                         2048   no      no        32
    f16     element c * 16 + r, float16                                         1024   no      no        16
    q8      byte (c // 4) * 64 + r * 4 + c % 4, int8                             512   yes     no        8.5
    q4      byte (c % 16 // 4) * 64 + r * 4 + c % 4; columns 0-15 in its low     256   yes     no        4.5
            nibble, 16-31 in the high one; value = nibble - 8
    q4m     as q4, value = nibble                                                256   yes     yes       5
    m4      as q4, the nibble is an e2m1 code; value = E2M1_DOUBLED[nibble]      256   e8m0    no        4.25
    (bits: per weight, scales and minimums included)

A weight of q8 or q4 is `scale * value`, one of q4m is `scale * value + minimum`: the blocks of 32 that
GGUF calls Q8_0, Q4_0 and Q4_1 carry over bit for bit. Four neighbouring columns of a row share a
32-bit lane, so that one 4-byte broadcast of int8 activations serves 8 (AVX2) or 16 (AVX-512) rows.

m4 is MXFP4 of the OCP Microscaling Formats specification (MX) 1.0: an element of 4 bits is a sign, two bits of
exponent and one of mantissa (0, 0.5, 1, 1.5, 2, 3, 4, 6), a scale is a power of two. Products want integers, so the
values are kept doubled and the scale halved: a weight is `value * 2**(e - 128)`, where `e` is the scale's byte.
`e` = 0 makes a scale below float32's normal numbers, exact all the same. `e` = 255 means NaN in MX: no store holds it,
as conversion refuses it. Code 8 is minus zero: its bits are kept, its value is 0. MXFP4 blocks of GGUF and safetensors
carry over bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

FormatName = Literal["f32", "f16", "q8", "q4", "q4m", "m4"]

Scales = Union[npt.NDArray[np.float16], npt.NDArray[np.uint8]]

PANEL_ROWS = 16
GROUP_COLUMNS = 32
PANEL_ALIGNMENT_BYTES = 64

E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the number that each e2m1 code stands for; bit 3 is the sign."""

E8M0_ONE, E8M0_NAN = 127, 255
"""The bytes of the scale 1 and of NaN; byte `e` is the scale `2**(e - 127)`."""

E8M0_HALVED = np.ldexp(np.float32(1), np.arange(256, dtype=np.int32) - (E8M0_ONE + 1)).astype(np.float32)
E8M0_HALVED[E8M0_NAN] = np.nan
"""Half of the scale that each byte stands for, which is what multiplies doubled numbers."""


@dataclass(frozen=True)
class Format:
    """The sizes of one weight format; the module's docstring shows its byte layout."""

    name: FormatName
    code: int
    """Number of the format in the C interface (`em_format`)."""
    payload_bytes: int
    """Bytes of the payload of one group of one panel (16 rows x 32 columns)."""
    scale_bytes: int
    """Bytes of one scale: 2 for float16, 1 for e8m0, 0 if the format has no scales."""
    has_minimums: bool

    @property
    def quantised(self) -> bool:
        """True if products use int8 activations (q8, q4, q4m, m4), false if float32 ones (f32, f16)."""
        return self.scale_bytes > 0

    @property
    def group_bytes(self) -> int:
        return self.payload_bytes + PANEL_ROWS * (self.scale_bytes + 2 * self.has_minimums)

    @property
    def bits_per_weight(self) -> float:
        return self.group_bytes * 8 / (PANEL_ROWS * GROUP_COLUMNS)

    def panel_bytes(self, columns: int) -> int:
        """Bytes of one panel of 16 rows."""
        return _round_up(group_count(columns) * self.group_bytes, PANEL_ALIGNMENT_BYTES)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a whole matrix in kernel layout."""
        return panel_count(rows) * self.panel_bytes(columns)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 0, 2048, 0, False),
        Format("f16", 1, 1024, 0, False),
        Format("q8", 2, 512, 2, False),
        Format("q4", 3, 256, 2, False),
        Format("q4m", 4, 256, 2, True),
        Format("m4", 5, 256, 1, False),
    )
}


def panel_count(rows: int) -> int:
    """Number of panels of 16 rows that hold `rows` rows."""
    return -(-rows // PANEL_ROWS)


def group_count(columns: int) -> int:
    """Number of groups of 32 columns that hold `columns` columns."""
    return -(-columns // GROUP_COLUMNS)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True, eq=False, repr=False)
class Blocks:
    """A matrix as plain numbers, before packing: quantisers return it and `pack` takes it.

    Shapes: values `(rows, columns)`: float32 or float16 for f32 and f16; int8 for q8 (-128..127);
    uint8 for q4, q4m and m4 (nibbles 0..15). `scales` and `minimums`: `(rows, groups)` or None; float16, but the
    scales of m4 are uint8 (e8m0). Columns need not be a multiple of 32; the last group is then shorter.
    """

    format: Format
    values: npt.NDArray[np.generic]
    scales: Scales | None = None
    minimums: npt.NDArray[np.float16] | None = None


def pack(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Lay a matrix out for the kernels: `(rows, columns)` blocks to `matrix_bytes(rows, columns)` bytes.

    A matrix may be packed in slices of whole panels (16 rows) and the results concatenated.
    """
    fmt = blocks.format
    rows, columns = blocks.values.shape
    panels, groups = panel_count(rows), group_count(columns)
    dtype = {"f32": np.float32, "f16": np.float16, "q8": np.int8}.get(fmt.name, np.uint8)
    padding_value = 8 if fmt.name == "q4" else 0
    padded = np.full((panels * PANEL_ROWS, groups * GROUP_COLUMNS), padding_value, dtype)
    padded[:rows, :columns] = blocks.values
    tiles = padded.reshape(panels, PANEL_ROWS, groups, GROUP_COLUMNS).transpose(0, 2, 1, 3)
    if not fmt.quantised:
        payload = tiles.transpose(0, 1, 3, 2)  # panel, group, column, row
    else:
        quads = tiles.reshape(panels, groups, PANEL_ROWS, GROUP_COLUMNS // 4, 4).transpose(0, 1, 3, 2, 4)
        payload = quads if fmt.name == "q8" else quads[:, :, :4] | (quads[:, :, 4:] << 4)
    sections = [_section(payload, panels)]
    per_group: Scales | None
    for present, per_group in ((fmt.quantised, blocks.scales), (fmt.has_minimums, blocks.minimums)):
        if present:
            assert per_group is not None
            assert per_group.shape == (rows, groups)
            # Missing rows of m4 have the scale 1: the byte 0 stands for a denormal, slow on some processors.
            missing = E8M0_ONE if per_group.dtype == np.uint8 else 0
            columnwise = np.full((panels * PANEL_ROWS, groups), missing, per_group.dtype)
            columnwise[:rows] = per_group
            groupwise = columnwise.reshape(panels, PANEL_ROWS, groups).transpose(0, 2, 1)
            sections.append(_section(groupwise, panels))
    used = sum(section.shape[1] for section in sections)
    sections.append(np.zeros((panels, fmt.panel_bytes(columns) - used), np.uint8))
    return np.concatenate(sections, axis=1).reshape(-1)


def _section(array: npt.NDArray[np.generic], panels: int) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(panels, -1).view(np.uint8)


def unpack(data: npt.NDArray[np.uint8], fmt: Format, rows: int, columns: int) -> Blocks:
    """The inverse of `pack`: returns the exact blocks that were packed."""
    panels, groups = panel_count(rows), group_count(columns)
    panel_view = data.reshape(panels, fmt.panel_bytes(columns))
    cut = groups * fmt.payload_bytes
    payload = np.ascontiguousarray(panel_view[:, :cut])
    if not fmt.quantised:
        dtype = np.float32 if fmt.name == "f32" else np.float16
        tiles = payload.view(dtype).reshape(panels, groups, GROUP_COLUMNS, PANEL_ROWS).transpose(0, 3, 1, 2)
        return Blocks(fmt, tiles.reshape(panels * PANEL_ROWS, -1)[:rows, :columns])
    if fmt.name == "q8":
        quads = payload.view(np.int8).reshape(panels, groups, 8, PANEL_ROWS, 4)
    else:
        pairs = payload.reshape(panels, groups, 4, PANEL_ROWS, 4)
        quads = np.concatenate([pairs & 15, pairs >> 4], axis=2)
    values = quads.transpose(0, 3, 1, 2, 4).reshape(panels * PANEL_ROWS, -1)[:rows, :columns]

    def per_group(start: int, number_bytes: int) -> npt.NDArray[Any]:
        stop = start + groups * PANEL_ROWS * number_bytes
        section = np.ascontiguousarray(panel_view[:, start:stop]).view(np.float16 if number_bytes == 2 else np.uint8)
        columnwise = section.reshape(panels, groups, PANEL_ROWS).transpose(0, 2, 1)
        return columnwise.reshape(panels * PANEL_ROWS, groups)[:rows]

    after_scales = cut + groups * PANEL_ROWS * fmt.scale_bytes
    minimums = per_group(after_scales, 2) if fmt.has_minimums else None
    return Blocks(fmt, values, per_group(cut, fmt.scale_bytes), minimums)


def dequantise(blocks: Blocks) -> npt.NDArray[np.float32]:
    """Return the float32 weights, `(rows, columns)`, that the blocks encode.

    Exact for every format but q4m, whose sum with the minimum is rounded. With its two largest scales m4 has weights
    beyond float32, which become infinite.
    """
    values: npt.NDArray[np.float32]
    if blocks.format.name == "m4":
        values = E2M1_DOUBLED.astype(np.float32)[blocks.values]
    else:
        values = blocks.values.astype(np.float32)
    if blocks.scales is None:
        return values
    columns = values.shape[1]

    def spread(per_group: Scales) -> npt.NDArray[np.float32]:
        floats: npt.NDArray[np.float32]
        floats = E8M0_HALVED[per_group] if per_group.dtype == np.uint8 else per_group.astype(np.float32)
        return np.repeat(floats, GROUP_COLUMNS, axis=1)[:, :columns]

    if blocks.format.name == "q4":
        values = values - np.float32(8)
    with np.errstate(over="ignore"):
        weights: npt.NDArray[np.float32] = values * spread(blocks.scales)
    return weights if blocks.minimums is None else weights + spread(blocks.minimums)


@dataclass(frozen=True, eq=False, repr=False)
class Matrix:
    """A matrix in kernel layout: `data` is uint8, `matrix_bytes(rows, columns)` long, 64-byte aligned."""

    data: npt.NDArray[np.uint8]
    format: Format
    rows: int
    columns: int

    @classmethod
    def planned(cls, fmt: Format, rows: int, columns: int) -> Matrix:
        """A matrix whose `data` is None: it has sizes, and takes part in sums of sizes, before it is read."""
        return cls(None, fmt, rows, columns)  # type: ignore[arg-type]  # no kernel ever gets one

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return self.format.matrix_bytes(self.rows, self.columns)
