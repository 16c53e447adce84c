"""The KV cache in every format: what is planned is allocated, and paging, threads and cuts change no bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.memory import plan_memory
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.part_sizes import kv_cache_bytes
from edgemoe.engine.workspace import (
    KvFormat,
    Workspace,
    encoder_work_bytes,
    kept_bytes,
    rope_bytes,
    work_bytes,
    written_once_bytes,
)
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import QuantisedCache
from edgemoe.model.build import build_graph
from tests.engine.test_engine import CONFIG, EXPERTS, PROMPT, greedy
from tests.engine.test_memory import BACKEND, GRAPH, MIB, MODELS, SIZES
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.every_case import every_case

HEAD_WIDTH = 16


def make_store(folder: Path, dense: str) -> Path:
    write_checkpoint(folder / "source", CONFIG, dtype="BF16")
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense=dense)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("kv-cache"), "q8")


@pytest.fixture(scope="module")
def expected(store: Path) -> tuple[list[int], np.ndarray]:
    with engine_with_slots(store, EXPERTS, kv="q8") as engine:
        return greedy(engine, PROMPT, 20)


@every_case("name", MODELS)
@every_case("kv_format", ["f32", "f16", "q8"])
def test_it_takes_what_is_planned(name: str, kv_format: KvFormat) -> None:
    graph = build_graph(MODELS[name])
    workspace = Workspace(graph, 8, 600, kv_format)
    for value in graph.lasting:
        workspace.array(value)
    work = max(work_bytes(graph, 8), encoder_work_bytes(graph, 600))
    allocated = workspace.nbytes - work - kept_bytes(graph, 8, 600) - written_once_bytes(graph, 600, kv_format)
    assert allocated == kv_cache_bytes(graph, 8, 600, kv_format)
    if kv_format == "q8":
        tables = rope_bytes(graph, 600)
        assert allocated - tables == (kv_cache_bytes(graph, 8, 600, "f16") - tables) * 34 // 64


@pytest.mark.parametrize("slots", [1, 6, EXPERTS - 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_streamed_in_8_bits_equals_resident_to_the_bit(store: Path, expected, slots: int, threads: int) -> None:
    with engine_with_slots(store, slots, threads, "q8") as engine:
        tokens, logits = greedy(engine, PROMPT, 20)
        assert engine.statistics.expert_misses > 0
    assert tokens == expected[0]
    np.testing.assert_array_equal(logits, expected[1])


@pytest.mark.parametrize("kernels", ["native", "jit"])
def test_grouping_tokens_in_calls_and_rewinding_change_no_bit(
    store: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    with engine_with_slots(store, EXPERTS, kv="q8") as engine:
        whole = engine.forward(PROMPT[:90], all_logits=True)
        engine.rewind(0)
        pieces = [engine.forward(part, all_logits=True) for part in np.split(PROMPT[:90], [1, 2, 9, 70, 89])]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        engine.rewind(40)
        np.testing.assert_array_equal(engine.forward(PROMPT[40:90]), whole[-1])


def test_8_bits_are_close_to_16_and_not_the_same(store: Path, expected) -> None:
    with engine_with_slots(store, EXPERTS, kv="f16") as engine:
        logits = engine.forward(PROMPT)
    with engine_with_slots(store, EXPERTS) as engine:
        assert engine.memory.kv_format == "f16"
        np.testing.assert_array_equal(engine.forward(PROMPT), logits)
    apart = np.linalg.norm(expected[1][0] - logits) / np.linalg.norm(logits)
    assert 0 < apart < 0.05


def test_a_token_reads_8_bits_and_the_scales(store: Path) -> None:
    with engine_with_slots(store, EXPERTS, kv="q8") as engine:
        assert engine.traffic.kv_bytes_per_position == 4 * 2 * 2 * (HEAD_WIDTH + 2)


def test_a_store_made_for_exactness_keeps_float32_unless_told_otherwise(tmp_path: Path) -> None:
    path = make_store(tmp_path, "f32")
    for kv, kept in ((None, np.float32), ("f16", np.float16), ("q8", None)):
        with open_engine(path, EngineOptions(threads=1, kv=kv)) as engine:
            graph = build_graph(engine.spec)
            state = next(value for value in graph.lasting if value.home == "state")
            cache = Workspace(graph, 8, 64, engine.memory.kv_format).array(state)
            assert isinstance(cache, QuantisedCache) if kept is None else cache.dtype == kept


def test_half_the_memory_leaves_room_for_more_experts() -> None:
    budget = plan_memory(GRAPH, SIZES, BACKEND, "floor", 20_000, interpreter=50 * MIB).floor_bytes + 20 * MIB
    sizes = [dataclasses.replace(SIZES, kv_format=kv) for kv in ("f16", "q8")]
    plans = [plan_memory(GRAPH, each, BACKEND, budget, 20_000, interpreter=50 * MIB) for each in sizes]
    saved_bytes = plans[0].kv_cache_bytes - plans[1].kv_cache_bytes
    assert saved_bytes == 20_032 * 12 * 2 * 2 * (2 * 64 - 64 - 2 * 2)
    assert plans[1].slots - plans[0].slots == pytest.approx(saved_bytes // SIZES.slot_bytes, abs=2)


@pytest.mark.parametrize("kv", ["q4", "f32", "", "Q8"])
def test_what_is_no_kv_cache(store: Path, kv: str) -> None:
    with pytest.raises(UsageError, match=f"expected f16 or q8, found {kv}"):
        open_engine(store, EngineOptions(kv=kv))
