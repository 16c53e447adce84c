"""Rows of GGUF's types, of random bits with finite numbers: every code, factor and offset occurs."""

from __future__ import annotations

import numpy as np

from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.row_types import ROW_TYPES, RowType, row_bytes


def random_rows(row_type: str, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """The bytes of rows `(rows, row_bytes)`; scales and minimums are those of a normal distribution."""
    kind = ROW_TYPES[row_type]
    if kind.is_float:
        values = random.normal(0, 3, (rows, columns)).astype(np.float32)
        if row_type == "BF16":
            return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(rows, -1)
        return values.astype("<f4" if row_type == "F32" else "<f2").view(np.uint8).reshape(rows, -1)
    data = random.integers(0, 256, (rows, row_bytes(row_type, columns))).astype(np.uint8)
    blocks = data.reshape(rows, -1, kind.bytes)
    shape = blocks.shape[:2]
    if row_type == "IQ1_M":
        put_scales(blocks, random.normal(0, 1, shape))
    for at in scale_places(kind):
        blocks[:, :, at : at + 2] = random.normal(0, 1, shape).astype("<f2")[:, :, None].view(np.uint8)
    if FORMATS[kind.twin].scale == "e8m0":
        blocks[:, :, 0] = random.integers(0, 253, shape)
    if FORMATS[kind.twin].factor == "e4m3":
        blocks[:, :, :4] %= 0x7F
    return data


def scale_places(kind: RowType) -> list[int]:
    """Where blocks have float16 numbers."""
    fmt = FORMATS[kind.twin]
    if fmt.scale != "f16":
        return []
    return [kind.scale, kind.minimum] if fmt.has_minimums else [kind.scale]


def put_scales(blocks: np.ndarray, scales: np.ndarray) -> None:
    """Write the scales of blocks of IQ1_M, a nibble at the top of each of four words."""
    bits = scales.astype("<f2").view(np.uint16)
    for word in range(4):
        top = blocks[:, :, 49 + 2 * word]
        top[...] = top & 15 | (bits >> 4 * word & 15) << 4
