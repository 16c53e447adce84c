"""Experts in the code sub1, whose records differ in length: converted without loss, streamed as they are resident."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgemoe.conversion import transfer
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.synthetic import synthesise
from edgemoe.errors import ReadError, SourceError, UsageError
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.kernels.sub1 import HEADER_BYTES, unpack_trits, weights_of
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import folder_bytes, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.small_engine import CONFIG, EXPERTS, PROMPT, answer
from tests.support.trits import draw_levels, draw_trits

TERNARY = CONFIG | {"hidden_size": 96, "intermediate_size": 200}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose experts are ternary, each with another share of zeros."""
    folder = tmp_path_factory.mktemp("ternary") / "source"
    write_checkpoint(folder, TERNARY, shards=2, dtype="F32")
    random = np.random.default_rng(5)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if ".experts." in name:
                expert = int(name.split(".experts.")[1].split(".")[0])
                trits = draw_trits(random, tensor.shape, 0.5 + 0.06 * expert)
                levels = draw_levels(random, len(trits)) * np.float32(1 / 4)
                tensors[name] = weights_of(trits, levels)
        save_file(tensors, path)
    return folder


@pytest.fixture(scope="module")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint(str(checkpoint), tmp_path_factory.mktemp("stored") / "store", experts="sub1")


def test_records_differ_in_length_and_hold_the_weights_of_the_checkpoint(checkpoint: Path, store: Path) -> None:
    opened = Store.open(store)
    lengths = opened.manifest.records.length
    assert len(set(lengths.tolist())) > 1
    assert opened.slot_bytes == lengths.max()
    assert opened.manifest.quantisation["experts"]["relative_error"] == 0
    assert verify_store(opened) == []
    source = {name: tensor for path in checkpoint.glob("*.safetensors") for name, tensor in load_file(path).items()}
    for layer, expert in ((0, 0), (2, 7)):
        place = opened.record(layer, expert)
        record = np.fromfile(place.path, np.uint8, place.length, offset=place.offset)
        layouts = opened.record_layouts[layer]
        assert layouts is not None
        gate_up, down, _, _ = layouts.layouts[0].weights(record)
        both = weights_of(*unpack_trits(gate_up.data)).reshape(-1, 2, 16, gate_up.columns)
        name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
        for number, part in enumerate(("w1", "w3")):
            found = both[:, number].reshape(-1, gate_up.columns)[: down.columns]
            np.testing.assert_array_equal(found, source[f"{name}.{part}.weight"])
        np.testing.assert_array_equal(weights_of(*unpack_trits(down.data)), source[f"{name}.w2.weight"])


@pytest.mark.parametrize(("slots", "threads"), [(3, 1), (7, 3), (EXPERTS, 2)])
def test_streamed_equals_resident_to_the_bit(store: Path, slots: int, threads: int) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        expected = engine.forward(PROMPT, all_logits=True)
        tokens = answer(engine, 6)
    with engine_with_slots(store, slots, threads=threads) as engine:
        np.testing.assert_array_equal(engine.forward(PROMPT, all_logits=True), expected)
        assert answer(engine, 6) == tokens
        assert (engine.statistics.expert_misses > 0) == (slots < EXPERTS)


def test_the_reference_comes_to_about_the_same(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_with_slots(store, 7) as engine:
        expected = engine.forward(PROMPT[:3], all_logits=True)
    monkeypatch.setenv("EDGEMOE_KERNELS", "reference")
    with engine_with_slots(store, 7) as engine:
        found = engine.forward(PROMPT[:3], all_logits=True)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("records", [9])
def test_an_interrupted_conversion_ends_with_the_same_bytes(
    checkpoint: Path, store: Path, tmp_path: Path, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, left = transfer.join_record, [records]

    def interrupted(*arguments: object) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return join(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "join_record", interrupted)
        patch.setattr(transfer, "CHECKPOINT_BYTES", 1)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(str(checkpoint), tmp_path / "store", experts="sub1")
    convert_checkpoint(str(checkpoint), tmp_path / "store", experts="sub1")
    assert folder_bytes(tmp_path / "store") == folder_bytes(store)


@pytest.mark.parametrize("slots", [7, EXPERTS])
def test_a_record_that_contradicts_itself_is_told_as_it_lands(store: Path, tmp_path: Path, slots: int) -> None:
    """Without a checksum, which would tell it before; nothing is computed with it, however often it is asked for."""
    shutil.copytree(store, tmp_path / "store")
    opened = Store.open(tmp_path / "store")
    for expert in range(8):
        place = opened.record(1, expert)
        with place.path.open("r+b") as file:
            start = np.fromfile(place.path, "<u4", 1, offset=place.offset + HEADER_BYTES).item()
            file.seek(place.offset + start + 2 * PANEL_ROWS * 2)
            file.write(b"\xff" * 8)
    records = replace(opened.manifest.records, crc32c=None)
    unchecked = Store(opened.path, replace(opened.manifest, records=records))
    message = r"Layer 1, expert \d: its matrices contradict themselves"
    if slots == EXPERTS:
        with pytest.raises(ReadError, match=message):
            engine_with_slots(unchecked, slots)
        return
    with engine_with_slots(unchecked, slots) as engine:
        for _ in range(2):
            with pytest.raises(ReadError, match=message):
                engine.forward(PROMPT[:4])


def test_traffic_is_that_of_the_records_not_of_the_longest(store: Path) -> None:
    manifest = Store.open(store).manifest
    lengths = manifest.records.length[manifest.records.rows(0)]
    assert lengths.min() < manifest.mean_expert_bytes(0) == int(lengths.mean()) < lengths.max()


def test_a_record_is_never_longer_than_its_slot(store: Path) -> None:
    manifest = Store.open(store).manifest
    sizes = [file.bytes for file in manifest.expert_files]
    assert manifest.records.fault(manifest.layouts, sizes) is None
    for change in (PAGE_BYTES, 1):
        lengths = manifest.records.length.copy()
        lengths[0] = manifest.layouts[0].slot_bytes + change
        altered = type(manifest.records)(**{**vars(manifest.records), "length": lengths})
        assert "expected up to" in (altered.fault(manifest.layouts, sizes) or "")


def test_random_weights_lose_nothing(tmp_path: Path) -> None:
    found = Store.open(synthesise("tiny", tmp_path / "tiny", layers=1, experts="sub1"))
    experts = found.manifest.quantisation["experts"]
    assert (experts["formats"], experts["relative_error"]) == (["sub1"], 0)
    assert experts["bits_per_weight"] < 1.1  # of which pages fill up a third, in experts of 8 KB


def test_what_sub1_cannot_hold_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`dense`: expected one of"):
        convert_checkpoint(str(checkpoint), tmp_path / "store", dense="sub1")
    with pytest.raises(UsageError, match="known once the weights are encoded"):
        forecast_store(str(checkpoint), experts="sub1")
    with pytest.raises(SourceError, match="experts without biases"):
        synthesise("gpt-oss-20b", tmp_path / "biased", layers=1, experts="sub1")
