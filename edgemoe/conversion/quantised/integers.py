"""Whole numbers with a scale for each group of columns: `(number - zero) * scale`, kept in the blocks that hold them.

Numbers of 2, 3 and 4 bits go into blocks of 4 bits, those of 8 bits into blocks of q8. Scales stay float32 here, which
holds those of every checkpoint exactly; encoding keeps only blocks whose scales are float16 numbers too.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.quantised.form import Parts
from edgemoe.conversion.quantised.raw import UNQUANTISED, Bytes, Floats, Raw, spread
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS


def refused(parts: Parts, expected: str, found: str) -> SourceError:
    """The error about a matrix that is quantised in a way that edgemoe does not read."""
    return parts.wrong(parts.form.codes, f"{parts.form.program} with {expected}", found, UNQUANTISED)


def checked_bits(parts: Parts, bits: object, allowed: Collection[int]) -> int:
    """The bits of a code, as a config says them. Raises SourceError for a number that is not among those allowed."""
    if type(bits) is not int or bits not in allowed:
        raise refused(parts, f"codes of {' or '.join(map(str, allowed))} bits", f"bits {bits!r:.20}")
    return bits


def integer_dtype(bits: int, symmetric: bool) -> str | None:
    """The dtype that numbers of some bits are shown with; None if no format holds them exactly."""
    if bits == 8:
        return "q8" if symmetric else None
    return "q4" if symmetric else "q4z"


def group_size(parts: Parts, columns: int, groups: int, declared: object = None) -> int:
    """The columns of a group, 0 if it is the whole row. Raises SourceError where blocks of 32 cannot follow groups.

    `declared` is what the config says; where it says nothing, all groups are of one size.
    """
    if groups == 1 and declared in (None, -1, columns):
        return 0
    size = declared if isinstance(declared, int) and declared > 0 else columns // max(groups, 1)
    if -(-columns // size) != groups if size else True:
        raise parts.wrong(parts.form.codes, f"groups of {size} columns", f"{groups} groups for {columns} columns")
    if size % GROUP_COLUMNS:
        raise refused(parts, f"groups of a multiple of {GROUP_COLUMNS} columns", f"groups of {size}")
    return size


def check_order(parts: Parts, raw: Raw, end: str, columns: int, size: int) -> None:
    """Raise SourceError unless each column is of the group in which it stands."""
    found = raw.whole(parts.stem + end)
    if not np.array_equal(found, np.arange(columns) // (size or columns)):
        raise refused(
            parts,
            "columns in the order of their groups",
            f"an activation order (desc_act: {parts.stem}{end} is shuffled)",
        )


def integer_blocks(
    bits: int, codes: Bytes, scales: Floats, size: int, zeros: npt.NDArray[np.integer] | None = None
) -> Blocks:
    """Blocks of codes `(rows, columns)` with scales and zeros `(rows, groups)`; without zeros it is the middle code."""
    columns = codes.shape[1]
    per_block = spread(scales, size, columns)
    if zeros is not None:
        offsets = spread(zeros, size, columns).astype(np.uint8)
        return Blocks(FORMATS["q4z"], codes, per_block, offsets=offsets)
    if bits == 8:
        return Blocks(FORMATS["q8"], (codes ^ 0x80).view(np.int8), per_block)
    return Blocks(FORMATS["q4"], codes + np.uint8(8 - (1 << bits >> 1)), per_block)
