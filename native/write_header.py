"""Writes `include/edgemoe_operations.h`, the C side of the operations that `edgemoe/kernels` defines, and
`kernels/matmul/grid_tables.h`, the grids of formats.

Run `make header` after a change to an operation, and commit the result; a test holds both to the definitions.
"""

from __future__ import annotations

import ctypes
import inspect
import math
from pathlib import Path
from typing import get_args

import numpy as np

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.definition import Field
from edgemoe.kernels.formats import (
    EXPERT_FORMATS,
    FORMATS,
    GROUP_COLUMNS,
    WHOLE_ROW,
    FactorKind,
    Format,
    GridName,
    ScaleKind,
    TableName,
)
from edgemoe.kernels.grids import GRIDS
from edgemoe.kernels.marks import SHAPED
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.row_types import ROW_TYPES, Factors, RowType

WHOLE_ROW_GROUPS = 1 << 30
"""More groups than a row has."""

HEADER = Path(__file__).parent / "include" / "edgemoe_operations.h"
GRID_HEADER = Path(__file__).parent / "kernels" / "matmul" / "grid_tables.h"

_ELEMENTS = {np.float32: "float", np.int32: "int32_t", np.int64: "int64_t", np.uint8: "uint8_t"}
_SCALARS = {"float": "float", "integer": "int32_t", "flag": "int32_t", "choice": "int32_t", "format": "int32_t"}


def header_text() -> str:
    """Return the text of the header."""
    parts = [
        "/* Written by native/write_header.py from the operations of edgemoe/kernels: do not edit. edgemoe.h has it.",
        " *",
        " * T is the number of rows of a run; the other letters of shapes are fields of their struct. */",
        "#ifndef EDGEMOE_OPERATIONS_DEFINED_H",
        "#define EDGEMOE_OPERATIONS_DEFINED_H",
        "",
        *_enumeration(),
        "",
        *(line for made in st.MADE for line in _choices(made)),
        *(line for made in st.MADE for line in [*_struct(made), ""]),
        "/* X(kind, name) for each operation, in the order of em_kind. */",
        *_macro("EM_OPERATIONS(X)", [f"X({name.upper()}, {name})" for name in _operation_names()]),
        "",
        "/* STRUCT(type) for each struct of the interface, and FIELD(type, field) for each of its fields. */",
        *_macro("EM_LAYOUT(STRUCT, FIELD)", _layout()),
        "",
        "#endif",
    ]
    return "".join(f"{line}\n" for line in parts)


def grid_header_text() -> str:
    """Return the text of the header of grids."""
    parts = [
        "/* Written by native/write_header.py from edgemoe/kernels/grids.py: do not edit. The entries are data of",
        " * ggml, whose licence (MIT) stands there.",
        " *",
        " * ENTRY(numbers) for each entry of a grid: the numbers of its levels, 2 bits each (3 bits of IQ3's), the",
        " * first the lowest. */",
    ]
    for grid in GRIDS.values():
        entries = " ".join(f"ENTRY({word:#x})" for word in grid.packed.tolist())
        parts += ["", *_macro(f"EM_ENTRIES_{grid.name.upper()}(ENTRY)", [entries])]
    return "".join(f"{line}\n" for line in parts)


def _operation_names() -> list[str]:
    return [st.snake_case(kind.__name__) for kind in st.NATIVE_OPERATIONS]


