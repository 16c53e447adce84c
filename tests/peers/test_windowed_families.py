"""Families with windows or streams: edgemoe and llama.cpp compute the same from the GGUF that edgemoe exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.store.reader import Store
from tests.peers.test_llama_cpp import agreement, llama_cpp_logits
from tests.support.checkpoints import write_checkpoint
from tests.support.stream_models import SMALL_STREAMS
from tests.support.windowed_models import SMALL_MODELS

pytestmark = pytest.mark.peer

MODELS = SMALL_MODELS | SMALL_STREAMS
# Of more tokens than an indexer chooses, llama.cpp shows some more.
MODELS["qwen4_exp"] = SMALL_STREAMS["qwen4_exp"] | {"indexer_budget": 256}
LARGEST_KL, LARGEST_ERROR = {"gemma4": 1e-5}, {"gemma4": 3e-2}
"""Where they are not 1e-6 and 1e-5: llama.cpp takes GELU from a table of float16 (`GGML_GELU_FP16` of ggml)."""
IDS = np.random.default_rng(7).integers(0, 128, 200).tolist()


def spread(folder: Path) -> None:
    """Give the weights of a random checkpoint sizes with which each of them acts on the logits."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, values in tensors.items():
        if values.dtype.kind == "i":
            continue
        if "norm" in name and values.ndim == 1:
            tensors[name] = 1 + 4 * values
        elif values.ndim == 1:
            tensors[name] = 10 * values
        else:
            tensors[name] = values * np.float32(20 if "embed" in name else 20 / values.shape[-1] ** 0.5)
    save_file(tensors, path)


@pytest.mark.parametrize("family", MODELS)
def test_the_same_in_floats(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", MODELS[family], dtype="F32")
    spread(tmp_path / "source")
    store = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="f32", dense="f32")
    gguf = export_gguf(Store.open(store), tmp_path / "model.gguf", name=family, tokenizer=False)
    with open_engine(store, EngineOptions(threads=2, context_length=len(IDS))) as engine:
        ours = engine.forward(np.array(IDS), all_logits=True)
    theirs = llama_cpp_logits(gguf, IDS, "F32")
    same_top, divergence = agreement(ours, theirs)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    print(f"{family}: top token equal at {same_top:.1%}, mean KL {divergence:.2g}, relative error {error:.2g}")
    assert ours.std() > 0.5
    assert divergence < LARGEST_KL.get(family, 1e-6)
    assert error < LARGEST_ERROR.get(family, 1e-5)
