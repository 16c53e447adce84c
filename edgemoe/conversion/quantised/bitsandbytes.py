"""bitsandbytes in 4 bits: codes of a table of 16 floats, and a float32 scale for each block of elements.

    X.weight                               (elements / 2, 1) of bytes: the high nibble first, through all rows
    X.weight.quant_map                     16 floats
    X.weight.absmax                        a scale for each block; or a byte, where scales are quantised too:
    X.weight.nested_absmax, nested_quant_map   then a scale for each block of those, and their table of 256 floats
    X.weight.quant_state.bitsandbytes__nf4 (or fp4)   bytes of JSON: shape, sizes of blocks, an offset of scales

No format of edgemoe has a table of floats. The weights are those that bitsandbytes itself computes, in float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemoe.conversion.quantised.form import Form, Parts, Quantised
from edgemoe.conversion.quantised.integers import refused
from edgemoe.conversion.quantised.raw import Floats, Raw

_TABLE, _SCALES = ".weight.quant_map", ".weight.absmax"
_NESTED, _NESTED_TABLE = ".weight.nested_absmax", ".weight.nested_quant_map"
_STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")


def _open(parts: Parts) -> Quantised:
    state = next((end for end in _STATES if end in parts), None)
    if state is None:
        raise refused(parts, "the state of its 4 bits (quant_state)", "none")
    count = math.prod(parts.shape(".weight"))
    shape = parts.expected
    if shape is None or len(shape) != 2:
        return Quantised((count * 2,), "F32", lambda *_: np.empty(0, np.float32))  # of no matrix of the model
    if parts.shape(".weight") not in ((count, 1), (1, count)) or count * 2 != shape[0] * shape[1]:
        raise parts.wrong(
            ".weight", f"{shape[0] * shape[1] // 2} bytes of codes for {shape}", f"{parts.shape('.weight')}"
        )

    def read(raw: Raw, start: int, stop: int) -> Floats:
        said = _state(parts, raw, state, shape)
        first, last = start * shape[1], stop * shape[1]
        codes = raw.elements(parts.stem + ".weight", first // 2, -(-last // 2))
        nibbles = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[first % 2 :][: last - first]
        table = raw.whole(parts.stem + _TABLE)
        size = said["blocksize"]
        scales = _scales(parts, raw, said, first // size, -(-last // size))
        with np.errstate(over="ignore", invalid="ignore"):  # conversion refuses numbers that are not finite
            values: Floats = table[nibbles] * scales[np.arange(first, last) // size - first // size]
        return values.reshape(-1, shape[1])

    return Quantised(shape, "F32", read)


def _state(parts: Parts, raw: Raw, end: str, shape: tuple[int, ...]) -> Mapping[str, Any]:
    """The contents of the tensor of JSON. Raises SourceError where it contradicts the matrix."""
    try:
        said = json.loads(raw.whole(parts.stem + end).tobytes())
        fits = tuple(said["shape"]) == shape and type(said["blocksize"]) is int and said["blocksize"] > 0
        if _NESTED in parts:
            fits = fits and type(said["nested_blocksize"]) is int and said["nested_blocksize"] > 0
            float(said["nested_offset"])
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise parts.wrong(end, f"JSON with the shape {shape} and the sizes of blocks", "other bytes")
    found: Mapping[str, Any] = said
    return found


def _scales(parts: Parts, raw: Raw, said: Mapping[str, Any], first: int, last: int) -> Floats:
    """The scales of some blocks."""
    found = raw.elements(parts.stem + _SCALES, first, last)
    if _NESTED not in parts:
        return found
    size = said["nested_blocksize"]
    nested = raw.elements(parts.stem + _NESTED, first // size, -(-last // size))
    table = raw.whole(parts.stem + _NESTED_TABLE)
    scales: Floats = table[found] * nested[np.arange(first, last) // size - first // size]
    return scales + np.float32(said["nested_offset"])


BITSANDBYTES = Form(
    "bitsandbytes",
    ".weight",
    ("U8",),
    {_SCALES: ("F32", "U8"), _TABLE: ("F32",)},
    _open,
    lambda *_: "F32",
    optional={_NESTED: ("F32",), _NESTED_TABLE: ("F32",), **dict.fromkeys(_STATES, ("U8",))},
)
