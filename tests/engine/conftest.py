"""Fixtures for tests of faults: the small model, which warm starts use too, and readers that must report faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.experts import disk_rows
from edgemoe.io.reads import ThreadedReader
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots, use_portable_reader
from tests.support.small_engine import CONFIG, EXPERTS, answer


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "store")


@pytest.fixture(scope="session")
def expected(made: Path) -> list[int]:
    """The tokens of a greedy answer."""
    with engine_with_slots(made, EXPERTS) as opened:
        return answer(opened, 25)


@pytest.fixture(params=["native", "portable"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "native":
        use_portable_reader(monkeypatch)
        monkeypatch.setattr(disk_rows, "open_reader", ThreadedReader)
    return str(request.param)
