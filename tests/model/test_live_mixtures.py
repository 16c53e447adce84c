"""Mixtures against packages that have them, and against the published layers of muMoE, at random sizes.

Needs torch, mixture-of-experts, soft-moe-pytorch and entmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.operations import RELU, Activation
from edgemoe.kernels.reference.backend import ReferenceBackend
from edgemoe.model.blocks import Body, Moe, Multilinear, PlainFfn, RouterSpec, SoftMoe
from edgemoe.model.spec import EncoderSpec, LayerSpec, ModelSpec
from tests.architectures.harness import Reference, Tensors, relative_error

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5
LARGEST = 120
GELU = Activation("gelu_tanh", gated=False)
examples = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = NativeBackend(2) if request.param == "native" else ReferenceBackend()
    yield made
    made.close()


def error_of(body: Body, weights: Tensors, x: Any, expected: Any, backend: Backend) -> float:
    """The relative error of `x + body(norm(x))` under a last norm, in an encoder that is one layer of the body alone.

    The input is the embedding: its row `i` is that of token `i`.
    """
    tokens, width = x.shape
    spec = ModelSpec(
        "one_block", tokens, width, (LayerSpec.of(body), LayerSpec.of(PlainFfn(1))), 1e-12, LARGEST, True,
        encoder=EncoderSpec(1),
    )  # fmt: skip
    ones = {name: np.ones(shape, np.float32) for name, shape in spec.tensors().items()}
    own = {f"layers.0.{name}": np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
    made = Reference.of(spec, {**ones, "embedding": x.numpy(), **own}, backend, LARGEST)
    total = (x + expected).numpy().astype(np.float64)
    normed = total / np.sqrt(np.square(total).mean(axis=1, keepdims=True))
    return relative_error(made.encoded(np.arange(tokens)), normed)


def norm(x: Any) -> Any:
    """The norm before a block, whose weights are ones."""
    return x / x.square().mean(-1, keepdim=True).sqrt()


@examples
@given(data=st.data())
def test_gshard(backend: Backend, data: st.DataObject) -> None:
    import torch
    from mixture_of_experts import MoE

    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    width, ffn, experts, tokens = (data.draw(st.integers(*most)) for most in ((4, 60), (1, 60), (2, 9), (1, LARGEST)))
    factor = data.draw(st.sampled_from([0.5, 1.0, 1.25, 2.0]))
    made = MoE(
        width, experts, ffn, second_policy_eval="all", capacity_factor_eval=factor, capacity_factor_train=factor
    ).eval()
    x = torch.randn(tokens, width)
    with torch.no_grad():
        expected = made(norm(x)[None])[0][0]
        shares = (norm(x) @ made.gate.w_gating).softmax(-1).sort(descending=True).values
    assume(float((shares[:, :-1] - shares[:, 1:])[:, :2].min()) > 1e-5)  # else rounding may choose
    router = RouterSpec(normalise=True)
    body = Moe(experts, 2, ffn, router, activation=RELU, capacity=4, capacity_factor=factor, capacity_by_rank=True)
    weights = {"router": made.gate.w_gating.detach().numpy().T}
    for number in range(experts):
        weights |= {
            f"experts.{number}.up": made.experts.w1[number].detach().numpy().T,
            f"experts.{number}.down": made.experts.w2[number].detach().numpy().T,
        }
    assert error_of(body, weights, x, expected, backend) < TOLERANCE


@examples
@given(data=st.data())
def test_soft_moe(backend: Backend, data: st.DataObject) -> None:
    import torch
    from soft_moe_pytorch import SoftMoE

    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    width, experts, slots, tokens = (data.draw(st.integers(*most)) for most in ((4, 60), (1, 6), (1, 7), (1, LARGEST)))
    made = SoftMoE(width, num_experts=experts, num_slots=slots, expert_mult=2).eval()
    for expert in made.experts.experts:
        expert[1] = torch.nn.GELU(approximate="tanh")
    x = torch.randn(tokens, width)
    with torch.no_grad():
        made.slot_norm.gamma.copy_(1 + 0.3 * torch.randn(width))
        made.norm.gamma.copy_(1 + 0.3 * torch.randn(width))
        expected = made(x[None])[0]
    body = SoftMoe(experts, slots, 2 * width, GELU, bias=True, normalise="gain")
    weights = {
        "ffn_norm": made.norm.gamma.detach().numpy(),
        "slots": made.slot_embeds.detach().numpy().reshape(-1),
        "slot_gain": made.slot_norm.gamma.detach().numpy(),
    }
    for number, expert in enumerate(made.experts.experts):
        for name, layer in (("up", expert[0]), ("down", expert[3])):
            weights[f"slot_experts.{number}.{name}"] = layer.weight.detach().numpy()
            weights[f"slot_experts.{number}.{name}_bias"] = layer.bias.detach().numpy()
    assert error_of(body, weights, x, expected, backend) < TOLERANCE


def shares_of(logits: Any, gate_norm: str, mean: Any, variance: Any) -> Any:
    """The shares of experts as the published layer computes them, with the package's 1.5-entmax."""
    import torch
    from entmax import entmax15

    if gate_norm == "batch":
        logits = (logits - mean) / (variance + 1e-5).sqrt()
    elif gate_norm == "layer":
        logits = torch.nn.functional.layer_norm(logits, logits.shape[-1:])
    return entmax15(logits.double(), dim=-1).float()


