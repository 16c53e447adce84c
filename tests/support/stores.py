"""Small stores for tests, made by the conversion itself, and the weights that a store holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, dequantise, panel_count, unpack
from edgemoe.model.spec import ModelSpec
from edgemoe.store.manifest import MANIFEST_NAME, manifest_checksum
from edgemoe.store.reader import Store
from edgemoe.store.update import replace_side_files, staged
from edgemoe.store.writer import replace_manifest
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint


def small_store(folder: Path, **options: str | None) -> Store:
    """A converted `SMALL_MIXTRAL`, in `folder / "store"`."""
    write_checkpoint(folder / "checkpoint", SMALL_MIXTRAL)
    return Store.open(convert_checkpoint(str(folder / "checkpoint"), folder / "store", **options))


def without_fast_checksums(folder: Path) -> Store:
    """Makes a store what it was before records had checksums for every read."""
    manifest = Store.open(folder).manifest
    replace_manifest(
        folder,
        replace(
            manifest,
            resident=tuple(replace(tensor, crc32c=None) for tensor in manifest.resident),
            expert_layers=tuple(
                layer and replace(layer, records=tuple(replace(place, crc32c=None) for place in layer.records))
                for layer in manifest.expert_layers
            ),
        ),
    )
    return Store.open(folder)


def edit_manifest(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes a manifest's JSON in place, and makes its own checksum hold for what it says then."""
    path = folder / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_bytes(sealed(data))


def sealed(data: Mapping[str, Any]) -> bytes:
    """The text of a manifest whose checksum is that of its other fields, whatever they are."""
    return json.dumps({**data, "checksum": manifest_checksum(data)}).encode()


def put_side_file(folder: Path, name: str, content: bytes) -> None:
    """Gives a store a side file that its manifest vouches for, whether or not a model can use it."""
    store = Store.open(folder)
    files = {file.name: (folder / file.name).read_bytes() for file in store.manifest.side_files}
    with staged(folder, {**files, name: content}) as staging:
        replace_side_files(store, staging, {})


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Changes one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def store_weights(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the model as float32, by the names of `ModelSpec.tensors`, taken back out of a store."""
    shapes = ModelSpec.from_json(store.model).tensors()
    matrices: dict[str, Matrix] = {}
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in store.load_resident().items():
        if isinstance(value, Matrix):
            matrices[name] = value
        else:
            weights[name] = value
    for number, layout in enumerate(store.expert_layouts):
        experts = len(store.manifest.expert_layers[number].records) if layout else 0
        for expert in range(experts):
            record = store.record(number, expert)
            with record.path.open("rb") as file:
                file.seek(record.offset)
                data = np.frombuffer(file.read(record.length), np.uint8)
            rows = 2 * panel_count(layout.ffn_width) * PANEL_ROWS
            prefix = f"layers.{number}.experts.{expert}."
            matrices[prefix + "gate_up"] = _cut(data, layout.gate_up_format, rows, layout.model_width)
            down = data[layout.down_offset :]
            matrices[prefix + "down"] = _cut(down, layout.down_format, layout.model_width, layout.ffn_width)
    for name, matrix in matrices.items():
        values = dequantise(unpack(matrix.data, matrix.format, matrix.rows, matrix.columns))
        if name.endswith("gate_up"):
            panels = values.reshape(-1, 2, PANEL_ROWS, matrix.columns)
            for part, half in (("gate", 0), ("up", 1)):
                part_name = name.removesuffix("gate_up") + part
                whole = panels[:, half].reshape(-1, matrix.columns)
                weights[part_name] = whole[: shapes[part_name][0]]
        else:
            weights[name] = values
    return weights


def _cut(data: np.ndarray[Any, Any], fmt: Any, rows: int, columns: int) -> Matrix:
    return Matrix(data[: fmt.matrix_bytes(rows, columns)], fmt, rows, columns)
