"""GGUF files of small models of random weights, each made once for all tests of its module."""

from __future__ import annotations

import functools

import pytest

from tests.support.gguf_round_trip import Exported, exported_model
from tests.support.hybrid_models import SMALL_HYBRID
from tests.support.mamba_models import SMALL_MAMBA
from tests.support.stream_models import SMALL_STREAMS
from tests.support.windowed_models import SMALL_MODELS


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gives the store of a small model by its name, and the GGUF of it; no test writes to them."""
    models = {**SMALL_HYBRID, **SMALL_MAMBA, **SMALL_STREAMS, **SMALL_MODELS}
    assert len(models) == sum(map(len, (SMALL_HYBRID, SMALL_MAMBA, SMALL_STREAMS, SMALL_MODELS)))
    return functools.cache(lambda name: exported_model(tmp_path_factory.mktemp("exported"), models[name]))
