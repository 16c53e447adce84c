"""Mixtures on the body of T5 whose layers may each have another kind of FFN: a format of edgemoe's own.

`FFNS` has the kinds. Each has settings of its own, in an object of its name in the config:

- `gshard`: two experts for each token, with a capacity in the encoder (Lepikhin et al. 2020, arXiv 2006.16668);
- `noisy_topk`: softmax over the experts of the largest logits (Shazeer et al. 2017, arXiv 1701.06538);
- `soft_gates`: all experts, weighed by softmax (Jacobs, Jordan, Nowlan and Hinton 1991);
- `soft_moe`: slots, in the encoder alone (Puigcerver et al. 2023, arXiv 2308.00951);
- `multilinear`: factorised experts (Oldfield et al. 2024, arXiv 2402.12550).

What acts in training alone changes nothing here, and may stay in a config: noise and its matrix `w_noise`, losses,
GShard's rules of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from edgemoe.architectures import config as limits
from edgemoe.architectures.config import DAMAGED, ConfigReader, show, unsupported
from edgemoe.architectures.switch_transformers import BODY, DENSE_FFN, EXPERTS, SIDES, ffn_rows, read_body, read_counts
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import RELU, SILU, Activation
from edgemoe.model.blocks import Body, Moe, Multilinear, PlainFfn, RouterSpec, SoftMoe
from edgemoe.model.spec import ModelSpec

ACTIVATIONS = {"relu": RELU, "gelu_tanh": Activation("gelu_tanh", gated=False), "swiglu": SILU}
"""The activations of experts; those of `swiglu` have a gate."""

_EXPERT_BIASES = (
    ("experts.{expert}.gate", "mlp.experts.expert_{expert}.wg.weight", ("expert_width", "model")),
    ("experts.{expert}.gate_bias", "mlp.experts.expert_{expert}.wg.bias", ("expert_width",)),
    ("experts.{expert}.up_bias", "mlp.experts.expert_{expert}.wi.bias", ("expert_width",)),
    ("experts.{expert}.down_bias", "mlp.experts.expert_{expert}.wo.bias", ("model",)),
)
_EXPERTS = (*EXPERTS, *_EXPERT_BIASES)
_ROWS = (
    *DENSE_FFN,
    ("router", "mlp.gate.weight", ("experts", "model")),
    ("router_bias", "mlp.gate.bias", ("experts",)),
    *_EXPERTS,
    *((f"slot_{name}", source, shape) for name, source, shape in _EXPERTS),
    ("slots", "mlp.slot_embeds", ("experts", "slots", "model")),
    ("slot_scale", "mlp.slot_scale", ("one",)),
    ("slot_gain", "mlp.slot_norm.weight", ("model",)),
    ("router_mean", "mlp.norm.running_mean", ("experts",)),
    ("router_variance", "mlp.norm.running_var", ("experts",)),
    ("expert_factor", "mlp.expert_factor.weight", ("expert_factors", "experts")),
    ("input_factor", "mlp.input_factor.weight", ("input_factors", "model")),
    ("input_factor_bias", "mlp.input_factor.bias", ("input_factors",)),
    ("output_factor", "mlp.output_factor.weight", ("model", "output_factors")),
)
_TRANSPOSED = ("w_gate", "gate.w_gating")
"""Names of the router's matrix in other programs, which keep it as (input, output)."""

TENSORS = (
    *BODY,
    *(row for side in SIDES for row in ffn_rows(side, *_ROWS)),
    *(
        row
        for side in SIDES
        for name in _TRANSPOSED
        for row in ffn_rows(side, ("router", f"mlp.{name}", ("model", "experts")), transposed=True)
    ),
)


def _one_of(reader: ConfigReader, name: str, default: str, *others: str) -> Any:
    """The word under a key, which is one of these; the first is the default. Raises SourceError."""
    reader.require(name, default, *others)
    return reader.value(name) or default


