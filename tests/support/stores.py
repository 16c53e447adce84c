"""Small stores for tests, made by the conversion itself, and the weights that a store holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.kernels.blocks import dequantise, unpack
from edgemoe.kernels.formats import PANEL_ROWS, Matrix
from edgemoe.model.spec import ModelSpec
from edgemoe.store.manifest import MANIFEST_NAME, manifest_checksum
from edgemoe.store.reader import Store
from edgemoe.store.records import RECORDS_NAME
from edgemoe.store.update import replace_side_files, staged
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.mutants import overwrite


def small_store(folder: Path, **options: str | None) -> Store:
    """A converted `SMALL_MIXTRAL`, in `folder / "store"`."""
    write_checkpoint(folder / "checkpoint", SMALL_MIXTRAL)
    return Store.open(convert_checkpoint(str(folder / "checkpoint"), folder / "store", **options))


def version_1(folder: Path, fast_checksums: bool = True) -> Store:
    """Makes a store what it was in version 1, with the records in its manifest, at first without fast checksums."""
    manifest = Store.open(folder).manifest
    records = manifest.records
    data = json.loads((folder / MANIFEST_NAME).read_text())
    layers: list[dict[str, Any] | None] = []
    for layer in range(records.layers):
        numbers = records.layouts_of(layer)
        if not len(numbers):
            layers.append(None)
            continue
        (number,) = numbers
        layout = manifest.layouts[number]
        matrices = layout.matrices
        layers.append(
            {
                "model_width": layout.hidden_size,
                "ffn_width": layout.intermediate_size,
                "gate_up_format": matrices.up_format.name,
                "down_format": matrices.down_format.name,
                "down_offset": matrices.down_offset,
                "record_bytes": layout.slot_bytes,
                "records": [
                    {
                        "file": int(records.file[row]),
                        "offset": int(records.offset[row]),
                        "sha256": records.sha256[row].tobytes().hex(),
                        "crc32c": f"{records.crc32c[row]:08x}",
                    }
                    for row in range(len(records))[records.rows(layer)]
                ],
            }
        )
    data |= {"edgemoe": 1, "experts": {"files": data["experts"]["files"], "layers": layers}}
    if not fast_checksums:
        for part in (
            *data["resident"]["tensors"],
            *(record for layer in layers if layer for record in layer["records"]),
        ):
            del part["crc32c"]
    (folder / MANIFEST_NAME).write_bytes(sealed(data))
    if manifest.record_file is not None:
        (folder / manifest.record_file.name).unlink()
    return Store.open(folder)


def edit_records(folder: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> None:
    """Changes the columns of a store's record table in place, and makes the manifest vouch for the table."""
    columns = safetensors.numpy.load((folder / RECORDS_NAME).read_bytes())
    change(columns)
    put_records(folder, safetensors.numpy.save(columns))


def put_records(folder: Path, content: bytes) -> None:
    """Gives a store another file of its record table, for which the manifest vouches, whatever it holds."""
    overwrite(folder / RECORDS_NAME, content)
    named = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(folder, lambda data: data["experts"]["table"].update(named))


def edit_manifest(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes a manifest's JSON in place, and makes its own checksum hold for what it says then."""
    path = folder / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    overwrite(path, sealed(data))


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
    for name, value in store.load_dense().items():
        if isinstance(value, Matrix):
            matrices[name] = value
        else:
            weights[name] = value
    for record in store.manifest.records:
        with (store.path / store.manifest.expert_files[record.file].name).open("rb") as file:
            file.seek(record.offset)
            data = np.frombuffer(file.read(record.length), np.uint8)
        layout = store.manifest.layouts[record.layout].matrices
        own = layout.weights(data)
        for part in ("gate", "up", "down")[not layout.gated :] if own.biases is not None else ():
            weights[f"{record.name}.{part}_bias"] = getattr(own.biases, part)
        first = "up" if not layout.gated else "gate_up" if own.up is None else "gate"
        matrices |= {f"{record.name}.{first}": own.first, f"{record.name}.down": own.down}
        if own.up is not None:
            matrices[f"{record.name}.up"] = own.up
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
