"""The small model that tests of faults and warm starts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.small_engine import CONFIG, EXPERTS, answer


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "store")


@pytest.fixture(scope="session")
def expected(made: Path) -> list[int]:
    """The tokens of a greedy answer."""
    with engine_with_slots(made, EXPERTS) as engine:
        return answer(engine, 25)
