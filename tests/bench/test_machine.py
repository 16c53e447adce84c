"""The machine and its memory."""

from pathlib import Path

import pytest

from edgemoe.bench import roofline
from edgemoe.bench.machine import describe_machine, last_level_cache_bytes
from edgemoe.bench.roofline import ReadRates, measure_read_rate
from edgemoe.errors import EdgemoeError
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.select import KernelChoice


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["processor"]
    assert machine["memory_bytes"] > 1 << 28
    assert set(machine) == {
        *("python", "python_keeps_bytecode", "system", "processor"),
        *("cores", "last_level_cache_bytes", "memory_bytes"),
    }


def test_the_largest_cache(tmp_path: Path) -> None:
    for number, size in enumerate(("48K", "2048K", "480M", "?")):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        (folder / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 480 << 20
    assert last_level_cache_bytes(tmp_path / "none") is None


def test_the_read_rate_is_that_of_the_whole_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    with ReadRates(KernelChoice("native", "generic", 2, "")) as rates:
        monkeypatch.setattr(roofline, "available_bytes", lambda: 1000 << 20)
        rate = measure_read_rate(rates._backend, 1 << 20)
        assert rate.buffer_bytes == 1 << 20
        sizes = []

        def read_memory(backend: NativeBackend, memory: object) -> tuple[int, int]:
            sizes.append(memory.nbytes)  # type: ignore[attr-defined]
            return 1000 * len(sizes), 0

        monkeypatch.setattr(NativeBackend, "read_memory", read_memory)
        monkeypatch.setattr(roofline, "BUFFER_BYTES", 1 << 30)
        monkeypatch.setattr(roofline, "available_bytes", lambda: (400 << 20) + 1000)
        found = rates()
        assert set(sizes) == {found.buffer_bytes}
        assert 0 <= (100 << 20) + 250 - found.buffer_bytes < 64
        assert found.bytes_per_s == found.buffer_bytes / 1e-6  # the fastest pass
        monkeypatch.setattr(roofline, "available_bytes", lambda: 100 << 20)
        with pytest.raises(EdgemoeError, match="Too little memory"):
            rates()
