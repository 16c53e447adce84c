"""Stores of random weights that are made from a specification alone, for blocks in whatever combination."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.formats import FormatChoice, choose_formats
from edgemoe.conversion.places import tensor_places
from edgemoe.conversion.plan import plan_manifest
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store
from edgemoe.store.writer import StoreWriter, with_checksums

Weights = dict[str, np.ndarray[Any, Any]]


def random_weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Weights that hand on what they are given at about its size; vectors lie about 1, biases about 0."""
    weights = {}
    for number, (name, shape) in enumerate(spec.tensors().items()):
        drawn = np.random.default_rng([seed, number]).standard_normal(shape, np.float32)
        if len(shape) == 2:
            weights[name] = drawn / np.float32(math.sqrt(shape[1]))
        else:
            weights[name] = np.float32(0 if name.endswith("_bias") else 1) + drawn / 4
    return weights


def store_of_spec(folder: Path, spec: ModelSpec, weights: Weights, experts: str, dense: str) -> Store:
    """Write a store with these weights, each of its matrices in a format of these."""
    shapes = spec.tensors()
    formats = choose_formats(shapes, dict.fromkeys(shapes, "F32"), FormatChoice(experts, dense))
    plan = plan_manifest(spec, shapes, formats, {})
    with StoreWriter(folder, plan) as writer:
        for name, place in tensor_places(plan, shapes).items():
            data = encode(weights[name], place.format, name).data
            panels = data.reshape(-1, place.panel_bytes) if place.format else data[None]
            for number, panel in enumerate(panels):
                writer.write(place.file, place.offset + number * place.panel_stride, panel)
        ranges = [(tensor.name, plan.dense_file.name, tensor.offset, tensor.bytes) for tensor in plan.dense]
        ranges += [(r.name, plan.expert_files[r.file].name, r.offset, r.length) for r in plan.records]
        checksums = {name: writer.checksums(*place) for name, *place in ranges}
        writer.finish(with_checksums(plan, checksums), {})
    return Store.open(folder)
