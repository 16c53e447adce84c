"""Checks the buffers of operations and fills the C structs of a program.

Every check is made here, once, so that the C code can trust its pointers. Messages name the operation, the
buffer, what was expected and what was found.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, Format, Matrix, group_count, panel_count
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.reader import NativeReader

MATRIX_ALIGNMENT_BYTES = 64

_HINT = "This is a fault in how the model was put together; please report it."


class BoundOperations:
    """A list of operations as C structs; it keeps the arrays they point to alive."""

    def __init__(self, operations: Sequence[op.Operation]) -> None:
        self.structs = (st.OperationStruct * len(operations))()
        self.names = [f"operation {number} ({type(o).__name__})" for number, o in enumerate(operations)]
        self.tokens_max = 2**31 - 1
        self._kept = list(operations)
        for struct, name, operation in zip(self.structs, self.names, operations, strict=True):
            if type(operation) not in st.KINDS:
                raise KernelError(f"{name}: the native backend knows no such operation.", _HINT)
            kind = st.KINDS.index(type(operation))
            struct.kind = kind
            binder = _Binder(name)
            _FILL[kind](binder, getattr(struct.as_, st.UNION_MEMBERS[kind][0]), operation)
            self.tokens_max = min(self.tokens_max, binder.tokens_max)
        self.address = ctypes.addressof(self.structs)


class _Binder:
    """Checks the buffers of one operation and returns their addresses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens_max = 2**31 - 1

    def fail(self, buffer: str, expected: object, found: object) -> KernelError:
        return KernelError(f"{self.name}: {buffer}: expected {expected}, found {found}.", _HINT)

    def require(self, holds: bool, buffer: str, expected: object, found: object) -> None:
        if not holds:
            raise self.fail(buffer, expected, found)

    def address(self, buffer: str, array: Any, dtype: Any, shape: tuple[int, ...], writable: bool = False) -> int:
        """Return the address of an array of exactly this dtype and shape, C-contiguous and aligned for its dtype."""
        self.require(isinstance(array, np.ndarray), buffer, "an array", type(array).__name__)
        if array.dtype != dtype:  # of 1000 arrays a start; the slow names are for errors
            raise self.fail(buffer, np.dtype(dtype).name, array.dtype.name)
        if array.shape != shape:
            raise self.fail(buffer, f"shape {shape}", f"shape {array.shape}")
        flags = array.flags
        self.require(flags.c_contiguous, buffer, "a C-contiguous array", "one with gaps")
        self.require(flags.aligned, buffer, "alignment to its elements", "another")
        self.require(flags.writeable or not writable, buffer, "a writable array", "a read-only one")
        address: int = array.__array_interface__["data"][0]
        return address

    def rows(
        self, buffer: str, array: Any, row: tuple[int, ...], dtype: Any = np.float32, writable: bool = False
    ) -> int:
        """Return the address of a `(T, *row)` array; its `T` limits the tokens of a run."""
        if not (isinstance(array, np.ndarray) and array.ndim == 1 + len(row) and len(array) > 0):
            raise self.fail(buffer, f"an array of shape (T, {', '.join(map(str, row))})", f"shape {np.shape(array)}")
        self.tokens_max = min(self.tokens_max, len(array))
        return self.address(buffer, array, dtype, (len(array), *row), writable)

    def matrix(self, buffer: str, matrix: Matrix, columns: int | None = None) -> st.MatrixStruct:
        """Return the struct of a matrix, whose column count must be `columns` if given."""
        self.require(matrix.rows > 0 and matrix.columns > 0, buffer, "rows and columns", (matrix.rows, matrix.columns))
        if columns is not None:
            self.require(matrix.columns == columns, buffer, f"{columns} columns", f"{matrix.columns}")
        size = matrix.format.matrix_bytes(matrix.rows, matrix.columns)
        address = self.address(buffer, matrix.data, np.uint8, (size,))
        self.aligned(buffer, address)
        return st.MatrixStruct(address, matrix.format.code, matrix.rows, matrix.columns, 0)

    def aligned(self, buffer: str, address: int) -> None:
        over = address % MATRIX_ALIGNMENT_BYTES
        self.require(over == 0, buffer, f"alignment to {MATRIX_ALIGNMENT_BYTES} bytes", f"{over} bytes over")

    def apart(self, output_name: str, output: op.Floats, input_name: str, source: op.Floats) -> None:
        """Check that an output does not overlap its input, which the operation still reads after it wrote output."""
        together = np.may_share_memory(output, source)
        self.require(not together, output_name, f"memory apart from {input_name}", "an overlap")


