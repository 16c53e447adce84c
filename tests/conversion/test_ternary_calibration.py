"""Experts in sub1 by the inputs of a text: nearer results in the same bytes, or in as many as are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.architectures import model_spec
from edgemoe.conversion import transfer
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.records import sized_records
from edgemoe.errors import SourceError, UsageError
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.kernels.sub1 import weights_of
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.conversion.test_calibration import calibration, logits
from tests.support.checkpoints import SMALL_MIXTRAL, folder_bytes, read_tensors, write_checkpoint
from tests.support.trits import draw_levels, draw_trits

CONFIG = SMALL_MIXTRAL | {"num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 330}
WEIGHTS = 3 * 128 * 330
EXPERT = "model.layers.0.block_sparse_moe.experts.3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its router sends no token to expert 2 of layer 0."""
    folder = tmp_path_factory.mktemp("source") / "model"
    write_checkpoint(folder, CONFIG)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    router = read_tensors(folder)[name].copy()
    router[[0, 1]] *= 100
    router[2], router[3] = -router[1], -router[0]
    return altered(folder, folder, {name: router})


@pytest.fixture(scope="module")
def calibrated(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(checkpoint, tmp_path_factory.mktemp("calibrated") / "store", calibration=calibration())


def convert(checkpoint: Path, destination: Path, **options: Any) -> Path:
    return convert_checkpoint(str(checkpoint), destination, **{"experts": "sub1", "dense": "f32"} | options)


def altered(checkpoint: Path, folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The checkpoint with other tensors in `folder`."""
    if folder != checkpoint:
        write_checkpoint(folder, CONFIG)
    (file,) = folder.glob("*.safetensors")
    save_file(read_tensors(checkpoint) | tensors, file)
    return folder


def test_results_are_nearer_than_by_rounding_in_the_same_bytes(
    checkpoint: Path, calibrated: Path, tmp_path: Path
) -> None:
    exact = logits(convert(checkpoint, tmp_path / "exact", experts="f32"))
    rounded = convert(checkpoint, tmp_path / "rounded")
    sized = convert(checkpoint, tmp_path / "sized", bits=0.95, calibration=calibration())
    errors = {one: float(np.square(logits(one) - exact).mean()) for one in (rounded, calibrated, sized)}
    assert errors[calibrated] < 0.9 * errors[rounded]
    assert errors[sized] < 0.8 * errors[rounded]
    lengths = [Store.open(one).manifest.records.length.tolist() for one in errors]
    assert lengths[0] == lengths[1]
    assert set(lengths[2]) == {int(0.95 * WEIGHTS / 8) // PAGE_BYTES * PAGE_BYTES}
    for one in errors:
        assert verify_store(Store.open(one)) == []
    assert Store.open(sized).manifest.provenance["bits"] == 0.95


@pytest.mark.slow
def test_an_interruption_changes_no_byte(checkpoint: Path, calibrated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    join, left = transfer.join_record, [0]

    class Stopped(Exception):  # noqa: N818 (no error)
        pass

    def stopping(*arguments: Any) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return join(*arguments)

    monkeypatch.setattr(transfer, "join_record", stopping)
    monkeypatch.setattr(transfer, "CHECKPOINT_BYTES", 1)
    stops = 0
    while not (tmp_path / "store").exists():
        left[0] = 1
        try:
            convert(checkpoint, tmp_path / "store", calibration=calibration())
        except Stopped:
            stops += 1
    assert stops == 3
    assert folder_bytes(tmp_path / "store") == folder_bytes(calibrated)


@pytest.mark.slow
def test_ternary_weights_stay_as_they_are(checkpoint: Path, tmp_path: Path) -> None:
    random, tensors = np.random.default_rng(3), {}
    for name, tensor in read_tensors(checkpoint).items():
        if ".experts." in name:
            trits = draw_trits(random, tensor.shape, 0.5 if ".w2." in name else 0.9)
            tensors[name] = weights_of(trits, draw_levels(random, len(trits)))
    source = altered(checkpoint, tmp_path / "ternary", tensors)
    for text in (None, calibration()):
        store = convert(source, tmp_path / f"store{text is None}", calibration=text)
        assert Store.open(store).manifest.quantisation["experts"]["relative_error"] == 0


@pytest.mark.parametrize(
    ("bits", "options", "expected"),
    [
        (0.3, {}, r"`bits`: expected a number from 0\.\d+, the fewest .* in sub1, to 1.5; found 0.3"),
        (2.0, {}, "to 1.5; found 2"),
        (float("nan"), {}, "found nan"),
        (0.9, {"calibration": None}, "`bits` of experts in sub1: expected a text"),
        (0.9, {"experts": "n2"}, "`bits` takes the place of `experts`"),
    ],
)
def test_bits_that_cannot_be_are_refused(
    checkpoint: Path, tmp_path: Path, bits: float, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        convert(checkpoint, tmp_path / "store", bits=bits, **{"calibration": calibration()} | options)
    assert not list(tmp_path.iterdir())


def test_experts_too_small_for_the_code_are_named() -> None:
    with pytest.raises(
        UsageError, match=r"experts of layer 0 are so small that sub1 takes \d+\.\d+ bits .* at most 1.5"
    ):
        sized_records(model_spec(SMALL_MIXTRAL), 1.0)


@pytest.mark.parametrize(("value", "expected"), [(np.inf, "finite numbers, found inf"), (1e6, "range of float16")])
def test_weights_that_the_code_does_not_hold_are_named(
    checkpoint: Path, tmp_path: Path, value: float, expected: str
) -> None:
    weights = read_tensors(checkpoint)[f"{EXPERT}.w1.weight"].astype(np.float32)
    weights[3, 4] = value
    source = altered(checkpoint, tmp_path / "source", {f"{EXPERT}.w1.weight": weights})
    with pytest.raises(SourceError, match=f"{EXPERT}.w1.weight: expected.*{expected}"):
        convert(source, tmp_path / "store", bits=0.95, calibration=calibration())
