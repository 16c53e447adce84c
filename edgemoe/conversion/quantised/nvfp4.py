"""NVFP4: two e2m1 codes in a byte, the low nibble first, an e4m3 byte for each 16, and one float32 scale. It is nv4.

    modelopt            X.weight         (rows, columns / 2)   X.weight_scale   X.weight_scale_2     multiplies
    compressed-tensors  X.weight_packed  (rows, columns / 2)   X.weight_scale   X.weight_global_scale  divides

The reciprocal of a divisor is rounded to float32 when it is encoded, and its error counted.
"""

from __future__ import annotations

import math

import numpy as np

from edgemoe.conversion.quantised.form import E4M3, Form, Parts, Quantised
from edgemoe.conversion.quantised.raw import Raw, unpacked
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS

_SCALE, _DIVISOR = ".weight_scale", ".weight_global_scale"
_SHARED = FORMATS["nv4"].factor_columns
_CODE_BYTES = _SHARED // 2


def open_nvfp4(parts: Parts, scales: str, whole: str | None) -> Quantised:
    """The matrix of some codes; `scales` and `whole` are the ends of the tensors of scales. Raises SourceError."""
    codes = parts.form.codes
    parts.check_stack(scales)
    *stack, rows, groups = parts.shape(scales)
    parts.check_shape(codes, (*stack, rows, groups * _CODE_BYTES // (4 if parts.infos[codes].dtype == "U32" else 1)))
    count = math.prod(parts.shape(whole)) if whole else 1
    if whole and count not in (1, math.prod(stack)):
        raise parts.wrong(whole, "one scale for each matrix", f"{parts.shape(whole)}")
    format_ = FORMATS["nv4"]
    columns = groups * _SHARED

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        values = unpacked(raw.rows(parts.stem + codes, start, stop), 4)
        factors = np.zeros((stop - start, format_.factor_count(columns)), np.uint8)
        factors[:, :groups] = raw.rows(parts.stem + scales, start, stop)
        of_matrices = raw.whole(parts.stem + whole) if whole else np.ones(1, np.float32)
        if whole == _DIVISOR:
            with np.errstate(divide="ignore"):  # an infinite scale is refused later
                of_matrices = 1 / of_matrices.astype(np.float64)
        of_rows = of_matrices[np.arange(start, stop) // rows if count > 1 else np.zeros(stop - start, np.intp)]
        return Blocks(format_, values, of_rows[:, None], factors=factors)

    return Quantised((*stack, rows, columns), "nv4", read)


def _form(codes: str, whole: str) -> Form:
    needed = {_SCALE: E4M3, whole: ("F32",)}
    return Form("NVFP4", codes, ("U8",), needed, lambda parts: open_nvfp4(parts, _SCALE, whole), lambda *_: "nv4")


MODELOPT, COMPRESSED = _form(".weight", ".weight_scale_2"), _form(".weight_packed", _DIVISOR)
