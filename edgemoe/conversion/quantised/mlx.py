"""MLX: codes in words along the inputs, from the lowest bits on, and in its affine mode a scale and a bias for a group.

    X.weight  (..., rows, columns * bits / 32) of uint32
    X.scales  (..., rows, groups); bytes of e8m0 in mode mxfp4 and mxfp8, of e4m3 in mode nvfp4
    X.biases  (..., rows, groups), of the affine mode alone

A weight of the affine mode is `code * scale + bias`. Codes of 2 and 3 bits go into blocks of 4 bits, those of 6 bits
into blocks of 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemoe.conversion.quantised.form import E8M0, FLOATS, Form, Parts, Quantised, Settings
from edgemoe.conversion.quantised.fp8 import open_mxfp8
from edgemoe.conversion.quantised.integers import checked_bits, group_size, refused
from edgemoe.conversion.quantised.mxfp4 import open_mxfp4
from edgemoe.conversion.quantised.nvfp4 import open_nvfp4
from edgemoe.conversion.quantised.raw import Raw, spread, unpacked
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS

_FORMATS = {2: "q4m", 3: "q4m", 4: "q4m", 5: "q5m", 6: "q8m", 8: "q8m"}
"""The format of affine codes of some bits."""
_SCALES, _BIASES = ".scales", ".biases"


def _settings(settings: Settings, stem: str) -> tuple[str, Any, Any]:
    """Mode, bits and group size of a module, which may have its own."""
    own = settings.get(stem)
    both: Mapping[str, Any] = {**settings, **own} if isinstance(own, Mapping) else settings
    return str(both.get("mode", "affine")), both.get("bits", 4), both.get("group_size", 64)


def _open(parts: Parts) -> Quantised:
    mode, said, declared = _settings(parts.settings, parts.stem)
    affine = _BIASES in parts
    if affine != (mode == "affine"):
        raise parts.wrong(_SCALES, f"{'no ' if affine else ''}biases, as mode {mode:.20} has", "the contrary")
    if parts.infos[_SCALES].dtype not in (FLOATS if affine else E8M0):
        raise parts.wrong(
            _SCALES, f"{'floats' if affine else 'bytes'}, as mode {mode:.20} has", parts.infos[_SCALES].dtype
        )
    if mode == "mxfp4":
        return open_mxfp4(parts, _SCALES)
    if mode == "mxfp8":
        return open_mxfp8(parts, _SCALES)
    if mode == "nvfp4":
        return open_nvfp4(parts, _SCALES, None)
    if not affine:
        raise refused(parts, "mode affine, mxfp4, mxfp8 or nvfp4", f"mode {mode:.20}")
    bits = checked_bits(parts, said, _FORMATS)
    parts.check_stack(".weight")
    *stack, rows, words = parts.shape(".weight")
    groups = parts.shape(_SCALES)[-1] if parts.shape(_SCALES) else 0
    columns = words * 32 // bits
    for end in (_SCALES, _BIASES):
        parts.check_shape(end, (*stack, rows, groups))
    size = group_size(parts, columns, groups, declared)
    format_ = FORMATS[_FORMATS[bits]]

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        codes = unpacked(raw.rows(parts.stem + ".weight", start, stop), bits)
        scales, biases = (spread(raw.rows(parts.stem + end, start, stop), size, columns) for end in (_SCALES, _BIASES))
        return Blocks(format_, codes, scales, biases)

    return Quantised((*stack, rows, columns), format_.name, read)


def _dtype(stem: str, settings: Settings) -> str:
    mode, bits, _ = _settings(settings, stem)
    return (
        {"mxfp4": "m4", "mxfp8": "m8", "nvfp4": "nv4"}.get(mode)
        or (_FORMATS.get(bits) if isinstance(bits, int) else None)
        or "F32"
    )


MLX = Form(
    "MLX",
    ".weight",
    ("U32",),
    {_SCALES: (*FLOATS, *E8M0)},
    _open,
    _dtype,
    optional={_BIASES: FLOATS},
)
