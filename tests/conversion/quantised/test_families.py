"""Published checkpoints of two families: DeepSeek-V4, with FP4 experts among FP8, and DeepSeek-V3 in FP8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.forecast import forecast_manifest, forecast_store
from edgemoe.conversion.formats import BY_DEFAULT
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError
from edgemoe.store.headers import read_header
from edgemoe.store.reader import Store
from tests.conversion.quantised.schemes import FP8
from tests.support.checkpoints import SMALL_DEEPSEEK, SMALL_DEEPSEEK_V4
from tests.support.quantised_checkpoints import write_quantised_checkpoint
from tests.support.quantised_writers import Written, fp8, mxfp4
from tests.support.stores import store_weights

SIZES = {"hidden_size": 96, "moe_intermediate_size": 64}
V4: dict[str, Any] = {**SMALL_DEEPSEEK_V4, **SIZES, "expert_dtype": "fp4", "quantization_config": FP8}
V3: dict[str, Any] = {**SMALL_DEEPSEEK, **SIZES, "quantization_config": FP8}


def run(path: Path) -> None:
    with open_engine(path, EngineOptions(threads=1)) as engine:
        assert np.isfinite(engine.forward(np.arange(3, 23))).all()


def names_of(folder: Path) -> list[str]:
    return list(read_header(folder / "model.safetensors", SourceError, ""))


def test_deepseek_v4_keeps_fp4_experts_and_fp8_linears(tmp_path: Path) -> None:
    experts, others = mxfp4(".weight", ".scale", signed=True), fp8("block", ".scale", "e8m0")

    def write(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        return (experts if shape in ((64, 96), (96, 64)) else others)(shape, generator)

    def quantised(name: str) -> bool:
        return ".experts." in name or name.endswith(("wq_a.weight", "wq_b.weight", "wkv.weight", "wo_b.weight"))

    dtypes = {".weight": "F8_E4M3", ".scale": "F8_E8M0"}
    meant = write_quantised_checkpoint(tmp_path / "model", V4, write, quantised, dtypes)
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    found = store_weights(store)
    assert store.manifest.quantisation["experts"]["formats"] == ["m4"]
    assert store.manifest.quantisation["experts"]["exact"] == 4 * 10 * 3
    assert "f8" in store.manifest.quantisation["attention"]["formats"]
    for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        wanted = meant[f"layers.2.ffn.experts.7.{name}.weight"]
        np.testing.assert_array_equal(found[f"layers.2.experts.7.{part}"], wanted.astype(np.float32))
    np.testing.assert_array_equal(found["layers.3.query"], meant["layers.3.attn.wq_b.weight"].astype(np.float32))
    run(store.path)
    named = forecast_manifest(V4, names_of(tmp_path / "model"), BY_DEFAULT)
    assert [one.format for one in named.dense] == [one.format for one in store.manifest.dense]
    (tmp_path / "model" / "model.safetensors").unlink()
    of_config = forecast_store(str(tmp_path / "model")).store.manifest
    for forecast in (named, of_config):
        assert [one.matrices for one in forecast.layouts] == [one.matrices for one in store.manifest.layouts]


@pytest.mark.slow
def test_deepseek_v3_counts_the_matrix_that_is_cut_and_transposed(tmp_path: Path) -> None:
    """`kv_b_proj` gives two matrices, of which one is transposed: its blocks do not outlive that."""
    writer = fp8("block", ".weight_scale_inv")

    def quantised(name: str) -> bool:
        return name.endswith("_proj.weight")

    meant = write_quantised_checkpoint(tmp_path / "model", V3, writer, quantised, {".weight": "F8_E4M3"})
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    statistics = store.manifest.quantisation
    assert statistics["experts"]["exact"] == statistics["experts"]["quantised"] == 4 * 10 * 3
    assert statistics["attention"]["exact"] == statistics["attention"]["quantised"] - 5
    found = store_weights(store)
    name = "model.layers.3.mlp.experts.7.down_proj.weight"
    np.testing.assert_array_equal(found["layers.3.experts.7.down"], meant[name].astype(np.float32))
    run(store.path)
    (tmp_path / "model" / "model.safetensors").unlink()
    forecast = forecast_store(str(tmp_path / "model")).store.manifest
    assert [one.matrices for one in forecast.layouts] == [one.matrices for one in store.manifest.layouts]
