"""Writes a dense store in which all experts of a layer are one FFN, beside or without the shared expert.

A token's sum of routed experts becomes what one expert gives whose matrices are the means of all of them, by the weight
that each has in a text, times the sum of these weights. The neurons of a shared expert stand before its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.analysis.choices import Progress
from edgemoe.analysis.compress import (
    COMPRESSED,
    check_destination,
    check_store,
    copy_dense,
    new_store,
    read_dense,
    read_record,
)
from edgemoe.analysis.likeness import Doubles
from edgemoe.analysis.matrices import Floats, height_of, part_rows
from edgemoe.analysis.merging import check_merging
from edgemoe.analysis.text_pass import TextPass
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.conversion.encoding import Encoded, encode
from edgemoe.conversion.formats import class_of
from edgemoe.conversion.pipeline import edgemoe_version
from edgemoe.conversion.plan import plan_manifest
from edgemoe.errors import UsageError
from edgemoe.kernels.expert_layouts import ExpertWeights
from edgemoe.kernels.formats import PANEL_ROWS, Format, Matrix
from edgemoe.model.blocks import GatedFfn, Moe
from edgemoe.model.spec import Block, LayerSpec, ModelSpec
from edgemoe.store.manifest import DenseTensor
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files
from edgemoe.store.writer import with_checksums


def mean_weights(store: Store, windows: Windows, progress: Progress = lambda done, total: None) -> dict[int, Doubles]:
    """The weight that each expert has for a token of a text on average, 0 where it is not chosen, by layer `(E,)`."""
    found: dict[int, Doubles] = {}
    text_pass = TextPass(store, windows)
    for layer in text_pass.layers():
        progress(len(found), text_pass.count)
        own = layer.chosen >= 0
        weights = layer.weights.astype(np.float64)[own] / len(layer.chosen)
        found[layer.number] = np.bincount(layer.chosen[own], weights, layer.num_experts).astype(np.float64)
    return found


def dense_spec(spec: ModelSpec) -> ModelSpec:
    """The model with an FFN in the place of each layer's experts. Raises UsageError for experts that no FFN has."""
    layers = []
    for number, layer in enumerate(spec.layers):
        blocks = [_dense(number, block) if block.body.routed else block for block in layer.blocks]
        layers.append(LayerSpec(tuple(blocks)))
    return replace(spec, layers=tuple(layers))


def _dense(number: int, block: Block) -> Block:
    body = block.body
    assert isinstance(body, Moe)
    shared = body.shared
    plain = Moe(body.num_experts, body.top_k, body.intermediate_size, body.router, shared, body.activation)
    alike = shared is None or (not shared.gate and not shared.bias and shared.activation == body.activation)
    if body != plain or not alike or not body.activation.gated or block.late or block.prefix:
        raise UsageError(
            f"`aggregate`: expected gated experts without biases in layer {number}, which read and give what an FFN"
            " does, beside a shared expert of their kind or none; found others.",
            "Use `prune` or `merge`.",
        )
    width = body.intermediate_size + (shared.intermediate_size if shared else 0)
    return replace(block, body=GatedFfn(width, body.activation))


def write_aggregated(store: Store, destination: Path, weights: Mapping[int, Doubles], how: str) -> Path:
    """Write the dense store. `weights` are those of `mean_weights`; `how` is for its provenance.

    Raises UsageError for experts that do not become an FFN, StoreError for a damaged store, OSError.
    """
    spec, path = check_store(store), check_destination(destination)
    check_side_files(store)
    dense = dense_spec(spec)
    for number in weights:
        check_merging(store, number)
    tensors = {tensor.name: tensor for tensor in store.manifest.dense}
    shapes = dense.tensors()
    formats = {name: _format(store, tensors, name) for name in shapes}
    provenance = {**store.manifest.provenance, "edgemoe": edgemoe_version(), COMPRESSED: how}
    plan = plan_manifest(dense, shapes, formats, provenance)
    files = {file.name: (store.text_folder / file.name).read_bytes() for file in store.manifest.side_files}
    with new_store(path, plan) as writer:
        places, checksums, errors = {tensor.name: tensor for tensor in plan.dense}, {}, np.zeros(2)
        for name, place in places.items():
            if name in tensors:
                checksums[name] = copy_dense(store, writer, tensors[name], place.offset)
        for number, own in weights.items():
            for name, encoded in _ffn(store, tensors, places, number, own):
                file, offset = plan.dense_file.name, places[name].offset
                writer.write(file, offset, np.concatenate([encoded.head, encoded.data]))
                checksums[name] = writer.checksums(file, offset, places[name].bytes)
                errors += encoded.squared_error, encoded.squared_weight
        statistics = _statistics(store, places.values(), shapes, float(np.sqrt(errors[0] / max(errors[1], 1e-30))))
        writer.finish(replace(with_checksums(plan, checksums), quantisation=statistics), files)
    return path


