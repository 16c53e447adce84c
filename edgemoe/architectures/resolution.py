"""The tensors of a model in a checkpoint, which its family's table (`table.py`) says.

The `ModelSpec` determines which of the table's tensors a particular model has; the checkpoint must hold each of those
exactly once, in the shape that the table gives, and no other tensor except those that no model needs (`unused.py`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from edgemoe.architectures.foreign import instead_of, refuse_adapter_tensors, refuse_quantised_tensors
from edgemoe.architectures.table import HEAD, Row, Runs, SourceSlice
from edgemoe.architectures.unused import STACKS_EMBEDDINGS, unused_tensors
from edgemoe.errors import SourceError
from edgemoe.model.spec import LayerSpec, ModelSpec

_MISMATCH = "The config and the weights do not belong together, or a file is missing. Download the model again."


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
            f"{first}: missing{more}; its config asks for {len(wanted)} tensors, found {len(found)}.", _MISMATCH
        )
    left = sorted(shapes.keys() - used - unused_tensors(spec, shapes).keys())
    if left:
        refuse_adapter_tensors(left)
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise SourceError(
            f"{left[0]}: not expected{more}; {spec.family} with this config has no such tensor.", _MISMATCH
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


def expert_sources(spec: ModelSpec, table: tuple[Row, ...]) -> dict[tuple[int, str], list[str]]:
    """The names that the tensors of single experts have in the table, by layer and part; in the order of experts."""
    found: dict[tuple[int, str], list[str]] = {}
    for row in table:
        if "{expert}" in row.source and len(row.internal) == 1:
            own: dict[tuple[int, str], list[str]] = {}
            for source, slices, _ in _expand(row, spec):
                (name,) = slices
                own.setdefault((int(name.split(".")[1]), name.rpartition(".")[2]), []).append(source)
            found = own | found  # the first layout of a table
    return found


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
    if row.row_width:
        total = math.prod(_size(symbol, sizes) for symbol in row.shape[:-1])
        return [total // len(row.internal)] * len(row.internal)
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
    if row.whole_rows:
        width = _size(row.whole_rows, sizes)
        count = math.prod(_size(symbol, sizes) for symbol in row.shape) // max(width, 1)
        where = SourceSlice(source, None, 0, count, transposed=row.transposed, whole_rows=width)
        return {row.internal[0].format(layer=layer): where}
    if row.flat and row.transposed:
        height = sizes[row.shape[0].removeprefix("experts*")]
    elif row.flat:
        start, index = expert * part_rows[0], None
    for part, (name, count) in enumerate(zip(row.internal, part_rows, strict=True)):
        if row.interleaved:
            where = SourceSlice(source, index, part, parts * count, parts, row.transposed)
        else:
            where = SourceSlice(source, index, start, start + count, 1, row.transposed, row.as_vector, height=height)
        if row.row_width:
            where = replace(where, row_width=_size(row.row_width, sizes))
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
    return {**sizes, **layer.sizes}


def _size(symbol: str, sizes: Mapping[str, int]) -> int:
    """The size of one dimension; 0 if the layer lacks it (a dense layer has no experts)."""
    known = sizes.get(symbol)
    if known is not None:
        return known
    if "+" in symbol:
        return sum(_size(term, sizes) for term in symbol.split("+"))
    return math.prod(int(part) if part.isdigit() else sizes.get(part, 0) for part in symbol.split("*"))


def _check_shape(source: str, symbols: tuple[str, ...], expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    if tuple(found) != expected:
        raise SourceError(
            f"{source}: expected ({', '.join(symbols)}) = {expected} from config.json, found {tuple(found)}.", _MISMATCH
        )
