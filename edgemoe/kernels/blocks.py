"""Matrices as plain numbers, and the way in and out of the layout that kernels read (`formats.py` draws it)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import grid_blocks, trellis
from edgemoe.kernels.formats import (
    E4M3,
    E8M0_HALVED,
    E8M0_ONE,
    GROUP_COLUMNS,
    PANEL_ROWS,
    PLANES,
    TABLES,
    Format,
    group_count,
    panel_count,
)
from edgemoe.kernels.grids import GRIDS

Scales = Union[npt.NDArray[np.float16], npt.NDArray[np.float32], npt.NDArray[np.uint8]]

_QUADS = GROUP_COLUMNS // 4
_SCALE_DTYPES: dict[str, Any] = {"f16": np.float16, "e8m0": np.uint8, "f32": np.float32}


@dataclass(frozen=True, eq=False, repr=False)
class Blocks:
    """A matrix as plain numbers, before packing: quantisers return it and `pack` takes it.

    Shapes: values `(rows, columns)`: float32 or float16 for f32 and f16; uint16, its bits, for bf16; int8 for q8
    (-128..127), and for formats with a grid, whose entries with their signs they are; else uint8 codes.
    `scales` and `minimums` `(rows, scale_count)`: float16, but the scales of m4 and m8 are uint8 (e8m0), and those of
    nv4 and f8 float32. `factors` `(rows, factor_count)`: int8, but uint8 where they are nibbles or e4m3. `offsets`
    likewise, uint8. None for what the format lacks. Columns need not be a multiple of 32; the last group is then
    shorter.

    Values of a trellis are its codes, uint8 `(rows, code_count(columns))`, which are of whole blocks, so that `width`
    says how many columns there are; `tables` `(V, 2, 16)`, int8, are those of the whole matrix.
    """

    format: Format
    values: npt.NDArray[np.generic]
    scales: Scales | None = None
    minimums: npt.NDArray[np.float16] | None = None
    factors: npt.NDArray[np.generic] | None = None
    offsets: npt.NDArray[np.uint8] | None = None
    _: KW_ONLY
    tables: npt.NDArray[np.int8] | None = None
    width: int | None = None
    base: Blocks | None = None
    """The base plane of which these are the residual, where a source has both (random weights)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows, columns = self.values.shape
        return rows, columns if self.width is None else self.width

    @property
    def numbers(self) -> tuple[npt.NDArray[np.generic] | None, ...]:
        """The numbers that multiply or move values: scales, minimums, factors, offsets."""
        return self.scales, self.minimums, self.factors, self.offsets

    def rows(self, chosen: npt.NDArray[np.int64] | slice) -> Blocks:
        """The rows of these indices, in their order, or of a slice."""
        return self._each(lambda array: array[chosen])

    def columns(self, order: npt.NDArray[np.int64]) -> Blocks:
        """The columns in another order, in which those that share a number stay together."""
        width = self.values.shape[1]

        def moved(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            share = -(-width // array.shape[1])
            return np.ascontiguousarray(array[:, order[::share] // share])

        return self._each(moved)

    def _each(self, change: Callable[[npt.NDArray[Any]], Any]) -> Blocks:
        arrays: list[Any] = [None if array is None else change(array) for array in (self.values, *self.numbers)]
        return Blocks(self.format, *arrays, tables=self.tables, width=self.width)

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite; of m4, m8 and f8 all weights are asked, as codes and scales may be NaN."""
        if self.format.scale == "e8m0" or self.format.floating:
            return bool(np.isfinite(dequantise(self)).all())
        factors = E4M3[self.factors] if self.format.factor == "e4m3" else None
        return all(array is None or bool(np.isfinite(array).all()) for array in (self.scales, self.minimums, factors))


def join_blocks(pieces: Sequence[Blocks]) -> Blocks:
    """Put the rows of blocks of one format one after the other."""

    def joined(arrays: Sequence[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays)

    columns = zip(*((piece.values, *piece.numbers) for piece in pieces), strict=True)
    first = pieces[0]
    return Blocks(first.format, *(joined(arrays) for arrays in columns), tables=first.tables, width=first.width)


def pack(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Lay a matrix out for the kernels: `(rows, columns)` blocks to `matrix_bytes(rows, columns)` bytes."""
    head = pack_head(blocks)
    return np.concatenate([head, pack_panels(blocks)]) if head.size else pack_panels(blocks)


def pack_head(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """The `head_bytes` of a matrix before its panels."""
    if blocks.format.trellis is None or blocks.tables is None:
        return np.zeros(0, np.uint8)
    return trellis.pack_tables(blocks.tables, blocks.format.trellis)


def pack_panels(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """The panels of a matrix.

    It may be packed in slices of whole panels (16 rows) and the results concatenated.
    """
    fmt = blocks.format
    rows, columns = blocks.shape
    panels, groups = panel_count(rows), group_count(columns)
    _check_shapes(blocks)
    if fmt.grid != "none":
        return _pack_grid(blocks)
    if fmt.trellis is not None:
        return _pack_trellis(blocks, fmt.trellis)
    values: npt.NDArray[Any] = blocks.values
    if fmt.name == "q8m":  # signed bytes, as those of q8, for processors whose products take only such
        values = (values ^ np.uint8(128)).view(np.int8)
    padded = np.full((panels * PANEL_ROWS, groups * GROUP_COLUMNS), fmt.zero, values.dtype)
    padded[:rows, :columns] = values
    tiles = padded.reshape(panels, PANEL_ROWS, groups, GROUP_COLUMNS).transpose(0, 2, 1, 3)
    if fmt.floating:
        payload: npt.NDArray[Any] = tiles.transpose(0, 1, 3, 2)  # panel, group, column, row
    else:
        quads = tiles.view(np.uint8).reshape(panels, groups, PANEL_ROWS, _QUADS, 4).transpose(0, 1, 3, 2, 4)
        payload = np.concatenate([_plane(quads, bits, low) for bits, low in PLANES[fmt.bits]], axis=2)
    sections = [_section(payload, panels)]
    numbers: npt.NDArray[Any] | None
    for numbers in blocks.numbers:
        if numbers is None or (numbers is blocks.offsets and not fmt.offset_bytes):
            continue
        if numbers is blocks.factors and fmt.factor == "nibble":
            assert blocks.offsets is not None
            numbers = np.bitwise_or(numbers, blocks.offsets << np.uint8(4))
        # Missing rows have the scale 1 where it is e8m0: the byte 0 stands for a denormal, slow on some processors.
        missing = E8M0_ONE if numbers is blocks.scales and fmt.scale == "e8m0" else 0
        columnwise = np.full((panels * PANEL_ROWS, numbers.shape[1]), missing, numbers.dtype)
        columnwise[:rows] = numbers
        sections.append(_section(columnwise.reshape(panels, PANEL_ROWS, -1).transpose(0, 2, 1), panels))
    used = sum(section.shape[1] for section in sections)
    sections.append(np.zeros((panels, fmt.panel_bytes(columns) - used), np.uint8))
    return np.concatenate(sections, axis=1).reshape(-1)


def _check_shapes(blocks: Blocks) -> None:
    fmt = blocks.format
    rows, columns = blocks.shape
    assert (blocks.tables is None) == (blocks.width is None) == (fmt.trellis is None), fmt.name
    scales, factors = fmt.scale_count(columns), fmt.factor_count(columns)
    wanted = (scales, scales * fmt.has_minimums, factors * (fmt.factor != "none"), factors * fmt.has_offsets)
    for numbers, count in zip(blocks.numbers, wanted, strict=True):
        assert (None if numbers is None else numbers.shape) == ((rows, count) if count else None), fmt.name


def _pack_grid(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Lay a matrix out whose codes choose entries of a grid; missing rows are the grid's first entry."""
    fmt = blocks.format
    rows, columns = blocks.values.shape
    panels = panel_count(rows)
    missing = panels * PANEL_ROWS - rows
    codes = np.zeros((missing, -(-columns // GRIDS[fmt.grid].columns)), np.uint16)
    marks = np.zeros((missing, -(-columns // 8)), np.uint8)
    first = grid_blocks.decode(codes, marks, fmt)[:, :columns]
    assert blocks.scales is not None
    assert blocks.factors is not None
    below = ((0, missing), (0, 0))
    sections = grid_blocks.pack_rows(
        np.concatenate([blocks.values.astype(np.int8, copy=False), first]),
        np.pad(blocks.scales, below),
        np.pad(blocks.factors.astype(np.uint8, copy=False), below),
        fmt,
    )
    used = sum(section.shape[1] for section in sections)
    sections.append(np.zeros((panels, fmt.panel_bytes(columns) - used), np.uint8))
    return np.concatenate(sections, axis=1).reshape(-1)


def _pack_trellis(blocks: Blocks, kind: trellis.Trellis) -> npt.NDArray[np.uint8]:
    """Lay the panels of a matrix with a trellis out; missing rows have codes and scales of 0."""
    rows, columns = blocks.shape
    panels = panel_count(rows)
    assert blocks.scales is not None
    below = ((0, panels * PANEL_ROWS - rows), (0, 0))
    factors = None if blocks.factors is None else np.pad(blocks.factors.astype(np.uint8, copy=False), below)
    payload = trellis.pack_codes(np.pad(blocks.values.astype(np.uint8, copy=False), below), kind)
    scales = trellis.pack_scales(np.pad(blocks.scales.astype(np.float16, copy=False), below), factors)
    used = payload.shape[1] + scales.shape[1]
    rest = np.zeros((panels, blocks.format.panel_bytes(columns) - used), np.uint8)
    return np.concatenate([payload, scales, rest], axis=1).reshape(-1)


def _plane(quads: npt.NDArray[np.uint8], bits: int, low: int) -> npt.NDArray[np.uint8]:
    """A plane `(panels, groups, bits lines, 16, 4)` of codes `(panels, groups, 8 quads, 16, 4)`."""
    if bits == 8:
        return quads
    lines = np.zeros((*quads.shape[:2], bits, *quads.shape[3:]), np.uint8)
    for field in range(_QUADS // bits):
        codes = quads[:, :, field * bits : (field + 1) * bits] >> low & ((1 << bits) - 1)
        lines |= codes << (field * bits)
    return lines


def _quads(lines: npt.NDArray[np.uint8], bits: int, low: int) -> npt.NDArray[np.uint8]:
    """The inverse of `_plane`, with other bits of codes zero."""
    if bits == 8:
        return lines
    mask = np.uint8((1 << bits) - 1)
    codes: npt.NDArray[np.uint8] = np.concatenate(
        [lines >> field * bits & mask for field in range(_QUADS // bits)], axis=2
    )
    codes <<= low
    return codes


def _section(array: npt.NDArray[np.generic], panels: int) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(panels, -1).view(np.uint8)


def unpack(data: npt.NDArray[np.uint8], fmt: Format, rows: int, columns: int) -> Blocks:
    """The inverse of `pack`: returns the exact blocks that were packed."""
    panels, groups = panel_count(rows), group_count(columns)
    panel_view = data[fmt.head_bytes :].reshape(panels, fmt.panel_bytes(columns))
    if fmt.trellis is not None:
        cut = fmt.trellis.payload_bytes(columns)
        of_scales = panel_view[:, cut : cut + fmt.trellis.scale_bytes(columns)]
        shared, beside = trellis.unpack_scales(of_scales, fmt.trellis, columns)
        tables = trellis.unpack_tables(data[: fmt.head_bytes], fmt.trellis)
        codes = trellis.unpack_codes(panel_view[:, :cut], fmt.trellis)[:rows]
        beside = None if beside is None else beside[:rows]
        return Blocks(fmt, codes, shared[:rows], None, beside, tables=tables, width=columns)
    if fmt.grid != "none":
        signed, multipliers, own = grid_blocks.unpack_rows(panel_view, fmt, columns)
        return Blocks(fmt, signed[:rows], multipliers[:rows], None, own[:rows])
    cut = groups * fmt.payload_bytes
    payload = np.ascontiguousarray(panel_view[:, :cut])
    if fmt.floating:
        dtype: Any = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}.get(fmt.name, np.uint8)
        tiles = payload.view(dtype).reshape(panels, groups, GROUP_COLUMNS, PANEL_ROWS).transpose(0, 3, 1, 2)
    else:
        lines = payload.reshape(panels, groups, fmt.bits, PANEL_ROWS, 4)
        quads: npt.NDArray[np.uint8] = np.zeros((panels, groups, _QUADS, PANEL_ROWS, 4), np.uint8)
        first = 0
        for bits, low in PLANES[fmt.bits]:
            quads |= _quads(lines[:, :, first : first + bits], bits, low)
            first += bits
        tiles = quads.transpose(0, 3, 1, 2, 4)
    values = tiles.reshape(panels * PANEL_ROWS, -1)[:rows, :columns]
    if fmt.name == "q8":
        values = values.view(np.int8)
    if fmt.name == "q8m":
        values = values ^ np.uint8(128)

    def numbers(count: int, dtype: Any) -> npt.NDArray[Any]:
        nonlocal cut
        start, cut = cut, cut + count * PANEL_ROWS * np.dtype(dtype).itemsize
        section = np.ascontiguousarray(panel_view[:, start:cut]).view(dtype)
        columnwise: npt.NDArray[Any] = section.reshape(panels, count, PANEL_ROWS).transpose(0, 2, 1)
        columnwise = columnwise.reshape(panels * PANEL_ROWS, count)
        return columnwise[:rows]

    scales, factors = fmt.scale_count(columns), fmt.factor_count(columns)
    found: list[npt.NDArray[Any] | None] = [
        numbers(scales, _SCALE_DTYPES[fmt.scale]) if fmt.scale_bytes else None,
        numbers(scales, np.float16) if fmt.has_minimums else None,
        numbers(factors, np.int8 if fmt.factor == "int8" else np.uint8) if fmt.factor_bytes else None,
        numbers(factors, np.uint8) if fmt.offset_bytes else None,
    ]
    if fmt.factor == "nibble":
        assert found[2] is not None
        found[2:] = [found[2] & 15, found[2] >> 4]
    return Blocks(fmt, values, *found)


def dequantise(blocks: Blocks) -> npt.NDArray[np.float32]:
    """Return the float32 weights, `(rows, columns)`, that the blocks encode.

    Exact but for the sums with minimums and offsets, and products with float32 scales, which are rounded once. With its
    two largest scales m4 has weights beyond float32, which become infinite.
    """
    fmt = blocks.format
    columns = blocks.shape[1]
    values = float_values(blocks)
    if blocks.scales is None:
        return values

    def spread(numbers: npt.NDArray[np.float32], share: int) -> npt.NDArray[np.float32]:
        return np.repeat(numbers, min(share, columns), axis=1)[:, :columns]

    scales = E8M0_HALVED[blocks.scales] if fmt.scale == "e8m0" else blocks.scales.astype(np.float32)
    factors = spread(scales, fmt.scale_columns)
    if blocks.factors is not None:
        own = E4M3[blocks.factors] / 2 if fmt.factor == "e4m3" else blocks.factors.astype(np.float32)
        if fmt.grid != "none":
            own = (2 * own + 1) * np.float32(fmt.factor_unit)
        if fmt.factor == "beside":
            own += 1
        factors = factors * spread(own, fmt.factor_columns)
    with np.errstate(over="ignore", invalid="ignore"):
        weights: npt.NDArray[np.float32] = values * factors
    if not (fmt.has_minimums or fmt.has_offsets):
        return weights
    minimums = spread((scales if blocks.minimums is None else blocks.minimums).astype(np.float32), fmt.scale_columns)
    if blocks.offsets is None:
        return weights + minimums
    return weights - minimums * spread(blocks.offsets.astype(np.float32), fmt.factor_columns)


def float_blocks(values: npt.NDArray[np.float32], fmt: Format) -> Blocks:
    """The blocks of f32, f16 or bf16 of numbers that the format has."""
    if fmt.name == "bf16":
        return Blocks(fmt, (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16))
    return Blocks(fmt, values.astype(np.float16) if fmt.name == "f16" else values)


def float_values(blocks: Blocks) -> npt.NDArray[np.float32]:
    """The values of the codes, `(rows, columns)`, before they are multiplied by anything."""
    fmt = blocks.format
    values: npt.NDArray[np.float32]
    if fmt.name == "bf16":
        values = (blocks.values.astype(np.uint32) << 16).view(np.float32)
    elif fmt.floating and fmt.bits == 8:
        values = E4M3[blocks.values] * np.float32(2 if fmt.scale == "e8m0" else 1)
    elif fmt.trellis is not None:
        assert blocks.tables is not None
        codes = blocks.values.astype(np.uint8, copy=False)
        values = trellis.decode(codes, blocks.tables, fmt.trellis)[:, : blocks.width].astype(np.float32)
    elif fmt.table != "none":
        values = TABLES[fmt.table].astype(np.float32)[blocks.values]
    else:
        values = blocks.values.astype(np.float32, copy=False)
    return values - np.float32(fmt.zero) if fmt.zero else values
