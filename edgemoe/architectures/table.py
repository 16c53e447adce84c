"""The table of a family's tensors: where they lie, in every layout in which its checkpoints are written.

`resolution.py` finds the tensors of a model in a checkpoint with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from edgemoe.kernels.formats import whole_rows_shape
from edgemoe.model.spec import ModelSpec

Change = Literal["none", "plus_one", "minus_exp", "minus", "whole"]
"""`1 + x`, for norms whose weights are kept as distances from 1; `-exp(x)`, for rates that are kept as logarithms;
`-x`, for rates without their sign.

`whole`: none, but each must be a whole number below a limit, as those of experts in a table are.
"""


Side = Literal["all", "encoder", "decoder"]
"""Whether a row is of all layers, or of those of an encoder or a decoder alone."""


class Runs(NamedTuple):
    """Rows in `repeats` runs of `length`: the first begins at `start`, and each `period` rows after the one before."""

    start: int
    length: int
    period: int
    repeats: int


@dataclass(frozen=True)
class Row:
    """One line of a family's table.

    `internal`: the names in the `ModelSpec`; several share the source's rows in order, evenly (gate, then up) or as the
    terms of a sum say, or, where they are `interleaved`, in turn (gate, up, gate, ...).
    `source`: the name in the checkpoint. If only `internal` has `{expert}`, the source stacks the experts; any other
    source of more than two dimensions is a vector, its elements in order.
    `shape`: the source's shape in symbols (`2*expert_width` for a product, `query+key_value` for a sum).
    `transposed`: whether the source has a matrix as (input, output), so that its last dimension is that of rows.
    `as_vector`: whether the source has a vector as a matrix, whose rows are its elements one after the other.
    `blocks`: for a source whose rows repeat a pattern of blocks (query and gate of a head, of the next head, ...): the
    internal name that each block of the pattern belongs to, and its rows as a symbol. A tensor has its first blocks of
    all repetitions first, then its second ones.
    `turned`: the internal name, of those in `blocks`, that has each of its blocks transposed.
    `change`: what a vector's numbers go through, of those that checkpoints keep in another form than the model has.
    `flat`: whether a source of two dimensions has the matrices of all experts one below the other.
    A source with `{part}` is one of the matrices that a table of rows is cut into.
    `row_width`: for a source of more than two dimensions that is a matrix, or several `interleaved` ones, the symbol of
    its last dimension, which is that of columns.
    `whole_rows`: for a matrix that has its rows whole (`formats.whole_rows_shape`), the symbol of their width. The
    source has them in two dimensions, or in more, as equal matrices one after the other, each of which may be
    `transposed`.
    `side`: whether only the layers of an encoder or of a decoder have it; the source counts those from 0. A source
    without `{layer}` is then one that all these layers share.
    """

    internal: tuple[str, ...]
    source: str
    shape: tuple[str, ...]
    interleaved: bool = False
    transposed: bool = False
    as_vector: bool = False
    blocks: tuple[tuple[str, str], ...] = ()
    turned: str = ""
    change: Change = "none"
    flat: bool = False
    row_width: str = ""
    whole_rows: str = ""
    side: Side = "all"

    @property
    def stacked(self) -> bool:
        """Whether the source has all experts of a layer in one tensor."""
        return "{expert}" in self.internal[0] and "{expert}" not in self.source

    @property
    def row_symbol(self) -> str:
        """The symbol of the dimension that is cut into rows."""
        if self.flat and not self.transposed:
            return self.shape[0].removeprefix("experts*")
        return self.shape[-1] if self.transposed else self.shape[1 if self.stacked else 0]

    def layers(self, spec: ModelSpec) -> range:
        """The numbers of the layers that may have it."""
        first, end = spec.encoder_layers, len(spec.layers)
        return {"all": range(end), "encoder": range(first), "decoder": range(first, end)}[self.side]


@dataclass(frozen=True)
class SourceSlice:
    """Where a tensor lies in the checkpoint: rows `row_start` to `row_stop` of `tensor`, or of `tensor[index]`.

    With a `row_step` above 1 it takes every `row_step`-th of them only, from the first on. If the matrix is
    `transposed`, its columns are counted in place of rows; with a `height` the source has two dimensions, and matrix
    `index` is that many of its rows. The rows of a vector, of a matrix that is read `as_vector` and of a tensor of
    more than two dimensions without an `index` are its elements.
    """

    tensor: str
    index: int | None
    row_start: int
    row_stop: int
    row_step: int = 1
    transposed: bool = False
    as_vector: bool = False
    runs: tuple[Runs, ...] = ()
    """If there are some, the rows are theirs, in order, in the place of all from `row_start` to `row_stop`."""
    turned: int = 0
    """If not 0, each run is a matrix of this many columns of the source, which become its rows."""
    change: Change = "none"
    """The change of its numbers when they are read; only vectors have one."""
    height: int = 0
    limit: int = 0
    """The first of the whole numbers that it may not have, if it has such."""
    row_width: int = 0
    """If not 0, the source has more than two dimensions, and each row is so many of its elements."""
    whole_rows: int = 0
    """If not 0, the tensor has rows of this width whole, as many as `row_stop` says."""

    @property
    def rows(self) -> int:
        """The number of rows that it takes."""
        if self.whole_rows:
            return whole_rows_shape(self.row_stop, self.whole_rows)[0]
        if self.turned:
            return sum(self.turned * run.repeats for run in self.runs)
        if self.runs:
            return sum(run.length * run.repeats for run in self.runs)
        return len(range(self.row_start, self.row_stop, self.row_step))

    def places(self, start: int, stop: int) -> Iterator[range]:
        """The rows of the source that are its rows `start` to `stop`, in order."""
        if not self.runs:
            yield range(self.row_start, self.row_stop, self.row_step)[start:stop]
            return
        before = 0
        for run in self.runs:
            for first in range(run.start, run.start + run.period * run.repeats, run.period):
                cut = range(first, first + run.length)[max(0, start - before) : max(0, stop - before)]
                before += run.length
                if cut:
                    yield cut


def rows(*lines: tuple[str, str, tuple[str, ...]], internal: str = "", source: str = "") -> tuple[Row, ...]:
    """Make rows from `(internal names, source name, shape)`; `internal` and `source` are prefixes of the names.

    Several internal names are separated by spaces.
    """
    return tuple(
        Row(tuple(internal + name for name in names.split()), source + pattern, shape)
        for names, pattern, shape in lines
    )


def layer_rows(*lines: tuple[str, str, tuple[str, ...]]) -> tuple[Row, ...]:
    """Make rows that exist once in each layer; arguments as in `rows`."""
    return rows(*lines, internal="layers.{layer}.", source="model.layers.{layer}.")


SUM_SUFFIX = ".weight_plus_one"
"""The end of names of norms with 1 added, in place of `.weight`; only GGUF files have them."""


def sums_with_one(table: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of norms whose weights checkpoints keep as distances from 1, and files of GGUF with 1 added."""
    return tuple(
        made
        for row in table
        for made in (
            replace(row, change="plus_one"),
            replace(row, source=row.source.removesuffix(".weight") + SUM_SUFFIX),
        )
    )


