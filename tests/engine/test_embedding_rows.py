"""The embedding left on disk: the same answers to the bit, and faults that are told and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import ReadError, StoreError
from edgemoe.experts import disk_rows
from edgemoe.experts.disk_rows import EMBEDDING_BATCH, saved_bytes
from edgemoe.io import reads
from edgemoe.kernels.reads import RecordRead
from edgemoe.model.description import store_spec
from edgemoe.quant.quantise import TARGETS
from edgemoe.store.panels import Panels
from edgemoe.store.reader import Store
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.pairs import default_pairs
from tests.support.small_engine import CONFIG, EXPERTS, SLOTS
from tests.support.stores import flip_bit

VOCABULARY = 6_003
IDS = np.concatenate([np.random.default_rng(3).integers(0, VOCABULARY, 70), [0, VOCABULARY - 1, 5, 5, 6]])
NAMED = r"^The embedding of tokens \d+ to \d+: "


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("whole"), "q8")


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "store")


def convert(folder: Path, dense: str, **changes: object) -> Path:
    write_checkpoint(folder / "source", {**CONFIG, "vocab_size": VOCABULARY, **changes})
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense=dense)


def logits(engine: Engine) -> np.ndarray:
    """Logits of a prompt of several batches, some of whose rows share a panel, and of tokens one by one."""
    engine.rewind(0)
    prompt = engine.forward(IDS[:-3], all_logits=True)
    return np.concatenate([prompt, [engine.forward([token]) for token in IDS[-3:]]])


@pytest.mark.parametrize(("slots", "dense"), default_pairs([SLOTS, EXPERTS], TARGETS, every=5))
def test_rows_from_disk_are_those_in_memory(slots: int, dense: str, tmp_path: Path) -> None:
    made = convert(tmp_path, dense)
    with engine_with_slots(made, slots) as engine:
        expected = logits(engine)
    with engine_with_slots(made, slots, embedding_resident=False, threads=2) as engine:
        engine.keep_ledger()
        np.testing.assert_array_equal(logits(engine), expected)
        ledger = engine.ledger
        assert ledger is not None
        assert ledger.ns["embedding"] > 0
        assert ledger.ns["disk_wait"] > 0
        assert engine.traffic.weight_bytes["embedding"] > 0


@pytest.mark.parametrize("kernels", ["jit", "reference"])
def test_rows_from_disk_on_the_portable_kernels(store: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    monkeypatch.setattr(disk_rows, "open_reader", reads.ThreadedReader)
    found = []
    for embedding_resident in (True, False):
        with engine_with_slots(store, EXPERTS, embedding_resident=embedding_resident, direct_reads=False) as engine:
            engine.rewind(0)
            found.append(engine.forward(IDS[-20:], all_logits=True))
    np.testing.assert_array_equal(*found)


def test_what_it_saves_is_planned(store: Path, tmp_path: Path) -> None:
    opened = Store.open(store)
    assert opened.embedding is not None
    assert 0 < saved_bytes(opened) < opened.embedding.bytes
    assert model_sizes(opened, store_spec(opened)).embedding_bytes == saved_bytes(opened)
    (tmp_path / "tied").mkdir()
    tied = Store.open(convert(tmp_path / "tied", "q8", tie_word_embeddings=True))
    assert model_sizes(tied, store_spec(tied)).embedding_bytes == 0


def test_a_budget_for_everything_has_the_embedding_in_memory(store: Path) -> None:
    with open_engine(store, EngineOptions(ram="floor", threads=1), meanwhile=lambda: None) as engine:
        assert not engine.memory.embedding_resident
        floor = engine.memory
    with open_engine(store, EngineOptions(ram="2GiB", threads=1), meanwhile=lambda: None) as engine:
        assert engine.memory.embedding_resident
        assert engine.memory.dense_bytes - floor.dense_bytes == saved_bytes(Store.open(store))


def test_a_damaged_embedding_is_told_as_it_is_opened(store: Path) -> None:
    place = Store.open(store).embedding
    assert place is not None
    flip_bit(Store.open(store).dense_path, place.offset + place.bytes // 2)
    with pytest.raises(StoreError, match="embedding at byte 4096 is not what was written"):
        engine_with_slots(store, SLOTS, embedding_resident=False)


@pytest.mark.parametrize("fault", ["flipped", "cut short", "failing"])
def test_a_fault_is_told_and_the_answer_right_once_it_is_gone(store: Path, reader: str, fault: str) -> None:
    path = Store.open(store).dense_path
    content = path.read_bytes()
    place = Panels(path, Store.open(store).embedding)  # type: ignore[arg-type]
    with engine_with_slots(store, SLOTS, embedding_resident=False) as engine:
        expected = logits(engine)
        engine.rewind(3)
        rows = engine._loaded._embedding_rows
        assert rows is not None
        kept = os.dup(rows._descriptor)
        if fault == "flipped":
            for panel in range(place.count):
                flip_bit(path, place.tensor.offset + panel * place.panel_bytes + 7)
        elif fault == "cut short":
            os.truncate(path, place.tensor.offset)
        else:
            with Path(os.devnull).open("wb") as write_only:
                os.dup2(write_only.fileno(), rows._descriptor)
        for _ in range(2):
            with pytest.raises(ReadError, match=NAMED):
                engine.forward([9])
            assert engine.position == 3
        with path.open("r+b") as file:
            file.write(content)
        os.dup2(kept, rows._descriptor)
        os.close(kept)
        np.testing.assert_array_equal(logits(engine), expected)


def test_a_read_that_stalls_is_told_and_never_lands_among_others(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, go_on, fill = threading.Event(), threading.Event(), reads._fill

    def slow_fill(read: reads._Read, staging: memoryview) -> reads.Failure | None:
        if stalled.is_set():
            go_on.wait()
        return fill(read, staging)

    monkeypatch.setattr(disk_rows, "open_reader", reads.ThreadedReader)
    monkeypatch.setattr(reads, "_fill", slow_fill)
    with engine_with_slots(store, SLOTS, embedding_resident=False) as engine:
        expected = logits(engine)
        stalled.set()
        with monkeypatch.context() as impatient:
            impatient.setattr(disk_rows, "READ_TIMEOUT_SECONDS", 0.05)
            for token in (9, 900):  # the second waits for the first, not for what it would read itself
                with pytest.raises(ReadError, match=r"^The embedding of tokens 0 to 15: .*did not end within"):
                    engine.forward([token])
        stalled.clear()
        go_on.set()
        np.testing.assert_array_equal(logits(engine), expected)


class InterruptedReader(reads.ThreadedReader):
    """Is interrupted once as reads have been queued, before anybody knows their tickets."""

    interrupt = False

    def submit(self, asked: Sequence[RecordRead], demand: bool) -> list[int]:
        tickets = super().submit(asked, demand)
        if InterruptedReader.interrupt:
            InterruptedReader.interrupt = False
            raise KeyboardInterrupt
        return tickets


def test_after_an_interrupt_nothing_lands_among_what_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_rows, "open_reader", InterruptedReader)
    with engine_with_slots(store, SLOTS, embedding_resident=False) as engine:
        expected = logits(engine)
        InterruptedReader.interrupt = True
        engine.rewind(0)
        with pytest.raises(KeyboardInterrupt):
            engine.forward(IDS[:EMBEDDING_BATCH])
        np.testing.assert_array_equal(logits(engine), expected)


def test_closing_stops_its_readers(store: Path) -> None:
    descriptors, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(3):
        shut = engine_with_slots(store, SLOTS, embedding_resident=False)
        shut.close()
        shut.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert threading.active_count() == threads
