"""Types of blocks in GGUF files: scales beside them, columns that move, and what has no type or no common format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import edgemoe
from edgemoe.cli.inspect import list_program
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.file import read_gguf
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.synthetic import synthesise
from edgemoe.errors import SourceError, StoreError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.row_types import ROW_TYPES, TYPE_NAMES
from edgemoe.store.mixture import expert_mixtures, mixtures, ranges
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_source import CONFIGS
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.gguf_files import write_gguf
from tests.support.pairs import some
from tests.support.stores import store_weights

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
UP = "blk.0.ffn_up_exps"


def wide(folder: Path, kinds: dict[str, str], family: str = "mixtral", **options: Any) -> Path:
    config = CONFIGS[family] | WIDE
    write_checkpoint(folder / "checkpoint", config, dtype="F32")
    tensors = read_tensors(folder / "checkpoint")
    return write_gguf(folder / "m.gguf", config, tensors, kinds={"gate_inp": "F32"} | kinds, **options)


@pytest.mark.parametrize("fmt", some(name for name, kind in TYPE_NAMES.items() if ROW_TYPES[kind].columns > 1))
def test_a_store_comes_back_from_its_file_to_the_bit(fmt: str, tmp_path: Path) -> None:
    narrow = ROW_TYPES[TYPE_NAMES[fmt]].columns > 128  # the experts of this shape have 128 columns
    store = Store.open(synthesise("tiny", tmp_path / "store", layers=1, experts="q8" if narrow else fmt, dense=fmt))
    path = export_gguf(store, tmp_path / "m.gguf", name="m")
    back = Store.open(edgemoe.convert(path, tmp_path / "back"))
    assert [layout.matrices for layout in back.manifest.layouts] == [
        layout.matrices for layout in store.manifest.layouts
    ]
    assert {tensor.name: tensor.format for tensor in back.manifest.dense} == {
        tensor.name: tensor.format for tensor in store.manifest.dense
    }
    expected = store_weights(store)
    for name, values in store_weights(back).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    for name, tensor in read_gguf(export_gguf(back, tmp_path / "again.gguf", name="m")).tensors.items():
        again = tensor.read(0, tensor.rows)
        np.testing.assert_array_equal(again, read_gguf(path).tensors[name].read(0, tensor.rows), err_msg=name)


def test_scales_of_matrices_multiply_them(tmp_path: Path) -> None:
    scales = np.array([0.5, -2, 3, 7 * 2.0**-20, 1], np.float32)
    kinds = {"_exps.weight": "NVFP4", ".": "F32"}
    beside = {f"{UP}.scale": scales, f"{UP}.input_scale": scales, "blk.0.ffn_down_exps.scale": scales[:1]}
    path = wide(tmp_path, kinds, beside=beside)
    (tmp_path / "plain").mkdir()
    plain = GgufSource(wide(tmp_path / "plain", kinds))
    source = GgufSource(path)
    prefix = "model.layers.0.block_sparse_moe.experts"
    for expert, scale in enumerate(scales):
        for matrix, own in (("w3", scale), ("w2", scales[0]), ("w1", np.float32(1))):
            name = f"{prefix}.{expert}.{matrix}.weight"
            rows, without = (one.read_rows(name, None, 0, 40) for one in (source, plain))
            assert isinstance(rows, Blocks)
            assert isinstance(without, Blocks)
            np.testing.assert_array_equal(dequantise(rows), dequantise(without) * own)
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    back = read_gguf(export_gguf(store, tmp_path / "back.gguf", name="back")).tensors
    np.testing.assert_array_equal(back[f"{UP}.scale"].read(0, 1).view("<f4")[0], scales)
    with edgemoe.load(path, warm_start=False) as opened, edgemoe.load(store.path, warm_start=False) as kept:
        np.testing.assert_array_equal(opened.logits([1, 5, 9]), kept.logits([1, 5, 9]))


@every_case(
    ("scales", "message"),
    [
        (np.ones(3, np.float32), f"{UP}.scale: expected 5 scales of F32, .* {UP}.weight, found 3 of F32"),
        (np.full(5, np.nan, np.float32), f"{UP}.scale: expected finite numbers, found nan"),
    ],
)
def test_scales_that_do_not_fit(scales: np.ndarray, message: str, tmp_path: Path) -> None:
    path = wide(tmp_path, {"_exps.weight": "NVFP4", ".": "F32"}, beside={f"{UP}.scale": scales})
    with pytest.raises(SourceError, match=f"m.gguf: {message}"):
        GgufSource(path)


def test_gate_and_up_of_two_types(tmp_path: Path) -> None:
    kinds = {"ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q5_K", ".": "Q6_K"}
    path = wide(tmp_path, kinds)
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    assert store.manifest.quantisation["experts"]["relative_error"] == 0
    back = export_gguf(store, tmp_path / "back.gguf", name="back")
    for name, tensor in read_gguf(path).tensors.items():
        np.testing.assert_array_equal(read_gguf(back).tensors[name].read(0, tensor.rows), tensor.read(0, tensor.rows))


def test_dense_gate_and_up_of_two_types(tmp_path: Path) -> None:
    """They are two matrices of the store, of the file as it is, and of the program."""
    path = wide(tmp_path, {"ffn_gate": "Q4_K", "ffn_up": "IQ3_S", ".": "Q6_K"}, "llama")
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    formats = {tensor.name: tensor.format for tensor in store.manifest.dense}
    assert formats["layers.0.ffn.gate"] == FORMATS["q4k"]
    assert formats["layers.0.ffn.up"] == FORMATS["iq3s"]
    assert store.manifest.quantisation["ffn"]["relative_error"] == 0
    text = " ".join(line.text for line in list_program(store)["layer 0"])
    assert "GatedFfn(normed (T, 256), ffn.down [256, 256], ffn.gate [256, 256], ffn.up [256, 256]" in text
    back = export_gguf(store, tmp_path / "back.gguf", name="back")
    for name, tensor in read_gguf(path).tensors.items():
        np.testing.assert_array_equal(read_gguf(back).tensors[name].read(0, tensor.rows), tensor.read(0, tensor.rows))
    ids = [1, 5, 9, 2]
    with edgemoe.load(path, warm_start=False) as opened, edgemoe.load(store.path, warm_start=False) as kept:
        expected = kept.logits(ids)
        np.testing.assert_array_equal(opened.logits(ids), expected)
    floats = edgemoe.convert(path, tmp_path / "floats", dense="f32")
    with edgemoe.load(floats, warm_start=False) as exact:
        assert np.abs(exact.logits(ids) - expected).max() < 0.05 * np.abs(expected).max()


def test_heads_stay_in_turn_where_a_block_has_columns_of_several(tmp_path: Path) -> None:
    """Qwen3.5: heads of 32 values, and blocks of 256 columns. The same weights without blocks are brought together."""
    config = CONFIGS["qwen3_5_moe"]
    heads = 256 // config["linear_value_head_dim"]
    config = config | {"hidden_size": 256, "linear_num_value_heads": heads, "linear_num_key_heads": heads // 2}
    write_checkpoint(tmp_path / "checkpoint", config, dtype="F32")
    tensors = read_tensors(tmp_path / "checkpoint")
    kinds = {"ssm_out": "Q4_K", "gate_inp|ssm": "F32", ".": "Q8_0"}
    path = write_gguf(tmp_path / "m.gguf", config, tensors, kinds=kinds)
    assert GgufSource(path).notices() == []
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    back = read_gguf(export_gguf(store, tmp_path / "back.gguf", name="m")).tensors
    beside = {}
    for name, tensor in read_gguf(path).tensors.items():
        np.testing.assert_array_equal(back[name].read(0, tensor.rows), tensor.read(0, tensor.rows), err_msg=name)
        if tensor.type_name != "F32":
            values = gguf.dequantize(tensor.read(0, tensor.rows), gguf.GGMLQuantizationType[tensor.type_name])
            beside[name] = values.reshape(tensor.shape)
    ids = [1, 5, 9, 2, 7]
    with edgemoe.load(path, warm_start=False) as opened, edgemoe.load(store.path, warm_start=False) as kept:
        np.testing.assert_array_equal(opened.logits(ids), kept.logits(ids))
    floats = write_gguf(tmp_path / "floats.gguf", config, tensors, kinds={".": "F32"}, beside=beside)
    found = []
    for file in (path, floats):
        exact = edgemoe.convert(file, tmp_path / f"{file.stem}-exact", experts="f32", dense="f32")
        with edgemoe.load(exact, warm_start=False) as model:
            found.append(model.logits(ids))
    assert np.abs(found[0] - found[1]).max() < 1e-5 * np.abs(found[1]).max()


def test_what_no_type_has_is_not_exported(tmp_path: Path) -> None:
    store = Store.open(synthesise("tiny", tmp_path / "store", layers=1, experts="q4k"))
    with pytest.raises(StoreError, match=r"experts.0.down: expected a multiple of 256 columns, as blocks of Q4_K have"):
        export_gguf(store, tmp_path / "m.gguf", name="m")


def test_mixtures_are_listed(tmp_path: Path) -> None:
    store = Store.open(synthesise("tiny", tmp_path / "store", mix="q4_k_m"))
    assert mixtures(store.manifest) == {
        "value": {"q4k": [0, 1], "q6k": [2, 3]},
        "experts.down": {"q5": [0, 1], "q8": [2, 3]},
    }
    assert expert_mixtures(store.manifest) == {}
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
