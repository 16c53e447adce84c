"""A mixture of experts: a router chooses `top_k` FFNs for each token, and their weighted sum is added.

Every routed expert writes to a row of its own, and `Combine` sums these rows in the router's order, so no order in
which records arrive can show in the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import RoutedExperts, Shapes, check_activation, ffn_tensors
from edgemoe.model.blocks.routers import RouterSpec
from edgemoe.model.builder import Builder
from edgemoe.model.graph import GUESSED_ROWS, Part, RoutingValues
from edgemoe.model.plain import ZERO_ALLOWED


@dataclass(frozen=True)
class SharedExpert:
    """An FFN that every token uses beside its routed experts."""

    intermediate_size: int
    gate: bool = False
    """Whether its output is multiplied by `sigmoid(w x)` (Qwen2-MoE)."""
    activation: op.Activation = op.SILU
    """Its activation, which says too whether it has the matrix of a gate."""
    bias: bool = False
    """Whether its gate, up and down have biases."""


@dataclass(frozen=True)
class Moe:
    """Routed experts, with a shared expert if there is one."""

    kind: ClassVar[str] = "moe"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "router"

    num_experts: int
    top_k: int
    intermediate_size: int
    router: RouterSpec
    shared: SharedExpert | None = None
    activation: op.Activation = op.SILU
    """The activation of routed experts, which says too whether they have the matrix of a gate."""
    bias: bool = False
    """Whether gate, up and down of each routed expert have biases."""
    scale: float = 1.0
    """Factor of the sum of routed and shared experts (Cohere halves it)."""
    capacity: int = field(default=0, metadata=ZERO_ALLOWED)
    """How many tokens of an input an expert takes at most, the first ones, in an encoder; 0: all (Switch)."""
    capacity_factor: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """With a capacity: an expert takes this many even shares of the input's tokens, where that is more (GShard)."""
    capacity_by_rank: bool = False
    """Whether the first choices of all tokens take places before any second one (GShard)."""
    latent: int = field(default=0, metadata=ZERO_ALLOWED)
    """The width of the rows that routed experts read and write, between two matrices of their own: `latent_out (sum of
    experts (latent_in x))` (Nemotron 3). 0: they read the block's rows."""
    experts_norm: bool = False
    """Whether experts read the block's rows under a norm of their own, which the router does not see (Gemma 4)."""
    weigh_inputs: bool = False
    """Whether the weight of a token's one expert multiplies what the expert reads, not its output (Llama 4)."""
    passing: int = field(default=0, metadata=ZERO_ALLOWED)
    """How many further choices the router has, each of which passes on what experts read (LongCat-Flash)."""

    @property
    def routed(self) -> RoutedExperts | None:
        sizes = self.num_experts, self.top_k, self.intermediate_size
        return RoutedExperts(
            *(*sizes, self.bias, self.activation.gated, self.latent),
            by_token=self.router.table > 0,
            by_levels=bool(self.router.levels),
            passing=self.passing,
            early=self.router.early,
        )

    @property
    def choices(self) -> int:
        """The number of what the router chooses from: experts, and what passes on its input."""
        return self.num_experts + self.passing

    def check(self) -> None:
        self.router.check(self.choices, self.top_k, self.passing)
        check_activation(self.activation)
        if self.passing and (self.capacity or self.weigh_inputs):
            raise ValueError("choices of no expert beside a capacity or weights of inputs")
        if not self.capacity and (self.capacity_factor or self.capacity_by_rank):
            raise ValueError("the rule of a capacity without one")
        if self.capacity_factor * ex.MILLIONTHS > ex.MOST_SHARE:
            raise ValueError(f"a capacity of {self.capacity_factor:g} even shares of the tokens")
        if self.weigh_inputs and self.top_k > 1:
            raise ValueError(f"weights of the inputs of {self.top_k} experts for each token, not of one")
        if self.shared is not None:
            check_activation(self.shared.activation)
            if self.latent and self.shared.gate:
                raise ValueError("a gate of the shared expert beside experts on latent rows")
        if self.latent and self.experts_norm:
            raise ValueError("a norm before experts on latent rows")

    def tensors(self, hidden_size: int) -> Shapes:
        shapes = dict(self.router.tensors(self.choices, self.top_k, hidden_size))
        if self.shared is not None:
            own = self.shared
            shapes |= ffn_tensors("shared", own.intermediate_size, hidden_size, own.bias, own.activation.gated)
            if self.shared.gate:
                shapes["shared_gate"] = (1, hidden_size)
        if self.latent:
            shapes |= {"latent_in": (self.latent, hidden_size), "latent_out": (hidden_size, self.latent)}
        if self.experts_norm:
            shapes["experts_norm"] = (hidden_size,)
        return shapes

    def sizes(self) -> Mapping[str, int]:
        return {
            "experts": self.num_experts,
            "used": self.top_k,
            "choices": self.choices,
            "router_logits": self.router.logit_count(self.choices),
            "expert_width": self.intermediate_size,
            "shared_width": self.shared.intermediate_size if self.shared else 0,
            **({"expert_model": self.latent} if self.latent else {}),
        }

    def with_top_k(self, top_k: int) -> Moe:
        fixed = self.router.table or self.router.levels  # which name as many as they do
        return self if fixed else replace(self, top_k=top_k)

    def emit(self, build: Builder, source: op.Floats) -> None:
        K, D = self.top_k, build.hidden_size
        build.routing = routing = self._routing(build)
        early = self.router.early  # then all else of the layer comes after "attend" (`build._add_layer`)
        with build.doing("router", "attend" if early else None):
            experts, weights = routing.experts, routing.weights
            if build.options.forced_routing:  # the router's choice goes aside; the caller fills `routing`
                experts, weights = build.row_numbers("routed_experts", K), build.rows("routed_weights", K)
            logits, bonus = (
                build.rows("router_logits", self.router.logit_count(self.choices)),
                build.options.cache_aware_routing,
            )
            slots = routing.slots if bonus > 0 else None
            reads = build.residual if early else source
            self.router.emit(build, reads, logits, experts, weights, slots, bonus, self.passing)
            if self.capacity:
                build.require_encoder("a capacity of experts, which counts the tokens of a whole input")
                share = round(self.capacity_factor * ex.MILLIONTHS)
                build.add(ex.Capacity(experts, weights, self.num_experts, self.capacity, share, self.capacity_by_rank))
        with build.doing("experts", "fetch"):
            drop_cold = build.options.drop_cold
            weighed = routing.weights if drop_cold > 0 else None
            build.add(ex.Fetch(routing.experts, weighed, drop_cold, build.paging(), build.options.from_base))
        build.guess_next_routing()
        if self.experts_norm:
            with build.doing("experts", "beside"):
                source = build.rms_norm(source, "experts_norm", D, build.rows("experts_input", D))
        shared = gate = None
        if self.shared is not None:
            with build.doing("shared_expert", "beside"):
                own = self.shared
                shared = build.ffn(source, "shared", own.intermediate_size, own.activation, own.bias)
                if own.gate:
                    gate = build.linear(source, "shared_gate", build.rows("shared_gate", 1))
        if self.latent:
            with build.doing("experts", "beside"):
                source = build.linear(source, "latent_in", build.rows("latent_input", self.latent))
        with build.doing("experts", "experts"):
            routed = build.rows("routed", K, self.latent or D)
            if self.weigh_inputs:
                weighed = build.rows("weighed", D)
                build.add(ex.Combine(weighed, 1.0, None, None, source, None, accumulate=False))  # a copy
                build.add(op.Gate(routing.weights, weighed, "identity"))
                source = weighed
            build.experts(source, routing, self.intermediate_size, self.activation, routed)
        with build.doing("combine", "combine"):
            if not self.latent:
                build.deliver_sum(routed, None if self.weigh_inputs else routing.weights, shared, gate, self.scale)
                return
            summed = build.rows("latent_sum", self.latent)
            build.add(ex.Combine(summed, 1.0, routed, routing.weights, None, None, accumulate=False))
            output = build.rows("latent_output", D) if shared is None else shared
            part = op.LinearPart(build.matrix("latent_out", D, self.latent), None, output)
            build.add(op.Linear(summed, (part,), accumulate=shared is not None))
            build.deliver_sum(None, None, output, scale=self.scale)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        guessed = self._routing(build)
        experts, weights = guessed.guess, guessed.guess_weights
        if build.options.forced_routing:
            experts = build.row_numbers("guessed_experts", self.top_k, rows=GUESSED_ROWS)
            weights = build.fixed_rows("guessed_weights", GUESSED_ROWS, self.top_k)
        if self.router.table:
            self.router.emit_known(build, self.num_experts, experts, weights)
            build.add(ex.Prefetch(guessed.guess, build.paging()))
            return
        logits = build.fixed_rows("guessed_logits", GUESSED_ROWS, self.router.logit_count(self.choices))
        self.router.emit(build, source, logits, experts, weights, passing=self.passing)
        build.add(ex.Prefetch(guessed.guess, build.paging()))

    def _routing(self, build: Builder) -> RoutingValues:
        E, K = self.num_experts, self.top_k
        return RoutingValues(
            experts=build.kept("experts", build.letter, K, dtype="i32"),
            weights=build.kept("weights", build.letter, K),
            guess=build.kept("guess", GUESSED_ROWS, K, dtype="i32"),
            guess_weights=build.kept("guess_weights", GUESSED_ROWS, K),
            slots=build.kept("slots", E, dtype="i32"),
        )
