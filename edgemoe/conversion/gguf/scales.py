"""Scales of whole matrices, which NVFP4 tensors have in a tensor beside them: `X.scale` for `X.weight`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.gguf.family import Family
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.places import Place
from edgemoe.errors import SourceError, StoreError
from edgemoe.kernels.formats import PANEL_ROWS, group_count
from edgemoe.store.reader import Store

SCALED_TYPE = "NVFP4"
_INPUT = ".input_scale"
"""The end of the name of what a GPU quantises activations with; it changes no weight."""


def with_scales(tensors: Mapping[str, GgufTensor], family: Family) -> dict[str, GgufTensor]:
    """The tensors of a file, those of NVFP4 with the scales that stand beside them, which are no tensors of the model.

    Source: llama.cpp multiplies each product by the scale of its matrix, or of its expert (src/llama-graph.cpp). Raises
    SourceError for scales of another number or that are not finite.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if tensor.type_name != SCALED_TYPE or stem == name:
            continue
        found.pop(stem + _INPUT, None)
        beside = f"{stem}.scale"
        if beside not in tensors or beside.partition(".")[2].partition(".")[2] in family.own_names:
            continue
        found[name] = replace(tensor, scales=_read_scales(found.pop(beside), tensor))
    return found


def _read_scales(beside: GgufTensor, tensor: GgufTensor) -> tuple[float, ...]:
    matrices = math.prod(tensor.shape[:-2])
    count = math.prod(beside.shape)
    if beside.type_name != "F32" or count not in (1, matrices):
        raise SourceError(
            f"{beside.path}: {beside.name}: expected {matrices} scales of F32, one for each matrix of {tensor.name},"
            f" found {count} of {beside.type_name}.",
            "Use another GGUF of this model.",
        )
    scales = beside.read(0, beside.rows).view("<f4").reshape(-1)
    if not np.isfinite(scales).all():
        raise SourceError(
            f"{beside.path}: {beside.name}: expected finite numbers, found {scales[~np.isfinite(scales)][0]}.",
            "The file may be damaged: download it again.",
        )
    return tuple(scales.tolist())


def matrix_scale(store: Store, name: str, place: Place) -> float:
    """The scale of a matrix of nv4 in a store. Raises StoreError where its first rows have unlike ones."""
    assert place.format is not None
    offset = place.offset + group_count(place.columns) * place.format.payload_bytes
    with (store.path / place.file).open("rb") as file:
        file.seek(offset)
        found = np.frombuffer(file.read(4 * PANEL_ROWS), "<f4")[: place.rows]
    check_one_scale(name, found)
    return float(found[0])


def check_one_scale(name: str, scales: npt.NDArray[np.generic], expected: float | None = None) -> None:
    """Raise StoreError where rows of a matrix have unlike scales."""
    if (scales != (scales.flat[0] if expected is None else expected)).any():
        raise StoreError(
            f"{name}: expected one scale for the whole matrix, as a GGUF has it, found one for each of some rows.",
            "Convert the checkpoint again with this part in q8.",
        )
