"""GPTQ: codes packed along the inputs, and zero points along the outputs.

    X.qweight  (inputs * bits / 32, outputs) of int32: from the lowest bits of the first word on
    X.qzeros   (groups, outputs * bits / 32) of int32: zero points, or (before `gptq_v2`) zero points minus one
    X.scales   (groups, outputs)
    X.g_idx    (inputs) of int32: the group of each input

A weight is `(code - zero) * scale`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemoe.conversion.quantised.form import FLOATS, Form, Parts, Quantised, Settings
from edgemoe.conversion.quantised.integers import (
    check_order,
    checked_bits,
    group_size,
    integer_blocks,
    integer_dtype,
    refused,
)
from edgemoe.conversion.quantised.raw import Bytes, Raw, unpacked
from edgemoe.kernels.blocks import Blocks

_CODES, _ZEROS, _SCALES, _ORDER = ".qweight", ".qzeros", ".scales", ".g_idx"
_WIDTHS, _TOGETHER = (2, 3, 4, 8), 32


def _settings(settings: Settings) -> tuple[Any, bool]:
    """Bits of a code, and whether the zero point is always the middle code."""
    return settings.get("bits", 4), settings.get("sym", True) is not False


def _open(parts: Parts) -> Quantised:
    said, symmetric = _settings(parts.settings)
    bits = checked_bits(parts, said, _WIDTHS)
    dtype = integer_dtype(bits, symmetric)
    if dtype is None:
        raise refused(parts, "symmetric codes of 8 bits", "`sym: false`")
    for end in (_CODES, _ZEROS, _SCALES):
        if len(parts.shape(end)) != 2 or not min(parts.shape(end)):
            raise parts.wrong(end, "two dimensions", f"{parts.shape(end)}")
    (height, rows), (groups, _) = parts.shape(_CODES), parts.shape(_SCALES)
    columns = height * 32 // bits
    size = group_size(parts, columns, groups, parts.settings.get("group_size"))
    parts.check_shape(_SCALES, (groups, rows))
    parts.check_shape(_ZEROS, (groups, -(-rows * bits // 32)))
    if _ORDER in parts:
        parts.check_shape(_ORDER, (columns,))

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        if _ORDER in parts:
            check_order(parts, raw, _ORDER, columns, size)
        codes = unpacked(raw.turned(parts.stem + _CODES, start, stop), bits)
        scales = raw.turned(parts.stem + _SCALES, start, stop)
        zeros = _zeros(parts, raw, bits, start, stop)
        if not symmetric:
            return integer_blocks(bits, codes, scales, size, zeros)
        middle = 1 << bits >> 1
        if not (zeros == middle).all():
            found = f"{zeros.min()} to {zeros.max()}"
            raise parts.wrong(_ZEROS, f"the zero point {middle} alone, as config.json says (sym)", found)
        return integer_blocks(bits, codes, scales, size)

    return Quantised((rows, columns), dtype, read)


def _zeros(parts: Parts, raw: Raw, bits: int, start: int, stop: int) -> Bytes:
    """The zero points of some outputs, `(outputs, groups)`."""
    first = start // _TOGETHER
    last = min(-(-stop // _TOGETHER) * bits, parts.shape(_ZEROS)[1])
    words = raw.turned(parts.stem + _ZEROS, first * bits, last)
    stored = unpacked(np.ascontiguousarray(words.T), bits)[:, start - first * _TOGETHER :][:, : stop - start].T
    if parts.settings.get("checkpoint_format") == "gptq_v2":
        return stored
    largest = (1 << bits) - 1
    if (stored == largest).any():
        raise refused(parts, "zero points that all programs read alike", f"the zero point {largest} + 1")
    return stored + np.uint8(1)


GPTQ = Form(
    "GPTQ",
    _CODES,
    ("I32",),
    {_ZEROS: ("I32",), _SCALES: FLOATS},
    _open,
    lambda _, settings: integer_dtype(*_settings(settings)) or "F32",
    optional={_ORDER: ("I32",)},
)
