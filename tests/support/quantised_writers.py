"""Quantised matrices as the programs of each scheme write them, by their published layouts, and what they stand for.

Each writer draws a matrix of some shape and returns its tensors, by the ends of their names, and its weights in
float64, which holds them exactly. Codes go into words one by one: nothing here is shared with the way back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Written = tuple[dict[str, Array], npt.NDArray[np.float64]]
Writer = Callable[[tuple[int, ...], np.random.Generator], Written]

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words_of(numbers: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint32]:
    """Numbers in words along the last axis: one after the other from the lowest bit on, over the ends of words."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    count = -(-rows.shape[1] * bits // 32)
    made = []
    for row in rows:
        stream = sum(int(number) << (bits * place) for place, number in enumerate(row))
        made.append(np.frombuffer(stream.to_bytes(count * 4, "little"), "<u4"))
    return np.array(made, np.uint32).reshape(*numbers.shape[:-1], count)


def bfloat16(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """Numbers cut to bfloat16: their upper halves, and what these stand for."""
    halves = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return halves, (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def scales_like(shape: tuple[int, ...], generator: np.random.Generator, bits: int = 4) -> npt.NDArray[np.float32]:
    """Scales of codes of some bits, such as weights of about a tenth have."""
    return ((generator.random(shape) * 0.02 + 0.002) * 8 / (1 << bits >> 1)).astype(np.float32)


def packed(bits: int, group: int | None, symmetric: bool = True, integers: bool = False) -> Writer:
    """compressed-tensors `pack-quantized`: numbers plus half their range; zero points packed along the rows."""

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        rows, columns = shape
        size = group or columns
        half = 1 << (bits - 1)
        numbers = generator.integers(-half, half, shape)
        scales, meant = bfloat16(scales_like((rows, -(-columns // size)), generator, bits))
        zeros = generator.integers(-half, half, meant.shape) if not symmetric else np.zeros(meant.shape, np.int64)
        of_columns = np.arange(columns) // size
        tensors: dict[str, Array] = {".weight_scale": scales}
        if integers:
            tensors[".weight"] = numbers.astype(np.int8)
        else:
            tensors[".weight_packed"] = words_of(numbers + half, bits).view(np.int32)
            tensors[".weight_shape"] = np.array(shape, np.int64)
        if not symmetric:
            tensors[".weight_zero_point"] = words_of((zeros + half).T, bits).T.copy().view(np.int32)
        return tensors, (numbers - zeros[:, of_columns]) * meant[:, of_columns]

    return write


def gptq(bits: int, group: int | None, symmetric: bool = True, version: int = 1, order: str = "none") -> Writer:
    """GPTQ: codes packed along the inputs, zero points (in version 1 less one) along the outputs."""

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        rows, columns = shape
        size = group or columns
        codes = generator.integers(0, 1 << bits, shape)
        groups = -(-columns // size)
        scales = scales_like((groups, rows), generator, bits).astype(np.float16)
        middle = 1 << (bits - 1)
        zeros = generator.integers(1, 1 << bits, (groups, rows)) if not symmetric else np.full((groups, rows), middle)
        of_columns = np.arange(columns) // size
        tensors: dict[str, Array] = {
            ".qweight": words_of(codes, bits).T.copy().view(np.int32),
            ".qzeros": words_of(zeros - (version == 1), bits).view(np.int32),
            ".scales": scales,
        }
        if order != "none":
            shuffled = generator.permutation(of_columns) if order == "shuffled" else of_columns
            tensors[".g_idx"] = shuffled.astype(np.int32)
        return tensors, (codes - zeros.T[:, of_columns]) * scales.T.astype(np.float64)[:, of_columns]

    return write


def awq(group: int) -> Writer:
    """AWQ for GEMM: eight outputs in a word, in the order of its kernels."""

    def in_words(numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        eights = numbers.reshape(len(numbers), -1, 8)[:, :, AWQ_ORDER]
        return words_of(eights, 4)[:, :, 0].view(np.int32)

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        rows, columns = shape
        codes = generator.integers(0, 16, (columns, rows))
        zeros = generator.integers(0, 16, (-(-columns // group), rows))
        scales = scales_like(zeros.shape, generator).astype(np.float16)
        of_columns = np.arange(columns) // group
        meant = (codes - zeros[of_columns]) * scales.astype(np.float64)[of_columns]
        return {".qweight": in_words(codes), ".qzeros": in_words(zeros), ".scales": scales}, meant.T

    return write


def mlx(bits: int, group: int, half: bool = False) -> Writer:
    """MLX's affine mode: codes in words along the inputs, `code * scale + bias`."""

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        columns = shape[-1]
        codes = generator.integers(0, 1 << bits, shape)
        per_group = (*shape[:-1], -(-columns // group))
        numbers = [scales_like(per_group, generator, bits) for _ in range(2)]
        numbers[1] = -(1 << bits >> 1) * numbers[0]
        stored: list[tuple[Array, Array]] = [
            (n.astype(np.float16), n.astype(np.float16).astype(np.float64)) if half else bfloat16(n) for n in numbers
        ]
        of_columns = np.arange(columns) // group
        meant = codes * stored[0][1][..., of_columns] + stored[1][1][..., of_columns]
        return {".weight": words_of(codes, bits), ".scales": stored[0][0], ".biases": stored[1][0]}, meant

    return write


def e2m1(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    return np.array([*E2M1, *(-number for number in E2M1)])[codes]


def e4m3(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Numbers of bytes of e4m3, one by one: sign, exponent with a bias of 7, mantissa of 3 bits."""
    numbers = []
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        numbers.append(np.nan if exponent == 15 and mantissa == 7 else -size if code >= 128 else size)
    return np.array(numbers)[codes]


def random_e4m3(shape: tuple[int, ...], generator: np.random.Generator, largest: int = 0x7E) -> npt.NDArray[np.uint8]:
    """Every byte but NaN, subnormal numbers and zeros too."""
    return generator.integers(0, largest + 1, shape).astype(np.uint8) | (
        generator.integers(0, 2, shape).astype(np.uint8) << 7 if largest > 0x70 else np.uint8(0)
    )


def nibbles(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Two codes in a byte, the first in its low half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def mxfp4(codes_end: str = ".weight_packed", scales_end: str = ".weight_scale", signed: bool = False) -> Writer:
    """MXFP4 of compressed-tensors, or of DeepSeek-V4 (as int8)."""

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        codes = generator.integers(0, 16, shape)
        scales = generator.integers(116, 123, (*shape[:-1], shape[-1] // 32))
        bytes_ = nibbles(codes)
        tensors = {codes_end: bytes_.view(np.int8) if signed else bytes_, scales_end: scales.astype(np.uint8)}
        return tensors, e2m1(codes) * np.repeat(2.0 ** (scales - 127), 32, axis=-1)

    return write


def mlx_mxfp4(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
    """MLX's mode mxfp4: eight codes in a word."""
    codes = generator.integers(0, 16, shape)
    scales = generator.integers(116, 123, (*shape[:-1], shape[-1] // 32))
    meant = e2m1(codes) * np.repeat(2.0 ** (scales - 127), 32, axis=-1)
    return {".weight": words_of(codes, 4), ".scales": scales.astype(np.uint8)}, meant


def mlx_mxfp8(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
    """MLX's mode mxfp8: four bytes of e4m3 in a word."""
    codes = random_e4m3(shape, generator)
    scales = generator.integers(110, 118, (*shape[:-1], shape[-1] // 32))
    meant = e4m3(codes) * np.repeat(2.0 ** (scales - 127), 32, axis=-1)
    return {".weight": words_of(codes, 8), ".scales": scales.astype(np.uint8)}, meant


def mlx_nvfp4(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
    """MLX's mode nvfp4: eight codes in a word, and no scale but those of 16 columns."""
    codes = generator.integers(0, 16, shape)
    scales = random_e4m3((*shape[:-1], shape[-1] // 16), generator, 0x28)
    return {".weight": words_of(codes, 4), ".scales": scales}, e2m1(codes) * np.repeat(e4m3(scales), 16, axis=-1)


def nvfp4(divides: bool = False, exact: bool = True) -> Writer:
    """NVFP4 of modelopt, whose last scale multiplies, or of compressed-tensors, whose last scale divides."""

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        codes = generator.integers(0, 16, shape)
        scales = random_e4m3((*shape[:-1], shape[-1] // 16), generator, 0x50)
        whole = np.float32(2.0**-6 if exact else generator.random() * 0.01 + 0.01)
        whole = np.float32(1) / whole if divides else whole
        meant = e2m1(codes) * np.repeat(e4m3(scales), 16, axis=-1)
        if divides:
            tensors = {".weight_packed": nibbles(codes), ".weight_scale": scales, ".weight_global_scale": whole[None]}
            return tensors, meant / float(whole)
        tensors = {".weight": nibbles(codes), ".weight_scale": scales, ".weight_scale_2": np.array(whole)}
        return tensors, meant * float(whole)

    return write


def fp8(kind: str, end: str, scale_dtype: str = "float32", block: tuple[int, int] = (128, 128)) -> Writer:
    """FP8 with a scale for all rows (`tensor`), for each (`channel`), or for each block."""

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        rows, columns = shape
        codes = random_e4m3(shape, generator)
        count = {"tensor": (1,), "channel": (rows, 1)}.get(kind, (-(-rows // block[0]), -(-columns // block[1])))
        scales = scales_like(count, generator) / 64
        stored: Array = scales
        meant = scales.astype(np.float64)
        if scale_dtype == "bfloat16":
            stored, meant = bfloat16(scales)
        if scale_dtype == "e8m0":
            stored = generator.integers(110, 118, count).astype(np.uint8)
            meant = 2.0 ** (stored.astype(float) - 127)
        if kind == "block":
            meant = np.repeat(np.repeat(meant, block[0], axis=0)[:rows], block[1], axis=1)[:, :columns]
        return {".weight": codes, end: stored}, e4m3(codes) * meant

    return write


def bitsandbytes(kind: str, double: bool) -> Writer:
    """Bitsandbytes in 4 bits: high nibble first through all rows, blocks of 64, scales in blocks of 256 of their own.

    The weights are float32, in the order of operations that its kernels have.
    """

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        count = shape[0] * shape[1]
        codes = generator.integers(0, 16, count)
        table = np.sort(generator.standard_normal(16)).astype(np.float32)
        blocks = -(-count // 64)
        tensors: dict[str, Array] = {
            ".weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
            ".weight.quant_map": table,
        }
        state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
        if double:
            small = generator.integers(0, 256, blocks).astype(np.uint8)
            nested_table = np.sort(generator.standard_normal(256)).astype(np.float32)
            nested = scales_like((-(-blocks // 256),), generator)
            offset = 0.0625 + 1 / 3
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            tensors |= {
                ".weight.absmax": small,
                ".weight.nested_absmax": nested,
                ".weight.nested_quant_map": nested_table,
            }
            scales = np.array([nested_table[code] * nested[number // 256] for number, code in enumerate(small)])
            scales = (scales.astype(np.float32) + np.float32(offset)).astype(np.float32)
        else:
            scales = scales_like((blocks,), generator)
            tensors[".weight.absmax"] = scales
        text = json.dumps(state).encode()
        tensors[f".weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(text, np.uint8)
        meant = np.array([table[code] * scales[place // 64] for place, code in enumerate(codes)], np.float32)
        return tensors, meant.astype(np.float64).reshape(shape)

    return write
