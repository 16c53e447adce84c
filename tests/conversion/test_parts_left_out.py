"""Parts of a checkpoint that no text needs: said once for each, and counted; the rest converts as without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import read_tensors

GOLDEN = Path(__file__).parent.parent / "golden" / "qwen3_5_moe"


def test_the_vision_tower_and_layers_for_further_tokens_are_left_out_once_for_each(tmp_path: Path) -> None:
    tensors = read_tensors(GOLDEN)
    vision = [name for name in tensors if name.startswith("model.visual.")]
    assert len(vision) > 5
    further = {
        f"mtp.layers.0.{name}.weight": np.ones((4, 4), np.float32) for name in ("fc", "self_attn.q_proj", "norm")
    }
    plain = {name: values for name, values in tensors.items() if name not in vision}
    stores = []
    for name, held in (("whole", tensors | further), ("plain", plain)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(GOLDEN / "config.json", folder)
        save_file(held, folder / "model.safetensors", {"format": "pt"})
        notes: list[str] = []
        stores.append(convert_checkpoint(str(folder), tmp_path / f"{name}-store", notice=notes.append))
        expected = []
        if name == "whole":
            expected = [
                "3 tensors, such as mtp.layers.0.fc.weight, are left out: they belong to a layer that predicts tokens"
                " after the next (MTP), which edgemoe does not run.",
                f"{len(vision)} tensors, such as {min(vision)}, are left out: they belong to a vision tower, which"
                " edgemoe does not run: it reads text alone.",
            ]
        assert [note for note in notes if "left out" in note] == expected
    files = [{path.name: path.read_bytes() for path in store.glob("*.safetensors")} for store in stores]
    assert files[0] == files[1]
