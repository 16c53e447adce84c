"""Calibrated conversion: nearer results at the same size, the same bytes after an interruption, and plain refusals."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.architectures import model_spec
from edgemoe.conversion.bits import NAMES
from edgemoe.conversion.calibration import advice, layers, passing
from edgemoe.conversion.calibration.layers import within
from edgemoe.conversion.calibration.settings import Calibration, TextTokens, Windows
from edgemoe.conversion.calibration.weights import SourceWeights, StoreWeights
from edgemoe.conversion.expert_formats import ExpertFormats
from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.progress import Progress
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


def tokenise(files: Mapping[str, bytes], vocabulary: int, text: str, tokens: int) -> TextTokens:
    """Stands for a tokenizer: a text's length is its number of tokens in tens."""
    ids = np.random.default_rng(1).integers(1, vocabulary // 2, 10 * len(text)).astype(np.int32)
    return TextTokens(ids[:tokens], (0,))


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


def louder(checkpoint: Path, folder: Path, *parts: str) -> Path:
    """The checkpoint in another folder, with twenty times the weights whose names have all these parts."""
    shutil.copytree(checkpoint, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = read_tensors(folder)
    for name, tensor in tensors.items():
        tensors[name] = 20 * tensor if all(part in name for part in parts) else tensor
    save_file(tensors, file)
    return folder


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


def test_experts_that_do_not_fit_memory_together_change_no_byte(
    checkpoint: Path, calibrated: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(layers, "ARENA_BYTES", 1)
    options: dict[str, Any] = {"experts": "n2", "dense": "n3", "head": "q8", "calibration": calibration()}
    assert folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "store", **options)) == folder_bytes(calibrated)


@pytest.mark.parametrize("experts", ["n2", "sub1"])
def test_what_is_lost_on_held_out_text_is_told_as_the_engine_has_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, experts: str
) -> None:
    """The divergence is that of whole runs of both stores, and no byte depends on whether it is measured."""
    source = str(louder(checkpoint, tmp_path / "checkpoint", ".w2."))
    options: dict[str, Any] = {"experts": experts, "dense": "n3", "head": "q8"}
    found: list[Any] = []
    monkeypatch.setattr(advice, "advice", lambda plan, loss: found.append(loss) or ["And so on."])
    said: list[str] = []
    told: list[Progress] = []
    measured = calibration(tokens=200, held_out=600)
    tell: dict[str, Any] = {"notice": said.append, "progress": told.append}
    store = convert_checkpoint(source, tmp_path / "store", **options, calibration=measured, **tell)
    unmeasured = calibration(tokens=200, held_out=0)
    other = convert_checkpoint(source, tmp_path / "other", **options, calibration=unmeasured)
    assert folder_bytes(store) == folder_bytes(other)
    assert said[-2].startswith("On ")
    assert said[-1] == "And so on."
    compared = [one for one in told if one.comparing]
    assert compared == told[-len(compared) :]
    assert compared[-1].shard == "layer 2 of 2"
    assert compared[-1].done_bytes == compared[-1].total_bytes > 0
    exact = convert_checkpoint(source, tmp_path / "exact", experts="keep", dense="keep", head="keep")
    windows = Windows.of(measured, {}, SMALL_MIXTRAL["vocab_size"], 1000).held_out()
    (loss,) = found
    total, same = 0.0, 0
    with open_engine(store, EngineOptions()) as mine, open_engine(exact, EngineOptions()) as reference:
        for ids in windows.ids:
            rows = []
            for engine in (mine, reference):
                engine.rewind(0)
                logits = engine.forward(ids, all_logits=True)[: len(ids) - 1].astype(np.float64)
                rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
            total += float((np.exp(rows[1]) * (rows[1] - rows[0])).sum())
            same += int((rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).sum())
    assert loss.positions == windows.ids.size - len(windows.ids)
    assert loss.divergence.nats.mean == pytest.approx(total / loss.positions, rel=1e-4)
    assert loss.divergence.same_top.mean == pytest.approx(same / loss.positions)
    assert 0 < loss.divergence.nats.mean < 1