def _enumeration() -> list[str]:
    members = [f"EM_{fmt.name.upper()} = {fmt.code}" for fmt in EXPERT_FORMATS.values()]
    return [
        "/* Formats of weights (edgemoe/kernels/formats.py); the first three are those of a KV cache too. */",
        f"typedef enum em_format {{ {', '.join(members)}, EM_FORMAT_COUNT = {len(members)} }} em_format;",
        "",
        "/* FORMAT(NAME, name, ...) for each format; the numbers that follow are those of em_format_numbers. */",
        *(
            f"enum {{ {', '.join(f'EM_{prefix}_{word.upper()}' for word in get_args(words))} }};"
            for prefix, words in (
                ("SCALE", ScaleKind),
                ("FACTOR", FactorKind),
                ("TABLE", TableName),
                ("GRID", GridName),
            )
        ),
        *_macro(
            "EM_QUANTISED_FORMATS(FORMAT)",
            [
                f"FORMAT({fmt.name.upper()}, {fmt.name})"
                for fmt in FORMATS.values()
                if fmt.quantised and not fmt.varying
            ],
        ),
        *_macro("EM_FORMATS(FORMAT)", [f"FORMAT({_numbers(fmt)})" for fmt in FORMATS.values()]),
        "/* Likewise, of formats whose panels differ in length, and which have kernels of their own. */",
        *_macro(
            "EM_VARYING_FORMATS(FORMAT)", [f"FORMAT({_numbers(fmt)})" for fmt in EXPERT_FORMATS.values() if fmt.varying]
        ),
        "",
        *_row_types(),
        "",
        "/* Positions in a page of the KV cache. */",
        f"enum {{ EM_PAGE_TOKENS = {op.PAGE_TOKENS} }};",
        "",
        "/* The most tokens that a short convolution runs over. */",
        f"enum {{ EM_MOST_TAPS = {so.MOST_TAPS} }};",
        "",
        "/* The most positions from one of these tokens to the next. */",
        f"enum {{ EM_MOST_DILATION = {so.MOST_DILATION} }};",
        "",
        "/* The most channels of a block's key. */",
        f"enum {{ EM_WIDEST_BLOCK_KEY = {bo.WIDEST_BLOCK_KEY} }};",
        "",
        "/* The most channels of a head's keys in the delta rule. */",
        f"enum {{ EM_WIDEST_KEYS = {so.WIDEST_KEYS} }};",
        "",
        "/* The most blocks of a page of which some are chosen. */",
        f"enum {{ EM_MOST_BITS = {so.MOST_BITS} }};",
        "",
        "/* The most experts that a head retrieves by keys. */",
        f"enum {{ EM_MOST_RETRIEVED = {no.MOST_RETRIEVED} }};",
        "",
        "/* The most residual streams of a token. */",
        f"enum {{ EM_MOST_STREAMS = {sk.MOST_STREAMS} }};",
    ]


