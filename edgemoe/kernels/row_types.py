"""The types of numbers in GGUF files: how many bytes a block of each takes, and where its numbers stand in them.

F32, F16, BF16 and I32 are plain numbers. A row of any other type is a sequence of blocks of 32 to 256 columns. A block
has a float16 scale, a float16 minimum in some types, *factors* of its scale for each 16 or 32 columns in some
(`Factors`), and codes in one or two *planes*.

A plane has some bits of each code. Each `run` of its bytes holds 8 / bits runs of codes, the first in the lowest bits
of the bytes: of 4 bits in runs of 16, byte j has column j in its low nibble and column j + 16 in the high one. A second
plane has the bits above those of the first.

Each type has a *twin*, the format that holds its numbers bit for bit (`formats.py`). Layouts: ggml (MIT licence),
`ggml-common.h` and `ggml-quants.c`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Factors = Literal["none", "bytes", "nibbles", "pairs", "sixteen", "eight"]
"""How a block has its factors, and offsets: each in a byte; an offset in the high nibble of each; eight of 6 bits with
as many offsets (Q4_K, Q5_K); sixteen of 6 bits, less 32 (Q3_K); eight of those (IQ4_XS)."""


class Plane(NamedTuple):
    """Bits of the codes of a block: the first byte, the bits of each code, and the bytes of a run."""

    at: int
    bits: int
    run: int


@dataclass(frozen=True)
class RowType:
    """One type of numbers in files; the module's docstring says what the fields mean."""

    name: str
    number: int
    """Its number in GGUF."""
    columns: int
    """Columns of a block; 1 for plain numbers."""
    bytes: int
    """Bytes of a block."""
    twin: str
    planes: tuple[Plane, ...] = ()
    scale: int = 0
    """The first byte of the scale in a block; of types without one, whose twin has e4m3 factors, 0."""
    minimum: int = 0
    factors: Factors = "none"
    factors_at: int = 0

    @property
    def is_float(self) -> bool:
        return self.columns == 1


def _five_bits(name: str, number: int, twin: str, minimum: int) -> RowType:
    heads = 4 if minimum else 2
    planes = Plane(heads + 4, 4, 16), Plane(heads, 1, 1)
    return RowType(name, number, 32, heads + 20, twin, planes, minimum=minimum)


ROW_TYPES: dict[str, RowType] = {
    kind.name: kind
    for kind in (
        RowType("F32", 0, 1, 4, "f32"),
        RowType("F16", 1, 1, 2, "f16"),
        RowType("BF16", 30, 1, 2, "bf16"),
        RowType("Q8_0", 8, 32, 34, "q8", (Plane(2, 8, 32),)),
        RowType("Q4_0", 2, 32, 18, "q4", (Plane(2, 4, 16),)),
        RowType("Q4_1", 3, 32, 20, "q4m", (Plane(4, 4, 16),), minimum=2),
        RowType("MXFP4", 39, 32, 17, "m4", (Plane(1, 4, 16),)),
        _five_bits("Q5_0", 6, "q5", 0),
        _five_bits("Q5_1", 7, "q5m", 2),
        RowType("Q2_K", 10, 256, 84, "q2k", (Plane(16, 2, 32),), 80, 82, "nibbles", 0),
        RowType("Q3_K", 11, 256, 110, "q3k", (Plane(32, 2, 32), Plane(0, 1, 32)), 108, 0, "sixteen", 96),
        RowType("Q4_K", 12, 256, 144, "q4k", (Plane(16, 4, 32),), 0, 2, "pairs", 4),
        RowType("Q5_K", 13, 256, 176, "q5k", (Plane(48, 4, 32), Plane(16, 1, 32)), 0, 2, "pairs", 4),
        RowType("Q6_K", 14, 256, 210, "q6k", (Plane(0, 4, 64), Plane(128, 2, 32)), 208, 0, "bytes", 192),
        RowType("IQ4_NL", 20, 32, 18, "iq4nl", (Plane(2, 4, 16),)),
        RowType("IQ4_XS", 23, 256, 136, "iq4xs", (Plane(8, 4, 16),), 0, 0, "eight", 2),
        RowType("NVFP4", 40, 64, 36, "nv4", (Plane(4, 4, 8),), factors="bytes"),
        RowType("TQ1_0", 34, 256, 54, "tq2", scale=52),
        RowType("TQ2_0", 35, 256, 66, "tq2", (Plane(0, 2, 32),), 64),
        RowType("Q2_0", 42, 64, 18, "q2", (Plane(2, 2, 1),)),
        RowType("Q1_0", 41, 128, 18, "q1", (Plane(2, 1, 1),)),
        RowType("IQ2_XXS", 16, 256, 66, "iq2xxs"),
        RowType("IQ2_XS", 17, 256, 74, "iq2xs"),
        RowType("IQ2_S", 22, 256, 82, "iq2s"),
        RowType("IQ3_XXS", 18, 256, 98, "iq3xxs"),
        RowType("IQ3_S", 21, 256, 110, "iq3s"),
        RowType("IQ1_S", 19, 256, 50, "iq1s"),
        RowType("IQ1_M", 29, 256, 56, "iq1m", scale=48),
    )
}
"""The types of rows that are read and that land, in the order of their numbers in C (`em_rows`). Of types without
planes, TQ1_0 has five codes of three values in a byte, and the others' codes choose entries of grids (`grid_rows.py`);
the scale of IQ1_M is in four words."""

BLOCK_FORMATS = {kind.name: kind.twin for kind in ROW_TYPES.values() if not kind.is_float}
"""The types of blocks, with their twin: a source gives them as `Blocks`."""

TYPE_NAMES = {kind.twin: kind.name for kind in ROW_TYPES.values()}
"""The type that holds the weights of each store format bit for bit, where there is one: the last one above (TQ2_0)."""


def block_columns(type_name: str) -> int:
    """Columns of a block of a type of `BLOCK_FORMATS`; 1 for any other, whose numbers stand alone."""
    kind = ROW_TYPES.get(type_name)
    return kind.columns if kind else 1


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of a row. Raises ValueError for a number of columns that the type cannot have."""
    kind = ROW_TYPES[type_name]
    if columns % kind.columns:
        raise ValueError(f"rows of {columns} columns in blocks of {kind.columns}")
    return columns // kind.columns * kind.bytes
