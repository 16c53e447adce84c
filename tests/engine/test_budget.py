"""The memory of a process stays below its budget, with every kernel backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint

CONTEXT = 24_576
WIDE_HEADS = SMALL_MIXTRAL | {
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": CONTEXT,
}

AT_THE_END_OF_THE_CONTEXT = """
import sys
import numpy as np
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.process import peak_rss_bytes

engine = open_engine(sys.argv[1], EngineOptions("floor", 8, int(sys.argv[2])))
before = np.zeros(engine.context_length - 1, np.int64)
engine.sequence.reserve(len(before))
engine.sequence.end_run(before)  # as if they had been run
engine.forward([5])
print(peak_rss_bytes(), engine.memory.budget_bytes, engine.memory.workspace_bytes)
"""


@pytest.mark.slow
def test_a_long_context_on_many_threads_with_the_portable_kernels(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", WIDE_HEADS)
    store = convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store")
    command = [sys.executable, "-c", AT_THE_END_OF_THE_CONTEXT, str(store), str(CONTEXT)]
    environment = {**os.environ, "EDGEMOE_KERNELS": "jit"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, budget, workspace = map(int, done.stdout.split())
    assert peak <= budget
    # Each thread may hold the keys and values of a head in float32, besides the cache. How many do at one time is the
    # system's to say, so the plan is asked, not the peak.
    assert workspace >= 8 * 2 * CONTEXT * 128 * 4


WINDOWS_ALONE = {
    "model_type": "gpt_oss",
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 32,
    "head_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["sliding_attention"] * 2,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default"},
}

A_LONG_TEXT = """
import sys
import numpy as np
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.process import peak_rss_bytes

engine = open_engine(sys.argv[1], EngineOptions("floor", 2, int(sys.argv[2])))
ids = np.random.default_rng(0).integers(0, 100, engine.context_length)
engine.forward(ids[:-100])
engine.rewind(len(ids) // 3)
engine.forward(ids[:100])
print(peak_rss_bytes(), engine.memory.budget_bytes, engine.memory.windows[0].whole_bytes, engine.memory.kv_cache_bytes)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_text_much_longer_than_the_windows_stays_within_the_floor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", WINDOWS_ALONE)
    store = convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store")
    command = [sys.executable, "-c", A_LONG_TEXT, str(store), "16384"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, budget, whole, kept = map(int, done.stdout.split())
    assert peak <= budget
    assert whole == 2 * 16_384 * 2 * 8 * 128 * 2  # layers, keys and values of eight heads in float16
    assert kept < whole / 4