def _row_width(binder: _Binder, buffer: str, array: Any, multiple_of: int = 1) -> int:
    """Return the second dimension of a `(T, width)` array."""
    found = np.shape(array)
    fits = len(found) == 2 and found[1] > 0 and found[1] % multiple_of == 0
    binder.require(fits, buffer, f"shape (T, n * {multiple_of})", f"shape {found}")
    return int(found[1])


def _fill_embed(binder: _Binder, s: st.EmbedStruct, o: op.Embed) -> None:
    s.ids = binder.rows("ids", o.ids, (), np.int32)
    s.matrix = binder.matrix("matrix", o.matrix)
    s.output = binder.rows("output", o.output, (o.matrix.columns,), writable=True)
    s.scale = o.scale


def _fill_rms_norm(binder: _Binder, s: st.RmsNormStruct, o: op.RmsNorm) -> None:
    binder.require(o.heads > 0, "heads", "at least 1", o.heads)
    row = _row_width(binder, "input", o.input, o.heads)
    s.input = binder.rows("input", o.input, (row,))
    s.output = binder.rows("output", o.output, (row,), writable=True)
    same = s.input == s.output
    if not same:
        binder.apart("output", o.output, "input", o.input)
    s.heads, s.width = o.heads, row // o.heads
    s.weight = binder.address("weight", o.weight, np.float32, (s.width,))
    s.epsilon = o.epsilon


def _fill_linear(binder: _Binder, s: st.LinearStruct, o: op.Linear) -> None:
    columns = _row_width(binder, "input", o.input)
    s.input = binder.rows("input", o.input, (columns,))
    count = len(o.parts)
    binder.require(1 <= count <= st.LINEAR_PARTS_MAX, "parts", f"1 to {st.LINEAR_PARTS_MAX}", count)
    for number, part in enumerate(o.parts):
        name = f"parts[{number}]"
        target = s.parts[number]
        target.matrix = binder.matrix(f"{name}.matrix", part.matrix, columns)
        rows = part.matrix.rows
        if part.bias is not None:
            target.bias = binder.address(f"{name}.bias", part.bias, np.float32, (rows,))
        target.output = binder.rows(f"{name}.output", part.output, (rows,), writable=True)
        binder.apart(f"{name}.output", part.output, "input", o.input)
    s.part_count, s.accumulate, s.scale = count, o.accumulate, o.scale


