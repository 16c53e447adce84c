"""The table of a family's tensors, and the loader that checks a checkpoint against it.

A family lists where its tensors lie, in every layout in which its checkpoints are written. The `ModelSpec`
determines which of them a particular model has; the checkpoint must hold each of those exactly once, in the shape that
the table gives, and no other tensor except those that no model needs (`unused.py`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from edgemoe.architectures.foreign import instead_of, refuse_adapter_tensors, refuse_quantised_tensors
from edgemoe.architectures.unused import STACKS_EMBEDDINGS, unused_tensors
from edgemoe.errors import SourceError
from edgemoe.model.spec import LayerSpec, ModelSpec

MISMATCH = "The config and the weights do not belong together, or a file is missing. Download the model again."


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

    @property
    def rows(self) -> int:
        """The number of rows that it takes."""
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


def resolve_tensors(
    spec: ModelSpec,
    table: tuple[Row, ...],
    shapes: Mapping[str, tuple[int, ...]],
    unlisted: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, SourceSlice]:
    """Locate each tensor of `spec.tensors()` in the checkpoint, in that order. Raises SourceError.

    `unlisted` maps tensors that must not be used to their shards; they only serve to explain an error.
    """
    refuse_quantised_tensors(shapes, [row.source for row in table])
    wanted = spec.tensors()
    found: dict[str, SourceSlice] = {}
    used: set[str] = set()
    layout: set[Row] = set()
    for row in table:
        for source, slices, shape in _expand(row, spec, shapes):
            if slices.keys() <= wanted.keys() and found.keys().isdisjoint(slices):
                _check_shape(source, row.shape, shape, shapes[source])
                used.add(source)
                layout.add(row)
                found |= slices
    missing = [name for name in wanted if name not in found]
    if missing:
        # If there are several layouts, name the tensor as in the layout that the rest of the checkpoint uses.
        places = [
            (row, source)
            for row in table
            for source, slices, _ in _expand(row, spec)
            if missing[0] in slices and slices.keys() <= wanted.keys()
        ]
        stems = {name[:end] for name in used for end in _dots(name)}

        def likeness(place: tuple[Row, str]) -> tuple[bool, int]:
            row, source = place
            return row in layout, max((end for end in _dots(source) if source[:end] in stems), default=0)

        first = max(places, key=likeness)[1]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        instead = instead_of(first, shapes.keys() - used - unused_tensors(spec, shapes).keys(), unlisted)
        if instead is not None:
            raise SourceError(f"{first}: missing{more}; {instead[0]}.", instead[1])
        raise SourceError(
            f"{first}: missing{more}; its config asks for {len(wanted)} tensors, found {len(found)}.", MISMATCH
        )
    left = sorted(shapes.keys() - used - unused_tensors(spec, shapes).keys())
    if left:
        refuse_adapter_tensors(left)
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise SourceError(
            f"{left[0]}: not expected{more}; {spec.family} with this config has no such tensor.", MISMATCH
        )
    return {name: found[name] for name in wanted}


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


def checkpoint_shapes(spec: ModelSpec, table: tuple[Row, ...], stacked: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a whole checkpoint of `spec`, in the first layout that the table has.

    With `stacked` a layout that has all experts of a layer in one tensor comes before one that does not.
    """
    wanted = spec.tensors().keys()
    shapes: dict[str, tuple[int, ...]] = {}
    seen: set[str] = set()
    for row in sorted(table, key=lambda row: row.stacked != stacked):
        for source, slices, shape in _expand(row, spec):
            if slices.keys() <= wanted and seen.isdisjoint(slices):
                seen.update(slices)
                shapes[source] = shape
    assert seen == wanted
    return shapes


