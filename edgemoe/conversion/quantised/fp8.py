"""FP8: bytes of e4m3 with scales that multiply them, whatever their name says. It is f8 or, where scales are bytes, m8.

    FP8 in blocks     X.weight (rows, columns)   X.weight_scale_inv (rows / 128, columns / 128), the last ones smaller
    DeepSeek-V4       X.weight                   X.scale            likewise, bytes of e8m0
    others            X.weight                   X.weight_scale     (1), (rows, 1), (rows, columns / 128) or in blocks
    MXFP8             X.weight                   X.weight_scale     (rows, columns / 32), bytes of e8m0

Stacks of experts have a dimension more, and names without `.weight`.
"""

from __future__ import annotations

import math

import numpy as np

from edgemoe.conversion.quantised.form import E4M3, E8M0, FLOATS, Form, Parts, Quantised, Settings
from edgemoe.conversion.quantised.groups import weights_of
from edgemoe.conversion.quantised.integers import refused
from edgemoe.conversion.quantised.raw import Floats, Raw
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import E8M0_HALVED, FORMATS, GROUP_COLUMNS

_SHARED = FORMATS["f8"].scale_columns


def _block(parts: Parts) -> tuple[int, int]:
    """Rows and columns of a block of the scheme, where it has blocks. Raises SourceError."""
    declared = parts.settings.get("weight_block_size") or weights_of(parts.settings, parts.stem).get("block_structure")
    height, width = declared if isinstance(declared, list) and len(declared) == 2 else (_SHARED, _SHARED)
    if not all(isinstance(size, int) and size > 0 for size in (height, width)):
        raise refused(parts, "blocks of whole numbers of rows and columns", f"weight_block_size {declared!r:.40}")
    return height, width


def open_mxfp8(parts: Parts, scales: str) -> Quantised:
    """The matrix of bytes, or of words of four, with a byte of e8m0 for each 32 columns. Raises SourceError."""
    codes, shape = parts.form.codes, parts.shape(scales)
    parts.check_stack(scales)
    in_word = 4 if parts.infos[codes].dtype == "U32" else 1
    parts.check_shape(codes, (*shape[:-1], shape[-1] * GROUP_COLUMNS // in_word))

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        values = raw.rows(parts.stem + codes, start, stop).view(np.uint8)
        return Blocks(FORMATS["m8"], values, raw.rows(parts.stem + scales, start, stop))

    return Quantised((*shape[:-1], shape[-1] * GROUP_COLUMNS), "m8", read)


def _open(parts: Parts, end: str) -> Quantised:
    codes = parts.form.codes
    parts.check_stack(codes)
    *stack, rows, columns = parts.shape(codes)
    shape, in_bytes, name = parts.shape(end), parts.infos[end].dtype in E8M0, parts.stem + end
    if in_bytes and shape == (*stack, rows, columns / GROUP_COLUMNS):
        return open_mxfp8(parts, end)
    matrices, (height, width) = math.prod(stack), _block(parts)
    blocks = (-(-rows // height), -(-columns // width))
    group = weights_of(parts.settings, parts.stem).get("group_size")
    group = group if isinstance(group, int) and group > 0 else _SHARED
    of_rows, of_matrices = (*stack, rows), (*stack, *(1 for _ in shape[len(stack) :]))
    if shape in (of_rows, (*of_rows, 1)):
        height, width, blocks = 1, columns, (rows, 1)
    elif math.prod(shape) == 1 or shape == of_matrices:
        height, width, blocks = rows, columns, (1, 1)
    elif shape[:-1] == of_rows and shape[-1] == -(-columns // group):
        height, width, blocks = 1, group, (rows, shape[-1])
    elif shape != (*stack, *blocks):
        raise parts.wrong(end, "one scale for all, for each row, or for each block", f"{shape}")
    if width % _SHARED and width < columns:
        raise refused(parts, f"blocks of a multiple of {_SHARED} columns", f"blocks of {width}")
    one = math.prod(shape) == 1
    share = -(-width // _SHARED)

    def scales(raw: Raw, start: int, stop: int) -> Floats:
        row = np.arange(start, stop)
        block = row // rows * blocks[0] + row % rows // height
        block *= not one
        first, last = int(block.min(initial=matrices * blocks[0])), int(block.max(initial=-1)) + 1
        found = raw.elements(name, first * blocks[1], max(last, first) * blocks[1]).reshape(-1, blocks[1])
        if in_bytes:
            found = E8M0_HALVED[found] * np.float32(2)
        return np.repeat(found[block - first], share, axis=1)[:, : -(-columns // _SHARED)]

    def read(raw: Raw, start: int, stop: int) -> Blocks:
        return Blocks(FORMATS["f8"], raw.rows(parts.stem + codes, start, stop), scales(raw, start, stop))

    return Quantised((*stack, rows, columns), "f8", read)


def _dtype(_: str, settings: Settings) -> str:
    said = (settings.get("quant_method"), settings.get("quant_algo"), settings.get("format"))
    return "m8" if any("mxfp8" in str(word).lower() for word in said) else "f8"


def _form(codes: str, scales: str) -> Form:
    return Form("FP8", codes, E4M3, {scales: (*FLOATS, *E8M0)}, lambda parts: _open(parts, scales), _dtype, shown=codes)


INVERSE, STACKED_INVERSE = _form(".weight", ".weight_scale_inv"), _form("_proj", "_proj_scale_inv")
PLAIN, STACKED = _form(".weight", ".weight_scale"), _form("_proj", "_proj_scale")
DEEPSEEK = _form(".weight", ".scale")
