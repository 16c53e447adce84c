"""Weight formats: which numbers a matrix is kept as, and how many bytes they take.

A matrix `W` of shape `(rows, columns)` computes `y = W x`. In every format it is cut into *panels* of
16 rows, and a panel into *groups* of 32 columns; missing rows and columns are padded. `blocks.py` moves numbers in and
out of this layout.

    matrix = head, where the format has one | panel 0 | panel 1 | ...
    panel  = payload of group 0 | payload of group 1 | ... | scales | minimums | factors | offsets | zeros
    scales = 16 numbers for the first columns that share some (one for each row) | 16 for the next | ...
    (minimums, factors and offsets likewise; the zeros fill the panel up to a multiple of 64 bytes)

A payload is codes. Those of floating-point formats lie column after column: element c * 16 + r of a group, where r is
the row in the panel and c the column. Codes of 8 bits or less, which int8 activations are multiplied with, lie in
*quads*: four neighbouring columns of a row share a 32-bit lane, so that one 4-byte broadcast of activations serves 8
(AVX2) or 16 (AVX-512) rows. A code is cut into planes, each of 64-byte lines:

    plane of 8 bits   line c // 4,  byte r * 4 + c % 4
    plane of 4 bits   line c % 16 // 4, the same byte; columns 0-15 in its low nibble, 16-31 in the high one
    plane of 2 bits   line c % 8 // 4,  the same byte; columns 8f to 8f + 7 in its bits 2f and 2f + 1
    plane of 1 bit    one line, the same byte; columns 4f to 4f + 3 in its bit f

Codes of 3, 5 and 6 bits have a plane of the low bits and one of the high bits after it (`PLANES`).

The weight is `scale * factor * value`, where the value is `code - zero`, or what a table has for the code; then
`+ minimum`, or `- minimum * offset` where there are offsets, or `- scale * offset` where there are only those.

    format      bits  value         scale (columns)  minimum  factor (columns)  offset  bits for a weight, all told
    f32         32    the float                                                          32
    f16, bf16   16    the float                                                          16
    q8          8     int8          f16 (32)                                             8.5
    q4          4     code - 8      f16 (32)                                             4.5
    q4m         4     code          f16 (32)         f16                                 5
    m4          4     E2M1_DOUBLED  e8m0 (32)                                            4.25
    q5          5     code - 16     f16 (32)                                             5.5
    q5m         5     code          f16 (32)         f16                                 6
    q8m         8     code          f16 (32)         f16                                 9
    q4z         4     code          f16 (32)                                    uint8    4.75
    iq4nl       4     IQ4           f16 (32)                                             4.5
    iq4xs       4     IQ4           f16 (256)                 int8 (32)                  4.3125
    q2k         2     code          f16 (256)        f16      nibble (16)       nibble   2.625
    q3k         3     code - 4      f16 (256)                 int8 (16)                  3.5625
    q4k         4     code          f16 (256)        f16      int8 (32)         uint8    4.625
    q5k         5     code          f16 (256)        f16      int8 (32)         uint8    5.625
    q6k         6     code - 32     f16 (256)                 int8 (16)                  6.5625
    nv4         4     E2M1_DOUBLED  f32 (the row)             e4m3 (16)                  4.5
    tq2         2     code - 1      f16 (256)                                            2.0625
    q2          2     code - 1      f16 (64)                                             2.25
    q1          1     -1, 1         f16 (128)                                            1.125
    f8          8     e4m3          f32 (128)                                            8.25
    m8          8     e4m3          e8m0 (32)                                            8.25
    iq2xxs      2     grid          f16 (256)                 inner / 8 (32)             2.0625
    iq2xs       2     grid          f16 (256)                 pairs / 8 (16)             2.3125
    iq2s        2.25  grid          f16 (256)                 pairs / 8 (16)             2.5625
    iq3xxs      3     grid          f16 (256)                 inner / 4 (32)             3.0625
    iq3s        3.25  grid          f16 (256)                 pairs (32)                 3.4375
    iq1s        1.5   grid          f16 (256)                 inner / 8 (32)             1.5625
    iq1m        1.5   grid          words (256)               inner / 8 (16)             1.75
    n4          4     trellis       f16 (256)                 beside + 1 (32)            4.1875
    n3          3     trellis       f16 (256)                 beside + 1 (32)            3.1875
    n2          2     trellis       f16 (256)                 beside + 1 (32)            2.1875
    n15         1.5   trellis       f16 (256)                 beside + 1 (32)            1.6875
    n1          1     trellis       f16 (the row)                                        1
    n075        0.75  trellis       f16 (the row)                                        0.75
    sub1        1     trit          minus, plus (the row)                                0.7, and more with fewer zeros

The blocks of GGUF carry over bit for bit: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, MXFP4, NVFP4, IQ4_NL, IQ4_XS, Q2_K to Q6_K,
TQ1_0 and TQ2_0 (tq2), Q2_0 and Q1_0, and all types whose codes choose entries of a grid, for which `grid_blocks.py` has
the layout. So do checkpoints of GPTQ and AWQ (q4z), MLX (q4m, q5m, q8m), FP8 (f8) and MXFP8 (m8). A nibble factor has
its offset in the high nibble of its byte.

The formats with a trellis are edgemoe's own, for rates that codes of single weights do not reach: `trellis.py` has
their meaning and layout. Their matrices begin with a head, the tables of values; what they call a block (32, 64 or 128
columns) is the group of their payload, and factors lie beside the scale that they multiply.

sub1 has a layout of its own (`sub1.py`), in which panels, and so matrices, differ in length: one knows its bytes once
it is encoded. Experts' matrices may have it, and no others.

m4 is MXFP4 of the OCP Microscaling Formats specification (MX) 1.0: an element of 4 bits is a sign, two bits of
exponent and one of mantissa (0, 0.5, 1, 1.5, 2, 3, 4, 6), a scale is a power of two. Products want integers, so the
values are kept doubled and the scale halved: a weight is `value * 2**(e - 128)`, where `e` is the scale's byte. `e` =
0 makes a scale below float32's normal numbers, exact all the same. `e` = 255 means NaN in MX: no store holds it, as
conversion refuses it. Code 8 is minus zero: its bits are kept, its value is 0. nv4 is NVFP4, with the same elements:
half of its factor multiplies the doubled values. m8 is MXFP8 (E4M3), whose values are doubled too, and whose scales
are those of m4. bf16 is the upper half of a float32: its bits, shifted by 16, are those of the number.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.panel_sizes import GROUP_COLUMNS as GROUP_COLUMNS
from edgemoe.kernels.panel_sizes import PANEL_ROWS as PANEL_ROWS
from edgemoe.kernels.trellis import TRELLISES, Trellis

FormatName = Literal[
    "f32", "f16", "q8", "q4", "q4m", "m4", "q5", "q5m", "q8m", "q4z", "iq4nl", "iq4xs",
    "q2k", "q3k", "q4k", "q5k", "q6k", "nv4", "tq2", "q2", "q1", "f8", "m8",
    "iq2xxs", "iq2xs", "iq2s", "iq3xxs", "iq3s", "iq1s", "iq1m", "bf16",
    "n4", "n3", "n2", "n15", "n1", "n075", "sub1",
]  # fmt: skip
ScaleKind = Literal["none", "f16", "e8m0", "f32", "words"]
FactorKind = Literal["none", "int8", "nibble", "e4m3", "pairs", "inner", "beside"]
TableName = Literal["none", "e2m1", "iq4", "signs"]
GridName = Literal["none", "iq2xxs", "iq2xs", "iq2s", "iq3xxs", "iq3s", "iq1"]

PANEL_ALIGNMENT_BYTES = 64
WHOLE_ROW = 1 << 30
"""The number of columns that share a scale where a row has only one."""

E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the number that each e2m1 code stands for; bit 3 is the sign."""

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""The values of GGUF's IQ4_NL and IQ4_XS (ggml, MIT licence)."""

