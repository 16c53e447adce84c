"""Questions whose answers are known: whether a device's kernels give the bits of the native ones.

Compilers and drivers may contract, reorder or approximate in spite of what they are told. So each opening of a device
runs every kernel on numbers that show it, which are new each time, and compares with the native kernels. A device that
differs anywhere is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as st
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.runtime import DeviceError
from edgemoe.kernels.device.table import has_products
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, Format, Matrix, group_count, panel_count

TOKENS, ROWS, COLUMNS = 4, 37, 301
"""Neither whole panels nor whole groups; more columns than share any scale but that of a row."""
_LIMITED = (op.Activation("clamped_silu", 1.702, 0.7, 1.0), op.Activation("capped_silu", limit=0.4))


def check(device: DeviceBackend, native: Backend) -> None:
    """Raise DeviceError that names the operations in which the device gives other bits than the native kernels.

    If the device fails meanwhile, its own error is raised.
    """
    random = np.random.default_rng()
    different = [
        name for name, operation, output in _questions(random) if not _agree(device, native, operation, output)
    ]
    if device.failure is not None:
        raise device.failure
    if different:
        raise DeviceError(
            f"The device rounds differently than the processor in {', '.join(different)}: its answers would be others.",
            "Go without it. A driver or compiler that does not fuse fma, or that uses fast mathematics, does that.",
        )


def _questions(random: np.random.Generator) -> Iterator[tuple[str, op.Operation, op.Floats]]:
    """Yield names, operations, and the arrays that these write, for each of the kernels."""
    for fmt in filter(has_products, FORMATS.values()):
        output, bias = _floats(random, (TOKENS, ROWS)), _floats(random, (ROWS,))
        part = op.LinearPart(_matrix(fmt, random), bias, output)
        yield f"products in {fmt.name}", op.Linear(_activations(random, COLUMNS), (part,), 0.37, True), output
    for gated in (False, True):
        output, weight = _floats(random, (TOKENS, COLUMNS)), _floats(random, (COLUMNS,))
        given, gate = _activations(random, COLUMNS), _floats(random, (TOKENS, COLUMNS)) if gated else None
        yield "gated norms" if gated else "norms", op.RmsNorm(given, weight, 1e-5, output, gate=gate), output
    yield from _others(random)
    yield from _by_position(random)
    yield from _routed(random)
    yield from _recurrent(random)


def _others(random: np.random.Generator) -> Iterator[tuple[str, op.Operation, op.Floats]]:
    """Yield questions of the operations that are neither products alone nor norms by the root of the mean square."""
    wide, output = (TOKENS, COLUMNS), _floats(random, (TOKENS, COLUMNS))
    weight, bias = _floats(random, (COLUMNS,)), _floats(random, (COLUMNS,))
    yield "layer norms", op.LayerNorm(_activations(random, COLUMNS), weight, 1e-5, output, bias), output
    yield "clip", op.Clip(output, 0.7), output
    base, result = _floats(random, wide), _floats(random, wide)
    yield "residual sums", op.Mix(base, result, 0.3, weight, bias, weight, output, bias[:1]), output
    routed, weights, shared, gate = (
        _floats(random, (TOKENS, *rest)) for rest in ((3, COLUMNS), (3,), (COLUMNS,), (1,))
    )
    yield "sums of experts", ex.Combine(output, 0.7, routed, weights, shared, gate), output
    down = _matrix(FORMATS["q4"], random, COLUMNS, ROWS)
    biases = op.FfnBiases(_floats(random, (ROWS,)), _floats(random, (ROWS,)), _floats(random, (COLUMNS,)))
    apart = op.UnlikeMatrices(_matrix(FORMATS["q4"], random), _matrix(FORMATS["q8"], random))
    for activation in (op.SILU, op.GELU_TANH, *_LIMITED):
        given = _activations(random, COLUMNS)
        yield activation.function, op.GatedFfn(given, None, down, output, activation, biases, apart), output


def _by_position(random: np.random.Generator) -> Iterator[tuple[str, op.Operation, op.Floats]]:
    """Yield questions of what goes by positions: rotations, gates and caps beside attention, and attention."""
    heads, width, positions = 4, 40, np.arange(70, 70 + TOKENS, dtype=np.int32)
    values = _floats(random, (TOKENS, heads * width))
    cosine, sine = _floats(random, (128, width // 2)), _floats(random, (128, width // 2))
    yield "rotations", op.Rope(values, heads, positions, cosine, sine), values
    for gating in ("sigmoid", "softplus"):
        yield f"{gating} of gates", op.Gate(_activations(random, heads), values, gating), values
    yield "soft caps", op.SoftCap(values, 0.8), values
    sequences, table = np.zeros(TOKENS, np.int32), np.array([[1, 0]], np.int32)
    sinks = _floats(random, (heads,))
    for kind in ("f32", "f16", "q8"):
        keys, others = (_stored(random, kind, width) for _ in range(2))
        query, output = _floats(random, (TOKENS, heads * width)), _floats(random, (TOKENS, heads * width))
        own = (query, positions, sequences, table, keys, others, 0.3, output)
        yield f"attention over {kind}", st.Attention(*own, sinks=sinks, cap=5.0), output


def _stored(random: np.random.Generator, kind: str, width: int) -> op.Cache:
    """Return two pages of two heads with numbers in them."""
    shape = (2, 2, op.PAGE_TOKENS, width)
    if kind != "q8":
        return random.standard_normal(shape).astype(np.float32 if kind == "f32" else np.float16)
    scales = random.standard_normal((*shape[:-1], group_count(width))) / 50
    return op.QuantisedCache(random.integers(-127, 128, shape).astype(np.int8), np.abs(scales).astype(np.float16))


def _routed(random: np.random.Generator) -> Iterator[tuple[str, op.Operation, op.Floats]]:
    """Yield questions of routers, and one of experts, whose products are asked for already."""
    experts, weights = np.zeros((TOKENS, 3), np.int32), _floats(random, (TOKENS, 3))
    rules: list[dict[str, Any]] = [
        {"score": "softmax"},
        {"score": "sigmoid", "groups": 4, "kept_groups": 2, "epsilon": 1e-20},
        {"score": "sqrt_softplus", "scale": 2.5},
    ]
    for rule in rules:
        own = (_activations(random, 24), True, experts, weights)
        yield f"routers by {rule['score']}", ex.Route(*own, choice_bias=_floats(random, (24,)), **rule), weights
    fmt, output = FORMATS["q4"], _floats(random, (TOKENS, 2, COLUMNS))
    layout = ex.ExpertLayout(COLUMNS, ROWS, fmt, fmt, fmt, _aligned_bytes(2 * fmt.matrix_bytes(48, COLUMNS)))
    arena = _aligned((2, _aligned_bytes(layout.down_offset + layout.down_bytes)), np.uint8)
    for record in arena:
        first, down = _matrix(fmt, random, 96), _matrix(fmt, random, COLUMNS, ROWS)
        record[: first.data.size] = first.data
        record[layout.down_offset :][: down.data.size] = down.data
    chosen, slots = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.int32), np.array([1, 0], np.int32)
    given, of = _activations(random, COLUMNS), np.zeros(2, np.uint8)
    yield "experts", ex.Experts(given, chosen, slots, arena, (layout,), of, output), output  # type: ignore[arg-type]


def _recurrent(random: np.random.Generator) -> Iterator[tuple[str, op.Operation, op.Floats]]:
    """Yield questions of what changes a sequence's state, from its first position on."""
    heads, width, values = 2, 20, 24
    rows = np.arange(TOKENS, dtype=np.int32), np.zeros(TOKENS, np.int32)
    states, output = _floats(random, (1, heads, 32, width)), _floats(random, (TOKENS, heads * values))
    rate, numbers = -np.abs(_floats(random, (heads,))), _floats(random, (heads,))
    given = _floats(random, (TOKENS, heads * (2 * width + values)))
    strength, step = (_floats(random, (TOKENS, heads)) for _ in range(2))
    yield (
        "the delta rule",
        st.DeltaRule(given, strength, step, numbers, rate, 1e-6, heads, *rows, states, output),
        output,
    )
    own = (given, step, numbers, rate, numbers, heads, *rows, states, output)
    yield "scans", st.SelectiveScan(*own), output
    ring, taps = _floats(random, (1, 3, values)), _floats(random, (3 * values,))
    short, kept = _floats(random, (TOKENS, values)), _floats(random, (TOKENS, 3 * values))
    yield "convolutions", st.ShortConv(kept, taps, None, *rows, ring, short), short


