"""Rates of experts' kernels: every format that a store may have is timed, weighed by its bytes."""

import dataclasses
import math
from pathlib import Path

import pytest

from edgemoe.bench import expert_rate
from edgemoe.bench.expert_rate import measure_experts
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.select import describe_backend
from tests.support.stores import small_store


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_rate, "PASS_SECONDS", 0.0)
    monkeypatch.setattr(expert_rate, "PASSES", 1)
    monkeypatch.setattr(expert_rate, "MATRIX_WEIGHTS", 16 * 256)


def test_every_format_is_timed_or_named() -> None:
    backend = NativeBackend(1)
    try:
        for name, fmt in FORMATS.items():
            if name not in expert_rate._NOT_TIMED:
                assert 0 < expert_rate._product_rate(backend, fmt, 256) < math.inf, name
    finally:
        backend.close()


def test_rates_of_formats_weigh_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = dataclasses.replace(describe_backend(1), backend="native")
    manifest = small_store(tmp_path / "store").manifest
    sizes = expert_rate._bytes_of_formats(manifest)
    assert sum(sizes.values()) > 0
    monkeypatch.setattr(expert_rate, "_product_rate", lambda backend, fmt, columns: float(columns))
    expected = sum(sizes.values()) / sum(size / columns for (_, columns), size in sizes.items())
    assert measure_experts(manifest, kernels) == pytest.approx(expected)
    assert measure_experts(manifest, dataclasses.replace(kernels, backend="numpy")) == math.inf