TABLES = {"e2m1": E2M1_DOUBLED, "iq4": IQ4, "signs": np.array([-1, 1], np.int8)}

E8M0_ONE, E8M0_NAN = 127, 255
"""The bytes of the scale 1 and of NaN; byte `e` is the scale `2**(e - 127)`."""

E8M0_HALVED = np.ldexp(np.float32(1), np.arange(256, dtype=np.int32) - (E8M0_ONE + 1)).astype(np.float32)
E8M0_HALVED[E8M0_NAN] = np.nan
"""Half of the scale that each byte stands for, which is what multiplies doubled numbers."""


def _e4m3() -> npt.NDArray[np.float32]:
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    sizes = np.where(exponents == 0, mantissas * 2.0**-9, np.ldexp(1 + mantissas / 8, exponents - 7))
    values = np.where(codes & 128, -sizes, sizes).astype(np.float32)
    values[codes & 127 == 127] = np.nan
    return values


E4M3 = _e4m3()
"""The number of each byte of 8-bit floating point with 4 bits of exponent (OFP8 E4M3: no infinities, 0x7f is NaN)."""

PLANES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 0),),
    2: ((2, 0),),
    3: ((2, 0), (1, 2)),
    4: ((4, 0),),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    8: ((8, 0),),
}
"""The planes of codes by their bits: the bits of each plane, and the first of the code's bits that it holds."""