def test_tokens_are_held_out_behind_those_that_calibrate() -> None:
    def windows(**options: int) -> Windows:
        return Windows.of(calibration(2000 * TEXT, **options), {}, 50, 1000)

    whole = tokenise({}, 50, 2000 * TEXT, 1 << 30).ids
    plain = windows(tokens=5110, held_out=2044)
    assert (len(plain.ids), plain.held) == (14, 4)
    np.testing.assert_array_equal(plain.ids[4:, 1:].reshape(-1), whole[:5110])
    np.testing.assert_array_equal(plain.held_out().ids[:, 1:].reshape(-1), whole[5110 : 5110 + 2044])
    short = Windows.of(calibration(850 * TEXT[:1], tokens=16384), {}, 50, 1000)
    assert (short.held, len(short.ids)) == (2, 2 + 14)  # an eighth of 8,500 tokens
    assert Windows.of(calibration(450 * TEXT[:1]), {}, 50, 1000).held == 0


@pytest.mark.parametrize("text", [pytest.param(False, marks=pytest.mark.slow), True], ids=["weights", "text"])
def test_bits_are_spent_by_what_is_measured(checkpoint: Path, tmp_path: Path, text: bool) -> None:
    """A layer whose experts matter more, as their outputs are larger, gets more bits; the same command goes on."""
    folder = louder(checkpoint, tmp_path / "checkpoint", "layers.1", ".w2.") if text else checkpoint
    options: dict[str, Any] = {"bits": 3.4, "calibration": calibration(held_out=0) if text else None}
    store = convert_checkpoint(str(folder), tmp_path / "store", **options)
    provenance = Store.open(store).manifest.provenance
    assert provenance["bits"] == 3.4
    formats = ExpertFormats.parse(provenance["experts"], NAMES)
    ranks = [[NAMES.index(formats.of(part, layer, range(2))) for part in ("up", "down")] for layer in range(2)]
    assert ranks[1][1] >= ranks[0][1] + text
    assert convert_checkpoint(str(folder), tmp_path / "store", **options) == store
    with pytest.raises(UsageError, match="another conversion"):
        convert_checkpoint(str(folder), tmp_path / "store", bits=3.0, calibration=options["calibration"])


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


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["n2", "sub1"])
def test_a_text_that_is_one_token_over_and_over(checkpoint: Path, tmp_path: Path, experts: str) -> None:
    """So is a text in another language for a tokenizer without its characters; moments are nearly of one input."""

    def unknown(files: Mapping[str, bytes], vocabulary: int, text: str, tokens: int) -> TextTokens:
        return TextTokens(np.full(min(tokens, len(text)), 3, np.int32), (0,))

    foreign = Calibration(1000 * "\N{CJK UNIFIED IDEOGRAPH-6587}", "text.txt", unknown)
    store = convert_checkpoint(str(checkpoint), tmp_path / "store", experts=experts, dense="n3", calibration=foreign)
    assert verify_store(Store.open(store)) == []
    assert np.isfinite(logits(store)).all()


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


@pytest.mark.parametrize("choice", [FormatChoice("keep", "keep", "keep"), FormatChoice("n2,up=n3", "n3", "q8")])
def test_weights_of_a_checkpoint_are_those_that_its_store_would_have(tmp_path: Path, choice: FormatChoice) -> None:
    write_checkpoint(tmp_path / "checkpoint", SMALL_QWEN)
    store = Store.open(convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store", **vars(choice)))
    with closing(open_source(str(tmp_path / "checkpoint"))) as source:
        stored, read = StoreWeights(store), SourceWeights(source, choice)
        for tensor in store.manifest.dense:
            both = [getattr(value, "data", value) for value in (stored.dense(tensor.name), read.dense(tensor.name))]
            assert np.array_equal(*(np.asarray(data).view(np.uint8).reshape(-1) for data in both)), tensor.name
        for record in store.manifest.records:
            slots = np.zeros((2, store.slot_bytes), np.uint8)
            stored.load_record(record.layer, record.expert, slots[0])
            read.load_record(record.layer, record.expert, slots[1])
            assert np.array_equal(*slots)
