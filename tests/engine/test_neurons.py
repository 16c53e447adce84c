"""Experts of a single neuron: the same answers whatever is in RAM, and faults that are told and leave nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import ReadError, SourceError
from edgemoe.experts import neuron_pages
from edgemoe.io import reads
from edgemoe.io.checksum import crc32c
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.model.description import store_spec
from edgemoe.store.manifest import TABLE_CHECKSUMS
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.every_case import every_case
from tests.support.stores import flip_bit

SMALL_PEER: dict[str, Any] = {
    "model_type": "edgemoe_carrier",
    "ffn": "peer",
    "dim_key": 8,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_experts": 361,
    "num_experts_per_head": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "peer_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 64,
}
IDS = np.random.default_rng(5).integers(0, SMALL_PEER["vocab_size"], 60)
PAGES = -(-2 * 361 // 4)
"""Pages of 4096 bytes, each of which holds four neurons of 1024."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neurons")
    write_checkpoint(folder / "source", SMALL_PEER, dtype="F32")
    return convert_checkpoint(str(folder / "source"), folder / "store")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "store")


def test_neurons_lie_first_each_in_one_piece_with_its_checksum(made: Path) -> None:
    opened, source = Store.open(made), read_tensors(made.parent / "source")
    names = [tensor.name for tensor in opened.manifest.dense]
    assert names[:3] == ["layers.0.row_table.neurons", "layers.1.row_table.neurons", TABLE_CHECKSUMS]
    table = opened.neurons
    assert table is not None
    assert (table.offset % PAGE_BYTES, table.page_bytes, table.pages, table.count) == (0, PAGE_BYTES, PAGES, 722)
    assert (table.name(360), table.name(361)) == ("Layer 0, expert 360", "Layer 1, expert 0")
    content = opened.dense_path.read_bytes()
    rows = [content[table.offset + 1024 * number :][:1024] for number in range(table.count)]
    assert opened.read_table_checksums().tolist() == [crc32c(np.frombuffer(row, np.uint8)) for row in rows]
    for layer in range(2):
        down, up = (source[f"model.layers.{layer}.mlp.weight_{name}_embed.weight"] for name in ("down", "up"))
        for expert in (0, 17, 360):
            found = np.frombuffer(rows[361 * layer + expert], np.float16)
            np.testing.assert_array_equal(found[:64], np.concatenate([down[expert], up[expert]]).astype(np.float16))
            assert not found[64:].any()
    assert not any(name in opened.load_dense() for name in names[:3])


def test_neither_budget_nor_cuts_nor_threads_nor_a_rewind_change_an_answer(made: Path) -> None:
    with engine_with_slots(made, PAGES) as engine:
        expected = engine.forward(IDS, all_logits=True)
        assert engine.statistics.cache.misses == 0
    for slots, threads, chunk in ((8, 2, 16), (40, 1, 64)):
        with engine_with_slots(made, slots, threads=threads, chunk_tokens=chunk) as engine:
            found = [engine.forward(IDS[:31], all_logits=True), *([engine.forward([token])] for token in IDS[31:])]
            np.testing.assert_array_equal(np.concatenate(found), expected)
            counted = engine.statistics.cache
            assert counted.misses > slots
            assert counted.demand_bytes == counted.misses * PAGE_BYTES
            engine.rewind(20)
            np.testing.assert_array_equal(engine.forward(IDS[20:], all_logits=True), expected[20:])


@pytest.mark.parametrize("slots", [8, PAGES])
def test_portable_kernels_and_readers(made: Path, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_with_slots(made, slots) as engine:
        expected = engine.forward(IDS[:12])
    monkeypatch.setenv("EDGEMOE_KERNELS", "reference")
    monkeypatch.setattr(neuron_pages, "open_reader", reads.ThreadedReader)
    with engine_with_slots(made, slots, direct_reads=False) as engine:
        np.testing.assert_allclose(engine.forward(IDS[:12]), expected, atol=2e-2)


def test_what_they_take_is_planned(made: Path) -> None:
    opened = Store.open(made)
    sizes = model_sizes(opened, store_spec(opened))
    assert (sizes.slot_bytes, sizes.total_experts, sizes.neurons_at_once) == (PAGE_BYTES, PAGES, 8)
    assert sizes.dense_bytes == opened.dense_bytes() + 4 * 722 + 4 * PAGES
    with open_engine(made, EngineOptions(threads=1, ram="floor")) as engine:
        assert engine.memory.slots >= 8
        assert engine.memory.planned_bytes <= engine.memory.budget_bytes


@pytest.mark.parametrize("slots", [8, PAGES])
def test_a_damaged_neuron_is_told_by_its_layer_and_number(store: Path, slots: int) -> None:
    opened = Store.open(store)
    table, content = opened.neurons, opened.dense_path.read_bytes()
    assert table is not None
    for expert in range(361):
        flip_bit(opened.dense_path, table.offset + 1024 * (361 + expert) + 5)
    assert "row_table" in " ".join(map(str, verify_store(opened)))
    told = r"^Layer 1, expert \d+: what was read is not what was written"
    if slots == PAGES:
        with pytest.raises(ReadError, match=told):
            engine_with_slots(store, slots)
        return
    with engine_with_slots(store, slots) as engine:
        for _ in range(2):
            with pytest.raises(ReadError, match=told):
                engine.forward(IDS)
            assert engine.position == 0
        opened.dense_path.write_bytes(content)
        found = engine.forward(IDS, all_logits=True)
    with engine_with_slots(store, PAGES) as engine:
        np.testing.assert_array_equal(found, engine.forward(IDS, all_logits=True))


@every_case(
    ("changed", "message"),
    [
        ({"num_experts": 360}, "num_experts is 360; expected a square, .* such as 324 or 361"),
        ({"num_experts_per_head": 20}, "num_experts_per_head is 20; expected at most 19, as there are 19 keys"),
        ({"peer_scoring": "linear"}, 'peer_scoring is "linear"'),
        ({"ffn": "tree"}, 'ffn is "tree"'),
    ],
)
def test_configs_that_contradict_themselves_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        model_spec(json.loads(json.dumps(SMALL_PEER | changed)))


def test_a_dense_carrier_is_a_llama() -> None:
    dense = {key: value for key, value in SMALL_PEER.items() if key not in ("ffn", "hidden_act")}
    for key in ("dim_key", "num_experts", "num_experts_per_head", "peer_heads"):
        del dense[key]
    dense |= {"intermediate_size": 48, "hidden_act": "silu"}
    found = model_spec(dense | {"ffn": "dense"})
    assert found.layers == model_spec(dense | {"model_type": "llama"}).layers
