"""The structs of the C interface.

Those of operations are made from their definitions (`kernels/definition.py`), and `native/write_header` writes their C
declarations from the same; the others mirror `native/include/edgemoe.h` by hand. When the library is loaded, every
field's place is compared with the one that the C compiler gave it.

In a struct of an operation stand its fields in order, and then the letters that its shapes fix, as 32-bit integers.
"""

from __future__ import annotations

import ctypes
import itertools
import operator
from collections.abc import Iterable, Iterator
from ctypes import c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels import state_operations as so
from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels import tree_operations as tr
from edgemoe.kernels.definition import Definition, Field, definition_of
from edgemoe.kernels.landing import PART, PLACE
from edgemoe.kernels.paging import RECORD

ABI_VERSION = 16

LETTERS = {
    "B": "slot_bytes",
    "C": "context",
    "D": "hidden_size",
    "E": "num_experts",
    "F": "intermediate_size",
    "G": "kv_heads",
    "H": "heads",
    "I": "channels",
    "K": "top_k",
    "M": "columns",
    "N": "rows",
    "P": "table_pages",
    "R": "rotated",
    "S": "sequence_count",
    "V": "vocab_size",
    "W": "head_dim",
    "Wv": "value_dim",
}
"""Names in C of the letters in shapes; one that is a word is its own name."""

_CACHE_LETTERS = {"N": "page_count"}
_OF_BLOCKS = {"B": "block_rows"}
_OWN_LETTERS: dict[type, dict[str, str]] = {
    so.StoreKv: _CACHE_LETTERS,
    so.StoreLatent: _CACHE_LETTERS,
    so.Attention: _CACHE_LETTERS,
    bo.ChooseBlocks: _CACHE_LETTERS | _OF_BLOCKS,
    bo.Compress: _CACHE_LETTERS | _OF_BLOCKS,
    bo.CompressedAttention: _CACHE_LETTERS | _OF_BLOCKS | {"L": "compressed_pages"},
    bo.StoreBlockKeys: _CACHE_LETTERS | _OF_BLOCKS,
    ex.Experts: {"S": "slot_count"},
    no.RetrieveByKeys: {"J": "retrieved", "N": "keys"},
    no.Neurons: {"P": "page_count", "S": "slot_count"},
    **{kind: {"S": "slot_count"} for kind in (mx.SlotLogits, mx.Dispatch, mx.SlotFfn, mx.Collect)},
    ex.ExpertBases: {"U": "first_rows", "W": "down_rows", "I": "intermediate_size"},
}


def letter_name(kind: type, letter: str) -> str:
    """Return the name in C of a letter in the shapes of an operation, or of a dataclass within one."""
    return _OWN_LETTERS.get(kind, LETTERS).get(letter) or LETTERS.get(letter, letter)


class MatrixStruct(ctypes.Structure):
    """`em_matrix`"""

    _fields_ = [("data", c_void_p), ("format", c_int32), ("rows", c_int32), ("columns", c_int32)]


class CacheStruct(ctypes.Structure):
    """`em_cache`"""

    _fields_ = [("elements", c_void_p), ("scales", c_void_p), ("format", c_int32)]


_TYPES: dict[str, Any] = {
    "buffer": c_void_p,
    "matrix": MatrixStruct,
    "cache": CacheStruct,
    "float": c_float,
    "integer": c_int32,
    "flag": c_int32,
    "choice": c_int32,
    "format": c_int32,
    "pager": c_void_p,
    "row_pager": c_void_p,
}


