"""Whole numbers as compressed-tensors packs them into words (`pack-quantized`), or stores them (`int-quantized`).

X.weight_packed      (rows, columns * bits / 32) of int32: from the lowest bits on, each number plus 2^(bits - 1)
X.weight             (rows, columns) of int8, in place of the packed ones
X.weight_scale       (rows, groups)
X.weight_zero_point  (rows * bits / 32, groups) of int32, packed along the rows; only of what is not symmetric
X.weight_g_idx       (columns) of int32: the group of each column
"""

from __future__ import annotations

import numpy as np

from edgemoe.conversion.quantised.form import FLOATS, Form, Parts, Quantised, Settings
from edgemoe.conversion.quantised.groups import weights_of
from edgemoe.conversion.quantised.integers import (
    check_order,
    checked_bits,
    group_size,
    integer_blocks,
    integer_dtype,
    refused,
)
from edgemoe.conversion.quantised.raw import Raw, unpacked
from edgemoe.kernels.blocks import Blocks

_SCALE, _ZERO, _ORDER = ".weight_scale", ".weight_zero_point", ".weight_g_idx"
_WIDTHS = (2, 4, 8)


def _open(parts: Parts) -> Quantised:
    weights = weights_of(parts.settings, parts.stem)
    codes, zeros = parts.form.codes, _ZERO in parts
    bits = 8 if codes == ".weight" else checked_bits(parts, weights.get("num_bits"), _WIDTHS)
    if zeros == bool(weights.get("symmetric", True)):
        raise parts.wrong(codes, "zero points if, and only if, config.json says `symmetric: false`", "the contrary")
    dtype = integer_dtype(bits, not zeros)
    if dtype is None:
        raise refused(parts, "symmetric numbers of 8 bits", "zero points")
    if len(parts.shape(codes)) != 2 or len(parts.shape(_SCALE)) != 2:
        raise parts.wrong(_SCALE, "two dimensions", f"{parts.shape(_SCALE)}")
    rows, columns = parts.shape(codes)[0], parts.shape(codes)[1] * (1 if codes == ".weight" else 32 // bits)
    groups = parts.shape(_SCALE)[1]
    parts.check_shape(_SCALE, (rows, groups))
    size = group_size(parts, columns, groups, weights.get("group_size"))
    if zeros:
        parts.check_shape(_ZERO, (-(-rows * bits // 32), groups))

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        if _ORDER in parts:
            check_order(parts, raw, _ORDER, columns, size)
        found = raw.rows(parts.stem + codes, start, stop)
        numbers = found ^ np.uint8(0x80) if codes == ".weight" else unpacked(found, bits)
        scales = raw.rows(parts.stem + _SCALE, start, stop)
        if not zeros:
            return integer_blocks(bits, numbers, scales, size)
        per_word = 32 // bits
        first = start // per_word
        words = raw.rows(parts.stem + _ZERO, first, -(-stop // per_word))
        zero = unpacked(np.ascontiguousarray(words.T), bits).T[start - first * per_word :][: stop - start]
        return integer_blocks(bits, numbers, scales, size, zero)

    return Quantised((rows, columns), dtype, read)


def _dtype(stem: str, settings: Settings) -> str:
    weights = weights_of(settings, stem)
    return integer_dtype(weights.get("num_bits", 4), bool(weights.get("symmetric", True))) or "F32"


PACKED = Form(
    "compressed-tensors",
    ".weight_packed",
    ("I32",),
    {_SCALE: FLOATS},
    _open,
    _dtype,
    optional={_ZERO: ("I32",), _ORDER: ("I32",)},
)
BYTES = Form("compressed-tensors", ".weight", ("I8",), {_SCALE: FLOATS}, _open, _dtype, optional={_ZERO: ("I8",)})