@dataclass(frozen=True)
class Format:
    """One weight format; the module's docstring shows its numbers and its byte layout."""

    name: FormatName
    code: int
    """Number of the format in the C interface (`em_format`)."""
    bits: int
    """Bits of a code."""
    scale: ScaleKind = "none"
    scale_columns: int = GROUP_COLUMNS
    """Columns that share a scale, and a minimum: 32, 64, 128, 256 or `WHOLE_ROW`."""
    has_minimums: bool = False
    factor: FactorKind = "none"
    factor_columns: int = GROUP_COLUMNS
    """Columns that share a factor, and an offset: 32 or 16."""
    has_offsets: bool = False
    zero: int = 0
    table: TableName = "none"
    floating: bool = False
    """Whether codes are floating-point numbers, which float32 activations are multiplied with."""
    grid: GridName = "none"
    """The grid whose entries codes choose (`grid_blocks.py`); `bits` are those of the payload's lines for a weight."""
    high_bytes: int = 0
    """Bytes of a row in a group behind the lines, which have high bits of the codes."""
    factor_unit: float = 1
    """The number that multiplies the factors of a grid: one of 2, 4 and 8 parts."""
    trellis: Trellis | None = None
    """The trellis that windows of codes are values of; `bits` are those of a code."""
    varying: bool = False
    """Whether matrices of one shape differ in length (sub1): sizes that follow from a shape are rough ones then."""

    @property
    def quantised(self) -> bool:
        """True if products use int8 activations, false if float32 ones (f32, f16, bf16, f8, m8)."""
        return not self.floating

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload of one group of one panel (16 rows x 32 columns), or of one block of a trellis."""
        return PANEL_ROWS * (GROUP_COLUMNS * self.bits // 8 + self.high_bytes)

    @property
    def head_bytes(self) -> int:
        """Bytes of a matrix before its panels: the tables of a trellis."""
        return self.trellis.table_bytes if self.trellis else 0

    def payload_count(self, columns: int) -> int:
        """The number of payloads of a panel: one for each group, or for each block of a trellis."""
        return -(-columns // (self.trellis.block_columns if self.trellis else GROUP_COLUMNS))

    @property
    def scale_bytes(self) -> int:
        """Bytes of one scale; 0 if the format has none."""
        return {"none": 0, "f16": 2, "e8m0": 1, "f32": 4, "words": 8}[self.scale]

    @property
    def factor_bytes(self) -> int:
        """Bytes of one factor of those formats that have no grid; 0 if the format has none."""
        return int(self.factor not in ("none", "beside") and self.grid == "none")

    @property
    def offset_bytes(self) -> int:
        """Bytes that one offset takes beside its factor."""
        return int(self.has_offsets and self.factor != "nibble")

    def scale_count(self, columns: int) -> int:
        """The number of scales of a row."""
        return -(-columns // self.scale_columns) if self.scale_bytes else 0

    def factor_count(self, columns: int) -> int:
        """The number of factors, or of offsets, of a row: whole groups have them."""
        some = self.factor != "none" or self.offset_bytes
        return group_count(columns) * (GROUP_COLUMNS // self.factor_columns) if some else 0

    def row_number_bytes(self, columns: int) -> int:
        """Bytes of the scales, minimums, factors and offsets of a row."""
        scales = self.scale_count(columns) * (self.scale_bytes + 2 * self.has_minimums)
        factors = self.factor_count(columns)
        if self.factor == "pairs":
            return scales + -(-factors // 2)
        if self.factor == "beside":  # as many beside each scale, whether there are columns for all
            return self.scale_count(columns) * (self.scale_bytes + self.scale_columns // self.factor_columns // 2)
        return scales + factors * (self.factor_bytes + self.offset_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits for each weight of a long row."""
        columns = 256
        scales = self.scale_bytes if self.scale_columns == WHOLE_ROW else 0
        payload = self.payload_bytes * self.payload_count(columns) // PANEL_ROWS
        return (payload + self.row_number_bytes(columns) - scales) * 8 / columns

    def panel_bytes(self, columns: int) -> int:
        """Bytes of one panel of 16 rows."""
        known = self._panel_bytes.get(columns)
        if known is None:
            known = self._panel_bytes[columns] = self._count_panel_bytes(columns)
        return known

    @functools.cached_property
    def _panel_bytes(self) -> dict[int, int]:
        """The bytes of a panel by columns: plans and conversions ask for a few of them thousands of times."""
        return {}

    def _count_panel_bytes(self, columns: int) -> int:
        used = self.payload_count(columns) * self.payload_bytes + PANEL_ROWS * self.row_number_bytes(columns)
        return _round_up(used, PANEL_ALIGNMENT_BYTES)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a whole matrix in kernel layout."""
        return self.head_bytes + panel_count(rows) * self.panel_bytes(columns)


def _grid(
    name: FormatName, code: int, bits: int, factor: FactorKind, columns: int, grid: GridName, high_bytes: int,
    unit: float, scale: ScaleKind = "f16",
) -> Format:  # fmt: skip
    return Format(
        name, code, bits, scale, 256, factor=factor, factor_columns=columns, grid=grid, high_bytes=high_bytes,
        factor_unit=unit,
    )  # fmt: skip


def _of_trellis(name: FormatName, code: int) -> Format:
    trellis = TRELLISES[name]
    columns = 256 if trellis.has_factors else WHOLE_ROW
    factor: FactorKind = "beside" if trellis.has_factors else "none"
    return Format(name, code, trellis.step_bits, "f16", columns, factor=factor, trellis=trellis)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 0, 32, floating=True),
        Format("f16", 1, 16, floating=True),
        Format("q8", 2, 8, "f16"),
        Format("q4", 3, 4, "f16", zero=8),
        Format("q4m", 4, 4, "f16", has_minimums=True),
        Format("m4", 5, 4, "e8m0", table="e2m1"),
        Format("q5", 6, 5, "f16", zero=16),
        Format("q5m", 7, 5, "f16", has_minimums=True),
        Format("q8m", 8, 8, "f16", has_minimums=True),
        Format("q4z", 9, 4, "f16", has_offsets=True),
        Format("iq4nl", 10, 4, "f16", table="iq4"),
        Format("iq4xs", 11, 4, "f16", 256, factor="int8", table="iq4"),
        Format("q2k", 12, 2, "f16", 256, has_minimums=True, factor="nibble", factor_columns=16, has_offsets=True),
        Format("q3k", 13, 3, "f16", 256, factor="int8", factor_columns=16, zero=4),
        Format("q4k", 14, 4, "f16", 256, has_minimums=True, factor="int8", has_offsets=True),
        Format("q5k", 15, 5, "f16", 256, has_minimums=True, factor="int8", has_offsets=True),
        Format("q6k", 16, 6, "f16", 256, factor="int8", factor_columns=16, zero=32),
        Format("nv4", 17, 4, "f32", WHOLE_ROW, factor="e4m3", factor_columns=16, table="e2m1"),
        Format("tq2", 18, 2, "f16", 256, zero=1),
        Format("q2", 19, 2, "f16", 64, zero=1),
        Format("q1", 20, 1, "f16", 128, table="signs"),
        Format("f8", 21, 8, "f32", 128, floating=True),
        Format("m8", 22, 8, "e8m0", floating=True),
        _grid("iq2xxs", 23, 2, "inner", 32, "iq2xxs", 0, 1 / 8),
        _grid("iq2xs", 24, 2, "pairs", 16, "iq2xs", 0, 1 / 8),
        _grid("iq2s", 25, 2, "pairs", 16, "iq2s", 1, 1 / 8),
        _grid("iq3xxs", 26, 3, "inner", 32, "iq3xxs", 0, 1 / 4),
        _grid("iq3s", 27, 3, "pairs", 32, "iq3s", 1, 1),
        _grid("iq1s", 28, 1, "inner", 32, "iq1", 2, 1 / 8),
        _grid("iq1m", 29, 1, "inner", 16, "iq1", 2, 1 / 8, "words"),
        Format("bf16", 30, 16, floating=True),
        _of_trellis("n4", 31),
        _of_trellis("n3", 32),
        _of_trellis("n2", 33),
        _of_trellis("n15", 34),
        _of_trellis("n1", 35),
        _of_trellis("n075", 36),
    )
}


SUB1 = Format("sub1", 37, 1, varying=True)

EXPERT_FORMATS = FORMATS | {SUB1.name: SUB1}
"""The formats that matrices of experts may have. Those of `FORMATS` have as many bytes as follow from a shape."""


def panel_count(rows: int) -> int:
    """Number of panels of 16 rows that hold `rows` rows."""
    return -(-rows // PANEL_ROWS)


def whole_rows_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of a matrix of floats that has `rows` rows of `columns` numbers *whole*, each in one piece.

    Its panels are one group wide, so that the codes of all of them together are the rows, one after the other: number
    `i` of all is code `i % 512` of panel `i // 512`. Whoever needs single rows reads nothing else.
    """
    return panel_count(-(-rows * columns // GROUP_COLUMNS)) * PANEL_ROWS, GROUP_COLUMNS


def group_count(columns: int) -> int:
    """Number of groups of 32 columns that hold `columns` columns."""
    return -(-columns // GROUP_COLUMNS)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True, eq=False, repr=False)
class Matrix:
    """A matrix in kernel layout: `data` is uint8, `matrix_bytes(rows, columns)` long, 64-byte aligned.

    Data of a format whose matrices differ in length may go on behind the matrix.
    """

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
        if self.format.varying and self.data is not None:
            return self.data.size
        return self.format.matrix_bytes(self.rows, self.columns)

    @property
    def panels(self) -> npt.NDArray[np.uint8]:
        """The panels as a view, `(panels, panel_bytes)`."""
        return self.data[self.format.head_bytes :].reshape(panel_count(self.rows), -1)

    def of_panels(self, first: int, end: int) -> Matrix:
        """The matrix of some of the panels: a view, or a copy where the format has a head."""
        rows = min(self.rows, end * PANEL_ROWS) - first * PANEL_ROWS
        panels = self.panels[first:end].reshape(-1)
        head = self.data[: self.format.head_bytes]
        return Matrix(np.concatenate([head, panels]) if head.size else panels, self.format, rows, self.columns)
