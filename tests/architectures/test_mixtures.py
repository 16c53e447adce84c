"""edgemoe's own format of mixtures: what its config means, what it refuses, and names of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import model_spec, resolve, unused_tensors
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import RELU
from edgemoe.model.blocks import Moe, Multilinear, PlainFfn, RouterSpec, SoftMoe
from edgemoe.model.build import build_graph
from edgemoe.model.spec import EncoderSpec, LayerSpec, ModelSpec
from tests.architectures.harness import Reference, load_checkpoint, relative_error
from tests.golden.cases import ENCODER_CASES
from tests.support.every_case import every_case

GOLDEN = Path(__file__).parent.parent / "golden" / "edgemoe_mixture"
SMALL = {"model_type": "edgemoe_mixture", "is_encoder_decoder": True, **ENCODER_CASES["edgemoe_mixture"].config}


def test_each_side_has_its_kinds_in_turn() -> None:
    spec = model_spec(SMALL | {"num_layers": 6})
    bodies = [layer.blocks[-1].body for layer in spec.layers]
    second = RouterSpec(normalise=True, least_further=0.2)
    common: dict[str, Any] = {"activation": RELU, "bias": True}
    assert (
        bodies[0]
        == bodies[5]
        == Moe(4, 2, 44, second, capacity=3, capacity_factor=1.25, capacity_by_rank=True, **common)
    )
    assert bodies[1:5] == [
        SoftMoe(4, 5, 44, RELU, bias=True, normalise="unit"),
        PlainFfn(44, RELU),
        Multilinear(4, "ring", (3, 4, 5), "batch"),
        Moe(4, 4, 44, RouterSpec(normalise=False), **common),
    ]
    assert bodies[6:8] == [Moe(4, 3, 44, RouterSpec(normalise=True), **common), Moe(4, 2, 44, second, **common)]


@every_case(
    ("change", "message"),
    [
        ({"gshard": {"min_expert_capacity": 0}}, "min_expert_capacity is 0; expected a whole number from 1"),
        ({"gshard": {"capacity_factor_eval": 0}}, "capacity_factor_eval is 0"),
        ({"gshard": {"second_policy_eval": "random"}}, 'second_policy_eval is "random"; .* "all" or "threshold" only'),
        ({"noisy_topk": {"k": 9}}, "9 experts for each token of 4 experts"),
        ({"noisy_topk": {}}, "k is missing"),
        ({"soft_moe": {"num_slots": 0}}, "num_slots is 0"),
        ({"soft_moe": {"num_slots": 30000}}, "soft_moe: 120000 slots: expected at most 65536"),
        ({"soft_moe": {"num_slots": 2, "normalise": "l2"}}, 'normalise is "l2"'),
        ({"decoder_ffns": ["soft_moe"]}, 'decoder_ffns is "soft_moe"; .* in an encoder only'),
        ({"encoder_ffns": ["fff"]}, 'encoder_ffns is "fff"'),
        ({"multilinear": {"form": "cp", "ranks": [3, 4]}}, "2 ranks of factors in the form cp: expected 1"),
        ({"multilinear": {"ranks": [0]}}, "ranks holds others than whole numbers above 0"),
        ({"multilinear": {"hierarchy": 2, "ranks": [3]}}, "hierarchy is 2"),
        ({"expert_act": "swiglu"}, "soft_moe: experts of slots with a gate"),
        ({"dense": {"width": 1}}, "width"),
    ],
)
def test_what_a_kind_cannot_be_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        model_spec(SMALL | change)


def test_what_acts_in_training_alone_changes_nothing() -> None:
    training = {"capacity_factor_train": 1.0, "second_policy_train": "random", "loss_coef": 0.01}
    changed = {"gshard": SMALL["gshard"] | training, "noisy_topk": {"k": 3, "noisy_gating": True, "loss_coef": 0.1}}
    assert model_spec(SMALL | changed) == model_spec(SMALL)
    noise = "decoder.block.0.layer.2.mlp.w_noise"
    assert "training only" in unused_tensors(SMALL, [noise])[noise]


def test_routers_in_the_names_and_the_order_of_other_programs() -> None:
    config, tensors = load_checkpoint(GOLDEN)
    own = {
        "decoder.block.0.layer.2.mlp.gate.weight": "w_gate",
        "encoder.block.0.layer.1.mlp.gate.weight": "gate.w_gating",
    }
    renamed = dict(tensors)
    for name, other in own.items():
        renamed[name.replace("gate.weight", other)] = np.ascontiguousarray(renamed.pop(name).T)
    renamed["decoder.block.0.layer.2.mlp.w_noise"] = np.ones((40, 4), np.float32)
    places = resolve(config, {name: tensor.shape for name, tensor in renamed.items()})
    assert {places["layers.5.router"].transposed, places["layers.0.router"].transposed} == {True}
    assert not places["layers.8.router"].transposed


@pytest.mark.slow
@every_case(
    "change",
    [
        {"gshard": SMALL["gshard"] | {"capacity_factor_eval": 1.0}},
        {"gshard": SMALL["gshard"] | {"second_threshold_eval": 0.3}},
        {"gshard": SMALL["gshard"] | {"second_policy_eval": "all"}},
        {"noisy_topk": {"k": 2}},
        {"soft_moe": {"num_slots": 5, "normalise": "none"}},
        "encoder.block.1.layer.1.mlp.slot_scale",
        "encoder.block.1.layer.1.mlp.experts.expert_2.wo.bias",
        "encoder.block.3.layer.1.mlp.norm.running_mean",
        "encoder.block.3.layer.1.mlp.norm.running_var",
        "decoder.block.2.layer.2.mlp.input_factor.bias",
        "decoder.block.3.layer.2.mlp.gate.weight",
    ],
)
def test_each_part_shows(change: dict[str, Any] | str) -> None:
    """Every number of a kind, and every sort of tensor, which a name stands for, changes the logits."""
    golden, (config, tensors) = np.load(GOLDEN / "golden.npz"), load_checkpoint(GOLDEN)
    if isinstance(change, str):
        factor = np.linspace(0.5, 2, tensors[change].size, dtype=np.float32).reshape(tensors[change].shape)
        tensors = tensors | {change: tensors[change] * factor}
    else:
        config = config | change
        if "none" in str(change):
            tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("slot_scale")}
    model = Reference(config, tensors)
    model.encode(golden["input"])
    assert relative_error(model.logits(golden["ids"]), golden["logits"]) > 1e-3


@every_case(
    ("body", "message"),
    [
        (SoftMoe(2, 3, 8), "slots that every row of an input mixes into outside of an encoder"),
        (Moe(4, 2, 8, RouterSpec(True), capacity=3), "a capacity of experts, .* outside of an encoder"),
    ],
)
def test_what_mixes_or_counts_tokens_stands_in_an_encoder_alone(body: Any, message: str) -> None:
    spec = ModelSpec(
        "one", 9, 16, (LayerSpec.of(PlainFfn(8)), LayerSpec.of(body)), 1e-6, 64, True, encoder=EncoderSpec(1)
    )
    with pytest.raises(ValueError, match=message):
        build_graph(spec)
