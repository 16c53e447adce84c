"""Plans a conversion as a list of pieces: which rows of the checkpoint become which bytes of which file.

The plan follows from the checkpoint's config and headers and the options alone, so an interrupted conversion
finds the same plan again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgemoe.architectures import SourceSlice, embedding_copies, model_spec, resolve
from edgemoe.conversion.formats import (
    BASES,
    FormatChoice,
    block_format,
    choose_formats,
    class_of,
    expert_of,
    stored_name,
)
from edgemoe.conversion.places import Place, base_place, part_ranges, tensor_places
from edgemoe.conversion.records import measure_records, sized_records
from edgemoe.conversion.source import Source, TensorInfo, float_dtype
from edgemoe.errors import SourceError
from edgemoe.kernels.formats import PANEL_ROWS, Format, panel_count
from edgemoe.model.description import base_shapes
from edgemoe.model.spec import ModelSpec
from edgemoe.store.layouts import RecordLayout, packed_layout
from edgemoe.store.manifest import Manifest
from edgemoe.store.neurons import is_neurons, table_shape
from edgemoe.store.planning import plan_store


@dataclass(frozen=True)
class Piece:
    """One tensor of the model: its slice of the checkpoint and its place in the store."""

    number: int
    name: str
    kind: str
    """The tensor's class, for the statistics."""
    source: SourceSlice
    place: Place
    quantised: bool = False
    """Whether the checkpoint has it in blocks."""
    repeats: bool = False
    """True for a second copy of a tensor in the checkpoint: compared with the written one, not written."""


@dataclass(frozen=True)
class Part:
    """A record or dense tensor: where it lies, and how many pieces it is made of."""

    file: str
    offset: int
    bytes: int
    pieces: int


@dataclass(frozen=True)
class Plan:
    """All that a conversion will do. `pieces` are in the order in which the checkpoint is best read."""

    manifest: Manifest
    pieces: tuple[Piece, ...]
    parts: Mapping[str, Part]
    bases: Mapping[int, Piece]
    """Where the base plane of a piece goes, by the piece's number, where experts have such."""

    def digest(self) -> str:
        """A digest that is equal only for equal plans."""
        digest = hashlib.sha256(self.manifest.checksum().encode())
        for piece in self.pieces:
            digest.update(repr(piece).encode())
        return digest.hexdigest()


def plan_conversion(
    source: Source, choice: FormatChoice, provenance: Mapping[str, Any], bits: float | None = None
) -> Plan:
    """The plan for a checkpoint, with at most `bits` for a weight of experts in sub1, if given.

    Raises SourceError if the checkpoint's family is not supported, and UsageError for `bits` that cannot be.
    """
    infos = source.tensors()
    spec = model_spec(source.config)
    found = {name: info.shape for name, info in infos.items()}
    places = resolve(source.config, found, source.unlisted())
    copies = embedding_copies(source.config, found)
    shapes = spec.tensors()
    formats = choose_formats(shapes, {name: _dtype_of(places[name], infos) for name in shapes}, choice)
    if choice.base is not None:
        _check_planes(spec)
    varying = any(fmt is not None and fmt.varying for fmt in formats.values())
    lengths = None
    if varying:
        lengths = measure_records(source, spec, places) if bits is None else sized_records(spec, bits)
    manifest = plan_manifest(spec, shapes, formats, provenance, lengths, choice.base)
    stored = tensor_places(manifest, shapes)
    order = {name: number for number, name in enumerate(infos)}
    tensors = [(name, place, False) for name, place in places.items()]
    first: list[str] = []
    if copies:
        # All copies come first, so that an inconsistent checkpoint is detected before hours of work.
        tensors += [("embedding", copy, True) for copy in copies]
        first = [places["embedding"].tensor, *(copy.tensor for copy in copies)]
    first_shards = [infos[tensor].shard for tensor in first]
    shards = {name: number for number, name in enumerate(dict.fromkeys([*first_shards, *source.shards()]))}

    def reading_order(tensor: tuple[str, SourceSlice, bool]) -> tuple[int, int, int, int, int]:
        place = tensor[1]
        rank = first.index(place.tensor) if place.tensor in first else len(first)
        return shards[infos[place.tensor].shard], rank, order[place.tensor], place.index or 0, place.row_start

    pieces = tuple(
        Piece(
            number,
            name,
            class_of(name, shapes[name]),
            place,
            stored[name],
            block_format(infos[place.tensor].dtype) is not None,
            repeats,
        )
        for number, (name, place, repeats) in enumerate(sorted(tensors, key=reading_order))
    )
    for piece in pieces:
        _check(piece, infos[piece.source.tensor])
    bases = {} if choice.base is None else _base_pieces(manifest, pieces)
    return Plan(manifest, pieces, parts_of(manifest, (*pieces, *bases.values())), bases)


