"""The kernels of a device: their names, their arguments, and the constants that make one of a function of `source/`.

So a kernel stands in one list, whatever the dialects; `entries.py` prints the text of each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS, PLANES, Format

FILES = ("dialect.h", "products.c", "rows.c", "ffn.c", "pages.c", "route.c", "experts.c", "states.c")
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


_QUANTISED_INPUTS, _FLOAT_INPUTS = "const u32 *values, const group *groups, ", "const float *inputs, "
_LINEAR = (
    "const u8 *matrix, {inputs}const float *bias, float *output, i32 rows, i32 depth, i32 panel_bytes, i32 has_bias,"
    " float scale, i32 accumulate, i32 heads, i32 stride"
)
_PAIR = "const i32 *experts, const i32 *slots, const u8 *layout_of"
_EXPERT_LINEAR = (
    "const u8 *arena, {inputs}const u8 *biases, "
    + _PAIR
    + (", float *output, i32 rows, i32 depth, i32 panel_bytes, i32 slot_bytes, i32 layout, i32 sharing, i32 has_bias")
)
CACHE_FORMATS = ("f32", "f16", "q8")
"""The formats of a KV cache in the order of their numbers in pages.c."""
_SEEN = "i32 window, i32 chunked, i32 has_lengths, i32 bit_keys, i32 first_page, i32 pages"
_ROWS = "const i32 *positions, const i32 *sequences"
_STATE = _ROWS + ", const i32 *tokens, float *states, float *output"


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
    "rope": "float *values, const i32 *positions, const float *cosine, const float *sine, i32 heads, i32 width,"
    " i32 half_width, i32 first, i32 neighbours, float side",
    "scale_by_position": "float *values, const i32 *positions, const float *factors, i32 width",
    "gate": "const float *gates, float *values, i32 width, i32 gating",
    "soft_cap": "float *values, float limit",
    "read_streams": "const float *streams, const float *shares, float *output, i32 count, i32 width",
    "write_streams": "const float *shares, const float *result, float *streams, i32 count, i32 width",
    "product_lanes": "const float *key, const float *query, float *lanes, i32 width",
    "gate_by_agreement": "const float *lanes, const float *value, float *output, i32 count, i32 width, float least",
    "pass_channels": "const float *passed, float *output, i32 width, i32 rows, i32 stride",
    "attention_weights": _ROWS + ", const i32 *lengths, const i32 *chosen, const float *sinks, float *scores,"
    " float *decays, float *states, i32 heads, i32 table_pages, " + _SEEN + ", i32 has_sinks",
    "route": "const float *logits, const float *choice_bias, const float *expert_scales, i32 *experts, float *weights,"
    " float *scores, float *sums, i32 count, i32 top_k, i32 groups, i32 kept_groups, i32 group_best, i32 score,"
    " i32 by_logit, i32 renormalise, i32 has_bias, i32 has_scales, i32 passing, float epsilon, float scale,"
    " float least_sum, float reach",
    "table_route": "const i32 *ids, const float *table, const float *logits, i32 *experts, float *weights, i32 count,"
    " i32 top_k, i32 has_logits, float epsilon, float scale",
    "expert_activate": "const float *gate, const float *up, const u8 *gate_bias, const u8 *up_bias, "
    + _PAIR
    + ", float *hidden, i32 columns, i32 stride, i32 step, i32 slot_bytes, i32 layout, i32 has_gate, i32 has_bias,"
    " i32 function, float alpha, float limit, float offset",
    "short_conv": "const float *input, const float *taps, const float *bias, " + _ROWS + ", const float *ring,"
    " float *output, i32 width, i32 length, i32 dilation, i32 parts, i32 ring_rows, i32 has_bias",
    "keep_inputs": "const float *input, " + _ROWS + ", const i32 *tokens, float *ring, i32 width, i32 parts,"
    " i32 ring_rows",
    "delta_lengths": "const float *mixed, const float *keys, float *factors, i32 heads, i32 width, i32 columns,"
    " i32 has_keys, float epsilon",
    "delta_decays": "const float *input, const float *bias, const float *rate, float *decays, i32 count, i32 each,"
    " float lower_bound",
    "delta_rule": "const float *mixed, const float *keys, const float *values, const float *factors,"
    " const float *decays, const float *strength, " + _STATE + ", i32 heads, i32 key_heads, i32 width,"
    " i32 value_width, i32 padded, i32 columns, i32 has_keys, i32 by_row, i32 in_turn",
    "selective_scan": "const float *mixed, const float *step, const float *step_bias, const float *rate,"
    " const float *skip, " + _STATE + ", i32 heads, i32 groups, i32 width, i32 value_width, i32 padded, i32 columns,"
    " i32 has_step, i32 has_skip",
    "channel_scan": "const float *input, const float *step, const float *keys, const float *queries,"
    " const float *rate, const float *skip, " + _STATE + ", i32 channels, i32 width, i32 padded",
    "pass_on": "const float *input, const i32 *experts, float *output, i32 top_k, i32 width",
}
"""The kernels that are the same for all formats, by their functions' names, with their arguments."""

