"""A model whose FFNs have no gate: dense, shared and routed, from their stored form to logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgemoe.kernels.operations import RELU, RELU2
from edgemoe.model.blocks import Attention, Moe, PlainFfn, RouterSpec, SharedExpert
from edgemoe.model.build import build_graph
from edgemoe.model.listing import list_layer
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.engines import engine_with_slots
from tests.support.spec_stores import Weights, random_weights, store_of_spec
from tests.support.stores import store_weights

ATTENTION = Attention(4, 2, 16, 0.25, RopeSpec(1e4, 16))
MOE = Moe(8, 2, 40, RouterSpec(True), SharedExpert(24, activation=RELU2), RELU2)
LAYERS = (
    LayerSpec.of(ATTENTION, PlainFfn(72, RELU, bias=True)),
    LayerSpec.of(ATTENTION, MOE),
    LayerSpec.of(ATTENTION, replace(MOE, activation=RELU, bias=True, shared=None)),
)
SPEC = ModelSpec("test", 101, 64, LAYERS, 1e-5, 256, False)
IDS = np.random.default_rng(5).integers(0, 101, 40)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(SPEC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Store:
    return store_of_spec(tmp_path_factory.mktemp("plain") / "q4", SPEC, weights, "q4", "q8")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Store:
    return store_of_spec(tmp_path_factory.mktemp("plain") / "f32", SPEC, weights, "f32", "f32")


def logits(store: Store, slots: int, together: int = len(IDS), threads: int = 1) -> np.ndarray:
    with engine_with_slots(store, slots, threads, warm_start=False) as engine:
        parts = [engine.forward(IDS[i : i + together], all_logits=True) for i in range(0, len(IDS), together)]
    return np.concatenate(parts)


def test_a_store_holds_the_two_matrices(exact: Store, weights: Weights) -> None:
    assert verify_store(exact) == []
    found = store_weights(exact)
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values)


def test_an_expert_takes_two_thirds_of_a_gated_one(store: Store) -> None:
    layouts = [layouts[0] for layouts in store.layouts_of_layers if layouts]
    matrix = layouts[0].matrices.up_format.matrix_bytes(40, 64)
    down = layouts[0].matrices.down_format.matrix_bytes(64, 40)
    assert [layout.weight_bytes for layout in layouts] == [matrix + down, matrix + down + 4 * (48 + 64)]
    assert layouts[0].slot_bytes == 4096


@pytest.mark.parametrize(("slots", "threads", "together"), [(16, 3, 40), (4, 1, 40), (5, 3, 7), (16, 1, 1)])
def test_any_budget_threads_and_cut_give_the_same_bits(store: Store, slots: int, threads: int, together: int) -> None:
    np.testing.assert_array_equal(logits(store, slots, together, threads), logits(store, 16))


def test_backends_agree(exact: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(exact, 16)
    assert np.isfinite(expected).all()
    for backend in ("reference", "jit"):
        monkeypatch.setenv("EDGEMOE_KERNELS", backend)
        np.testing.assert_allclose(logits(exact, 5), expected, atol=1e-4)


def test_a_token_reads_two_matrices_of_each_expert(store: Store) -> None:
    with engine_with_slots(store, 16) as engine:
        traffic = engine.traffic
    layouts = [layouts[0] for layouts in store.layouts_of_layers[1:]]
    assert traffic.weight_bytes["experts"] == sum(2 * layout.weight_bytes for layout in layouts)
    dense = {tensor.name: tensor.bytes for tensor in store.manifest.dense}
    assert traffic.weight_bytes["shared_expert"] == dense["layers.1.shared.up"] + dense["layers.1.shared.down"]
    assert traffic.weight_bytes["dense_ffn"] == sum(
        dense[f"layers.0.{name}"] for name in ("ffn_norm", "ffn.up", "ffn.up_bias", "ffn.down", "ffn.down_bias")
    )


def test_the_program_names_what_is_there() -> None:
    graph = build_graph(SPEC)
    dense, routed = (" ".join(line.text for line in list_layer(graph, layer)) for layer in (0, 2))
    assert "PlainFfn(normed (T, 64), ffn.up [72, 64], ffn.down [64, 72], relu, ffn.up_bias [72]" in dense
    assert "experts.up [8, 40, 64], experts.down [8, 64, 40], experts.up_bias [8, 40]" in routed
    assert "gate" not in dense + routed