class _Experts:
    """The sizes of experts, which all kinds share, and the settings of one kind."""

    def __init__(self, reader: ConfigReader, kind: str, side: str) -> None:
        self.of = reader.inner(kind) or ConfigReader({})
        self.side = side
        self.count = reader.integer("num_experts", maximum=limits.LARGEST_EXPERTS)
        self.width = reader.integer("d_ff", maximum=limits.LARGEST_WIDTH)
        self.activation = ACTIVATIONS[_one_of(reader, "expert_act", *ACTIVATIONS)]
        self.bias = reader.flag("expert_bias", False)

    def moe(self, top_k: int, router: RouterSpec, **rules: Any) -> Moe:
        """Routed experts; raises SourceError for more of a token than there are."""
        if top_k > self.count:
            raise SourceError(f"config.json: {top_k} experts for each token of {self.count} experts.", DAMAGED)
        return Moe(self.count, top_k, self.width, router, activation=self.activation, bias=self.bias, **rules)


def _gshard(experts: _Experts) -> Body:
    of = experts.of
    of.skip("capacity_factor_train", "second_policy_train", "second_threshold_train", "loss_coef", "eps")
    policy = _one_of(of, "second_policy_eval", "all", "threshold")  # not by chance
    threshold = of.number("second_threshold_eval", 0.2, maximum=1.0)
    router = RouterSpec(normalise=True, least_further=threshold if policy == "threshold" else 0.0)
    factor = of.number("capacity_factor_eval", 2.0, maximum=1000.0)
    least = of.integer("min_expert_capacity", maximum=limits.LARGEST_POSITIONS, default=4)
    if experts.side == "decoder":  # a token that is written alone finds every place free
        return experts.moe(2, router)
    return experts.moe(2, router, capacity=least, capacity_factor=factor, capacity_by_rank=True)


def _noisy_topk(experts: _Experts) -> Body:
    experts.of.skip("noisy_gating", "noise_epsilon", "loss_coef")
    return experts.moe(experts.of.integer("k", maximum=limits.LARGEST_EXPERTS), RouterSpec(normalise=True))


def _soft_gates(experts: _Experts) -> Body:
    bias = experts.of.flag("gate_bias", False)
    return experts.moe(experts.count, RouterSpec(normalise=False, logit_bias=bias))


def _soft_moe(experts: _Experts) -> Body:
    if experts.side == "decoder":
        raise unsupported("decoder_ffns", "soft_moe", "slots, into which an input's tokens all mix, in an encoder")
    slots = experts.of.integer("num_slots", maximum=limits.LARGEST_POSITIONS)
    normalise = _one_of(experts.of, "normalise", "unit", "gain", "none")
    return SoftMoe(experts.count, slots, experts.width, experts.activation, experts.bias, normalise)


def _multilinear(experts: _Experts) -> Body:
    of = experts.of
    of.require("hierarchy", 1, default=1)
    form, norm = _one_of(of, "form", "cp", "ring"), _one_of(of, "gate_norm", "batch", "layer", "none")
    ranks = of.sequence("ranks")
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise SourceError("config.json: multilinear.ranks holds others than whole numbers above 0.", DAMAGED)
    return Multilinear(experts.count, form, tuple(ranks), norm, of.flag("use_bias", True))


FFNS: Mapping[str, Callable[[_Experts], Body]] = MappingProxyType(
    {
        "dense": lambda experts: PlainFfn(experts.width, RELU),
        "gshard": _gshard,
        "multilinear": _multilinear,
        "noisy_topk": _noisy_topk,
        "soft_gates": _soft_gates,
        "soft_moe": _soft_moe,
    }
)
"""The kinds of FFNs."""


def read_ffn(reader: ConfigReader, kind: Any, side: str) -> Body:
    """The FFN of a kind, in the encoder or in the decoder. Raises SourceError."""
    if not isinstance(kind, str) or kind not in FFNS:
        raise unsupported(f"{side}_ffns", kind, " or ".join(map(show, FFNS)))
    body = FFNS[kind](_Experts(reader, kind, side))
    try:
        body.check()
    except ValueError as problem:
        raise SourceError(f"config.json: {kind}: {problem}.", DAMAGED) from None
    return body


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes; a side's layers have the kinds of its list in turn. Raises SourceError."""
    reader.require("is_encoder_decoder", True, default=True)
    sides = []
    for side, count in zip(SIDES, read_counts(reader), strict=True):
        kinds = reader.sequence(f"{side}_ffns") or ["dense"]
        made = [read_ffn(reader, kind, side) for kind in kinds]
        sides.append([made[number % len(made)] for number in range(count)])
    reader.skip(*FFNS.keys() - {"dense"})  # settings of a kind that no layer has
    return read_body(reader, "edgemoe_mixture", *sides)