_OF_CACHES = {
    "store": "const float *input, const float *rest, " + _ROWS + ", const i32 *table, u8 *elements, u16 *scales,"
    " i32 heads, i32 input_width, i32 width, i32 table_pages",
    "attention_scores": "const float *query, " + _ROWS + ", const i32 *table, const i32 *lengths, const i32 *chosen,"
    " const u8 *elements, const u16 *scales, const float *factors, const float *bias, const i32 *bucket_of,"
    " float *scores, i32 heads, i32 kv_heads, i32 width, i32 table_pages, " + _SEEN + ", i32 has_factors,"
    " i32 distances, float scale, float cap",
    "attention_mixture": _ROWS + ", const i32 *table, const i32 *lengths, const i32 *chosen, const u8 *elements,"
    " const u16 *scales, const float *weights, const float *decays, const float *states, float *output, i32 heads,"
    " i32 kv_heads, i32 width, i32 row_width, i32 table_pages, " + _SEEN + ", i32 is_last",
}
"""The functions of which there is a kernel for each format of a KV cache, with their arguments."""


def has_products(fmt: Format) -> bool:
    """Whether the device's text has the products of a format: not those with a grid or a trellis, and not sub1."""
    if fmt.grid != "none" or fmt.trellis is not None or fmt.varying:
        return False
    return fmt.name in _ELEMENTS or (fmt.scale in _SCALES and fmt.factor in _FACTORS and fmt.table in _TABLES)


def product_kernel(fmt: Format, of_experts: bool = False) -> str:
    """Return the name of the kernel that multiplies matrices of a format, or those of experts."""
    return f"expert_linear_{fmt.name}" if of_experts else f"linear_{fmt.name}"


def _scale_shift(fmt: Format) -> int:
    return (fmt.scale_columns // GROUP_COLUMNS).bit_length() - 1


def _products(fmt: Format) -> list[KernelSpec]:
    """Return the kernels that multiply matrices of a format."""
    if fmt.name in _ELEMENTS:
        return _both(fmt, "float_linear", _FLOAT_INPUTS, (str(_ELEMENTS[fmt.name]),))
    if fmt.floating:
        unit = "512.0f" if fmt.scale == "e8m0" else "256.0f"  # of codes divided by 256; e8m0 scales are halved
        return _both(fmt, "e4m3_linear", _FLOAT_INPUTS, (str(_SCALES[fmt.scale]), str(_scale_shift(fmt)), unit))
    low, high = PLANES[fmt.bits][0][0], sum(bits for bits, _ in PLANES[fmt.bits][1:])
    zero = -128 if fmt.name == "q8m" else fmt.zero  # its bytes are those of code - 128, with a sign
    halves = GROUP_COLUMNS // fmt.factor_columns if fmt.factor != "none" else 1
    members = (
        low, high, zero, _TABLES[fmt.table], _SCALES[fmt.scale], _scale_shift(fmt), int(fmt.has_minimums),
        _FACTORS[fmt.factor], halves, int(fmt.has_offsets),
    )  # fmt: skip
    return _both(fmt, "linear", _QUANTISED_INPUTS, ("numbers",), members)


def _both(
    fmt: Format, function: str, inputs: str, constants: tuple[str, ...], members: tuple[int, ...] = ()
) -> list[KernelSpec]:
    plain, of_experts = (_arguments(text.format(inputs=inputs)) for text in (_LINEAR, _EXPERT_LINEAR))
    return [
        KernelSpec(product_kernel(fmt), function, plain, constants, members),
        KernelSpec(product_kernel(fmt, of_experts=True), f"expert_{function}", of_experts, constants, members),
    ]


@functools.cache
def kernels() -> dict[str, KernelSpec]:
    """Return all kernels by name."""
    products = [spec for fmt in FORMATS.values() if has_products(fmt) for spec in _products(fmt)]
    plain = [KernelSpec(name, name, _arguments(arguments)) for name, arguments in _PLAIN.items()]
    of_caches = [
        KernelSpec(f"{name}_{kind}", name, _arguments(arguments), (str(number),))
        for name, arguments in _OF_CACHES.items()
        for number, kind in enumerate(CACHE_FORMATS)
    ]
    return {spec.name: spec for spec in (*plain, *of_caches, *products)}
