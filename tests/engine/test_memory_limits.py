"""Peak memory from the floor to all experts resident, and the page cache: what a run leaves of the model in either."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.cached_files import drop_from_cache
from edgemoe.bench.control_group import MemoryGroup
from edgemoe.errors import UsageError
from edgemoe.io.direct import open_direct
from edgemoe.process import control_groups
from edgemoe.session.default_model import find_model
from tests.support.page_cache import cached_pages

SYNCHRONISES = True

RUN = """
import json, sys
from pathlib import Path
import numpy as np
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.process import peak_rss_bytes

model, ram, prefetch = sys.argv[1], sys.argv[2], sys.argv[3]
options = EngineOptions(int(ram) if ram.isdigit() else ram, 2, 1024, prefetch=prefetch)
with open_engine(model, options) as engine:
    prompt = np.random.default_rng(0).integers(0, engine.spec.vocab_size, 600)
    logits = engine.forward(prompt)
    tokens = []
    for _ in range(40):
        tokens.append(int(logits.argmax()))
        logits = engine.forward(tokens[-1:])
    status = Path("/proc/self/status").read_text()
    print(json.dumps({
        "tokens": tokens,
        "peak_rss_bytes": peak_rss_bytes(),
        "swapped_kib": int(status.partition("VmSwap:")[2].split()[0]),
        "budget_bytes": engine.memory.budget_bytes,
        "planned_bytes": engine.memory.planned_bytes,
        "slots": engine.memory.slots,
        "total_experts": engine.memory.total_experts,
        "misses": engine.statistics.expert_misses,
    }))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is where"),
]