def snake_case(name: str) -> str:
    """Return the name in C of a class: `RmsNorm` becomes `rms_norm`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def count_name(field: Field) -> str:
    """Return the name in C of the number of structs in a tuple."""
    return f"{field.name}_count"


class Made(NamedTuple):
    """A struct that was made from a definition."""

    kind: type
    definition: Definition
    struct: type[ctypes.Structure]


MADE: list[Made] = []
"""Every such struct, each after those that it contains."""


def _make(kind: type, definition: Definition) -> type[ctypes.Structure]:
    """Make the struct of an operation, or of a dataclass within one, which several operations may have."""
    for made in MADE:
        if made.kind is kind and made.definition.letters == definition.letters:
            return made.struct
    inner = {field.name: struct for field, struct in definition.structs}
    fields: list[tuple[str, Any]] = []
    for field in definition.fields:
        if field.struct is None:
            fields.append((field.name, c_int64 if field.mark.wide else _TYPES[field.mark.kind]))
            continue
        member = _make(field.struct, inner[field.name])
        if field.mark.kind == "struct":
            fields.append((field.name, member))
        else:
            fields += [(field.name, member * field.mark.most), (count_name(field), c_int32)]
    fields += [(letter_name(kind, letter), c_int32) for letter in definition.letters]
    struct = type(f"{kind.__name__}Struct", (ctypes.Structure,), {"_fields_": fields})
    MADE.append(Made(kind, definition, struct))
    return struct


def _kinds(*modules: ModuleType) -> Iterator[tuple[int, type[op.Operation]]]:
    """Yield the operations of modules that have a kernel in C, with their codes."""
    for kind in itertools.chain.from_iterable(vars(module).values() for module in modules):
        if isinstance(kind, type) and issubclass(kind, op.Operation) and kind.code is not None:
            yield kind.code, kind


_MODULES = (op, so, bo, sk, sm, ex, no, mx, tr)
NATIVE_OPERATIONS = tuple(kind for _, kind in sorted(_kinds(*_MODULES), key=operator.itemgetter(0)))
"""The operations that the C library has, in the order of `em_kind`."""

OPERATION_STRUCTS: dict[type[op.Operation], type[ctypes.Structure]] = {
    kind: _make(kind, definition_of(kind)) for kind in NATIVE_OPERATIONS
}
"""The structs of operations, in the order of `em_kind`."""


class OperationUnion(ctypes.Union):
    """The union in `em_operation`."""

    _fields_ = [(snake_case(kind.__name__), struct) for kind, struct in OPERATION_STRUCTS.items()]


class OperationStruct(ctypes.Structure):
    """`em_operation`"""

    _fields_ = [("kind", c_int32), ("reserved", c_int32), ("as_", OperationUnion)]


class ScratchStruct(ctypes.Structure):
    """`em_scratch`"""

    _fields_ = [("data", c_void_p), ("bytes", c_uint64)]


class ProgramTimesStruct(ctypes.Structure):
    """`em_program_times`"""

    _fields_ = [("operations", c_void_p), ("elapsed_ns", c_uint64)]


class ProgramStruct(ctypes.Structure):
    """`em_program`"""

    _fields_ = [
        ("kernels", c_void_p),
        ("pool", c_void_p),
        ("operations", c_void_p),
        ("scratch", c_void_p),
        ("times", c_void_p),
        ("scratch_bytes", c_uint64),
        ("operation_count", c_int32),
        ("tokens_max", c_int32),
        ("failed_operation", c_int32),
        ("reserved", c_int32),
    ]


class ReadStruct(ctypes.Structure):
    """`em_read`"""

    _fields_ = [
        ("offset", c_int64),
        ("length", c_int64),
        ("destination", c_void_p),
        ("crc32c", c_int64),
        ("descriptor", c_int32),
        ("part_count", c_int32),
        ("parts", c_void_p),
        ("places", c_void_p),
    ]


class ReadCountersStruct(ctypes.Structure):
    """`em_read_counters`"""

    _fields_ = [
        ("bytes_read", c_uint64),
        ("read_ns", c_uint64),
        ("queue_wait_ns", c_uint64),
        ("reads", c_uint64),
        ("failed", c_uint64),
        ("cancelled", c_uint64),
    ]


class SourceStruct(ctypes.Structure):
    """`em_source`"""

    _fields_ = [
        ("context", c_void_p),
        ("submit", c_void_p),
        ("wait", c_void_p),
        ("wait_any", c_void_p),
        ("done", c_void_p),
        ("promote", c_void_p),
        ("cancel", c_void_p),
        ("release", c_void_p),
    ]


class PolicySettingsStruct(ctypes.Structure):
    """`em_policy_settings`"""

    _fields_ = [
        ("rate", c_double),
        ("weight", c_double),
        ("kind", c_int32),
        ("reserved", c_int32),
    ]


def _fields_of(dtype: np.dtype[np.void]) -> list[tuple[str, type[Any]]]:
    """Return the fields of a struct whose elements arrays of NumPy hold."""
    return [(name, np.ctypeslib.as_ctypes_type(dtype[name])) for name in dtype.names or ()]


class PartStruct(ctypes.Structure):
    """`em_part`"""

    _fields_ = _fields_of(PART)


class PlaceStruct(ctypes.Structure):
    """`em_place`"""

    _fields_ = _fields_of(PLACE)


class RecordStruct(ctypes.Structure):
    """`em_record`, an element of a table of records."""

    _fields_ = _fields_of(RECORD)


class PagerCountersStruct(ctypes.Structure):
    """`em_pager_counters`, the elements of `CacheStatistics.counts`."""

    _fields_ = [
        (name, c_int64)
        for name in (
            "hits",
            "misses",
            "late_prefetches",
            "demand_bytes",
            "prefetched_bytes",
            "prefetched_reads",
            "useful_prefetches",
            "guessable_uses",
            "guessed_uses",
            "warm_bytes",
            "dropped",
            "from_base",
        )
    ]


class TrellisStruct(ctypes.Structure):
    """`em_trellis`"""

    _fields_ = [
        ("step_bits", c_int32),
        ("step_weights", c_int32),
        ("lag", c_int32),
        ("level_count", c_int32),
        ("levels", c_void_p),
        ("numbers", c_void_p),
        ("dearest", c_float),
    ]


class TrellisFedStruct(ctypes.Structure):
    """`em_trellis_fed`"""

    _fields_ = [
        *((name, c_void_p) for name in ("targets", "inverses", "gains", "steps", "importance", "factors", "rates")),
        ("target_floats", c_int64),
        ("rate_floats", c_int64),
        *((name, c_int32) for name in ("rows", "columns", "kept", "ahead")),
    ]


class ReadFailureStruct(ctypes.Structure):
    """`em_read_failure`"""

    _fields_ = [
        ("detail", c_int64),
        ("status", c_int32),
        ("layer", c_int32),
        ("expert", c_int32),
        ("reserved", c_int32),
    ]


class PagerSetupStruct(ctypes.Structure):
    """`em_pager_setup`"""

    _fields_ = [
        ("source", SourceStruct),
        ("records", c_void_p),
        ("arena", c_void_p),
        ("slots", c_void_p),
        ("tickets", c_void_p),
        ("counters", c_void_p),
        ("failure", c_void_p),
        ("policy", PolicySettingsStruct),
        ("slot_bytes", c_int64),
        ("timeout_us", c_int64),
        ("slot_count", c_int32),
        ("layers", c_int32),
        ("experts", c_int32),
        ("reserved", c_int32),
    ]


class RowPagerSetupStruct(ctypes.Structure):
    """`em_row_pager_setup`"""

    _fields_ = [
        ("source", SourceStruct),
        *((name, c_void_p) for name in ("arena", "slots", "crc32c", "counters", "failure")),
        *((name, c_int64) for name in ("offset", "row_bytes", "timeout_us")),
        *((name, c_int32) for name in ("descriptor", "row_count", "rows_per_page", "slot_count")),
    ]


STRUCTS: tuple[type[ctypes.Structure], ...] = (
    MatrixStruct,
    CacheStruct,
    *(made.struct for made in MADE),
    OperationStruct,
    ScratchStruct,
    ProgramTimesStruct,
    ProgramStruct,
    PartStruct,
    PlaceStruct,
    ReadStruct,
    ReadCountersStruct,
    SourceStruct,
    PolicySettingsStruct,
    TrellisStruct,
    TrellisFedStruct,
    RecordStruct,
    PagerCountersStruct,
    ReadFailureStruct,
    PagerSetupStruct,
    RowPagerSetupStruct,
)
"""Every struct of the interface."""


def c_name(struct: type[ctypes.Structure]) -> str:
    """Return the name in C of a struct's class: `RmsNormStruct` becomes `em_rms_norm`."""
    return f"em_{snake_case(struct.__name__.removesuffix('Struct'))}"


def field_names(struct: type[ctypes.Structure]) -> list[str]:
    """Return the names in C of a struct's fields; in Python one that is a keyword here ends in `_`."""
    return [name.rstrip("_") for name, *_ in struct._fields_]


def describe_layout(structs: Iterable[type[ctypes.Structure]] = STRUCTS) -> str:
    """Describe the place and size of every struct and field, in the words of the library's `em_describe_layout`."""
    lines: list[str] = []
    for struct in structs:
        name = c_name(struct)
        lines.append(f"{name} 0 {ctypes.sizeof(struct)}")
        for own, (attribute, *_) in zip(field_names(struct), struct._fields_, strict=True):
            place = getattr(struct, attribute)
            lines.append(f"{name}.{own} {place.offset} {place.size}")
    return "".join(f"{line}\n" for line in lines)
