"""Trees and routers of several levels against the packages fastfeedforward and mixture-of-experts (torch)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import tree_operations as tr
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.operations import GELU, RELU
from tests.kernels.builders import aligned, aligned_copy, seeds
from tests.kernels.test_trees import whole

pytestmark = pytest.mark.oracle
TOLERANCE = 1e-5
drawn = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def run(tokens: int, *operations: tr.TreeFfn | ex.LevelRoute) -> None:
    backend = NativeBackend(2)
    try:
        backend.program(operations).run(tokens)
    finally:
        backend.close()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    largest = np.abs(expected).max(initial=1e-9)  # a row of neurons that ReLU closes is all zeros
    return float(np.abs(found - expected).max(initial=0) / largest)


@drawn
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 8), st.booleans(), seeds)
def test_leaves_agree_with_fastfeedforward(width: int, leaf: int, depth: int, gelu: bool, seed: int) -> None:
    """Its inference leaves out the bias of a leaf's output that its training adds; so does an FFN without that bias."""
    import fastfeedforward as package
    import torch

    torch.manual_seed(seed)
    activation = torch.nn.GELU() if gelu else torch.nn.ReLU()
    model = package.FFF(width, leaf, width, depth, activation).eval()
    rows = torch.randn(16, width)
    with torch.no_grad():
        expected = model(rows).numpy()
        weights = {name: value.numpy() for name, value in model.named_parameters() if name != "depth"}
    o = tr.TreeFfn(
        aligned_copy(rows.numpy()),
        whole(weights["node_weights"], "f32")[0],
        aligned_copy(weights["node_biases"].reshape(-1)),
        whole(weights["w1s"].swapaxes(1, 2).reshape(-1, width), "f32")[0],
        aligned_copy(weights["b1s"].reshape(-1)),
        whole(weights["w2s"].reshape(-1, width), "f32")[0],
        None,
        *(1, depth, leaf, aligned((16, width), np.float32), GELU if gelu else RELU),
    )
    run(16, o)
    numbers = rows.numpy() @ weights["node_weights"].T + weights["node_biases"][:, 0]
    clear = np.abs(numbers).min(axis=1) > 1e-6  # rounding decides which way a row of others goes
    assert relative_error(o.output[clear], expected[clear]) < TOLERANCE


@drawn
@given(st.integers(2, 6), st.integers(2, 7), st.integers(4, 40), seeds)
def test_two_levels_agree_with_mixture_of_experts(outer: int, inner: int, width: int, seed: int) -> None:
    """Within capacity. Of a token's second group it has the first expert alone, with all of the group's share."""
    import mixture_of_experts as package
    import torch

    torch.manual_seed(seed)
    policy = {"second_policy_eval": "all", "capacity_factor_eval": float(4 * outer * inner)}
    model = package.HeirarchicalMoE(dim=width, num_experts=(outer, inner), hidden_dim=2 * width, **policy).eval()
    rows = torch.randn(1, 12, width)
    with torch.no_grad():
        expected = model(rows)[0][0].numpy()
        outer_logits = rows[0] @ model.gate_outer.w_gating
        inner_logits = torch.einsum("td,ode->toe", rows[0], model.gate_inner.w_gating)
        logits = torch.cat([outer_logits, inner_logits.flatten(1)], dim=1).numpy()
        hidden = torch.relu(torch.einsum("td,oedh->toeh", rows[0], model.experts.w1))
        outputs = torch.einsum("toeh,oehd->toed", hidden, model.experts.w2).flatten(1, 2).numpy()

    def routed(top_k: int) -> ex.LevelRoute:
        levels = ex.Level(outer, 2), ex.Level(inner, top_k)
        chosen = aligned((12, 2 * top_k), np.int32), aligned((12, 2 * top_k), np.float32)
        return ex.LevelRoute(aligned_copy(logits), levels, True, 1.0, *chosen)

    both, first = routed(2), routed(1)
    run(12, both, first)
    found = np.zeros_like(expected)
    for token in range(12):
        terms = [(both, 0), (both, 1), (first, 1)]  # both experts of the first group, the first one of the second
        found[token] = sum(o.weights[token, place] * outputs[token, o.experts[token, place]] for o, place in terms)
    assert relative_error(found, expected) < TOLERANCE
