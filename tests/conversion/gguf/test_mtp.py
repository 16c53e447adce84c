"""MTP heads in GGUF files: the same as in the checkpoint that the file was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_source import CONFIGS, Checkpoint
from tests.support.gguf_files import write_gguf

QWEN_NAMES = {
    "eh_proj": "fc",
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "shared_head.norm": "norm",
}


@pytest.mark.parametrize("family", ["glm4_moe", "qwen3_5_moe"])
def test_a_head_of_a_file_is_that_of_its_checkpoint(family: str, tmp_path: Path) -> None:
    checkpoint, random = Checkpoint(tmp_path / "source", CONFIGS[family]), np.random.default_rng(4)
    from_one = family.startswith("qwen")  # norms are distances from 1, which files do not have
    last, size = checkpoint.config["num_hidden_layers"], checkpoint.config["hidden_size"]
    block = {name: values for name, values in checkpoint.tensors.items() if f"layers.{last - 1}." in name}
    tensors = checkpoint.tensors | {
        name.replace(f"layers.{last - 1}.", f"layers.{last}."): values for name, values in block.items()
    }
    shapes = {"eh_proj": (size, 2 * size), "enorm": (size,), "hnorm": (size,), "shared_head.norm": (size,)}
    own = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    in_file = {
        f"blk.{last}.nextn.{name.replace('.', '_')}.weight": values + (from_one and values.ndim == 1)
        for name, values in own.items()
    }
    config = checkpoint.config | {"num_hidden_layers": last + 1}
    file = write_gguf(tmp_path / "m.gguf", config, tensors, metadata={"nextn_predict_layers": 1}, beside=in_file)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(checkpoint.config))
    if from_one:
        named = {f"mtp.layers.0.{name.partition(f'layers.{last - 1}.')[2]}": values for name, values in block.items()}
        named |= {f"mtp.{QWEN_NAMES[name]}.weight": values for name, values in own.items()}
        tensors = checkpoint.tensors | named
    else:
        tensors |= {f"model.layers.{last}.{name}.weight": values for name, values in own.items()}
    save_file(tensors, tmp_path / "folder" / "model.safetensors")
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
