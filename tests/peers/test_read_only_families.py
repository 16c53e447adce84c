"""Files of Grok-2 are llama.cpp's: where all experts are chosen and nothing else differs, both compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from tests.conversion.gguf.test_read_only import GROK_2, METADATA
from tests.peers.test_llama_cpp import agreement, llama_cpp_logits
from tests.peers.test_windowed_families import spread
from tests.support.checkpoints import write_checkpoint
from tests.support.gguf_files import write_gguf

pytestmark = pytest.mark.peer

IDS = np.random.default_rng(7).integers(0, 404, 100).tolist()


def test_grok_2_where_both_run_the_same_model(tmp_path: Path) -> None:
    """All experts are chosen, so their weights sum to 1; the router's cap bites nowhere, and no text is long."""
    agreed = {"attn_temperature_len": 512, "num_experts_per_tok": 5, "router_logit_softcapping": 1e6}
    config = GROK_2 | agreed | {"rope_theta": 10_000.0, "head_dim": 16}
    write_checkpoint(tmp_path / "source", config, dtype="F32")
    spread(tmp_path / "source")
    metadata = {key: value for key, value in METADATA["Grok-2"].items() if not key.startswith("rope.scaling")} | {
        "attention.output_scale": 16**-0.5,
        "attention.temperature_length": 512,
        "router_logit_softcapping": 1e6,
    }
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tokenizer = {"tokenizer.ggml.model": "none"}
    path = write_gguf(tmp_path / "model.gguf", config, tensors, metadata=metadata, tokenizer=tokenizer)
    store = convert_checkpoint(str(path), tmp_path / "store", experts="f32", dense="f32")
    with open_engine(store, EngineOptions(threads=2, context_length=len(IDS))) as engine:
        ours = engine.forward(np.array(IDS), all_logits=True)
    theirs = llama_cpp_logits(path, IDS, "F32")
    same_top, divergence = agreement(ours, theirs)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    print(f"top token equal at {same_top:.1%}, mean KL {divergence:.2g}, relative error {error:.2g}")
    assert ours.std() > 0.5
    assert divergence < 1e-6
    assert error < 1e-2  # llama.cpp takes GELU from a table of float16
