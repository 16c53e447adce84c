"""The modules that a whole answer and a benchmark's worker import: never Numba with the native kernels, nor devices."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import edgemoe

assert "numpy" not in sys.modules
with edgemoe.load(ram="floor") as model:
    assert model.engine.backend.name == "native"
    model.chat(max_tokens=4).ask("Hello!")
devices = {name for name in sys.modules if "device" in name and name.startswith("edgemoe.")}
others = {"numba", "llvmlite", "rich", "typer", "torch", "importlib.metadata", "statistics"}
print(sorted(devices | (others & sys.modules.keys())))
"""


def test_an_answer_on_the_native_path_imports_neither_numba_nor_the_terminal_nor_devices() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_worker_of_a_benchmark_holds_no_more_than_an_answer_does() -> None:
    program = (
        "import sys, edgemoe.bench.edgemoe_worker; print(sorted({'numba', 'llvmlite', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