def _format(store: Store, tensors: Mapping[str, DenseTensor], name: str) -> Format | None:
    """The format of a tensor of the dense model: its own, that of the shared expert, or that of experts."""
    head, _, part = name.rpartition(".")
    layer, last = head.rpartition(".")[0], head.rpartition(".")[2]
    for stem in (head, f"{layer}.shared") if last == "ffn" else (head,):
        for stored in (f"{stem}.{part}" if stem else part, f"{stem}.gate_up" if part in ("gate", "up") else ""):
            if stored in tensors:
                return tensors[stored].format
    layouts = store.record_layouts[int(name.split(".")[1])]
    assert layouts is not None
    return layouts.layout(0).format_of(part)


def _ffn(
    store: Store, tensors: Mapping[str, DenseTensor], places: Mapping[str, DenseTensor], number: int, weights: Doubles
) -> Iterator[tuple[str, Encoded]]:
    """The stored matrices of a layer's FFN, encoded, by their names."""
    layouts = store.record_layouts[number]
    assert layouts is not None
    total = float(weights.sum())
    share = weights / total if total else np.full(len(weights), 1 / len(weights))
    means: dict[str, Any] = dict.fromkeys(("gate", "up", "down"), 0.0)
    for expert, weight in enumerate(share):
        layout = layouts.layout(expert)
        own = layout.weights(read_record(store, number, expert))
        for part in means:
            means[part] += weight * part_rows(layout.gated, own, part, 0, height_of(layout, part)).astype(np.float64)
    means["down"] *= total
    shared = _shared(store, tensors, f"layers.{number}.shared")
    rows: dict[str, Floats] = {}
    for part, mean in means.items():
        before = [shared[part]] if shared else []
        rows[part] = np.concatenate([*before, mean.astype(np.float32)], axis=1 if part == "down" else 0)
    stem = f"layers.{number}.ffn"
    if f"{stem}.gate_up" in places:
        below = -len(rows["gate"]) % PANEL_ROWS
        whole = [np.pad(rows.pop(part), ((0, below), (0, 0))) for part in ("gate", "up")]
        in_turn = np.stack([own.reshape(-1, PANEL_ROWS, own.shape[1]) for own in whole], axis=1)
        rows["gate_up"] = in_turn.reshape(-1, in_turn.shape[-1])
    for part, values in rows.items():
        yield f"{stem}.{part}", encode(values, places[f"{stem}.{part}"].format, f"{stem}.{part}")


def _shared(store: Store, tensors: Mapping[str, DenseTensor], stem: str) -> dict[str, Floats] | None:
    """The matrices of a shared expert; None without one."""
    if f"{stem}.down" not in tensors:
        return None

    def matrix(name: str) -> Matrix | None:
        tensor = tensors.get(f"{stem}.{name}")
        if tensor is None:
            return None
        assert tensor.format is not None
        return Matrix(read_dense(store, tensor), tensor.format, tensor.rows, tensor.columns)

    first, up, down = matrix("gate_up") or matrix("gate"), matrix("up"), matrix("down")
    assert first is not None
    assert down is not None
    own, width = ExpertWeights(first, down, None, up), down.columns
    heights = {"gate": width, "up": width, "down": down.rows}
    return {part: part_rows(True, own, part, 0, height) for part, height in heights.items()}


def _statistics(
    store: Store, tensors: Iterable[DenseTensor], shapes: Mapping[str, tuple[int, ...]], error: float
) -> dict[str, dict[str, Any]]:
    """The statistics of each class of tensors; `error` is the relative one of FFNs that were encoded anew."""
    parameters: dict[str, int] = {}
    for name, shape in shapes.items():
        kind = class_of(name, shape)
        parameters[kind] = parameters.get(kind, 0) + math.prod(shape)
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        kind = class_of(tensor.name, (tensor.rows, tensor.columns) if tensor.format else (tensor.rows,))
        own = found.setdefault(kind, {"formats": [], "parameters": parameters[kind], "bytes": 0})
        own["formats"] = sorted({*own["formats"], tensor.format.name if tensor.format else "f32"})
        own["bytes"] += tensor.bytes
    for kind, own in found.items():
        own["bits_per_weight"] = round(8 * own["bytes"] / own["parameters"], 4)
        own["relative_error"] = store.manifest.quantisation.get(kind, {"relative_error": float(f"{error:.4g}")})[
            "relative_error"
        ]
    return dict(sorted(found.items()))
