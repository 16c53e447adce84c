"""Each kind of mixture on both sides: company, cuts, budgets, threads and instruction sets change no bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench.plan_model import PlanOptions, plan_model
from edgemoe.cli.terminal.plan_tables import plan_tables
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.kernels.native.library import available_isas
from tests.engine.test_encoders import VOCABULARY, Alone, work
from tests.golden.cases import ENCODER_CASES
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots

pytestmark = pytest.mark.slow

CONFIG = {
    "model_type": "edgemoe_mixture",
    "is_encoder_decoder": True,
    **ENCODER_CASES["edgemoe_mixture"].config,
    "multilinear": {"form": "ring", "ranks": [3, 4, 5], "gate_norm": "layer"},
    "n_positions": 256,
}
ROUTED = 2 * 4 + 3 * 4
"""The routed experts of the encoder's and of the decoder's layers."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtures")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


@pytest.fixture(scope="module")
def alone(store: Path) -> Iterator[Alone]:
    reference = Alone(store, "f16")
    yield reference
    reference.close()


@pytest.mark.parametrize(("slots", "threads"), [(ROUTED, 3), (6, 1), (1, 2)])
def test_company_cuts_rewinds_and_forks_change_no_bit(store: Path, alone: Alone, slots: int, threads: int) -> None:
    assert work(store, alone, slots, threads, 40, threads) > 15


@pytest.mark.parametrize("isa", available_isas())
def test_instruction_sets_agree(store: Path, alone: Alone, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, ids = ([*np.random.default_rng(n).integers(0, VOCABULARY, 120).tolist()] for n in (1, 2))
    expected = alone.logits(read, ids)
    monkeypatch.setenv("EDGEMOE_ISA", isa)
    with engine_with_slots(store, 5, 2, context_length=256, chunk_tokens=48) as engine:
        engine.encode(read)
        np.testing.assert_array_equal(engine.forward(ids, all_logits=True), expected)


def test_the_reference_comes_near(store: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    read, ids = [5, 6, 7, 9, 2], [0, 3, 8]
    expected = alone.logits(read, ids)
    monkeypatch.setenv("EDGEMOE_KERNELS", "reference")
    with engine_with_slots(store, ROUTED, context_length=64) as engine:
        assert engine.backend.name == "reference"
        engine.encode(read)
        found = engine.forward(ids, all_logits=True)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()  # activations are rounded to 8 bits between


def test_a_plan_tells_where_a_token_reads_all_experts(store: Path) -> None:
    planned = plan_model(str(store), PlanOptions(disk_bytes_per_s=1e9, memory_bytes_per_s=1e10))
    (_, rows), *_ = plan_tables(planned)
    assert ("soft gates", "a token reads all experts of 1 layer") in rows


def test_experts_in_other_formats_and_with_gates_run(tmp_path: Path) -> None:
    """Soft gates over experts of either kind of FFN; those of slots have no gate."""
    for act in ("swiglu", "gelu_tanh"):
        own = {"expert_act": act, "encoder_ffns": ["soft_gates"], "decoder_ffns": ["soft_gates", "noisy_topk"]}
        write_checkpoint(tmp_path / act, CONFIG | own)
        made = convert_checkpoint(str(tmp_path / act), tmp_path / f"{act}-store", experts="q4", dense="q8")
        answers = []
        for slots in (9 * 4, 3):
            with engine_with_slots(made, slots, context_length=64) as engine:
                engine.encode([5, 6, 7])
                answers.append(engine.forward([0, 8, 3], all_logits=True))
        np.testing.assert_array_equal(*answers)
        assert np.isfinite(answers[0]).all()
