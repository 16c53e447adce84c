"""The kernels of a device: their names, their arguments, and the constants that make one of a function of `source/`.

So a kernel stands in one list, whatever the dialects; `entries.py` prints the text of each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS, PLANES, Format

FILES = ("dialect.h", "products.c", "rows.c", "ffn.c")
_NUMBERS = ("i32", "float")
_SCALES = {"f16": 1, "e8m0": 2, "f32": 3}
_FACTORS = {"none": 0, "int8": 1, "nibble": 2, "e4m3": 3}
_TABLES = {"none": 0, "e2m1": 1, "iq4": 2, "signs": 3}
_ELEMENTS = {"f32": 0, "f16": 1, "bf16": 2}


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel: a number, or a buffer of elements of a type that the kernel reads or writes."""

    type: str
    """The type of the number, or of an element; `const` before it where the kernel only reads."""
    name: str

    @property
    def is_number(self) -> bool:
        return self.type in _NUMBERS


@dataclass(frozen=True)
class KernelSpec:
    """One kernel: the function of `source/` that it runs, and the constants that come before the number of the item."""

    name: str
    function: str
    arguments: tuple[Argument, ...]
    constants: tuple[str, ...] = ()
    format: tuple[int, ...] = ()
    """The members of the `format` that it has among them, if it has one."""


def _arguments(text: str) -> tuple[Argument, ...]:
    """Read a list such as `const float *input, i32 columns`."""
    found = []
    for one in text.split(","):
        kind, _, name = one.strip().rpartition(" ")
        found.append(Argument(kind + " *" if name.startswith("*") else kind, name.lstrip("*")))
    return tuple(found)


_LINEAR_END = "const float *bias, float *output, i32 rows, i32 {depth}, i32 panel_bytes, i32 has_bias" + (
    ", float scale, i32 accumulate"
)
_QUANTISED = "const u8 *matrix, const u32 *values, const group *groups, " + _LINEAR_END.format(depth="group_count")
_FLOATING = "const u8 *matrix, const float *input, " + _LINEAR_END.format(depth="columns")


_PLAIN = {
    "quantise": "const float *input, i8 *values, group *groups, i32 columns, i32 group_count",
    "square_lanes": "const float *input, float *lanes, i32 width",
    "rms_norm": "const float *input, const float *lanes, const float *weight, const float *gate, float *output,"
    " i32 width, i32 has_weight, i32 own_weights, i32 has_gate, float epsilon",
    "sum_lanes": "const float *input, float *lanes, i32 width",
    "centred_lanes": "const float *input, const float *sums, float *lanes, i32 width",
    "layer_norm": "const float *input, const float *sums, const float *squares, const float *weight, const float *bias,"
    " float *output, i32 width, i32 has_bias, float epsilon",
    "clip": "float *values, float limit",
    "join_stream": "const float *base, const float *result, const float *keep, const float *share, const float *shift,"
    " const float *factor, float *output, i32 width, float scale, i32 has_keep, i32 has_share, i32 has_shift,"
    " i32 has_factor",
    "combine": "const float *routed, const float *weights, const float *shared, const float *shared_gate,"
    " float *output, i32 width, i32 top_k, i32 has_weights, i32 has_shared, i32 has_gate, float scale, i32 accumulate",
    "activate": "const float *gate, const float *up, const float *gate_bias, const float *up_bias, float *hidden,"
    " i32 columns, i32 stride, i32 step, i32 has_gate, i32 has_bias, i32 function, float alpha, float limit,"
    " float offset",
}
"""The kernels that are no products, by their functions' names, with their arguments."""


def has_products(fmt: Format) -> bool:
    """Whether the device's text has the products of a format: not those with a grid or a trellis, and not sub1."""
    if fmt.grid != "none" or fmt.trellis is not None or fmt.varying:
        return False
    return fmt.name in _ELEMENTS or (fmt.scale in _SCALES and fmt.factor in _FACTORS and fmt.table in _TABLES)


def product_kernel(fmt: Format) -> str:
    """Return the name of the kernel that multiplies matrices of a format."""
    return f"linear_{fmt.name}"


def _scale_shift(fmt: Format) -> int:
    return (fmt.scale_columns // GROUP_COLUMNS).bit_length() - 1


def _product(fmt: Format) -> KernelSpec:
    if fmt.name in _ELEMENTS:
        return KernelSpec(product_kernel(fmt), "float_linear", _arguments(_FLOATING), (str(_ELEMENTS[fmt.name]),))
    if fmt.floating:
        unit = "512.0f" if fmt.scale == "e8m0" else "256.0f"  # of codes divided by 256; e8m0 scales are halved
        numbers = (str(_SCALES[fmt.scale]), str(_scale_shift(fmt)), unit)
        return KernelSpec(product_kernel(fmt), "e4m3_linear", _arguments(_FLOATING), numbers)
    low, high = PLANES[fmt.bits][0][0], sum(bits for bits, _ in PLANES[fmt.bits][1:])
    zero = -128 if fmt.name == "q8m" else fmt.zero  # its bytes are those of code - 128, with a sign
    halves = GROUP_COLUMNS // fmt.factor_columns if fmt.factor != "none" else 1
    members = (
        low, high, zero, _TABLES[fmt.table], _SCALES[fmt.scale], _scale_shift(fmt), int(fmt.has_minimums),
        _FACTORS[fmt.factor], halves, int(fmt.has_offsets),
    )  # fmt: skip
    return KernelSpec(product_kernel(fmt), "linear", _arguments(_QUANTISED), ("numbers",), members)


@functools.cache
def kernels() -> dict[str, KernelSpec]:
    """Return all kernels by name."""
    products = [_product(fmt) for fmt in FORMATS.values() if has_products(fmt)]
    plain = [KernelSpec(name, name, _arguments(arguments)) for name, arguments in _PLAIN.items()]
    return {spec.name: spec for spec in (*plain, *products)}
