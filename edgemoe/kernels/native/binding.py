"""Fills the C structs of a program from its operations, and checks every buffer on the way.

`Operation.measure` has checked all shapes; the checks of memory are made here, once, so that the C code can trust its
pointers. Messages name the operation, the buffer, what was expected and what was found.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels import sub1
from edgemoe.kernels.definition import (
    NO_LIMIT,
    Definition,
    Field,
    Letters,
    Misfit,
    Sizes,
    definition_of,
    refusal,
    require,
)
from edgemoe.kernels.formats import FORMATS, group_count
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.pager import NativePager
from edgemoe.kernels.native.row_pager import NativeRowPager

MATRIX_ALIGNMENT_BYTES = 64


class _Plan:
    """How to fill a struct: its definition, put ready once, since a start fills a thousand structs."""

    __slots__ = ("fields", "letters", "structs")

    def __init__(self, kind: type, definition: Definition) -> None:
        self.fields = tuple((field.name, field.mark.kind, field) for field in definition.fields if field.struct is None)
        self.letters = tuple((letter, st.letter_name(kind, letter)) for letter in definition.letters)
        self.structs = tuple((field, _Plan(field.struct, inner)) for field, inner in definition.structs if field.struct)


_KINDS = {
    kind: (number, st.snake_case(kind.__name__), _Plan(kind, definition_of(kind)))
    for number, kind in enumerate(st.NATIVE_OPERATIONS)
}
"""Number of each operation in `em_kind`, the name of its member of the union, and how to fill that."""

_CACHE_FORMATS = {np.dtype(np.float32): FORMATS["f32"].code, np.dtype(np.float16): FORMATS["f16"].code}
_BYTE, _CACHE_BYTE, _HALF = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.float16)


def has_kernel(kind: type) -> bool:
    """Whether the C library has this kind of operation."""
    return kind in _KINDS


class BoundOperations:
    """A list of operations as C structs; it keeps the arrays they point to alive.

    With `planned` it takes placeholders for arrays too. Such structs have sizes but no addresses, and are never run.
    """

    def __init__(self, operations: Sequence[op.Operation], planned: bool = False, first: int = 0) -> None:
        """`first` is the number, for errors, of the first of these operations in a longer list."""
        self.first = first
        self.structs = (st.OperationStruct * len(operations))()
        self.operations = list(operations)
        self.tokens_max = NO_LIMIT
        binder = _Binder(planned)
        for number, operation in enumerate(operations):
            struct = self.structs[number]
            struct.kind, member, plan = _KINDS[type(operation)]
            try:
                sizes = operation.measure()
                binder.fill(getattr(struct.as_, member), operation, plan, sizes)
            except Misfit as misfit:
                raise refusal(first + number, operation, misfit) from None
            if sizes.rows < self.tokens_max:
                self.tokens_max = sizes.rows
        self.address = ctypes.addressof(self.structs)

    def name(self, number: int) -> str:
        """Return the name, for errors, of the `number`-th of these operations."""
        return f"operation {self.first + number} ({type(self.operations[number]).__name__})"


class _Binder:
    """Fills the structs of a program's operations, one after the other."""

    __slots__ = ("addresses", "operation", "planned", "struct")

    def __init__(self, planned: bool) -> None:
        self.planned = planned
        self.addresses: dict[int, int] = {}
        """By `id`, of arrays that the operations hold: layers share many, and an address takes a microsecond."""
        self.operation: Any = None
        self.struct: Any = None

    def fill(self, struct: Any, operation: op.Operation, plan: _Plan, sizes: Sizes) -> None:
        """Fill the struct of an operation. Raises Misfit."""
        self.operation = operation
        self.struct = struct
        self.fill_fields(struct, operation, plan, sizes.letters)
        for field, inner in plan.structs:
            member = getattr(operation, field.name)
            if member is None:
                continue
            target = getattr(struct, field.name)
            if field.mark.kind == "struct":
                self.fill_within(target, field.name, member, inner, sizes.letters)
                continue
            setattr(struct, st.count_name(field), len(member))
            for number, (one, own) in enumerate(zip(member, sizes.parts[field.name], strict=True)):
                self.fill_within(target[number], f"{field.name}[{number}]", one, inner, own)

    def fill_within(self, struct: Any, name: str, value: Any, plan: _Plan, letters: Letters) -> None:
        """Fill a nested struct."""
        try:
            self.fill_fields(struct, value, plan, letters)
        except Misfit as misfit:
            raise misfit.within(name) from None

    def fill_fields(self, struct: Any, value: Any, plan: _Plan, letters: Letters) -> None:
        """Fill all fields of a struct but structs within it, and its letters."""
        for name, kind, field in plan.fields:
            member = getattr(value, name)
            if member is None and field.optional:
                continue  # the struct is zeros
            if kind == "buffer":
                setattr(struct, name, self.buffer(field, member))
            elif kind == "matrix":
                self.matrix(getattr(struct, name), name, member)
            elif kind == "float":
                setattr(struct, name, float(member))
            elif kind in ("integer", "flag"):
                setattr(struct, name, int(member))
            elif kind == "choice":
                setattr(struct, name, field.mark.choices.index(member))
            elif kind == "cache":
                self.cache(getattr(struct, name), field, member)
            elif kind == "format":
                setattr(struct, name, member.code)
            else:
                kinds = {"pager": NativePager, "row_pager": NativeRowPager}
                setattr(struct, name, self.pager(name, member, kinds[kind]))
        for letter, name in plan.letters:
            setattr(struct, name, letters.get(letter, 0))

    def buffer(self, field: Field, array: Any) -> int | None:
        """Return the address of a buffer, after checks of its memory."""
        role = field.role
        address = self.address(field.name, array, field.dtype, role.writes)
        if address is None:
            return None
        if role.apart_from:
            self.check_apart(field, array, address)
        elif field.mark.aligned and array.size:  # an empty array may lie anywhere
            _check_aligned(field.name, address)
        return address

    def address(self, name: str, array: Any, dtype: Any, written: bool = False) -> int | None:
        """Return the address of an array of this type, C-contiguous, aligned to its elements; None of a placeholder."""
        if not isinstance(array, np.ndarray):
            if not self.planned or type(array) is not op.Placeholder:
                raise Misfit(name, "an array", type(array).__name__)
            require(array.dtype == dtype, name, dtype, array.dtype)
            return None
        if array.dtype is not dtype and array.dtype != dtype:
            raise Misfit(name, dtype.name, array.dtype.name)
        flags = array.flags
        if not flags.carray:  # contiguous, aligned and writable
            require(flags.c_contiguous, name, "a C-contiguous array", "one with gaps")
            require(flags.aligned, name, "alignment to its elements", "another")
            require(not written, name, "a writable array", "a read-only one")
        address = self.addresses.get(id(array))
        if address is None:
            address = self.addresses[id(array)] = array.__array_interface__["data"][0]
        return address

    def check_apart(self, field: Field, array: Any, address: int) -> None:
        """Check that an output does not overlap an input that the operation still reads after it began to write."""
        name = field.role.apart_from
        start = getattr(self.struct, name)
        if start is None or (field.role.may_replace and start == address):
            return
        overlaps = address < start + getattr(self.operation, name).nbytes and start < address + array.nbytes
        if overlaps:
            raise Misfit(field.name, f"memory apart from {name}", "an overlap")

    def matrix(self, struct: Any, name: str, matrix: Any) -> None:
        """Fill the struct of a matrix, which is as long as its format says."""
        struct.format = matrix.format.code
        struct.rows = matrix.rows
        struct.columns = matrix.columns
        if self.planned and matrix.data is None:
            return
        address = self.address(name, matrix.data, _BYTE)
        if matrix.data.size != matrix.nbytes or matrix.data.ndim != 1:
            raise Misfit(name, f"data of shape ({matrix.nbytes},)", matrix.data.shape)
        if matrix.format.varying:
            found = sub1.fault(matrix.data, matrix.rows, matrix.columns)
            require(found is None, name, "a matrix in the code sub1", found)
        if address is not None:
            _check_aligned(name, address)
        struct.data = address

    def cache(self, struct: Any, field: Field, cache: Any) -> None:
        """Fill the struct of keys or values."""
        name, written = field.name, field.role.writes
        if not isinstance(cache, op.QuantisedCache):
            if cache.dtype not in _CACHE_FORMATS:
                raise Misfit(name, "float16 or float32", cache.dtype.name)
            struct.format = _CACHE_FORMATS[cache.dtype]
            struct.elements = self.address(name, cache, cache.dtype, written)
            return
        scales_shape = (*cache.shape[:-1], group_count(cache.shape[-1]))
        if cache.scales.shape != scales_shape:
            raise Misfit(f"{name}.scales", f"shape {scales_shape}", f"shape {cache.scales.shape}")
        struct.format = FORMATS["q8"].code
        struct.elements = self.address(f"{name}.values", cache.values, _CACHE_BYTE, written)
        struct.scales = self.address(f"{name}.scales", cache.scales, _HALF, written)

    def pager(self, name: str, pager: Any, kind: type) -> int | None:
        """Return the address of a pager: kernels in C ask the one in C only."""
        if self.planned:
            return None
        require(isinstance(pager, kind), name, "a native pager", type(pager).__name__)
        address: int = pager.address
        return address


def _check_aligned(name: str, address: int) -> None:
    over = address % MATRIX_ALIGNMENT_BYTES
    if over:
        raise Misfit(name, f"alignment to {MATRIX_ALIGNMENT_BYTES} bytes", f"{over} bytes over")