def _aligned_bytes(size: int) -> int:
    return -(-size // 64) * 64


def _agree(device: Backend, native: Backend, operation: op.Operation, output: op.Floats) -> bool:
    """Whether both leave the same bits; of a NaN any."""
    before, left = output.copy(), []
    for backend in (native, device):
        output[...] = before
        backend.program([operation]).run(TOKENS)
        left.append(np.where(np.isnan(output), np.float32(np.nan), output).tobytes())
    return left[0] == left[1]


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _floats(random: np.random.Generator, shape: tuple[int, ...]) -> op.Floats:
    floats = _aligned(shape, np.float32)
    floats[...] = random.standard_normal(shape)
    return floats  # type: ignore[return-value]


def _activations(random: np.random.Generator, columns: int) -> op.Floats:
    """Rows of normal numbers, of some that dwarf the others, of ties of the int8 rounding, and of tiny numbers."""
    rows = _floats(random, (TOKENS, columns))
    rows[1] = np.where(random.random(columns) < 0.02, 1e4, rows[1] * 1e-3)
    rows[2] = np.where(random.random(columns) < 0.1, 63.5, random.integers(-127, 128, columns) / 2)
    rows[3] *= 1e-30
    return rows


def _matrix(fmt: Format, random: np.random.Generator, rows: int = ROWS, columns: int = COLUMNS) -> Matrix:
    """A matrix with random codes, and numbers of moderate size: section by section, as formats.py lays them out."""
    panels = panel_count(rows)
    payload = fmt.payload_count(columns) * fmt.payload_bytes
    codes = random.integers(0, 256, (panels, payload)).astype(np.uint8)
    if fmt.bits == 8 and fmt.floating:
        codes &= 0xFE  # a NaN has all bits
    elif fmt.floating:
        count = (panels, payload * 8 // fmt.bits)
        floats = random.standard_normal(count).astype(np.float16 if fmt.name == "f16" else np.float32)
        codes = floats.view(np.uint8).reshape(*count, -1)[..., -fmt.bits // 8 :].reshape(panels, payload)
    scales, factors = PANEL_ROWS * fmt.scale_count(columns), PANEL_ROWS * fmt.factor_count(columns)
    sections: list[np.ndarray[Any, Any]] = [codes]
    if fmt.scale == "e8m0":
        sections.append(random.integers(118, 126, (panels, scales)).astype(np.uint8))
    elif fmt.scale_bytes:
        kind = np.float16 if fmt.scale == "f16" else np.float32
        sections.append((random.standard_normal((panels, scales)) / 10).astype(kind).view(np.uint8))
    if fmt.has_minimums:
        sections.append(random.standard_normal((panels, scales)).astype(np.float16).view(np.uint8))
    if fmt.factor != "none":
        some = random.integers(0, 256, (panels, factors)).astype(np.uint8)
        sections.append(some & 0xFE if fmt.factor == "e4m3" else some)
    if fmt.offset_bytes:
        sections.append(random.integers(0, 256, (panels, factors)).astype(np.uint8))
    data = _aligned((panels, fmt.panel_bytes(columns)), np.uint8)
    used = np.concatenate(sections, axis=1)
    data[:, : used.shape[1]] = used
    return Matrix(data.reshape(-1), fmt, rows, columns)  # type: ignore[arg-type]
