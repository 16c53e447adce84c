"""Files that llama.cpp quantised: read as they are, computed as well as llama.cpp does, and written back to the bit."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

import edgemoe
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.file import GgufTensor, read_gguf
from edgemoe.conversion.mixes import MIXES
from edgemoe.conversion.synthetic import synthesise
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_export import EXPRESSIBLE
from tests.peers.test_llama_cpp import agreement, llama_cpp_logits
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import write_gguf

pytestmark = pytest.mark.peer

FILE_TYPES = {"q2_k": 10, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "iq4_xs": 30}
OTHERS = {"q5_0": 8, "q5_1": 9, "iq4_nl": 25, "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38, "q1_0": 40, "q2_0": 41}
"""llama.cpp's numbers for files of mostly one type."""
WITH_IMPORTANCE = {"IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ3_S": 26, "IQ2_S": 29, "IQ1_M": 31}
"""Types that it makes of whole blocks of 256 columns, most with an importance matrix only; each with a mix of it."""
FILES = [
    *((mix, model) for mix in (*FILE_TYPES, *OTHERS) for model in ("wide", "tiny")),
    *((mix, "linear") for mix in ("q2_k", "q4_k_m", "iq4_xs")),
]
LINEAR = {"hidden_size": 256, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "moe_intermediate_size": 256}
"""Heads of 32 values, of which a block of the matrix after them has eight; the file has these in turn."""
WIDE = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "head_dim": 64}
DECODED = ("ssm_alpha.weight", "ssm_beta.weight")
"""Matrices that stores hold in float32: what a linear layer keeps for long depends on them."""
POSITIONS = 300


