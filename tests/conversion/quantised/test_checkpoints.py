"""Whole checkpoints of every scheme become stores that hold the same numbers, and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.statistics import exactness
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError
from edgemoe.store.reader import Store
from tests.conversion.quantised.schemes import CASES
from tests.support.checkpoints import SMALL_MIXTRAL
from tests.support.quantised_checkpoints import write_quantised_checkpoint
from tests.support.quantised_writers import Written, bitsandbytes, nvfp4, packed
from tests.support.stores import store_weights

CONFIG: dict[str, Any] = dict(SMALL_MIXTRAL, hidden_size=64, intermediate_size=160)
BY_DEFAULT = ("awq", "fp8 in blocks")
BY_ROWS = [
    pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow)
    for name in CASES
    if "128" not in name and "64" not in name and name not in ("mlx, 4 bits", "mlx, 3 bits")
]
"""Schemes whose groups fit rows of 64 and of 160."""


def is_quantised(name: str) -> bool:
    return ".experts." in name or name.endswith(("q_proj.weight", "o_proj.weight"))


def write(folder: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    case = CASES[name]
    config = {**CONFIG, case.key: case.settings}
    return write_quantised_checkpoint(folder, config, case.writer, is_quantised, case.dtypes)


def logits_of(path: Path) -> np.ndarray[Any, Any]:
    with open_engine(path, EngineOptions(threads=1)) as engine:
        return engine.forward(np.arange(3, 23), all_logits=True).copy()


@pytest.mark.parametrize("name", BY_ROWS)
def test_a_checkpoint_is_kept_and_runs(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    meant = write(tmp_path / "model", name)
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    statistics = store.manifest.quantisation
    assert statistics["experts"]["formats"] == [case.format]
    assert (statistics["experts"]["quantised"], statistics["experts"]["exact"]) == (24, 24)
    assert exactness(statistics) == "Of 28 quantised tensors all stand for the same numbers as before."
    found = store_weights(store)
    for layer in range(2):
        own = f"layers.{layer}"
        pairs = [(f"{own}.query", f"model.{own}.self_attn.q_proj.weight")]
        for expert in range(4):
            parts = {"gate": "w1", "down": "w2", "up": "w3"}.items()
            of_expert = f"model.{own}.block_sparse_moe.experts.{expert}"
            pairs += [(f"{own}.experts.{expert}.{part}", f"{of_expert}.{ending}.weight") for part, ending in parts]
        for stored, source in pairs:
            rounded = 1.2e-7 if case.format == "nv4" else 0  # products of two scales are rounded on the way
            np.testing.assert_allclose(found[stored], meant[source].astype(np.float32), rtol=rounded, atol=0)
    forecast = forecast_store(str(tmp_path / "model")).store.manifest
    assert [layout.matrices for layout in forecast.layouts] == [layout.matrices for layout in store.manifest.layouts]
    (tmp_path / "floats").mkdir()
    save_file(
        {name: values.astype(np.float32) for name, values in meant.items()}, tmp_path / "floats/model.safetensors"
    )
    (tmp_path / "floats" / "config.json").write_text(json.dumps(CONFIG))
    floats = convert_checkpoint(str(tmp_path / "floats"), tmp_path / "float store", experts="f32", dense="f32")
    wanted, logits = logits_of(floats), logits_of(store.path)
    assert np.corrcoef(logits.reshape(-1), wanted.reshape(-1))[0, 1] > 0.95


@pytest.mark.parametrize("double", [pytest.param(False, marks=pytest.mark.slow), True])
def test_4_bits_of_bitsandbytes_are_converted_as_the_numbers_that_it_computes(tmp_path: Path, double: bool) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    meant = write_quantised_checkpoint(tmp_path / "model", config, bitsandbytes("nf4", double), is_quantised, {})
    notices: list[str] = []
    path = convert_checkpoint(
        str(tmp_path / "model"), tmp_path / "store", experts="f32", dense="f32", notice=notices.append
    )
    assert "28 matrices of 4 bits (bitsandbytes) are converted as the float32 numbers" in " ".join(notices)
    found = store_weights(Store.open(path))
    for expert in range(4):
        name = f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight"
        np.testing.assert_array_equal(found[f"layers.1.experts.{expert}.down"], meant[name].astype(np.float32))
    np.testing.assert_array_equal(found["layers.0.query"], meant["model.layers.0.self_attn.q_proj.weight"])


def test_scales_that_float16_does_not_hold_are_refused_with_the_way_out(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": CASES["int4 in 32"].settings}

    def tiny(shape: tuple[int, ...], generator: np.random.Generator) -> Written:
        tensors, meant = packed(4, 32)(shape, generator)
        halves = tensors[".weight_scale"].copy()
        halves[3, 1] = 0x2F81  # 2.3e-10
        numbers = meant.copy()
        factor = np.float64(np.uint32(0x2F810000).view(np.float32)) / bfloat16_value(tensors[".weight_scale"][3, 1])
        numbers[3, 32:64] *= factor
        return {**tensors, ".weight_scale": halves}, numbers

    meant = write_quantised_checkpoint(tmp_path / "model", config, tiny, is_quantised, {})
    with pytest.raises(SourceError, match=r"w\d\.weight: expected scales that float16 holds.*`experts`.*f32") as caught:
        convert_checkpoint(str(tmp_path / "model"), tmp_path / "store")
    assert caught.value.hint
    path = convert_checkpoint(str(tmp_path / "model"), tmp_path / "floats", experts="f32", dense="f32")
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    np.testing.assert_array_equal(
        store_weights(Store.open(path))["layers.1.experts.2.down"], meant[name].astype(np.float32)
    )


def bfloat16_value(half: np.generic) -> float:
    return float((np.array([half]).astype(np.uint32) << 16).view(np.float32)[0])


def test_the_reciprocal_of_a_divisor_is_counted_as_rounded(tmp_path: Path) -> None:
    case = CASES["nvfp4 of compressed-tensors"]
    config = {**CONFIG, "quantization_config": case.settings}
    writer = nvfp4(divides=True, exact=False)
    write_quantised_checkpoint(tmp_path / "model", config, writer, is_quantised, case.dtypes)
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    experts = store.manifest.quantisation["experts"]
    assert experts["exact"] < experts["quantised"] == 24
    assert 0 < experts["relative_error"] < 1e-7


def test_other_formats_round_and_say_so(tmp_path: Path) -> None:
    write(tmp_path / "model", "int4 in 32")
    path = convert_checkpoint(str(tmp_path / "model"), tmp_path / "store", experts="q4m", dense="m4")
    statistics = Store.open(path).manifest.quantisation
    assert (statistics["experts"]["exact"], statistics["attention"]["exact"]) == (24, 0)
    assert exactness(statistics) == "Of 28 quantised tensors 24 stand for the same numbers as before."


def test_static_scales_of_activations_are_left_out_and_said(tmp_path: Path) -> None:
    case = CASES["fp8 of modelopt"]
    config = {**CONFIG, "quantization_config": case.settings}
    more = {f"model.layers.{n}.self_attn.q_proj.input_scale": np.ones(1, np.float32) for n in range(2)}
    write_quantised_checkpoint(tmp_path / "model", config, case.writer, is_quantised, case.dtypes, more)
    notices: list[str] = []
    convert_checkpoint(str(tmp_path / "model"), tmp_path / "store", notice=notices.append)
    assert "2 tensors, such as model.layers.0.self_attn.q_proj.input_scale, are left out" in " ".join(notices)