HEAD = "lm_head.weight"

FRAME: tuple[Row, ...] = rows(
    ("embedding", "model.embed_tokens.weight", ("vocabulary", "model")),
    ("final_norm", "model.norm.weight", ("model",)),
    ("head", HEAD, ("vocabulary", "model")),
) + layer_rows(
    ("attention_norm", "input_layernorm.weight", ("model",)),
    ("query", "self_attn.q_proj.weight", ("query", "model")),
    ("key", "self_attn.k_proj.weight", ("key_value", "model")),
    ("value", "self_attn.v_proj.weight", ("value", "model")),
    ("output", "self_attn.o_proj.weight", ("model", "attended")),
    ("query_bias", "self_attn.q_proj.bias", ("query",)),
    ("key_bias", "self_attn.k_proj.bias", ("key_value",)),
    ("value_bias", "self_attn.v_proj.bias", ("value",)),
    ("output_bias", "self_attn.o_proj.bias", ("model",)),
    ("ffn_norm", "post_attention_layernorm.weight", ("model",)),
)
"""The rows that every family has: embedding, head, norms and attention."""

HEAD_NORMS: tuple[Row, ...] = layer_rows(
    ("query_norm", "self_attn.q_norm.weight", ("head_dim",)),
    ("key_norm", "self_attn.k_norm.weight", ("head_dim",)),
)
"""Norms of each head's queries and keys."""


def shared_rows(*names: str) -> tuple[Row, ...]:
    """Make the rows of a shared expert, under each of the names that checkpoints have for it."""
    matrices = (
        ("gate", ("shared_width", "model")),
        ("up", ("shared_width", "model")),
        ("down", ("model", "shared_width")),
    )
    return layer_rows(
        *((f"shared.{part}", f"{name}.{part}_proj.weight", shape) for name in names for part, shape in matrices)
    )


DENSE_FFN: tuple[Row, ...] = layer_rows(
    ("ffn.gate", "mlp.gate_proj.weight", ("ffn_width", "model")),
    ("ffn.up", "mlp.up_proj.weight", ("ffn_width", "model")),
    ("ffn.down", "mlp.down_proj.weight", ("model", "ffn_width")),
)

FUSED_EXPERTS: tuple[Row, ...] = layer_rows(
    (
        "experts.{expert}.gate experts.{expert}.up",
        "mlp.experts.gate_up_proj",
        ("experts", "2*expert_width", "model"),
    ),
    ("experts.{expert}.down", "mlp.experts.down_proj", ("experts", "model", "expert_width")),
)
"""All experts of a layer in two tensors, as newer programs keep them."""

SEPARATE_EXPERTS: tuple[Row, ...] = layer_rows(
    ("experts.{expert}.gate", "mlp.experts.{expert}.gate_proj.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "mlp.experts.{expert}.up_proj.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "mlp.experts.{expert}.down_proj.weight", ("model", "expert_width")),
)
