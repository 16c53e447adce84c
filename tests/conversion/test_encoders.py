"""Checkpoints of models with an encoder: one table of distances for a stack, and copies of the embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import SMALL_SWITCH, write_checkpoint
from tests.support.stores import store_weights

COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", SMALL_SWITCH, dtype="F32")
    return tmp_path / "checkpoint"


def add_copies(checkpoint: Path, names: tuple[str, ...] = COPIES, changed: str = "") -> None:
    """Write copies of the embedding into a checkpoint, as older files have them; one number of `changed` is another."""
    tensors = load_file(checkpoint / "model.safetensors")
    for name in names:
        tensors[name] = tensors["shared.weight"].copy()
        tensors[name][100, 7] += name == changed
    save_file(tensors, checkpoint / "model.safetensors")


def test_all_layers_of_a_stack_have_its_one_table(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    store = Store.open(convert_checkpoint(str(checkpoint), tmp_path / "store", experts="f32", dense="f32"))
    assert verify_store(store) == []
    weights = store_weights(store)
    for layer in range(6):
        stack = "encoder" if layer < 3 else "decoder"
        table = tensors[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        np.testing.assert_array_equal(weights[f"layers.{layer}.relative_bias"], table.reshape(-1))
        query = tensors[f"{stack}.block.{layer % 3}.layer.0.SelfAttention.q.weight"]
        np.testing.assert_array_equal(weights[f"layers.{layer}.query"], query)
    key = tensors["decoder.block.1.layer.1.EncDecAttention.k.weight"]
    np.testing.assert_array_equal(weights["layers.4.cross_key"], key)
    up = tensors["decoder.block.2.layer.2.mlp.experts.expert_9.wi.weight"]
    np.testing.assert_array_equal(weights["layers.5.experts.9.up"], up)


def test_copies_of_the_embedding_are_compared_and_left_out(checkpoint: Path, tmp_path: Path) -> None:
    without = Store.open(convert_checkpoint(str(checkpoint), tmp_path / "without"))
    add_copies(checkpoint)
    copied = Store.open(convert_checkpoint(str(checkpoint), tmp_path / "with"))
    assert copied.manifest.dense == without.manifest.dense


@pytest.mark.parametrize("name", COPIES)
def test_a_stack_with_an_embedding_of_its_own_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    add_copies(checkpoint, changed=name)
    with pytest.raises(SourceError, match=f"{name}: expected the numbers of shared.weight") as error:
        convert_checkpoint(str(checkpoint), tmp_path / "store")
    assert ("tie_word_embeddings" in error.value.hint) == (name == "lm_head.weight")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "missing"),
        ("decoder.block.2.layer.1.EncDecAttention.v.weight", "missing"),
        ("encoder.final_layer_norm.weight", "missing"),
    ],
)
def test_a_missing_tensor_is_named(checkpoint: Path, tmp_path: Path, name: str, message: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors[name]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(SourceError, match=f"{name}: {message}"):
        convert_checkpoint(str(checkpoint), tmp_path / "store")


def test_a_table_of_another_shape_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(SourceError, match=r"\(buckets, heads\) = \(32, 6\) from config.json, found \(6, 32\)"):
        convert_checkpoint(str(checkpoint), tmp_path / "store")


def test_pickles_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    """As Google's first files are."""
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(SourceError, match="only PyTorch pickles") as error:
        convert_checkpoint(str(checkpoint), tmp_path / "store")
    assert "save_pretrained" in error.value.hint