def possible_shapes(spec: ModelSpec, table: tuple[Row, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a checkpoint of `spec` may have, in any of the table's layouts."""
    return {source: shape for row in table for source, _, shape in _expand(row, spec)}


def embedding_copies(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[SourceSlice]:
    """Find the tensors of a checkpoint that must repeat the embedding: a head that is tied to it, and those of stacks.

    Raises SourceError if the shape of one differs from that of the embedding.
    """
    names = [HEAD] if spec.tied_embeddings else []
    copies = [name for name in (*names, *(STACKS_EMBEDDINGS if spec.encoder else ())) if name in shapes]
    for name in copies:
        _check_shape(name, ("vocabulary", "model"), (spec.vocab_size, spec.hidden_size), shapes[name])
    return [SourceSlice(name, None, 0, spec.vocab_size) for name in copies]


def _expand(
    row: Row, spec: ModelSpec, held: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, SourceSlice], tuple[int, ...]]]:
    """Yield each source tensor that a row covers, with the slices it holds and its shape; only those in `held`."""
    per_layer, per_expert = "{layer}" in row.source, "{expert}" in row.internal[0]
    if not per_layer and "{layer}" in row.internal[0]:
        yield from _expand_shared(row, spec, held)
        return
    cached: tuple[LayerSpec | None, dict[str, int]] = (None, _sizes(spec, None))
    own = row.layers(spec)
    for number in own if per_layer else (0,):
        layer = spec.layers[number] if per_layer else None
        if layer is not cached[0]:
            cached = (layer, _sizes(spec, layer))
        sizes = cached[1]
        named = number - own.start if per_layer else 0
        shape = tuple(_size(symbol, sizes) for symbol in row.shape)
        experts: Iterable[int] = range(sizes.get("experts", 0)) if per_expert else (0,)
        part_rows = _part_rows(row, sizes)
        if "{part}" in row.source:
            yield from _expand_parts(row, number, named, sizes, held)
        elif row.blocks:
            source = row.source.format(layer=named)
            slices = _block_slices(row, source, number, sizes) if held is None or source in held else {}
            if slices:
                yield source, slices, shape
        elif row.stacked:
            slices = {}
            source = row.source.format(layer=named)
            if held is None or source in held:
                for expert in experts:
                    slices |= _slices(row, source, number, expert, expert, part_rows, sizes)
            if slices:
                yield source, slices, shape
        else:
            for expert in experts:
                source = row.source.format(layer=named, expert=expert)
                if held is None or source in held:
                    yield source, _slices(row, source, number, expert, None, part_rows, sizes), shape


def _expand_parts(
    row: Row, layer: int, named: int, sizes: Mapping[str, int], held: Container[str] | None
) -> Iterator[tuple[str, dict[str, SourceSlice], tuple[int, ...]]]:
    """Yield the parts of a table of rows in a layer, all with as many rows but the last."""
    height, width = (_size(symbol, sizes) for symbol in row.shape)
    for part in range(sizes.get("table_parts", 0)):
        source, rows = row.source.format(layer=named, part=part), min(height, sizes["table_total"] - part * height)
        if held is None or source in held:
            where = SourceSlice(source, None, 0, rows)
            yield source, {row.internal[0].format(layer=layer, part=part): where}, (rows, width)


def _expand_shared(
    row: Row, spec: ModelSpec, held: Container[str] | None
) -> Iterator[tuple[str, dict[str, SourceSlice], tuple[int, ...]]]:
    """Yield the one source of a row that all layers of its side share."""
    own = row.layers(spec)
    if own and (held is None or row.source in held):
        sizes = _sizes(spec, spec.layers[own.start])
        shape, part_rows = tuple(_size(symbol, sizes) for symbol in row.shape), _part_rows(row, sizes)
        slices = [_slices(row, row.source, number, 0, None, part_rows, sizes) for number in own]
        yield row.source, {name: where for part in slices for name, where in part.items()}, shape


def _part_rows(row: Row, sizes: Mapping[str, int]) -> list[int]:
    """How many rows each of a row's internal tensors has."""
    if row.as_vector or (len(row.shape) > 2 and not row.stacked):
        return [math.prod(_size(symbol, sizes) for symbol in row.shape)]
    terms = row.row_symbol.split("+")
    if len(terms) > 1:
        return [_size(term, sizes) for term in terms]
    return [_size(row.row_symbol, sizes) // len(row.internal)] * len(row.internal)


def _slices(
    row: Row,
    source: str,
    layer: int,
    expert: int,
    index: int | None,
    part_rows: list[int],
    sizes: Mapping[str, int],
) -> dict[str, SourceSlice]:
    parts, slices, start, height = len(row.internal), {}, 0, 0
    if row.flat and row.transposed:
        height = sizes[row.shape[0].removeprefix("experts*")]
    elif row.flat:
        start, index = expert * part_rows[0], None
    for part, (name, count) in enumerate(zip(row.internal, part_rows, strict=True)):
        if row.interleaved:
            where = SourceSlice(source, index, part, parts * count, parts, row.transposed)
        else:
            where = SourceSlice(source, index, start, start + count, 1, row.transposed, row.as_vector, height=height)
        if row.change != "none":
            limit = sizes.get("experts", 0) if row.change == "whole" else 0
            where = replace(where, change=row.change, limit=limit)
        slices[name.format(layer=layer, expert=expert)] = where
        start += count
    return slices


def _block_slices(row: Row, source: str, layer: int, sizes: Mapping[str, int]) -> dict[str, SourceSlice]:
    """The slices of a source whose rows repeat a pattern of blocks; none in a layer without such blocks."""
    lengths = [_size(symbol, sizes) for _, symbol in row.blocks]
    rows, period = _size(row.row_symbol, sizes), sum(lengths)
    if not period or not rows or rows % period:
        return {}
    runs: dict[str, list[Runs]] = {name: [] for name in row.internal}
    for number, (name, _) in enumerate(row.blocks):
        runs[name].append(Runs(sum(lengths[:number]), lengths[number], period, rows // period))
    turned = {row.turned: _size(row.shape[1], sizes)}
    return {
        name.format(layer=layer): SourceSlice(source, None, 0, rows, runs=tuple(own), turned=turned.get(name, 0))
        for name, own in runs.items()
    }


def _sizes(spec: ModelSpec, layer: LayerSpec | None) -> dict[str, int]:
    """The values of the symbols used in shapes, for the whole model or for a layer."""
    sizes = {"one": 1, "model": spec.hidden_size, "expert_model": spec.hidden_size, "vocabulary": spec.vocab_size}
    sizes |= spec.streams.sizes() if spec.streams else {}
    if layer is None:
        return sizes
    return sizes | layer.sizes()


def _size(symbol: str, sizes: Mapping[str, int]) -> int:
    """The size of one dimension; 0 if the layer lacks it (a dense layer has no experts)."""
    if "+" in symbol:
        return sum(_size(term, sizes) for term in symbol.split("+"))
    return math.prod(int(part) if part.isdigit() else sizes.get(part, 0) for part in symbol.split("*"))


def _check_shape(source: str, symbols: tuple[str, ...], expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    if tuple(found) != expected:
        raise SourceError(
            f"{source}: expected ({', '.join(symbols)}) = {expected} from config.json, found {tuple(found)}.", MISMATCH
        )
