"""Parts of a checkpoint that no text needs: said once for each, and counted; the rest converts as without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from tests.support.checkpoints import read_tensors

FAMILIES = Path(__file__).parent.parent / "golden"
GOLDEN = FAMILIES / "qwen3_5_moe"


def test_the_vision_tower_and_layers_for_further_tokens_are_left_out_once_for_each(tmp_path: Path) -> None:
    tensors = read_tensors(GOLDEN)
    vision = [name for name in tensors if name.startswith("model.visual.")]
    assert len(vision) > 5
    further = {
        f"mtp.layers.0.{name}.weight": np.ones((4, 4), np.float32) for name in ("fc", "self_attn.q_proj", "norm")
    }
    audio = {"model.audio_tower.conv.weight": np.ones((4, 4), np.float32)}
    plain = {name: values for name, values in tensors.items() if name not in vision}
    stores = []
    for name, held in (("whole", tensors | further | audio), ("plain", plain)):
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
                " after the next (MTP), which is converted by itself.",
                f"{len(vision)} tensors, such as {min(vision)}, are left out: they belong to a vision tower, which"
                " edgemoe does not run: it reads text alone.",
                "1 tensor, model.audio_tower.conv.weight, is left out: it belongs to an audio tower, which edgemoe does"
                " not run: it reads text alone.",
            ]
        assert [note for note in notes if "left out" in note] == expected
    files = [{path.name: path.read_bytes() for path in store.glob("*.safetensors")} for store in stores]
    assert files[0] == files[1]


def test_the_tower_and_further_layers_of_step_are_left_out_under_the_names_of_files(tmp_path: Path) -> None:
    tower = ("vision_model.conv1.weight", "vit_large_projector.weight")
    further = ("eh_proj", "enorm", "moe.gate", "transformer.shared_head.output")
    names = (*tower, *(f"model.layers.5.{name}.weight" for name in further))
    shutil.copy(FAMILIES / "step3p5" / "config.json", tmp_path)
    held = read_tensors(FAMILIES / "step3p5") | {name: np.ones((4, 4), np.float32) for name in names}
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    notes: list[str] = []
    convert_checkpoint(str(tmp_path), tmp_path / "store", notice=notes.append)
    counted = [note.partition(",")[0] for note in notes if "left out" in note]
    assert counted == ["4 tensors", "2 tensors"]


@pytest.mark.parametrize(
    ("family", "count", "part"),
    [
        (
            "deepseek_v32",
            15,
            "an indexer of attention, which chooses among more tokens than edgemoe runs of this model",
        ),
        ("kimi_k25", 23, "a vision tower, which edgemoe does not run: it reads text alone"),
    ],
)
def test_indexers_and_towers_of_latent_attention_are_left_out(
    family: str, count: int, part: str, tmp_path: Path
) -> None:
    notes: list[str] = []
    convert_checkpoint(str(FAMILIES / family), tmp_path / "store", notice=notes.append)
    (note,) = [note for note in notes if "left out" in note]
    assert note.startswith(f"{count} tensors, such as ")
    assert note.endswith(f"are left out: they belong to {part}.")


def test_a_norm_that_a_dense_layer_does_not_use_changes_nothing(tmp_path: Path) -> None:
    """Published files of A.X-K1 have one in dense layers too."""
    tensors = read_tensors(FAMILIES / "axk1")
    unused = {"model.layers.0.post_mlp_layernorm.weight": np.full(32, 7, np.float32)}
    stores = []
    for name, held in (("plain", tensors), ("with it", tensors | unused)):
        (tmp_path / name).mkdir()
        shutil.copy(FAMILIES / "axk1" / "config.json", tmp_path / name)
        save_file(held, tmp_path / name / "model.safetensors", {"format": "pt"})
        stores.append(convert_checkpoint(str(tmp_path / name), tmp_path / f"{name}-store"))
    files = [{path.name: path.read_bytes() for path in store.glob("*.safetensors")} for store in stores]
    assert files[0] == files[1]


def test_a_context_longer_than_an_indexer_chooses_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(FAMILIES / "glm_moe_dsa", folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"index_topk": 512', '"index_topk": 70'))
    store = convert_checkpoint(str(folder), tmp_path / "store")
    refused = "A context of 71 tokens was asked for; this model has 1 to 70, as edgemoe does not run the indexer"
    with pytest.raises(UsageError, match=refused):
        open_engine(store, EngineOptions(context_length=71))
    with open_engine(store, EngineOptions(threads=1)) as engine:
        assert engine.context_length == 70
        engine.forward(list(range(70)))
        with pytest.raises(UsageError, match="70 tokens"):
            engine.forward([1])
