"""Routers: how a token's experts are chosen and weighed, as data inside the blocks that have routed experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.definition import Misfit
from edgemoe.model.blocks.body import Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.plain import ZERO_ALLOWED


@dataclass(frozen=True)
class RouterSpec:
    """A matrix gives each expert a logit; the rest follows `ex.Route`, where each number has its meaning."""

    normalise: bool
    """Whether the weights of the chosen experts are divided by their sum plus `epsilon`."""
    score: ex.Score = "softmax"
    choice_bias: bool = False
    """Whether each expert has a bias that counts for the choice but not for the weight (DeepSeek-V3)."""
    logit_bias: bool = False
    """Whether each expert has a bias that is part of its logit, and so of its weight too (gpt-oss)."""
    groups: int = 1
    kept_groups: int = 1
    epsilon: float = field(default=0.0, metadata=ZERO_ALLOWED)
    scale: float = 1.0
    """Factor of the weights, after they are normalised."""
    least_sum: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """The least number that weights by softmax are divided by, in the place of a smaller sum of theirs (ERNIE 4.5)."""
    choose_by: ex.Choice = "score"
    """Whether experts are chosen by their scores or by their logits, plus the bias for the choice."""
    logit_cap: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """The bound that logits are brought within, smoothly (`op.SoftCap`); 0: they stay as they are."""
    norm: bool = False
    """Whether its matrix reads rows under a norm of its own (Gemma 4)."""
    logit_scale: float = 1.0
    """Factor of the logits."""
    expert_scales: bool = False
    """Whether each expert has a number by which its weight is multiplied last (Gemma 4)."""
    group_best: int = 2
    """How many of its largest scores make a group's: 1 (DeepSeek-V2) or 2."""
    jitter: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """Half the distance from the largest logit within which others count, of `sparsemixer` (Phi-3.5-MoE)."""
    table: int = field(default=0, metadata=ZERO_ALLOWED)
    """The size of the vocabulary, where a table names the experts of each token, and logits only weigh them
    (`ex.TableRoute`, DeepSeek-V4); 0: the logits choose."""
    early: bool = False
    """Whether its matrix reads the stream as the layer begins, before attention and without a norm (SmallThinker)."""
    least_further: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """The weight that each choice but a token's first must exceed to count (GShard); 0: all count."""
    levels: tuple[ex.Level, ...] = ()
    """The levels of a hierarchical router (`ex.LevelRoute`); none: each expert has one logit."""

    def logit_count(self, choices: int) -> int:
        """The number of logits of a token, of a router of so many choices."""
        return ex.logits_of(self.levels) if self.levels else choices

    def check(self, num_experts: int, top_k: int, passing: int = 0) -> None:
        """Raise ValueError for settings that contradict one another or the numbers of experts."""
        if self.levels:
            self._check_levels(num_experts, top_k, passing)
            return
        logits, chosen = op.Placeholder((1, num_experts)), op.Placeholder((1, top_k))
        bias = op.Placeholder((num_experts,)) if self.choice_bias else None
        if self.table and replace(self, table=0, epsilon=0.0, scale=1.0) != _OF_TABLES:
            raise ValueError("router: a table of experts with weights that are not shares of sqrt_softplus")
        scales = op.Placeholder((num_experts,)) if self.expert_scales else None
        if self.epsilon and not self.normalise:
            raise ValueError(f"router: an epsilon of {self.epsilon:g} and no sum that it would be added to")
        try:
            self._route(logits, chosen, chosen, bias, scales, passing=passing).measure()
        except Misfit as misfit:
            raise ValueError(f"router: {misfit.field}: expected {misfit.expected}, found {misfit.found}") from None

    def _check_levels(self, num_experts: int, top_k: int, passing: int) -> None:
        sizes, chosen = [level.size for level in self.levels], [level.top_k for level in self.levels]
        if math.prod(sizes) != num_experts:
            raise ValueError(
                f"router: levels of {' x '.join(map(str, sizes))}: expected them to make {num_experts} experts"
            )
        if math.prod(chosen) != top_k:
            raise ValueError(
                f"router: {' x '.join(map(str, chosen))} choices: expected them to make {top_k} for a token"
            )
        if passing or replace(self, levels=(), normalise=False, scale=1.0) != RouterSpec(False):
            raise ValueError("router: levels with settings of another router than `normalise` and `scale`")
        try:
            self._by_levels(op.Placeholder((1, self.logit_count(0))), *[op.Placeholder((1, top_k))] * 2).measure()
        except Misfit as misfit:
            raise ValueError(f"router: {misfit.field}: expected {misfit.expected}, found {misfit.found}") from None

    def _by_levels(self, logits: Any, experts: Any, weights: Any) -> ex.LevelRoute:
        return ex.LevelRoute(logits, self.levels, self.normalise, self.scale, experts, weights)

    def tensors(self, num_experts: int, top_k: int, hidden_size: int) -> Shapes:
        """The names of its tensors within a layer, with their shapes."""
        shapes: dict[str, tuple[int, ...]] = {"router": (self.logit_count(num_experts), hidden_size)}
        if self.logit_bias:
            shapes["router_bias"] = (num_experts,)
        if self.choice_bias:
            shapes["router_choice_bias"] = (num_experts,)
        if self.norm:
            shapes["router_norm"] = (hidden_size,)
        if self.expert_scales:
            shapes["router_expert_scales"] = (num_experts,)
        if self.table:
            shapes["router_table"] = (self.table * top_k,)
        return shapes

    def emit(
        self,
        build: Builder,
        source: op.Floats,
        logits: op.Floats,
        experts: op.Integers,
        weights: op.Floats,
        slots: op.Integers | None = None,
        bonus: float = 0.0,
        passing: int = 0,
    ) -> None:
        """Add the operations from the normalised stream to the choice; `logits` is a value of the caller.

        It is `(T, logit_count)`.

        The last `passing` of the `E` are of no expert.
        """
        if self.norm:
            normed = build.rows_like("router_input", logits, build.hidden_size)
            source = build.rms_norm(source, "router_norm", build.hidden_size, normed)
        build.linear(source, "router", logits, bias=self.logit_bias, scale=self.logit_scale)
        if self.logit_cap:
            build.add(op.SoftCap(logits, self.logit_cap))
        if self.table:
            self._look_up(build, logits, experts, weights)
            return
        if self.levels:
            build.add(self._by_levels(logits, experts, weights))
            return
        bias = build.vector("router_choice_bias", logits.shape[1]) if self.choice_bias else None
        scales = build.vector("router_expert_scales", logits.shape[1]) if self.expert_scales else None
        build.add(self._route(logits, experts, weights, bias, scales, slots, bonus, passing))
        if self.least_further:
            build.add(ex.LeastWeight(weights, self.least_further))

    def emit_known(self, build: Builder, num_experts: int, experts: op.Integers, weights: op.Floats) -> None:
        """Add the operation that names the experts of a table, though no row of their layer is known yet."""
        self._look_up(build, None, experts, weights, num_experts)

    def _look_up(
        self, build: Builder, logits: Any, experts: op.Integers, weights: op.Floats, num_experts: int = 0
    ) -> None:
        table = build.vector("router_table", self.table * experts.shape[1])
        count = num_experts or logits.shape[1]
        build.add(ex.TableRoute(build.token_ids(), table, logits, count, self.epsilon, self.scale, experts, weights))

    def _route(
        self,
        logits: Any,
        experts: Any,
        weights: Any,
        choice_bias: Any,
        expert_scales: Any,
        slots: Any = None,
        bonus: float = 0.0,
        passing: int = 0,
    ) -> ex.Route:
        return ex.Route(
            logits,
            self.normalise,
            experts,
            weights,
            slots,
            bonus,
            score=self.score,
            choice_bias=choice_bias,
            groups=self.groups,
            kept_groups=self.kept_groups,
            epsilon=self.epsilon,
            scale=self.scale,
            least_sum=self.least_sum,
            choose_by=self.choose_by,
            expert_scales=expert_scales,
            group_best=self.group_best,
            jitter=self.jitter,
            passing=passing,
        )


_OF_TABLES = RouterSpec(normalise=True, score="sqrt_softplus")
"""Fields of a router with a table, beside its epsilon and scale."""