def quantised(floats: Path, path: Path, file_type: int, important: bool = False) -> Path:
    """Quantise a file as llama.cpp does, also with an importance matrix: random numbers for each column of a matrix."""
    llama = pytest.importorskip("llama_cpp")
    options = llama.llama_model_quantize_default_params()
    options.ftype, options.nthread = file_type, 2
    if important:
        random = np.random.default_rng(3)
        weights = {name: random.uniform(0.5, 2, columns_of(it)) for name, it in tensors_of(floats).items()}
        kept = {name: array.astype(np.float32) for name, array in weights.items()}
        entries = (llama.llama_model_imatrix_data * (len(kept) + 1))()  # the last one is empty
        for entry, (name, array) in zip(entries, kept.items(), strict=False):
            entry.name, entry.size = name.encode(), array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = entries
    assert llama.llama_model_quantize(str(floats).encode(), str(path).encode(), ctypes.byref(options)) == 0
    return path


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models in float32: two with whole blocks of 256 columns, "loud" with larger weights; one narrower; Qwen3.5."""
    folder = tmp_path_factory.mktemp("floats")
    for name in ("wide", "loud"):
        write_checkpoint(folder / name, wide_config(), dtype="F32", side_files={"README.md": b""})
    louder = {
        name: array * np.float32(6 if array.ndim > 1 else 1) for name, array in read_tensors(folder / "wide").items()
    }
    save_file(louder, folder / "loud" / "model.safetensors")
    write_checkpoint(folder / "linear", EXPRESSIBLE["qwen3_5_moe"] | LINEAR, dtype="F32", side_files={"README.md": b""})
    stores = {
        "linear": edgemoe.convert(folder / "linear", folder / "linear-store", experts="f32", dense="f32"),
        "wide": edgemoe.convert(folder / "wide", folder / "wide-store", experts="f32", dense="f32"),
        "loud": edgemoe.convert(folder / "loud", folder / "loud-store", experts="f32", dense="f32"),
        "tiny": synthesise("tiny", folder / "tiny-store", experts="f32", dense="f32"),
    }
    return {name: export_gguf(Store.open(store), folder / f"{name}.gguf", name=name) for name, store in stores.items()}


def wide_config() -> dict[str, Any]:
    return EXPRESSIBLE["qwen3_moe"] | WIDE


def tensors_of(path: Path) -> dict[str, GgufTensor]:
    return read_gguf(path).tensors


def content(tensor: GgufTensor) -> tuple[str, bytes]:
    return tensor.type_name, tensor.read(0, tensor.rows).tobytes()


def columns_of(tensor: GgufTensor) -> int:
    """The columns of a matrix, or of all matrices of experts."""
    return int(np.prod(tensor.shape[:-2]) * tensor.shape[-1])


@pytest.mark.parametrize("kind", WITH_IMPORTANCE)
def test_files_made_with_an_importance_matrix(kind: str, floats: dict[str, Path], tmp_path: Path) -> None:
    path = quantised(floats["loud"], tmp_path / "m.gguf", WITH_IMPORTANCE[kind], important=True)
    given = tensors_of(path)
    assert kind in {tensor.type_name for tensor in given.values()}
    compare(kind, path, tmp_path)
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    back = tensors_of(export_gguf(store, tmp_path / "back.gguf", name="back"))
    for name, tensor in given.items():
        assert content(back[name]) == content(tensor), name


@pytest.mark.parametrize(("mix", "model"), FILES)
def test_as_near_to_floats_as_llama_cpp(mix: str, model: str, floats: dict[str, Path], tmp_path: Path) -> None:
    """The reference is float32 arithmetic with the very weights of the file."""
    compare(mix, quantised(floats[model], tmp_path / "m.gguf", (FILE_TYPES | OTHERS)[mix]), tmp_path)


def test_scales_of_whole_matrices(tmp_path: Path) -> None:
    """NVFP4, which llama.cpp reads and does not make; the scale of each expert stands in a tensor beside them."""
    config = wide_config()
    write_checkpoint(tmp_path / "wide", config, dtype="F32")
    random = np.random.default_rng(8)
    beside = {
        f"blk.{layer}.ffn_{matrix}_exps.scale": random.uniform(0.5, 8, config["num_experts"]).astype(np.float32)
        for layer in range(config["num_hidden_layers"])
        for matrix in ("gate", "up", "down")
    }
    kinds = {"_exps.weight": "NVFP4", ".": "F32"}
    path = write_gguf(tmp_path / "m.gguf", config, read_tensors(tmp_path / "wide"), kinds=kinds, beside=beside)
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    exported = export_gguf(store, tmp_path / "back.gguf", name="back", tokenizer=False)
    compare("nv4", exported, tmp_path)
    given, back = tensors_of(path), tensors_of(exported)
    for name, tensor in given.items():
        assert "_exps" not in name or content(back[name]) == content(tensor)


def compare(label: str, path: Path, folder: Path) -> None:
    exact_store = edgemoe.convert(path, folder / "exact", experts="f32", dense="f32")
    with edgemoe.load(exact_store) as exact, edgemoe.load(path) as opened:
        ids = np.random.default_rng(5).integers(0, opened.spec.vocab_size, POSITIONS).tolist()
        reference, ours = exact.logits(ids), opened.logits(ids)
    theirs = llama_cpp_logits(path, ids, "F16")
    (ours_same, ours_divergence), (theirs_same, theirs_divergence) = (
        agreement(reference, found) for found in (ours, theirs)
    )
    print(f"{label}: edgemoe {ours_same:.1%}, KL {ours_divergence:.2g};", end=" ")
    print(f"llama.cpp {theirs_same:.1%}, KL {theirs_divergence:.2g}")
    assert ours_divergence <= 1.25 * theirs_divergence + 1e-6
    assert ours_same >= theirs_same - 0.03


@pytest.mark.parametrize(("mix", "model"), FILES)
def test_the_same_bytes_come_back(mix: str, model: str, floats: dict[str, Path], tmp_path: Path) -> None:
    path = quantised(floats[model], tmp_path / "m.gguf", (FILE_TYPES | OTHERS)[mix])
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    given, back = tensors_of(path), tensors_of(export_gguf(store, tmp_path / "back.gguf", name="back"))
    assert given.keys() == back.keys()
    for name, tensor in given.items():
        if tensor.type_name == "TQ1_0":
            assert back[name].type_name == "TQ2_0"
        elif name.endswith(DECODED):
            assert back[name].type_name == "F32"
            given_type, numbers = gguf.GGMLQuantizationType[tensor.type_name], back[name].read(0, tensor.rows)
            np.testing.assert_array_equal(
                numbers.view(np.float32), gguf.dequantize(tensor.read(0, tensor.rows), given_type)
            )
        else:
            assert content(back[name]) == content(tensor), name


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_are_those_of_llama_cpp(mix: str, floats: dict[str, Path], tmp_path: Path) -> None:
    theirs = tensors_of(quantised(floats["tiny"], tmp_path / "m.gguf", FILE_TYPES[mix]))
    store = Store.open(synthesise("tiny", tmp_path / "store", mix=mix))
    ours = tensors_of(export_gguf(store, tmp_path / "ours.gguf", name="ours"))
    assert {name: tensor.type_name for name, tensor in ours.items()} == {
        name: tensor.type_name for name, tensor in theirs.items()
    }
