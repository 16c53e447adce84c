"""Soft MoE: every token mixes into every expert's slots, and every slot's result into every token (Puigcerver 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import RoutedExperts, Shapes, check_activation, ffn_tensors
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part

MOST_SLOTS = 1 << 16


@dataclass(frozen=True)
class SoftMoe:
    """`y[t] = sum over s of softmax over s (l[t, s]) * expert of s (sum over t of softmax over t (l[t, s]) * x[t])`.

    Each expert has some slots, each slot a vector, whose product with a token's row is the logit `l`. A slot is a mean
    of all rows, so only an encoder, whose run is a whole input, has such blocks. An input reads each expert once: they
    are dense weights, and none is paged. Source: Puigcerver et al. 2023 (arXiv 2308.00951).
    """

    kind: ClassVar[str] = "soft_moe"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "router"

    num_experts: int
    slots: int
    """How many slots each expert has."""
    intermediate_size: int
    activation: op.Activation = op.RELU
    """The activation of experts, which have no gate."""
    bias: bool = False
    """Whether up and down of each expert have biases."""
    normalise: Literal["none", "unit", "gain"] = "none"
    """The products that logits are: of rows and slots' vectors as they are; both divided by their lengths, times a
    learned number (the paper); or of rows as they are and an RMSNorm of slots' vectors (`soft-moe-pytorch`)."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def total_slots(self) -> int:
        """The number of all experts' slots."""
        return self.num_experts * self.slots

    def check(self) -> None:
        check_activation(self.activation)
        if self.activation.gated:
            raise ValueError("experts of slots with a gate")
        if self.total_slots > MOST_SLOTS:
            raise ValueError(f"{self.total_slots} slots: expected at most {MOST_SLOTS}")

    def tensors(self, hidden_size: int) -> Shapes:
        shapes: dict[str, tuple[int, ...]] = {"slots": (self.total_slots * hidden_size,)}
        if self.normalise == "unit":
            shapes["slot_scale"] = (1,)
        if self.normalise == "gain":
            shapes["slot_gain"] = (hidden_size,)
        for expert in range(self.num_experts):
            shapes |= ffn_tensors(_name(expert), self.intermediate_size, hidden_size, self.bias, gated=False)
        return shapes

    def sizes(self) -> Mapping[str, int]:
        return {"experts": self.num_experts, "slots": self.slots, "expert_width": self.intermediate_size}

    def with_top_k(self, top_k: int) -> SoftMoe:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        build.require_encoder("slots that every row of an input mixes into")
        D, S = build.hidden_size, self.total_slots
        gain = build.vector("slot_gain", D) if self.normalise == "gain" else None
        scale = build.vector("slot_scale", 1) if self.normalise == "unit" else None
        factor = 1.0 if gain is None else math.sqrt(D)
        logits, slots = build.rows("slot_logits", S), build.fixed_rows("slots", S, D)
        units = self.normalise != "none", self.normalise == "unit"
        build.add(mx.SlotLogits(source, build.vector("slots", S * D), gain, scale, factor, logits, *units))
        build.add(mx.Dispatch(logits, source, slots))
        with build.doing("experts", "experts"):
            results = build.fixed_rows("slot_results", S, D)
            for expert in range(self.num_experts):
                build.add(self._expert(build, expert, slots, results))
        with build.doing("combine", "combine"):
            mixed = build.rows("mixed", D)
            build.add(mx.Collect(logits, results, mixed))
            build.deliver_sum(None, None, mixed)

    def _expert(self, build: Builder, expert: int, slots: op.Floats, results: op.Floats) -> mx.SlotFfn:
        name, D, F = _name(expert), build.hidden_size, self.intermediate_size
        biases = None
        if self.bias:
            biases = op.FfnBiases(None, build.vector(f"{name}.up_bias", F), build.vector(f"{name}.down_bias", D))
        up, down = build.matrix(f"{name}.up", F, D), build.matrix(f"{name}.down", D, F)
        return mx.SlotFfn(slots, expert * self.slots, self.slots, up, down, results, self.activation, biases)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("slots have no routing to guess")


def _name(expert: int) -> str:
    return f"slot_experts.{expert}"
