"""Rows of a matrix as GGUF files have them: decodes them from bytes to numbers, and encodes them.

F32, F16, BF16 and I32 rows are plain numbers. A quantised row is a sequence of blocks of 32 columns: a float16 scale
(for MXFP4 one byte of e8m0), for Q4_1 a float16 minimum, then the values. In each byte of 4-bit values the low nibble
belongs to a column in the first half of the block, the high nibble to the corresponding column in the second half.
"""

from __future__ import annotations

from typing import Any, Union

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS, Format

Rows = Union[npt.NDArray[np.float32], Blocks]

BLOCK_FORMATS = {"Q8_0": "q8", "Q4_0": "q4", "Q4_1": "q4m", "MXFP4": "m4"}
"""Types whose blocks are ours bit for bit, with their format: a source gives them as `Blocks`."""

_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

TYPE_NAMES = {"f32": "F32", "f16": "F16", **{name: dtype for dtype, name in BLOCK_FORMATS.items()}}
"""The GGUF tensor type that holds the weights of each store format bit for bit."""


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of a row. Raises ValueError for a number of columns that the type cannot have."""
    if type_name in _FLOAT_BYTES:
        return columns * _FLOAT_BYTES[type_name]
    if columns % GROUP_COLUMNS:
        raise ValueError(f"rows of {columns} columns in blocks of {GROUP_COLUMNS}")
    head_bytes, payload_bytes = _block_sizes(FORMATS[BLOCK_FORMATS[type_name]])
    return columns // GROUP_COLUMNS * (head_bytes + payload_bytes)


def decode_rows(data: npt.NDArray[np.uint8], type_name: str) -> Rows:
    """Decode bytes `(rows, row_bytes)` to `(rows, columns)`: Blocks for a block type, else float32."""
    if type_name == "F32":
        return data.view("<f4").astype(np.float32, copy=False)
    if type_name == "I32":  # numbers of experts, which a float holds exactly
        return data.view("<i4").astype(np.float32)
    if type_name == "F16":
        return data.view("<f2").astype(np.float32)
    if type_name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    format_ = FORMATS[BLOCK_FORMATS[type_name]]
    head_bytes, payload_bytes = _block_sizes(format_)
    rows = data.shape[0]
    blocks = data.reshape(rows, -1, head_bytes + payload_bytes)
    numbers = np.ascontiguousarray(blocks[:, :, :head_bytes]).view("<f2" if format_.scale_bytes == 2 else np.uint8)
    payload = blocks[:, :, head_bytes:]
    if format_.name == "q8":
        values: npt.NDArray[np.generic] = payload.view(np.int8).reshape(rows, -1)
    else:
        values = np.concatenate([payload & 15, payload >> 4], axis=2).reshape(rows, -1)
    minimums = numbers[:, :, 1] if format_.has_minimums else None
    return Blocks(format_, values, numbers[:, :, 0], minimums)


def encode_rows(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Encode to bytes `(rows, row_bytes)` of the tensor type in `TYPE_NAMES`: the inverse of `decode_rows`.

    Columns of a quantised format must be a multiple of 32.
    """
    rows, columns = blocks.values.shape
    if blocks.scales is None:
        dtype = "<f2" if blocks.format.name == "f16" else "<f4"
        return np.ascontiguousarray(blocks.values, dtype).view(np.uint8)
    assert columns % GROUP_COLUMNS == 0
    values = np.ascontiguousarray(blocks.values).view(np.uint8).reshape(rows, -1, GROUP_COLUMNS)
    payload: npt.NDArray[Any] = values
    if blocks.format.name != "q8":
        payload = values[:, :, : GROUP_COLUMNS // 2] | (values[:, :, GROUP_COLUMNS // 2 :] << 4)
    numbers = [numbers for numbers in (blocks.scales, blocks.minimums) if numbers is not None]
    heads = np.stack(numbers, axis=2).view(np.uint8)
    return np.concatenate([heads, payload], axis=2).reshape(rows, -1)


def _block_sizes(fmt: Format) -> tuple[int, int]:
    """Bytes of a block before its values, and of its values."""
    return fmt.scale_bytes * (2 if fmt.has_minimums else 1), GROUP_COLUMNS if fmt.name == "q8" else GROUP_COLUMNS // 2
