"""The memory of a process stays below its budget, with every kernel backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
engine.sequence.extend(before)  # as if they had been run
engine.forward([5])
print(peak_rss_bytes(), engine.memory.budget_bytes, engine.memory.workspace_bytes)
"""


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
