"""Chooses the weight format of each matrix of the store: from the options, else from the checkpoint's own formats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgemoe.conversion.carrying import common_format
from edgemoe.conversion.expert_formats import ExpertFormats
from edgemoe.errors import SourceError, UsageError
from edgemoe.kernels.formats import EXPERT_FORMATS, FORMATS, SUB1, Format
from edgemoe.kernels.row_types import BLOCK_FORMATS
from edgemoe.model.planes import is_base
from edgemoe.quant.quantise import TARGETS
from edgemoe.store.manifest import is_table
from edgemoe.store.neurons import NEURONS, is_neurons, table_name

DEFAULT_EXPERTS = "q4"
DEFAULT_DENSE = "q8"
KEEP = "keep"
"""In place of a format: each matrix gets the smallest one that holds its weights exactly."""

_FLOATS = {"F16": "f16", "BF16": "bf16"}
"""The formats of floats that are kept, by their dtypes; others are kept as f32."""

_EXACT = ("router", "shared_gate", "delta_strength", "delta_decay", "index_heads", "expert_factor")
"""Small matrices whose outputs decide the routing, the gating, or how fast a state is forgotten; they stay float32.

So do the shares of a result that residual streams take (`_SHARES`).
"""
_SHARES = "_shares"
_WHOLE_ROWS = ("tree_nodes", "tree_leaf_in", "tree_leaf_out", "tree_node_out")
"""Matrices that have their rows whole (`whole_rows_shape`), in f32 or f16: kernels read single rows of them."""
BASES = "bases"
"""The class of the base planes of experts."""
ROW_TABLES = "row_tables"
"""The class of tables that stay on disk."""

_EXPERT = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.((?:gate|up|down)(?:_bias)?)")
_CLASSES = {
    **dict.fromkeys(("query", "key", "value", "output_gate", "output"), "attention"),
    **dict.fromkeys(("cross_query", "cross_key", "cross_value", "cross_output"), "attention"),
    **dict.fromkeys(("latent", "key_rotary", "query_latent", "query_rotary", "key_up", "value_up"), "attention"),
    **dict.fromkeys(("group_output", "compress_values", "compress_gates"), "attention"),
    **dict.fromkeys(("index_values", "index_gates", "index_query", "index_key", "index_heads"), "attention"),
    **dict.fromkeys(("conv_in", "conv_out"), "convolution"),
    **dict.fromkeys(("delta_in", "delta_gate", "delta_strength", "delta_decay", "delta_out"), "delta"),
    **dict.fromkeys(("delta_query", "delta_key", "delta_value", "delta_decays"), "delta"),
    **dict.fromkeys(("delta_gate_latent", "delta_decays_latent"), "delta"),
    **dict.fromkeys(("lightning_in", "lightning_gate", "lightning_out"), "lightning"),
    **dict.fromkeys(("mamba_gate", "mamba_in", "mamba_step", "mamba_out"), "mamba"),
    **dict.fromkeys(("mamba_step_latent", "mamba_write", "mamba_read"), "mamba"),
    **dict.fromkeys(("latent_in", "latent_out"), "latent"),
    **dict.fromkeys(("ffn", "dense", "slot_experts"), "ffn"),
    **dict.fromkeys(("expert_factor", "input_factor", "output_factor"), "factors"),
    **dict.fromkeys(("table_key", "table_value"), "table"),
    **dict.fromkeys(("first_query", "second_query", "first_keys", "second_keys"), "retrieval"),
    **dict.fromkeys(_WHOLE_ROWS, "tree"),
}


@dataclass(frozen=True)
class FormatChoice:
    """Names of the formats that a user asks for; None leaves it to the checkpoint's own formats and the defaults."""

    experts: str | None = None
    """The formats of routed experts, as `ExpertFormats` reads them; or of a base and a residual, such as n1+n3."""
    dense: str | None = None
    head: str | None = None
    """The format of the matrix that gives the logits, if it is not that of other dense weights."""

    @property
    def base(self) -> Format | None:
        """The format of experts' base planes, if `experts` names two formats, such as `n1+n3`."""
        base, plus, _ = (self.experts or "").partition("+")
        return FORMATS[base] if plus else None

    @property
    def records(self) -> str | None:
        """The formats of experts' records, as `ExpertFormats` reads them: residuals where experts have base planes."""
        return None if self.experts is None else self.experts.rpartition("+")[2]

    def check(self, names: Sequence[str] = (*TARGETS, KEEP)) -> None:
        """Raises UsageError, naming the parameter, for a format that is not one of these names (sub1: of experts)."""
        planes = [name for name in names if name in FORMATS and FORMATS[name].quantised]
        for parameter, value in vars(self).items():
            if parameter == "experts" and value is not None and "+" in value:
                if any(name not in planes for name in value.split("+", 1)):
                    raise UsageError(
                        f"`experts`: expected a base and a residual of {', '.join(planes)}, such as n1+n3,"
                        f" found {value!r}."
                    )
            elif parameter == "experts" and value is not None:
                ExpertFormats.parse(value, (*names, SUB1.name))
            elif value is not None and value not in names:
                raise UsageError(f"`{parameter}`: expected one of {', '.join(names)}, found {value!r}.")