@examples
@given(data=st.data(), form=st.sampled_from(["cp", "ring"]), gate_norm=st.sampled_from(["none", "layer", "batch"]))
def test_multilinear(backend: Backend, data: st.DataObject, form: Any, gate_norm: Any) -> None:
    """The published layers, (2) and (4) of the paper; `1` beside the input stands for experts' biases."""
    import torch

    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    width, experts, tokens = (data.draw(st.integers(*most)) for most in ((4, 60), (2, 40), (1, LARGEST)))
    ranks = tuple(data.draw(st.integers(1, 9)) for _ in range(1 if form == "cp" else 3))
    x, gate = torch.randn(tokens, width), torch.randn(width, experts) / width**0.5
    mean, variance = torch.randn(experts), 0.5 + torch.rand(experts)
    shares = shares_of(norm(x) @ gate, gate_norm, mean, variance)
    z = torch.cat([norm(x), torch.ones(tokens, 1)], dim=-1)
    if form == "cp":
        (rank,) = ranks
        factors = [torch.randn(n, rank) / n**0.5 for n in (experts, width + 1, width)]
        f1, f2 = shares @ factors[0], z @ factors[1]
        expected = torch.einsum("tr,tr,or->to", f1, f2, factors[2])
        of_experts, of_input, of_output = factors[0].T, factors[1].T, factors[2]
    else:
        r1, r2, r3 = ranks
        shapes = ((r1, experts, r2), (r2, width + 1, r3), (r3, width, r1))
        cores = [torch.randn(shape) / shape[1] ** 0.5 for shape in shapes]
        mixed = torch.einsum("tx,rxs->trs", shares, cores[0])
        both = torch.einsum("tbc,tab->tac", torch.einsum("tx,rxs->trs", z, cores[1]), mixed)
        expected = torch.einsum("cod,tdc->to", cores[2], both)
        of_experts = cores[0].permute(0, 2, 1).reshape(r1 * r2, experts)
        of_input = cores[1].permute(0, 2, 1).reshape(r2 * r3, width + 1)
        of_output = cores[2].permute(1, 2, 0).reshape(width, r1 * r3)
    weights = {
        "router": gate.T, "expert_factor": of_experts, "input_factor": of_input[:, :-1],
        "input_factor_bias": of_input[:, -1], "output_factor": of_output,
    }  # fmt: skip
    if gate_norm == "batch":
        weights |= {"router_mean": mean, "router_variance": variance}
    body = Multilinear(experts, form, ranks, gate_norm)
    found = {name: value.numpy() for name, value in weights.items()}
    assert error_of(body, found, x, expected, backend) < TOLERANCE


@examples
@given(data=st.data(), soft=st.booleans())
def test_soft_gates_and_noisy_top_k(backend: Backend, data: st.DataObject, soft: bool) -> None:
    """The equations of Jacobs et al. 1991, and (3) to (5) of Shazeer et al. 2017 without their noise."""
    import torch

    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    width, ffn, experts, tokens = (data.draw(st.integers(*most)) for most in ((4, 60), (1, 60), (1, 9), (1, LARGEST)))
    top_k = experts if soft else data.draw(st.integers(1, experts))
    x, gate = torch.randn(tokens, width), torch.randn(experts, width) / width**0.5
    up, down = torch.randn(experts, ffn, width) / width**0.5, torch.randn(experts, width, ffn) / ffn**0.5
    logits = norm(x) @ gate.T
    ordered = logits.sort(descending=True).values
    assume(top_k == experts or float((ordered[:, top_k - 1] - ordered[:, top_k]).min()) > 1e-5)
    kept = logits.masked_fill(logits < ordered[:, top_k - 1 : top_k], -torch.inf)
    hidden = torch.relu(torch.einsum("efd,td->tef", up, norm(x)))
    expected = torch.einsum("te,edf,tef->td", kept.softmax(-1), down, hidden)
    weights = {"router": gate.numpy()}
    for number in range(experts):
        weights |= {f"experts.{number}.up": up[number].numpy(), f"experts.{number}.down": down[number].numpy()}
    body = Moe(experts, top_k, ffn, RouterSpec(normalise=not soft), activation=RELU)
    assert error_of(body, weights, x, expected, backend) < TOLERANCE