def parts_of(manifest: Manifest, pieces: Sequence[Piece]) -> dict[str, Part]:
    """The records and dense tensors of a store that is made of these pieces."""
    counts: dict[str, int] = {}
    for piece in pieces:
        counts[piece.place.part] = counts.get(piece.place.part, 0) + 1
    return {name: Part(*part, counts.get(name, 0)) for name, part in part_ranges(manifest).items()}


def _check_planes(spec: ModelSpec) -> None:
    """Raise SourceError for a model whose experts cannot have base planes."""
    of_experts = [layer.routed for layer in spec.layers if layer.routed is not None]
    if not of_experts or any(routed.bias for routed in of_experts):
        found = "some with biases" if of_experts else "none"
        raise SourceError(
            f"A base and a residual: expected routed experts without biases, found {found}.",
            "Convert it with one format of `experts`.",
        )


def _base_pieces(manifest: Manifest, pieces: Sequence[Piece]) -> dict[int, Piece]:
    """The base planes of the pieces that are matrices of experts, by the numbers of these."""
    found = {}
    for piece in pieces:
        expert = expert_of(piece.name)
        if expert is not None:
            place = base_place(manifest, *expert)
            found[piece.number] = replace(piece, number=len(pieces) + piece.number, kind=BASES, place=place)
    return found


def _dtype_of(place: SourceSlice, infos: Mapping[str, TensorInfo]) -> str:
    """The dtype of a tensor of the model; floats where it is transposed, which no block outlives."""
    dtype = infos[place.tensor].dtype
    return "F32" if place.turned and block_format(dtype) else dtype


def plan_manifest(
    spec: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
    formats: Mapping[str, Format | None],
    provenance: Mapping[str, Any],
    lengths: Sequence[int] | None = None,
    base: Format | None = None,
) -> Manifest:
    """Every place in the store of a model whose tensors have these shapes and formats; no checksum yet.

    `lengths` are those of all records, where they do not follow from shapes and formats. `base` is the format of the
    base planes of experts, if they have such.
    """
    dense: dict[str, tuple[str, Format | None, int, int]] = {}
    for name, shape in shapes.items():
        if expert_of(name) is None:
            stored = stored_name(name, formats)
            if is_neurons(name):
                dense[stored] = (stored, formats[name], *table_shape(shape))
                continue
            rows = shape[0] if stored == name else 2 * panel_count(shape[0]) * PANEL_ROWS
            dense[stored] = (stored, formats[name], rows, shape[1] if len(shape) == 2 else 1)
    if base is not None:
        dense |= {name: (name, base, *shape) for name, shape in base_shapes(spec).items()}
    experts: list[list[RecordLayout]] = [[] for _ in spec.layers]
    for number, layer in enumerate(spec.layers):
        routed = layer.routed
        for expert in range(routed.num_experts if routed else 0):
            assert routed is not None
            width = routed.width(spec.hidden_size)
            gate, up, down = (
                formats.get(f"layers.{number}.experts.{expert}.{part}") for part in ("gate", "up", "down")
            )
            assert up is not None
            assert down is not None
            sizes = width, routed.intermediate_size
            longest = max(lengths or [0])
            experts[number].append(packed_layout(*sizes, up, down, routed.bias, routed.gated, gate, longest))
    return plan_store(spec.to_json(), list(dense.values()), experts, provenance, lengths=lengths)


def _check(piece: Piece, info: TensorInfo) -> None:
    """Check the checkpoint's shape against the family's table, and that the dtype can be read."""
    source = piece.source
    taken_apart = source.as_vector or source.transposed or source.row_width or source.whole_rows
    if not block_format(info.dtype) or taken_apart:
        float_dtype(piece.source.tensor, info, whole=piece.source.change == "whole")
    shape = info.shape if piece.source.index is None else info.shape[1:]
    if piece.source.height:
        shape = piece.source.height, info.shape[-1]
    dimensions = (1, 3, 4) if piece.place.format is None else (2,)
    shape = shape[::-1] if piece.source.transposed else (math.prod(shape),) if piece.source.as_vector else shape
    if piece.source.row_width:
        shape = math.prod(shape[:-1]), shape[-1]
    if piece.source.whole_rows:
        shape = piece.source.rows, piece.place.columns
    if piece.source.turned:
        shape = (piece.source.turned, piece.source.runs[0].length)
    fits = piece.source.rows == piece.place.rows and len(shape) in dimensions
    if not fits or (len(shape) == 2 and shape[1] != piece.place.columns):
        raise SourceError(
            f"{piece.source.tensor}: expected {piece.place.rows} rows of {piece.place.columns} for {piece.name},"
            f" found {info.shape}.",
            "Was the checkpoint altered? Download it again.",
        )
