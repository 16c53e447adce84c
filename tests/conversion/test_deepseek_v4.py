"""DeepSeek-V4 under its published names, and tables that name experts which it does not have."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError
from tests.golden.covering import GOLDEN
from tests.support.checkpoints import SMALL_DEEPSEEK_V4, write_checkpoint

PUBLISHED = (
    (r"model\.embed_tokens\.weight", "embed.weight"),
    (r"model\.hc_head\.hc_(\w+)", r"hc_head_\1"),
    (r"model\.(layers\.\d+\.attn)\.norm\.weight", r"\1.kv_norm.weight"),
    (r"model\.(.+)", r"\1"),
)
"""The names that transformers saves, and those of published files."""


def published(name: str) -> str:
    for pattern, other in PUBLISHED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, other, name)
    return name


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    shutil.copy(GOLDEN / "deepseek_v4" / "config.json", folder)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def saved() -> dict[str, np.ndarray]:
    """The tensors of the golden checkpoint, in float32 but for its tables."""
    tensors = {}
    for name, entry in safetensors.deserialize((GOLDEN / "deepseek_v4" / "model.safetensors").read_bytes()):
        if entry["dtype"] == "I64":
            tensors[name] = np.frombuffer(entry["data"], np.int64).reshape(entry["shape"])
        else:
            assert entry["dtype"] == "BF16"
            values = (np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def test_published_names_give_the_same_store_and_further_tokens_are_left_out(tmp_path: Path) -> None:
    tensors = saved()
    further = {"mtp.0.attn.wq_a.weight": np.ones((2, 2), np.float32), "mtp.0.hc_attn_base": np.ones(24, np.float32)}
    renamed = {published(name): values for name, values in tensors.items()}
    assert {"embed.weight", "hc_head_fn", "layers.3.attn.kv_norm.weight", "norm.weight"} <= renamed.keys()
    stores, notes = [], []
    for name, held in (("saved", tensors), ("published", renamed | further)):
        folder = write(tmp_path / name, held)
        stores.append(convert_checkpoint(str(folder), tmp_path / f"{name}-store", notice=notes.append))
    files = [{path.name: path.read_bytes() for path in store.glob("*.safetensors")} for store in stores]
    assert files[0] == files[1]
    (note,) = [note for note in notes if "left out" in note]
    assert note.startswith("2 tensors, such as mtp.0.attn.wq_a.weight, are left out")


@pytest.mark.parametrize("wrong", [-1, 8])
def test_a_table_of_experts_that_there_are_not_is_refused(wrong: int, tmp_path: Path) -> None:
    tensors = saved()
    table = tensors["model.layers.2.ffn.gate.tid2eid"] = tensors["model.layers.2.ffn.gate.tid2eid"].copy()
    table[5, 1] = wrong
    folder = write(tmp_path / "damaged", tensors)
    message = f"model.layers.2.ffn.gate.tid2eid: expected whole numbers from 0 to 7, found {wrong}"
    with pytest.raises(SourceError, match=re.escape(message)):
        convert_checkpoint(str(folder), tmp_path / "store")


def test_a_table_of_other_numbers_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", SMALL_DEEPSEEK_V4, dtype="F32")
    tensors = {
        name: np.full(values.shape, 0.5, np.float32) if name.endswith("tid2eid") else values
        for name, values in safetensors.numpy.load_file(tmp_path / "checkpoint" / "model.safetensors").items()
    }
    safetensors.numpy.save_file(tensors, tmp_path / "checkpoint" / "model.safetensors")
    with pytest.raises(SourceError, match=r"tid2eid: expected whole numbers from 0 to 9, found 0\.5"):
        convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store")


def test_weights_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    """Tables of experts alone are such."""
    tensors = saved()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int64)
    message = "model.norm.weight: expected weights of F64, F32, F16, BF16, found I64: they are whole numbers"
    with pytest.raises(SourceError, match=message):
        convert_checkpoint(str(write(tmp_path / "whole", tensors)), tmp_path / "store")
