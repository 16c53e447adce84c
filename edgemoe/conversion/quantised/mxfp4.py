"""MXFP4: two e2m1 codes in a byte, the low nibble first, and a byte of e8m0 for each 32. It is m4 bit for bit.

openai's gpt-oss      X_blocks         (..., rows, columns / 32, 16)   X_scales         (..., rows, columns / 32)
compressed-tensors    X.weight_packed  (..., rows, columns / 2)        X.weight_scale   (..., rows, columns / 32)
DeepSeek-V4           X.weight         (rows, columns / 2), int8       X.scale          (rows, columns / 32)
MLX                   X.weight         (..., rows, columns / 8), u32   X.scales         (..., rows, columns / 32)
"""

from __future__ import annotations

from edgemoe.conversion.quantised.form import E8M0, Form, Parts, Quantised, Settings
from edgemoe.conversion.quantised.raw import Raw, unpacked
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS

_BLOCK_BYTES = GROUP_COLUMNS // 2


def open_mxfp4(parts: Parts, scales: str) -> Quantised:
    """The matrix of some codes, whose scales are the tensor with the end `scales`. Raises SourceError."""
    codes, shape = parts.form.codes, parts.shape(scales)
    in_blocks = codes == "_blocks"
    parts.check_stack(scales)
    last = _BLOCK_BYTES // (4 if parts.infos[codes].dtype == "U32" else 1)
    wanted = (*shape, last) if in_blocks else (*shape[:-1], shape[-1] * last)
    if parts.shape(codes) != wanted:
        raise parts.wrong(scales, f"a scale for {_BLOCK_BYTES} bytes of codes", f"{shape}")

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        pieces = shape[-1] if in_blocks else 1
        packed = raw.rows(parts.stem + codes, start * pieces, stop * pieces)
        values = unpacked(packed.reshape(stop - start, pieces * packed.shape[1]), 4)
        return Blocks(FORMATS["m4"], values, raw.rows(parts.stem + scales, start, stop))

    return Quantised((*shape[:-1], shape[-1] * GROUP_COLUMNS), "m4", read)


def _dtype(stem: str, _: Settings) -> str:
    """Experts alone are MXFP4 in the checkpoints that have two schemes under the same names."""
    return "m4" if ".experts." in stem else "f8"


def _form(codes: str, scales: str, dtype: str, shown: str = ".weight") -> Form:
    named = _dtype if scales == ".scale" else lambda *_: "m4"
    return Form("MXFP4", codes, (dtype,), {scales: E8M0}, lambda parts: open_mxfp4(parts, scales), named, shown=shown)


GPT_OSS = _form("_blocks", "_scales", "U8", "_blocks")
COMPRESSED = _form(".weight_packed", ".weight_scale", "U8")
DEEPSEEK = _form(".weight", ".scale", "I8")
