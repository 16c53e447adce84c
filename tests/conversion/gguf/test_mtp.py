"""MTP heads in GGUF files: the same as in the checkpoint that the file was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_source import CONFIGS, Checkpoint
from tests.support.gguf_files import write_gguf


def test_a_head_of_a_file_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    checkpoint, random = Checkpoint(tmp_path / "source", CONFIGS["glm4_moe"]), np.random.default_rng(4)
    last, size = checkpoint.config["num_hidden_layers"], checkpoint.config["hidden_size"]
    block = {name: values for name, values in checkpoint.tensors.items() if f"layers.{last - 1}." in name}
    tensors = checkpoint.tensors | {
        name.replace(f"layers.{last - 1}.", f"layers.{last}."): values for name, values in block.items()
    }
    shapes = {"eh_proj": (size, 2 * size), "enorm": (size,), "hnorm": (size,), "shared_head.norm": (size,)}
    own = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    in_file = {f"blk.{last}.nextn.{name.replace('.', '_')}.weight": values for name, values in own.items()}
    config = checkpoint.config | {"num_hidden_layers": last + 1}
    file = write_gguf(tmp_path / "m.gguf", config, tensors | in_file, metadata={"nextn_predict_layers": 1})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(checkpoint.config))
    numbered = {f"model.layers.{last}.{name}.weight": values for name, values in own.items()}
    save_file(tensors | numbered, tmp_path / "folder" / "model.safetensors")
    from_file, from_folder = (
        Store.open(convert_checkpoint(str(source), tmp_path / name, experts="f32", dense="f32", mtp=True))
        for name, source in (("a", file), ("b", tmp_path / "folder"))
    )
    assert from_file.model["mtp"] is True
    assert from_file.model == from_folder.model
    assert [one.crc32c for one in from_file.manifest.dense] == [one.crc32c for one in from_folder.manifest.dense]
    assert {path.name: path.read_bytes() for path in from_file.expert_paths} == {
        path.name: path.read_bytes() for path in from_folder.expert_paths
    }
