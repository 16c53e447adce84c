"""gpt-oss in the layouts of its checkpoints: MXFP4 as published, and transposed floats, hold the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edgemoe.architectures import checkpoint_shapes
from edgemoe.conversion.folder import FolderSource
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.source import take_rows
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks, unpack
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.store.reader import Store
from tests.support.mxfp4_checkpoints import mxfp4_weights
from tests.support.stores import store_weights

CONFIG: dict[str, Any] = {
    "model_type": "gpt_oss",
    "head_dim": 24,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 3,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0},
    "sliding_window": 37,
    "vocab_size": 101,
}
QUANTISED = CONFIG | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
Arrays = dict[str, np.ndarray[Any, Any]]


def decoded(codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The numbers of a pair of this family, `(..., rows, groups, 16)` and `(..., rows, groups)`."""
    return mxfp4_weights(codes.reshape(*codes.shape[:-2], -1), scales)


def nibbles(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The codes `(..., rows, columns)` of bytes `(..., rows, groups, 16)`: the low one of a byte comes first."""
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-2], -1)


def blocks_of(store: Store, layer: int, expert: int) -> dict[str, Blocks]:
    """The blocks of an expert's matrices, taken out of its record."""
    record = store.record(layer, expert)
    with record.path.open("rb") as file:
        file.seek(record.offset)
        data = np.frombuffer(file.read(record.length), np.uint8)
    layouts = store.record_layouts[layer]
    assert layouts is not None
    gate_up, down, _, _ = layouts.layouts[layouts.layout_of[expert]].weights(data)
    both = unpack(gate_up.data, gate_up.format, gate_up.rows, gate_up.columns)
    panels = np.arange(gate_up.rows).reshape(-1, 2, PANEL_ROWS)
    parts = {part: take_rows(both, panels[:, half].reshape(-1)) for half, part in enumerate(("gate", "up"))}
    return {**parts, "down": unpack(down.data, down.format, down.rows, down.columns)}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def tensors() -> tuple[Arrays, Arrays]:
    """The tensors of one model as pairs of codes and scales, and as transposed floats."""
    random = np.random.default_rng(3)
    pairs, floats = {}, {}
    for name, shape in checkpoint_shapes(CONFIG, stacked=True).items():
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            experts, columns, rows = shape
            codes = random.integers(0, 256, (experts, rows, columns // 32, 16)).astype(np.uint8)
            scales = random.integers(118, 125, (experts, rows, columns // 32)).astype(np.uint8)
            pairs |= {f"{name}_blocks": codes, f"{name}_scales": scales}
            floats[name] = np.ascontiguousarray(decoded(codes, scales).transpose(0, 2, 1))
        else:
            pairs[name] = floats[name] = random.standard_normal(shape).astype(np.float32) * np.float32(0.3)
    return pairs, floats


def write(folder: Path, config: dict[str, Any], tensors: Arrays) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_codes_and_scales_are_kept_bit_for_bit(tensors: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    pairs, _ = tensors
    store = Store.open(convert_checkpoint(str(write(tmp_path / "c", QUANTISED, pairs)), tmp_path / "store"))
    experts = store.manifest.quantisation["experts"]
    assert (experts["formats"], experts["relative_error"]) == (["m4"], 0)
    found = store_weights(store)
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        both = decoded(pairs[f"{prefix}.gate_up_proj_blocks"], pairs[f"{prefix}.gate_up_proj_scales"])
        down = decoded(pairs[f"{prefix}.down_proj_blocks"], pairs[f"{prefix}.down_proj_scales"])
        for expert in range(3):
            own, blocks = f"layers.{layer}.experts.{expert}", blocks_of(store, layer, expert)
            for part, expected in (("gate", both[expert, ::2]), ("up", both[expert, 1::2]), ("down", down[expert])):
                np.testing.assert_array_equal(found[f"{own}.{part}"], expected)
                source = f"{prefix}.{'down' if part == 'down' else 'gate_up'}_proj"
                rows = slice(1 if part == "up" else 0, None, 1 if part == "down" else 2)
                codes, scales = pairs[f"{source}_blocks"][expert, rows], pairs[f"{source}_scales"][expert, rows]
                assert blocks[part].values.tobytes() == nibbles(codes).tobytes()
                assert blocks[part].scales.tobytes() == np.ascontiguousarray(scales).tobytes()
            biases = pairs[f"{prefix}.gate_up_proj_bias"][expert]
            np.testing.assert_array_equal(found[f"{own}.gate_bias"], biases[::2])
            np.testing.assert_array_equal(found[f"{own}.up_bias"], biases[1::2])
            np.testing.assert_array_equal(found[f"{own}.down_bias"], pairs[f"{prefix}.down_proj_bias"][expert])


@pytest.mark.parametrize("slice_weights", [1 << 20, 1 << 10])
def test_both_layouts_make_the_same_store(
    tensors: tuple[Arrays, Arrays], slice_weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemoe.conversion.places.SLICE_WEIGHTS", slice_weights)  # many slices of each matrix
    stores = [
        convert_checkpoint(str(write(tmp_path / name, config, own)), tmp_path / f"{name} store", experts="f32")
        for name, config, own in zip(("pairs", "floats"), (QUANTISED, CONFIG), tensors, strict=True)
    ]
    files = [{path.name: path.read_bytes() for path in store.glob("*.safetensors")} for store in stores]
    assert files[0] == files[1]


def test_a_gguf_of_it_comes_back_to_the_bit(tensors: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    store = Store.open(convert_checkpoint(str(write(tmp_path / "c", QUANTISED, tensors[0])), tmp_path / "store"))
    path = export_gguf(store, tmp_path / "m.gguf", name="x", tokenizer=False)
    back = Store.open(convert_checkpoint(str(path), tmp_path / "back"))
    assert back.model == store.model
    for file in store.path.glob("*.safetensors"):
        assert (back.path / file.name).read_bytes() == file.read_bytes()


def test_columns_of_a_transposed_matrix_are_read_a_few_at_a_time(
    tensors: tuple[Arrays, Arrays], tmp_path: Path
) -> None:
    _, floats = tensors
    source = FolderSource(write(tmp_path / "c", CONFIG, floats))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    for expert, start, stop in ((0, 0, 192), (2, 5, 6), (1, 190, 192)):
        np.testing.assert_array_equal(
            source.read_columns(name, expert, start, stop), floats[name][expert, :, start:stop].T
        )
    (tmp_path / "c" / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="ends at byte"):
        FolderSource.read_columns(source, name, 2, 0, 4)
    source.close()


def test_a_store_is_forecast_from_the_config_and_the_names(tensors: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    made = Store.open(convert_checkpoint(str(write(tmp_path / "c", QUANTISED, tensors[0])), tmp_path / "store"))
    folder = tmp_path / "names"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QUANTISED))
    alone = forecast_store(str(folder)).store.manifest
    index = {"weight_map": dict.fromkeys(tensors[0], "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    by_names = forecast_store(str(folder)).store.manifest
    for manifest in (alone, by_names):
        assert manifest.layouts == made.manifest.layouts
        assert manifest.dense_file == made.manifest.dense_file
        assert manifest.expert_files == made.manifest.expert_files
