"""Small models written as GGUF files, with other metadata if a test wants it, and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgemoe.architectures import model_spec
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.store.reader import Store
from tests.support.checkpoints import write_checkpoint

Exported = Callable[[str], tuple[Path, Path]]
"""Gives the store of a model by its name, and the GGUF of it."""
_IDS = np.random.default_rng(7).integers(0, 128, 60)


def exported_model(folder: Path, config: dict[str, Any]) -> tuple[Path, Path]:
    """A store of random weights, and the GGUF of it."""
    write_checkpoint(folder / "source", config)
    store = convert_checkpoint(str(folder / "source"), folder / "store", experts="q8", dense="q8")
    return store, export_gguf(Store.open(store), folder / "model.gguf", name="test", tokenizer=False)


def assert_same_model(store: Path, path: Path, config: dict[str, Any], folder: Path) -> None:
    """Assert that the file at `path` is of this config, and gives the logits of the store that it was written from."""
    assert model_spec(GgufSource(path).config) == model_spec(config)
    back = convert_checkpoint(str(path), folder / "back", experts="keep", dense="keep")
    logits = []
    for one in (store, back):
        with open_engine(one, EngineOptions(threads=1, context_length=len(_IDS))) as engine:
            logits.append(engine.forward(_IDS, all_logits=True))
    np.testing.assert_array_equal(*logits)


def rewritten(path: Path, to: Path, changes: dict[str, Any], others: Mapping[str, Any] | None = None) -> Path:
    """The same file with other metadata, and further tensors."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(to, architecture)
    values = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    for name in {**values, **changes}:
        if name == "general.architecture":
            continue
        if name in changes:
            value = changes[name]
            kind = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, list: writer.add_array}
            kind[type(value)](name, value)
        else:
            field = values[name]
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        shape = tensor.data.shape
        writer.add_tensor(tensor.name, tensor.data, raw_shape=shape, raw_dtype=tensor.tensor_type)
    for name, values in (others or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to
