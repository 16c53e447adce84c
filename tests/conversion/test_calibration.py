"""Calibrated conversion: nearer results at the same size, the same bytes after an interruption, and plain refusals."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.architectures import model_spec
from edgemoe.conversion.calibration import passing
from edgemoe.conversion.calibration.layers import within
from edgemoe.conversion.calibration.settings import Calibration, Windows
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError, UsageError
from edgemoe.model.build import build_graph
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import (
    SMALL_LFM2,
    SMALL_MIXTRAL,
    SMALL_QWEN,
    folder_bytes,
    read_tensors,
    write_checkpoint,
)

TEXT = "a text"


def tokenise(files: Mapping[str, bytes], vocabulary: int, text: str, tokens: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Stands for a tokenizer: a text's length is its number of tokens in tens."""
    ids = np.random.default_rng(1).integers(1, vocabulary // 2, 10 * len(text)).astype(np.int32)
    return ids[:tokens], (0,)


def calibration(text: str = 60 * TEXT, **options: Any) -> Calibration:
    return Calibration(text, "text.txt", tokenise, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    write_checkpoint(folder, SMALL_MIXTRAL)
    return folder


@pytest.fixture(scope="module")
def calibrated(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("calibrated") / "store"
    return convert_checkpoint(
        str(checkpoint), destination, experts="n2", dense="n3", head="q8", calibration=calibration()
    )


def logits(store: Path) -> np.ndarray:
    with open_engine(store, EngineOptions()) as engine:
        return engine.forward(np.arange(1, 41) % 50, all_logits=True)


def test_a_calibrated_store_is_whole_and_says_so(calibrated: Path) -> None:
    verify_store(Store.open(calibrated))
    said = Store.open(calibrated).manifest.provenance["calibration"]
    assert said.startswith("error feedback, 16384 tokens of text.txt (")
    assert not (calibrated.parent / "store.partial").exists()


def test_results_are_nearer_than_by_rounding(checkpoint: Path, calibrated: Path, tmp_path: Path) -> None:
    exact = logits(convert_checkpoint(str(checkpoint), tmp_path / "exact", experts="f32", dense="f32"))
    rounded = convert_checkpoint(str(checkpoint), tmp_path / "rounded", experts="n2", dense="n3", head="q8")
    errors = [float(np.square(logits(store) - exact).mean()) for store in (calibrated, rounded)]
    assert errors[0] < 0.9 * errors[1]


def test_an_interruption_changes_no_byte(checkpoint: Path, calibrated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The pass ends after the first, second, ... matrix, each run going on from there."""

    class Stopped(Exception):  # noqa: N818 (no error)
        pass

    store, left = tmp_path / "store", [0]
    put = passing.Transfer.put

    def stopping(transfer: Any, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            transfer.checkpoint()
            raise Stopped
        put(transfer, *arguments)

    monkeypatch.setattr(passing.Transfer, "put", stopping)
    options: dict[str, Any] = {"experts": "n2", "dense": "n3", "head": "q8", "calibration": calibration()}
    stops = 0
    while not store.exists():
        left[0] = 4 + 4 * stops
        try:
            convert_checkpoint(str(checkpoint), store, **options)
        except Stopped:
            stops += 1
    assert stops > 2
    assert folder_bytes(store) == folder_bytes(calibrated)


def test_importance_alone_is_another_conversion(checkpoint: Path, calibrated: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(calibrated, store)
    options: dict[str, Any] = {"experts": "n2", "dense": "n3", "head": "q8"}
    assert convert_checkpoint(str(checkpoint), store, **options, calibration=calibration()) == store
    for other in (None, calibration(feedback=False), calibration(60 * TEXT + "."), calibration(tokens=100)):
        with pytest.raises(UsageError, match="another conversion"):
            convert_checkpoint(str(checkpoint), store, **options, calibration=other)


def test_what_cannot_be_calibrated_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    for experts, text, expected in (
        ("q4", TEXT * 60, "a format with a trellis"),
        ("n1+n3", TEXT * 60, "`experts=n1.n3`: experts in two planes are rounded without a text"),
        ("n2", "", "expected a text of at least 64 tokens, found 0 in text.txt"),
        ("n2", "abc", "expected a text of at least 64 tokens, found 30 in text.txt"),
    ):
        with pytest.raises(UsageError, match=expected):
            convert_checkpoint(str(checkpoint), tmp_path / "store", experts=experts, calibration=calibration(text))
    assert not list(tmp_path.iterdir())


def test_a_short_text_is_remarked_on(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    few = calibration(8 * TEXT[:4])
    convert_checkpoint(str(checkpoint), tmp_path / "store", experts="n2", calibration=few, notice=said.append)
    assert any("only 255 tokens" in text for text in said)  # whole windows


def test_memory_bounds_the_number_of_tokens() -> None:
    graph = build_graph(model_spec(SMALL_MIXTRAL))
    windows = Windows(np.zeros((64, 256), np.int32), 1)
    counts = [len(within(most, graph, windows).ids) for most in (1 << 40, 16 << 20, 4 << 20, 1)]
    assert counts[0] == 64 > counts[1] > counts[2] > counts[3] == 1


def test_an_expert_that_no_token_chose(tmp_path: Path) -> None:
    """It is weighed by its layer's tokens."""
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(checkpoint, SMALL_MIXTRAL)
    (file,) = checkpoint.glob("*.safetensors")
    tensors = read_tensors(checkpoint)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    tensors[name] = np.where(np.arange(4)[:, None] == 2, -tensors[name][1:2], tensors[name])
    tensors[name][[0, 1]] *= 100
    tensors[name][3] = -tensors[name][0]
    save_file(tensors, file)
    store = convert_checkpoint(str(checkpoint), tmp_path / "store", experts="n2", calibration=calibration())
    assert np.isfinite(logits(store)).all()


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(checkpoint, SMALL_MIXTRAL)
    (file,) = checkpoint.glob("*.safetensors")
    tensors = read_tensors(checkpoint)
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    tensors[name][3, 4] = np.nan
    save_file(tensors, file)
    with pytest.raises(SourceError, match=f"{name}.*row 3, column 4 is nan"):
        convert_checkpoint(str(checkpoint), tmp_path / "store", experts="n2", calibration=calibration())


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL_LFM2, SMALL_QWEN], ids=["lfm2", "qwen3.5"])
def test_recurrent_layers_and_shared_experts(config: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", config)
    stores = [
        convert_checkpoint(
            str(tmp_path / "checkpoint"), tmp_path / name, experts=experts, dense=dense, head="q8", **own
        )
        for name, experts, dense, own in (
            ("exact", "f32", "f32", {}),
            ("rounded", "n2", "n3", {}),
            ("calibrated", "n2", "n3", {"calibration": calibration()}),
        )
    ]
    exact, *found = (logits(store) for store in stores)
    errors = [float(np.square(one - exact).mean()) for one in found]
    assert errors[1] < 0.9 * errors[0]
