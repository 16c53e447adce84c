"""What the system says of this process."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgemoe import process


def test_peak_memory_is_of_this_process_and_not_of_the_one_that_began_it() -> None:
    parent = """
import subprocess, sys
held = bytearray(400 << 20)
program = "from edgemoe.process import peak_rss_bytes; print(peak_rss_bytes())"
print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 300 << 20


def test_memory_is_what_psutil_says() -> None:
    assert process.rss_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert process.total_memory_bytes() == psutil.virtual_memory().total
    assert process.available_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_without_proc_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> str:
        raise FileNotFoundError

    expected = process.rss_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", missing)
        found = process.rss_bytes(), process.available_memory_bytes(), process.peak_rss_bytes()
        total = process.total_memory_bytes()
    assert found[0] == pytest.approx(expected, rel=0.1)
    assert 0 < found[1] < total
    assert found[2] >= 0.9 * expected


def test_a_core_with_two_threads_is_one_core(tmp_path: Path) -> None:
    for number, siblings in enumerate(["0,4", "1,5", "0,4", "1,5", "2-3"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    (tmp_path / "cpufreq" / "topology").mkdir(parents=True)
    assert process.physical_cores(tmp_path) == 3
    assert process.physical_cores(tmp_path / "missing") == psutil.cpu_count(logical=False)
