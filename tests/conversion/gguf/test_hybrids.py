"""GGUF files of families with Kimi Delta Attention or lightning attention: written, read back as the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from tests.conversion.gguf.test_mamba import exported
from tests.conversion.gguf.test_windowed import IDS
from tests.support.hybrid_models import SMALL_HYBRID


@pytest.mark.parametrize("name", SMALL_HYBRID)
def test_a_file_is_the_same_model(name: str, tmp_path: Path) -> None:
    store, path = exported(tmp_path, SMALL_HYBRID[name])
    assert model_spec(GgufSource(path).config) == model_spec(SMALL_HYBRID[name])
    back = convert_checkpoint(str(path), tmp_path / "back", experts="keep", dense="keep")
    logits = []
    for one in (store, back):
        with open_engine(one, EngineOptions(threads=1, context_length=len(IDS))) as engine:
            logits.append(engine.forward(IDS, all_logits=True))
    np.testing.assert_array_equal(*logits)
