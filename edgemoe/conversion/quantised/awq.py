"""AWQ, in the order of its GEMM kernels: codes and zero points packed along the outputs, eight in a word.

    X.qweight  (inputs, outputs / 8) of int32: the nibbles of a word are its outputs 0, 2, 4, 6, 1, 3, 5 and 7
    X.qzeros   (groups, outputs / 8) of int32, in the same order
    X.scales   (groups, outputs)

A weight is `(code - zero) * scale`.
"""

from __future__ import annotations

import numpy as np

from edgemoe.conversion.quantised.form import FLOATS, Form, Parts, Quantised
from edgemoe.conversion.quantised.integers import checked_bits, group_size, integer_blocks
from edgemoe.conversion.quantised.raw import Bytes, Raw
from edgemoe.kernels.blocks import Blocks

_CODES, _ZEROS, _SCALES = ".qweight", ".qzeros", ".scales"
_IN_WORD = 8
_SHIFTS = np.argsort([0, 2, 4, 6, 1, 3, 5, 7]).astype(np.uint32) * 4
"""The lowest bit of each output of a word."""


def _open(parts: Parts) -> Quantised:
    checked_bits(parts, parts.settings.get("bits", parts.settings.get("w_bit", 4)), (4,))
    for end in parts:
        if len(parts.shape(end)) != 2 or not min(parts.shape(end)):
            raise parts.wrong(end, "two dimensions", f"{parts.shape(end)}")
    (columns, words), groups = parts.shape(_CODES), parts.shape(_SCALES)[0]
    rows = words * _IN_WORD
    size = group_size(parts, columns, groups, parts.settings.get("group_size", parts.settings.get("q_group_size")))
    parts.check_shape(_SCALES, (groups, rows))
    parts.check_shape(_ZEROS, (groups, words))

    def nibbles(raw: Raw, end: str, start: int, stop: int) -> Bytes:
        """Rows of outputs, `(outputs, inputs or groups)`."""
        first = start // _IN_WORD
        found = raw.turned(parts.stem + end, first, -(-stop // _IN_WORD))
        both = (
            (found[:, None, :] >> _SHIFTS[:, None] & 15).astype(np.uint8).reshape(len(found) * _IN_WORD, found.shape[1])
        )
        return both[start - first * _IN_WORD :][: stop - start]

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        codes, zeros = (nibbles(raw, end, start, stop) for end in (_CODES, _ZEROS))
        return integer_blocks(4, codes, raw.turned(parts.stem + _SCALES, start, stop), size, zeros)

    return Quantised((rows, columns), "q4z", read)


AWQ = Form("AWQ", _CODES, ("I32",), {_ZEROS: ("I32",), _SCALES: FLOATS}, _open, lambda *_: "q4z")