def _numbers(fmt: Format) -> str:
    """The arguments of a format in `EM_FORMATS`."""
    groups = {WHOLE_ROW: WHOLE_ROW_GROUPS}.get(fmt.scale_columns, fmt.scale_columns // GROUP_COLUMNS)
    numbers = (
        int(fmt.floating),
        fmt.bits,
        f"EM_SCALE_{fmt.scale.upper()}",
        groups.bit_length() - 1,
        int(fmt.has_minimums),
        f"EM_FACTOR_{fmt.factor.upper()}",
        GROUP_COLUMNS // fmt.factor_columns,
        int(fmt.has_offsets),
        fmt.zero,
        f"EM_TABLE_{fmt.table.upper()}",
        f"EM_GRID_{fmt.grid.upper()}",
        fmt.high_bytes,
        round(-math.log2(fmt.factor_unit)),
        fmt.trellis.lag if fmt.trellis else 0,
        fmt.trellis.step_weights.bit_length() - 1 if fmt.trellis else 0,
    )
    return f"{fmt.name.upper()}, {fmt.name}, {', '.join(map(str, numbers))}"


def _row_types() -> list[str]:
    """Return the types of rows that land."""
    members = [f"EM_ROWS_{name} = {number}" for number, name in enumerate(ROW_TYPES)]
    factors = (f"EM_FACTORS_{word.upper()}" for word in get_args(Factors))
    return [
        "/* Types of numbers in files (edgemoe/kernels/row_types.py): rows of floats, or of blocks. */",
        f"typedef enum em_rows {{ {', '.join(members)}, EM_ROWS_COUNT = {len(members)} }} em_rows;",
        f"enum {{ {', '.join(factors)} }};",
        "",
        "/* TYPE(NAME, ...) for each of them; the numbers that follow are those of em_row_type. */",
        *_macro("EM_ROW_TYPES(TYPE)", [f"TYPE({_row_numbers(kind)})" for kind in ROW_TYPES.values()]),
    ]


def _row_numbers(kind: RowType) -> str:
    """The arguments of a type in `EM_ROW_TYPES`."""
    planes = [number for plane in kind.planes for number in plane]
    planes += [0] * (6 - len(planes))
    own = (kind.columns, kind.bytes, kind.scale, kind.minimum)
    factors = f"EM_FACTORS_{kind.factors.upper()}", kind.factors_at
    return ", ".join(map(str, (kind.name, f"EM_{kind.twin.upper()}", *own, *factors, *planes)))


def _choices(made: st.Made) -> list[str]:
    """Return the numbers of the words that fields of a struct may have."""
    lines = []
    for field in made.definition.choices:
        choices = (*field.mark.choices, "count")
        words = (f"EM_{field.name}_{word} = {n}" for n, word in enumerate(choices))
        members = ", ".join(words).upper()
        lines += [f"/* {st.c_name(made.struct)}.{field.name} */", f"enum {{ {members} }};", ""]
    return lines


def _struct(made: st.Made) -> list[str]:
    """Return the declaration of one struct."""
    name = st.c_name(made.struct)
    summary = (inspect.getdoc(made.kind) or "").split("\n")[0].replace("`", "")
    members = [member for field in made.definition.fields for member in _members(field)]
    members += [(f"int32_t {st.letter_name(made.kind, letter)};", letter) for letter in made.definition.letters]
    width = max(len(declaration) for declaration, _ in members)
    lines = [f"    {text:{width}} /* {note} */" if note else f"    {text}" for text, note in members]
    return [f"/* {summary} */", f"typedef struct {name} {{", *lines, f"}} {name};"]


def _members(field: Field) -> list[tuple[str, str]]:
    """Return the declarations of a field and their comments."""
    mark, name = field.mark, field.name
    absent = "all zeros" if mark.kind == "matrix" else "NULL"
    note = f"{field.shape}{f', or {absent}' * field.optional}" if mark.kind in SHAPED else ""
    if mark.kind == "buffer":
        assert field.dtype is not None
        const = "" if field.role.writes else "const "
        return [(f"{const}{_ELEMENTS[field.dtype.type]} *{name};", note)]
    if mark.kind == "pager":
        return [(f"em_pager *{name};", "NULL: every record is in the arena")]
    if mark.kind == "row_pager":
        return [(f"em_row_pager *{name};", "NULL: every page is in the arena")]
    if field.struct is not None:
        inner = f"em_{st.snake_case(field.struct.__name__)}"
        if mark.kind == "struct":
            return [(f"{inner} {name};", "all zeros if there are none" if field.optional else "")]
        return [(f"{inner} {name}[{mark.most}];", ""), (f"int32_t {st.count_name(field)};", f"1 to {mark.most}")]
    if mark.kind in ("matrix", "cache"):
        return [(f"em_{mark.kind} {name};", note)]
    note = f"EM_{name}_...".upper() if mark.kind == "choice" else "or 0" if field.optional else mark.letter
    return [(f"{'int64_t' if mark.wide else _SCALARS[mark.kind]} {name};", note)]


def _layout() -> list[str]:
    entries = []
    for struct in st.STRUCTS:
        name = st.c_name(struct)
        entries.append(" ".join([f"STRUCT({name})", *(f"FIELD({name}, {field})" for field in st.field_names(struct))]))
    return entries


def _macro(name: str, entries: list[str]) -> list[str]:
    """Return the lines of a macro, one entry on each, filled up to columns that a reader's window has."""
    lines = [f"#define {name}"]
    for entry in entries:
        current = "   "
        for word in entry.replace(") ", ")\n").split("\n"):
            if len(current) + 1 + len(word) > 110:
                lines.append(current)
                current = "       "
            current += f" {word}"
        lines.append(current)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


if __name__ == "__main__":
    HEADER.write_text(header_text())
    GRID_HEADER.write_text(grid_header_text())
    print(f"Wrote {HEADER}: {ctypes.sizeof(st.OperationStruct)} bytes for an operation.")