def _fill_rope(binder: _Binder, s: st.RopeStruct, o: op.Rope) -> None:
    binder.require(o.heads > 0, "heads", "at least 1", o.heads)
    row = _row_width(binder, "values", o.values, 2 * o.heads)
    s.values = binder.rows("values", o.values, (row,), writable=True)
    s.heads, s.width, s.context = o.heads, row // o.heads, len(o.cosine)
    s.cosine = binder.address("cosine", o.cosine, np.float32, (s.context, s.width // 2))
    s.sine = binder.address("sine", o.sine, np.float32, (s.context, s.width // 2))


def _cache_format(binder: _Binder, buffer: str, cache: op.Cache) -> Format:
    if isinstance(cache, op.QuantisedCache):
        return FORMATS["q8"]
    found = cache.dtype.name
    binder.require(found in ("float16", "float32"), buffer, "float16 or float32", found)
    return FORMATS["f16" if found == "float16" else "f32"]


def _cache(binder: _Binder, buffer: str, cache: op.Cache, shape: tuple[int, ...], writable: bool) -> st.CacheStruct:
    """Return the addresses of a cache, which must have this shape `(G, C, W)`."""
    if not isinstance(cache, op.QuantisedCache):
        return st.CacheStruct(binder.address(buffer, cache, cache.dtype, shape, writable), None)
    scales_shape = (*shape[:2], group_count(shape[2]))
    return st.CacheStruct(
        binder.address(f"{buffer}.values", cache.values, np.int8, shape, writable),
        binder.address(f"{buffer}.scales", cache.scales, np.float16, scales_shape, writable),
    )


def _fill_caches(binder: _Binder, s: Any, keys: op.Cache, values: op.Cache, writable: bool) -> None:
    shape = keys.shape
    binder.require(len(shape) == 3 and 0 not in shape, "key_cache", "shape (G, C, W)", f"shape {shape}")
    fmt, value_format = _cache_format(binder, "key_cache", keys), _cache_format(binder, "value_cache", values)
    binder.require(fmt is value_format, "value_cache", f"the key cache's format {fmt.name}", value_format.name)
    s.format = fmt.code
    s.groups, s.context, s.width = shape
    s.key_cache = _cache(binder, "key_cache", keys, shape, writable)
    s.value_cache = _cache(binder, "value_cache", values, shape, writable)


def _fill_store_kv(binder: _Binder, s: st.StoreKvStruct, o: op.StoreKv) -> None:
    _fill_caches(binder, s, o.key_cache, o.value_cache, writable=True)
    row = (s.groups * s.width,)
    s.keys = binder.rows("keys", o.keys, row)
    s.values = binder.rows("values", o.values, row)


def _fill_attention(binder: _Binder, s: st.AttentionStruct, o: op.Attention) -> None:
    _fill_caches(binder, s, o.key_cache, o.value_cache, writable=False)
    row = _row_width(binder, "query", o.query, s.groups * s.width)
    s.query = binder.rows("query", o.query, (row,))
    s.output = binder.rows("output", o.output, (row,), writable=True)
    binder.apart("output", o.output, "query", o.query)
    s.heads, s.scale = row // s.width, o.scale


def _fill_route(binder: _Binder, s: st.RouteStruct, o: op.Route) -> None:
    s.expert_count = _row_width(binder, "logits", o.logits)
    s.used = _row_width(binder, "experts", o.experts)
    binder.require(s.used <= s.expert_count, "experts", f"at most {s.expert_count} per token", s.used)
    s.logits = binder.rows("logits", o.logits, (s.expert_count,))
    s.experts = binder.rows("experts", o.experts, (s.used,), np.int32, writable=True)
    s.weights = binder.rows("weights", o.weights, (s.used,), writable=True)
    s.renormalise = o.renormalise
    if o.in_memory is not None:
        s.in_memory = binder.address("in_memory", o.in_memory, np.int32, (s.expert_count,))
        binder.require(0 <= o.bonus <= 1, "bonus", "0 to 1", o.bonus)
        s.bonus = o.bonus


def _fill_gated_ffn(binder: _Binder, s: st.GatedFfnStruct, o: op.GatedFfn) -> None:
    width = _row_width(binder, "input", o.input)
    s.input = binder.rows("input", o.input, (width,))
    s.output = binder.rows("output", o.output, (width,), writable=True)
    binder.apart("output", o.output, "input", o.input)
    s.gate_up = binder.matrix("gate_up", o.gate_up, width)
    s.down = binder.matrix("down", o.down)
    binder.require(o.down.rows == width, "down", f"{width} rows", o.down.rows)
    rows = 2 * PANEL_ROWS * panel_count(o.down.columns)
    binder.require(o.gate_up.rows == rows, "gate_up", f"{rows} rows for {o.down.columns} hidden", o.gate_up.rows)


def _fill_experts(binder: _Binder, s: st.ExpertsStruct, o: op.Experts) -> None:
    layout = o.layout
    width = layout.model_width
    s.model_width, s.ffn_width, s.down_offset = width, layout.ffn_width, layout.down_offset
    s.gate_up_format, s.down_format = layout.gate_up_format.code, layout.down_format.code
    s.used = _row_width(binder, "experts", o.experts)
    s.expert_count = len(o.slots)
    s.input = binder.rows("input", o.input, (width,))
    s.experts = binder.rows("experts", o.experts, (s.used,), np.int32)
    s.slots = binder.address("slots", o.slots, np.int32, (s.expert_count,))
    s.output = binder.rows("output", o.output, (s.used, width), writable=True)
    binder.apart("output", o.output, "input", o.input)
    binder.require(o.arena.ndim == 2, "arena", "shape (slots, slot bytes)", f"shape {o.arena.shape}")
    s.slot_count, s.slot_bytes = o.arena.shape
    s.arena = binder.address("arena", o.arena, np.uint8, o.arena.shape)
    _check_record(binder, layout, s)
    if o.arrivals is not None:
        reader = o.arrivals.reader
        known = isinstance(reader, NativeReader)
        binder.require(known, "arrivals.reader", "a native reader", type(reader).__name__)
        s.arrivals.reader = reader.address if isinstance(reader, NativeReader) else None
        s.arrivals.tickets = binder.address("arrivals.tickets", o.arrivals.tickets, np.int64, (s.slot_count,), True)
        s.arrivals.timeout_us = int(o.arrivals.timeout_seconds * 1e6)


def _check_record(binder: _Binder, layout: op.ExpertLayout, s: st.ExpertsStruct) -> None:
    """Check that an expert's two matrices fit in a slot, each at an aligned offset."""
    binder.require(layout.model_width > 0 and layout.ffn_width > 0, "layout", "widths above 0", layout)
    fits = layout.down_offset >= layout.gate_up_bytes
    binder.require(fits, "layout.down_offset", f"at least {layout.gate_up_bytes}", layout.down_offset)
    end = layout.down_offset + layout.down_bytes
    binder.require(end <= s.slot_bytes or s.slot_count == 0, "arena", f"slots of at least {end} bytes", s.slot_bytes)
    if s.slot_count:  # an empty array may lie anywhere
        binder.aligned("arena", s.arena)
    binder.aligned("arena's slot size", s.slot_bytes)
    binder.aligned("layout.down_offset", layout.down_offset)


def _fill_combine(binder: _Binder, s: st.CombineStruct, o: op.Combine) -> None:
    width = _row_width(binder, "residual", o.residual)
    s.width, s.scale = width, o.scale
    s.residual = binder.rows("residual", o.residual, (width,), writable=True)
    binder.require(o.routed is not None or o.shared is not None, "routed", "a routed or a shared term", "neither")
    paired = (o.routed is None) == (o.weights is None)
    binder.require(paired, "weights", "routed and weights together", "one without the other")
    if o.routed is not None and o.weights is not None:
        s.used = _row_width(binder, "weights", o.weights)
        s.weights = binder.rows("weights", o.weights, (s.used,))
        s.routed = binder.rows("routed", o.routed, (s.used, width))
    binder.require(o.shared_gate is None or o.shared is not None, "shared_gate", "a shared term", "none")
    if o.shared is not None:
        s.shared = binder.rows("shared", o.shared, (width,))
    if o.shared_gate is not None:
        s.shared_gate = binder.rows("shared_gate", o.shared_gate, (1,))


# In the order of `structures.KINDS`.
_FILL: tuple[Callable[[_Binder, Any, Any], None], ...] = (
    _fill_embed,
    _fill_rms_norm,
    _fill_linear,
    _fill_rope,
    _fill_store_kv,
    _fill_attention,
    _fill_route,
    _fill_gated_ffn,
    _fill_experts,
    _fill_combine,
)
