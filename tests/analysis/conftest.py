"""A tiny model with exact weights, and random texts for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.calibration.settings import Windows
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint


def random_windows(vocab_size: int = 101, count: int = 3, length: int = 40, seed: int = 0) -> Windows:
    ids = np.random.default_rng(seed).integers(1, vocab_size, (count, length)).astype(np.int32)
    ids[:, 0] = 0
    return Windows(ids, 1)


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers of four experts."""
    folder = tmp_path_factory.mktemp("analysis") / "mixtral"
    write_checkpoint(folder, SMALL_MIXTRAL)
    return folder


@pytest.fixture(scope="session")
def exact(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Its store in float32."""
    return Store.open(
        convert_checkpoint(str(mixtral), tmp_path_factory.mktemp("exact") / "store", experts="f32", dense="f32")
    )