BY_DEFAULT = FormatChoice()
"""Blocks that the checkpoint has quantised carry over, other experts become q4 and other weights q8."""


def expert_of(name: str) -> tuple[int, int, str] | None:
    """Layer, expert and part (such as gate or gate_bias) of a routed expert's tensor; None for any other tensor."""
    match = _EXPERT.fullmatch(name)
    return (int(match[1]), int(match[2]), match[3]) if match else None


def stored_name(name: str, formats: Mapping[str, Format | None]) -> str:
    """The name of the stored matrix that holds a dense tensor, by the formats of all: gate and up of one share one."""
    if is_neurons(name):
        return table_name(name)
    head, _, last = name.rpartition(".")
    gate = formats.get(f"{head}.gate") if last in ("gate", "up") else None
    return f"{head}.gate_up" if gate is not None and gate == formats[f"{head}.up"] else name


def class_of(name: str, shape: tuple[int, ...]) -> str:
    """The class of a tensor, for the statistics of the store."""
    if len(shape) == 1:
        return "vectors"
    if expert_of(name):
        return "experts"
    if is_base(name):
        return BASES
    if is_table(name):
        return ROW_TABLES
    last = name.split(".")[2] if name.startswith("layers.") else name
    if last in ("first", "second"):  # of two attentions, and of two FFNs, of a layer
        last = name.split(".")[3]
    return "streams" if last.endswith(("_mix_down", "_mix_up", _SHARES)) else _CLASSES.get(last, last)


def choose_formats(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], choice: FormatChoice
) -> dict[str, Format | None]:
    """The format of each tensor of the model; None for a vector.

    `dtypes` are the checkpoint's. Where the head is tied to the embedding, the embedding gets the head's format. Each
    matrix keeps the quantised blocks that it comes with. Rows that are only looked up, those of tables and of an
    embedding that is not the head, get the default in place of a format whose matrices have a head, without which a
    row on disk means nothing. Neurons, which are rows too, stay floats. Matrices with whole rows get f32 where dense
    weights do, and else f16. The parts of a table get one format: raises SourceError for such in blocks that no format
    holds.
    """
    groups: dict[str, list[str]] = {}
    formats: dict[str, Format | None] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            formats[name] = None
        elif name.rpartition(".")[2] in _EXACT or name.endswith(_SHARES):
            formats[name] = FORMATS["f32"]
        elif is_neurons(name):  # those of all layers have one format
            groups.setdefault(NEURONS, []).append(name)
        elif name.rpartition(".")[2] in _WHOLE_ROWS:
            exact = choice.dense == "f32" or (choice.dense == KEEP and dtypes[name] != "F16")
            formats[name] = FORMATS["f32" if exact else "f16"]
        elif is_table(name):  # the parts of a table have one format
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            groups[name] = [name]
    head = "head" if "head" in shapes else "embedding"
    of_experts = None if choice.records is None else ExpertFormats.parse(choice.records, (*EXPERT_FORMATS, KEEP))
    layers = sorted({found[0] for name in shapes if (found := expert_of(name))})
    if of_experts is not None:
        of_experts.check(layers)
    for names in groups.values():
        if is_neurons(names[0]):
            kept = choice.dense == KEEP and any(dtypes[name] != "F16" for name in names)
            formats |= dict.fromkeys(names, FORMATS["f32" if kept or choice.dense == "f32" else "f16"])
            continue
        option, default = choice.dense, DEFAULT_DENSE
        if found := expert_of(names[0]):
            option = None if of_experts is None else of_experts.of(found[2], found[0], layers)
            default = DEFAULT_EXPERTS
        if names == [head]:
            option = choice.head or choice.dense
        elif option in FORMATS and FORMATS[option].head_bytes and (names == ["embedding"] or is_table(names[0])):
            option = None
        carried = _carried(names, dtypes) if option in (None, KEEP) else None
        if option == KEEP:
            kinds = {dtypes[name] for name in names}
            option = carried or (_FLOATS.get(kinds.pop(), "f32") if len(kinds) == 1 else "f32")
        formats |= dict.fromkeys(names, EXPERT_FORMATS[option or carried or default])
    return formats


def block_format(dtype: str) -> str | None:
    """The format of the blocks that sources give for a dtype, which is a type of GGUF or its name; None for floats."""
    return dtype if dtype in FORMATS else BLOCK_FORMATS.get(dtype)


def _carried(names: Sequence[str], dtypes: Mapping[str, str]) -> str | None:
    """The smallest format that holds the quantised blocks of a matrix, or of the parts of a table, without loss.

    None if some are not quantised.

    Raises SourceError where there is no such format.
    """
    types = sorted({dtypes[name] for name in names})
    blocks = [found for name in types if (found := block_format(name))]
    if len(blocks) < len(types):
        return None
    if len(blocks) == 1:
        return blocks[0]
    found = common_format(blocks)
    if found is None:
        raise SourceError(
            f"{names[0]}: expected blocks that one format holds exactly, as {' and '.join(names)} are parts of a table;"
            f" found {' and '.join(types)}.",
            "Name the format that they are rounded to, such as `dense=q8`.",
        )
    return found