def run(model: Path, ram: str, prefetch: str = "auto", program: str = RUN) -> dict[str, Any]:
    command = [sys.executable, "-c", program, str(model), ram, prefetch]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_peak_memory_is_within_the_budget_from_floor_to_resident() -> None:
    model = find_model()
    least, most = run(model, "floor"), run(model, "1TiB")
    assert most["slots"] == most["total_experts"]
    assert least["slots"] < least["total_experts"]
    first, last = least["budget_bytes"], most["planned_bytes"]
    between = [run(model, str(first + (last - first) * part // 6), "on") for part in range(1, 6)]
    assert sorted({found["slots"] for found in between}) == [found["slots"] for found in between]
    assert any(found["misses"] for found in between)
    for found in (least, *between, most):
        assert found["peak_rss_bytes"] <= found["budget_bytes"], found
        assert found["swapped_kib"] == 0
        assert found["tokens"] == least["tokens"]
    # what all experts take is held to the plan, since the budget was far above it
    assert most["peak_rss_bytes"] <= most["planned_bytes"]


TOGETHER = """
import json, sys
import numpy as np
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.process import peak_rss_bytes

model, ram, prefetch = sys.argv[1], sys.argv[2], sys.argv[3]
options = EngineOptions(int(ram) if ram.isdigit() else ram, 2, 256, prefetch=prefetch, sequences=8)
with open_engine(model, options) as engine:
    random = np.random.default_rng(0)
    texts = random.integers(0, engine.spec.vocab_size, (10, 214)).tolist()
    found = 0

    def begin(ids):
        global found
        sequence = engine.sequences.open(ids)
        found += sequence.position
        logits = engine.step({sequence: ids[sequence.position:]})
        sequence.turn.begin_decoding()
        return sequence, logits[sequence]

    for text in texts[:4]:  # their prefixes are kept
        engine.sequences.close(begin(text)[0])
    running = dict(begin(text) for text in [*texts[1:4], *texts[6:10]])
    own, logits = engine.sequence, engine.forward(texts[5])
    own.turn.begin_decoding()
    running[own] = logits
    tokens = []
    for _ in range(40):
        batch = {sequence: [int(logits.argmax())] for sequence, logits in running.items()}
        tokens.append([ids[0] for ids in batch.values()])
        running = engine.step(batch)
    every = engine.step({sequence: [1, 2] for sequence in running}, all_logits=True)
    tokens.append([int(logits[-1].argmax()) for logits in every.values()])
    print(json.dumps({
        "tokens": tokens,
        "found": found,
        "peak_rss_bytes": peak_rss_bytes(),
        "budget_bytes": engine.memory.budget_bytes,
        "planned_bytes": engine.memory.planned_bytes,
        "slots": engine.memory.slots,
        "total_experts": engine.memory.total_experts,
        "misses": engine.statistics.expert_misses,
        "prefetched": engine.statistics.cache.prefetched_reads,
    }))
"""
"""Eight sequences fill every page of the KV cache, three of them from kept prefixes."""


@pytest.mark.timeout(900)
def test_peak_memory_of_eight_sequences_with_kept_prefixes_is_within_the_budget() -> None:
    model = find_model()
    least, most = run(model, "floor", program=TOGETHER), run(model, "1TiB", program=TOGETHER)
    assert most["slots"] == most["total_experts"]
    assert least["slots"] < least["total_experts"]
    first, last = least["budget_bytes"], most["planned_bytes"]
    between = [run(model, str(first + (last - first) * part // 6), "on", TOGETHER) for part in range(1, 6)]
    assert any(found["prefetched"] for found in between)
    for found in (least, *between, most):
        print(f"{found['slots']} slots: {found['peak_rss_bytes'] >> 20} of {found['budget_bytes'] >> 20} MiB")
        assert found["peak_rss_bytes"] <= found["budget_bytes"], found
        assert found["tokens"] == least["tokens"]
        assert found["found"] == 3 * 192  # three full pages of each prompt that was run before
    assert most["peak_rss_bytes"] <= most["planned_bytes"]


def cached_bytes(path: Path) -> int:
    return sum(cached_pages(path)) * mmap.PAGESIZE


@pytest.mark.parametrize("ram", ["floor", "1TiB"])
def test_the_page_cache_does_not_take_the_model_in(tmp_path: Path, ram: str) -> None:
    model = Path(shutil.copytree(find_model(), tmp_path / "store"))
    files = sorted(model.glob("*.safetensors"))
    for path in files:
        descriptor, direct = open_direct(path)
        os.close(descriptor)
        if not direct:
            pytest.skip("this file system knows no direct reads")
        drop_from_cache([path])
    sample = files[0]
    sample.read_bytes()
    assert cached_bytes(sample) >= sample.stat().st_size * 0.9  # the measure measures
    drop_from_cache([sample])
    before = sum(map(cached_bytes, files))
    total = sum(path.stat().st_size for path in files)
    assert before < total // 20
    found = run(model, ram)
    assert found["misses"] or ram != "floor"
    assert sum(map(cached_bytes, files)) - before < total // 20


GROUP_BYTES = 150 << 20
"""Less than the bundled model needs."""


@pytest.mark.parametrize("ram", ["500MiB", "auto", "floor"])
def test_a_small_control_group_is_an_error_and_no_end_by_the_system(ram: str) -> None:
    try:
        group = MemoryGroup("limits", GROUP_BYTES)
    except UsageError as error:
        pytest.skip(f"no control group can be made here: {error}")
    command = [sys.executable, "-m", "edgemoe", "run", "--raw", "-p", "x", "--ram", ram]
    with group:
        done = subprocess.run(group.command(command), capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr  # -9 where the system ended it
        assert re.search(r"This model needs at least .* may have 150\.0 MiB in all\. Raise that limit", done.stderr)
        peak = group.usage().peak_bytes
        assert peak is None or peak < GROUP_BYTES // 2  # nothing large was read


@pytest.mark.parametrize("threads", [2, 3, 5, 7, 20])
def test_few_threads_are_an_error_that_names_the_limit_or_an_answer(threads: int) -> None:
    above = next(iter(control_groups("pids")), None)
    if above is None:
        pytest.skip("this system has no control groups for processes")
    group = above.folder / f"edgemoe-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group / "pids.max").exists():
            pytest.skip("no group here may limit processes")
        (group / "pids.max").write_text(str(threads))
        enter = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
        command = [*enter, sys.executable, "-m", "edgemoe", "run", "--raw", "-p", "x", "--threads", "2"]
        done = subprocess.run([*command, "--max-tokens", "2"], capture_output=True, text=True, check=False)
    finally:
        group.rmdir()
    cut = "the answer was cut at 2 tokens: --max-tokens N allows more\n"
    assert (done.returncode, done.stderr) == (0, cut) or (
        done.returncode == 1 and f"the control group {group} allows" in done.stderr and threads < 20
    ), done.stderr
