"""The operations that choose a token's experts, read their records, run them and sum their results.

Defined as those of `operations.py` are, and with its letters and invariants.
"""

# Annotations are evaluated here, not left as text, so that the marks in them can be read quickly.

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from edgemoe.kernels.definition import Misfit, Sizes, require
from edgemoe.kernels.expert_layouts import MATRIX_ALIGNMENT_BYTES as MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.expert_layouts import ExpertBases as ExpertBases
from edgemoe.kernels.expert_layouts import ExpertLayout as ExpertLayout
from edgemoe.kernels.expert_layouts import ExpertWeights as ExpertWeights
from edgemoe.kernels.expert_layouts import RecordLayouts as RecordLayouts
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, panel_count
from edgemoe.kernels.marks import (
    IN_PLACE,
    NUMBER,
    OUTPUT,
    PAGER,
    buffer,
    output,
    rows,
    size,
    up_to,
    weight,
)
from edgemoe.kernels.operations import (
    SILU,
    Activation,
    Bytes,
    Floats,
    Integers,
    Operation,
    check_activation,
)

Score = Literal["softmax", "sigmoid", "sparsemixer", "sqrt_softplus"]
"""How a logit becomes the share of an expert: by all logits of the token, by itself, or by those near the largest.

`sigmoid` and `sqrt_softplus`, which is `sqrt(log(1 + exp(logit)))` (DeepSeek-V4), go by the logit itself.
"""

BY_THEMSELVES = ("sigmoid", "sqrt_softplus")
"""The scores of an expert that no other expert's logit changes."""

Choice = Literal["score", "logit"]
"""The numbers by which experts are chosen: their shares, or their logits."""


@dataclass(frozen=True, eq=False, repr=False)
class Route(Operation, code=7):
    """The `K` experts of largest choice score (the lower number on a tie), in falling order, and their weights.

    An expert's choice score is its logit; with `choice_bias` or `groups`, or of `sigmoid` and `sqrt_softplus`, it is
    its score, plus `choice_bias`, in float32; chosen by `logit`, it is `logit + choice_bias` of either.
    Of several `groups`, equal runs of experts, the `kept_groups` of largest sum of their two largest choice scores are
    kept (the lower number on a tie), and experts of the others are not chosen. With a `group_best` of 1 a group's
    largest choice score counts alone (DeepSeek-V2: arXiv 2405.04434).

    Weights are the scores of the chosen experts, without `choice_bias`. With `renormalise` they are divided by
    their sum plus `epsilon` (of softmax without `epsilon`: softmax over the chosen `K`). With `least_sum`, scores of
    softmax over all `E` are divided by the larger of their sum and this number. Last they are multiplied by `scale`,
    and with `expert_scales` by that of their expert.

    The last `passing` of the `E` logits are of no expert: such a choice passes on what experts read, and its number is
    -1 (LongCat-Flash: Meituan 2025, arXiv 2509.01322).

    Of `sparsemixer` (Liu et al. 2024, arXiv 2409.12136) experts are chosen by their logits, and the weight of each is
    its share among experts that are not chosen before it and whose logit `z` is near `m`, the largest of those:
    `(m - z) / max(|z|, m) <= 2 * jitter`, each step in float32. The chosen expert counts as near.

    With `slots`, of the experts alone, the expert of largest choice score is still chosen, and the other `K - 1` by
    largest raised score (on a tie by larger choice score, then the lower number). It is `choice score + bonus *
    (largest - smallest)` of experts that have a slot, and of choices that need none, else the choice score; the range
    is that of the choice scores in kept groups. It is computed in float32, without the bonus for a token whose range is
    not finite. Groups are kept, and the chosen experts listed and weighted, as without the bonus.
    Source of the idea: cache-conditional experts (Skliar et al. 2024, arXiv 2412.00099). Of sigmoid scores with a bias
    for the choice alone, and of groups: DeepSeek-V3 (2024, arXiv 2412.19437). Of `least_sum`: ERNIE 4.5 (Baidu 2025).
    """

    logits: Annotated[Floats, rows("E")]
    renormalise: bool
    experts: Annotated[Integers, rows("K"), OUTPUT]
    weights: Annotated[Floats, rows("K"), OUTPUT]
    slots: Annotated[Integers | None, buffer("resident")] = None  # slot of each expert, or -1; a pager changes it
    bonus: float = 0.0  # 0 to 1
    score: Score = "softmax"
    choice_bias: Annotated[Floats | None, weight("E")] = None
    groups: int = 1
    kept_groups: int = 1
    epsilon: float = 0.0
    scale: float = 1.0
    least_sum: float = 0.0
    choose_by: Choice = "score"
    expert_scales: Annotated[Floats | None, weight("E")] = None
    group_best: Annotated[int, NUMBER] = 2
    jitter: float = 0.0  # 0 but for sparsemixer
    passing: Annotated[int, NUMBER] = 0

    def check(self, sizes: Sizes) -> None:
        require(self.group_best in (1, 2), "group_best", "1 or 2", self.group_best)
        used, experts = sizes.letters["K"], sizes.letters["E"]
        require(0 <= self.passing < experts, "passing", f"0 to {experts - 1}", self.passing)
        if self.slots is not None:
            found = sizes.letters["resident"]
            require(found == experts - self.passing, "slots", f"shape ({experts - self.passing},)", f"shape ({found},)")
        require(0 <= self.bonus <= 1, "bonus", "0 to 1", self.bonus)
        require(self.kept_groups <= self.groups, "kept_groups", f"at most {self.groups}", self.kept_groups)
        if self.groups > 1:
            grouped = experts % self.groups == 0 and experts // self.groups > 1
            require(grouped, "groups", f"equal runs of at least 2 of {experts} experts", self.groups)
        most = experts // self.groups * self.kept_groups
        if used > most:
            raise Misfit("experts", f"at most {most} per token", used)
        require(not self.epsilon or self.score in BY_THEMSELVES, "epsilon", "0 for softmax", self.epsilon)
        divided = self.renormalise and self.score == "softmax"
        require(not self.least_sum or divided, "least_sum", "0 but for softmax that is renormalised", self.least_sum)
        mixes = self.score == "sparsemixer"
        plain = not self.renormalise and self.choice_bias is None and self.groups == 1
        require(not mixes or plain, "score", "no renormalisation, bias or groups with sparsemixer", self.score)
        require(0 <= self.jitter < math.inf, "jitter", "0 or a number above it", self.jitter)
        require(mixes or not self.jitter, "jitter", "0 but for sparsemixer", self.jitter)
        require(not mixes or not self.passing, "passing", "0 with sparsemixer", self.passing)


@dataclass(frozen=True, eq=False, repr=False)
class TableRoute(Operation, code=48):
    """The `K` experts that a table has for each token's id, in its order, and their weights.

    Weights are `sqrt(log(1 + exp(logit)))` of these experts, divided by their sum plus `epsilon`, times `scale`.
    Without `logits` no weights are computed. Source: the first layers of DeepSeek-V4 (2026), which so have the hash
    routing of Roller et al. 2021 (arXiv 2106.04426).
    """

    ids: Annotated[Integers, rows()]
    table: Annotated[Floats, weight("V*K")]  # numbers of experts, whole
    logits: Annotated[Floats | None, rows("E")]
    num_experts: Annotated[int, size("E")]
    epsilon: float
    scale: float
    experts: Annotated[Integers, rows("K"), OUTPUT]
    weights: Annotated[Floats, rows("K"), OUTPUT]

    def weight_bytes(self) -> int:
        used: int = self.experts.shape[1] * self.table.nbytes
        return used // math.prod(self.table.shape)


MILLIONTHS = 1_000_000
"""The unit of a capacity's `share`: whole numbers, so that every backend finds the same capacity."""
MOST_SHARE = 1000 * MILLIONTHS
"""The largest `share` of a capacity."""
MOST_LEVELS = 8
"""The most levels of a router."""


@dataclass(frozen=True)
class Level:
    """One level of a router: each choice of the level above has `size` members, of which a token chooses `top_k`."""

    size: Annotated[int, NUMBER]
    top_k: Annotated[int, NUMBER]


def logits_of(levels: Sequence[Level]) -> int:
    """The number of logits of a router of these levels."""
    return sum(itertools.accumulate((level.size for level in levels), operator.mul))


@dataclass(frozen=True, eq=False, repr=False)
class LevelRoute(Operation, code=54):
    """The experts that a token chooses level by level, and their weights: products of its shares on the way.

    The first level's choices are groups; each has as many members at the next level, and so on down to experts, whose
    numbers so are those of a path. Logits stand level by level, those of one group's members side by side. Among the
    members of a chosen group a token chooses the `top_k` of largest logit (the lower number on a tie), in falling
    order. A member's share is softmax over its group, or with `renormalise` over the group's chosen ones; an expert's
    weight is the product of the shares on its path, from the first level on, times `scale`. `K` is the product of all
    `top_k`; experts of a group stand together, in the order of the groups.

    Source: hierarchical mixtures of experts (Jordan and Jacobs 1994; Shazeer et al. 2017, arXiv 1701.06538).
    """

    logits: Annotated[Floats, rows("numbers")]
    levels: Annotated[tuple[Level, ...], up_to(MOST_LEVELS)]
    renormalise: bool
    scale: float
    experts: Annotated[Integers, rows("K"), OUTPUT]
    weights: Annotated[Floats, rows("K"), OUTPUT]

    def check(self, sizes: Sizes) -> None:
        for number, level in enumerate(self.levels):
            where = f"levels[{number}]"
            require(level.size >= 1, f"{where}.size", "1 or more", level.size)
            require(1 <= level.top_k <= level.size, f"{where}.top_k", f"1 to {level.size}", level.top_k)
        wanted = {
            "numbers": ("logits", logits_of(self.levels)),
            "K": ("experts", math.prod(x.top_k for x in self.levels)),
        }
        for letter, (name, expected) in wanted.items():
            found = sizes.letters[letter]
            require(found == expected, name, f"{expected} columns", found)


@dataclass(frozen=True, eq=False, repr=False)
class Capacity(Operation, code=30):
    """Makes the weight 0 of each choice of an expert that as many choices of this run precede as the expert takes.

    An expert takes `capacity` choices, or the whole part of `share / 1000000 * T / num_experts`, at most `T`, where
    that is more (Lepikhin et al. 2020, arXiv 2006.16668). A choice whose weight is 0 already takes no place. Choices
    are counted row by row, and within a row in the router's order (Fedus et al. 2021); with `by_rank` the first choices
    of all rows come before any second one. The rows of a run are those of one sequence, from its first one on.
    """

    experts: Annotated[Integers, rows("K")]
    weights: Annotated[Floats, rows("K"), IN_PLACE]
    num_experts: int
    capacity: Annotated[int, NUMBER]  # 1 or more
    share: Annotated[int, NUMBER] = 0
    by_rank: bool = False

    def check(self, sizes: Sizes) -> None:
        require(self.capacity >= 1, "capacity", "1 or more", self.capacity)
        require(0 <= self.share <= MOST_SHARE, "share", f"0 to {MOST_SHARE}", self.share)

    def taken(self, tokens: int) -> int:
        """Return how many choices an expert takes in a run of `tokens` rows."""
        return max(self.capacity, min(tokens, tokens * self.share // (MILLIONTHS * self.num_experts)))


@dataclass(frozen=True, eq=False, repr=False)
class LeastWeight(Operation, code=55):
    """Makes the weight 0 of each choice but a token's first one that is not above `least`, a float32.

    So GShard leaves out second choices (Lepikhin et al. 2020, arXiv 2006.16668).
    """

    weights: Annotated[Floats, rows("K"), IN_PLACE]
    least: float

    def check(self, sizes: Sizes) -> None:
        require(0 < self.least < math.inf, "least", "a number above 0", self.least)


MOST_BEHIND = 32
"""The most reads under way beside which an expert that is computed from its base is read for later tokens."""

MOST_LAYOUTS = 16
"""The most layouts that the records of one layer may have."""


@dataclass(frozen=True, eq=False, repr=False)
class Paged:
    """Where an operation asks for the experts of a layer: not all are in the arena."""

    pager: Annotated[Any, PAGER]
    layer: Annotated[int, NUMBER]


@dataclass(frozen=True, eq=False, repr=False)
class Fetch(Operation, code=9):
    """Begins to read the absent experts that a layer's tokens are routed to, as far as slots are available.

    A choice of -1 is of no expert (`Route`); so it is for `Prefetch` and `Experts` too.

    Everything up to the layer's `Experts` is computed meanwhile. With `weights` and `drop_cold` above 0, absent experts
    whose share of the weights is below `drop_cold`, a float32, for every token that uses them are left out: they are
    not read, and their weights become 0. A token's weights are summed in float64, in the router's order; a weight that
    is not a number keeps its expert. Without `paged`, where all experts are in the arena, there is nothing to do.

    With `from_base`, experts that tokens beyond a prompt are routed to, and whose records are not in RAM, are not
    waited for: `Experts` computes them from their bases. Those that are absent are read for later tokens, behind all
    that is waited for, as long as less than `MOST_BEHIND` reads are under way.
    """

    experts: Annotated[Integers, rows("K")]
    weights: Annotated[Floats | None, rows("K"), IN_PLACE]
    drop_cold: float
    paged: Paged | None = None
    from_base: bool = False

    def check(self, sizes: Sizes) -> None:
        require(0 <= self.drop_cold <= 1, "drop_cold", "0 to 1", self.drop_cold)


@dataclass(frozen=True, eq=False, repr=False)
class Prefetch(Operation, code=10):
    """Begins to read the experts that guesses at a later layer's routing name, behind all that are asked for.

    Experts that several tokens' guesses name are read once; the first token's come first.
    """

    experts: Annotated[Integers, rows("K")]
    paged: Paged | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Experts(Operation, code=11):
    """`output[t, k] = expert experts[t, k] (input[t])` for experts whose `slots[e] >= 0`.

    Output rows of other experts are left unchanged; of a choice of -1 the row is `input[t]`. Each token's results go to
    rows of their own, so the order in which experts arrive does not affect the result. With `paged`, a `Fetch` of the
    same experts has come before; experts whose records are in the arena are computed first, the others as their records
    land, and where slots are too few for all they take turns. `slots` is then the pager's own table, and the rows of
    experts that were left out become zeros. A run raises ReadError naming layer and expert if a read fails or takes too
    long.

    With `bases` records are residuals: an expert's weights are the sum of its base and its record, or the base alone
    where the `Fetch` said so (`from_base`).
    """

    input: Annotated[Floats, rows("D")]
    experts: Annotated[Integers, rows("K")]
    slots: Annotated[Integers, buffer("E")]  # index of the expert's record in the arena, or -1
    arena: Annotated[Bytes, buffer("S", "B", aligned=True)]
    layouts: Annotated[tuple[ExpertLayout, ...], up_to(MOST_LAYOUTS)]  # of records of this layer, which may differ
    layout_of: Annotated[Bytes, buffer("E")]  # number of the layout of the expert's record
    output: Annotated[Floats, rows("K", "D"), output(apart_from="input")]
    paged: Paged | None = None
    activation: Activation = SILU
    bases: ExpertBases | None = None

    def check(self, sizes: Sizes) -> None:
        check_activation(self.activation, self.layouts[0].gated)
        if self.bases is not None:
            self._check_bases(self.bases, len(self.layout_of))
        slot_bytes, intermediate_size = sizes.letters["B"], self.layouts[0].intermediate_size
        for number, layout in enumerate(self.layouts):
            where = f"layouts[{number}]"
            if layout.intermediate_size != intermediate_size:
                raise Misfit(f"{where}.intermediate_size", intermediate_size, layout.intermediate_size)
            require(layout.gated == self.activation.gated, f"{where}.gated", not layout.gated, layout.gated)
            end = _check_places(layout, where)
            if (end > slot_bytes and sizes.letters["S"]) or slot_bytes % 64:
                raise Misfit("arena", f"slots of at least {end} bytes, a multiple of 64", slot_bytes)

    def weight_bytes(self) -> int:
        """Return the bytes of the experts of one token: on average, where their layouts differ."""
        counts: list[int] = np.bincount(self.layout_of, minlength=len(self.layouts)).tolist()
        sizes = (x.gate_up_bytes + x.down_bytes + x.bias_bytes for x in self.layouts)
        total = sum(count * size for count, size in zip(counts, sizes, strict=True))
        top_k: int = self.experts.shape[1]
        if self.bases is not None:
            total += self.bases.first.nbytes + self.bases.down.nbytes
        return top_k * (total // len(self.layout_of))

    def _check_bases(self, bases: ExpertBases, experts: int) -> None:
        gated, own = self.layouts[0].gated, self.layouts[0]
        panels = panel_count(own.intermediate_size) * (2 if gated else 1)
        for name, whole, each in (("first", bases.first, panels), ("down", bases.down, panel_count(own.hidden_size))):
            expected = experts * each * PANEL_ROWS
            require(
                whole.rows == expected, f"bases.{name}", f"{expected} rows, whole panels of each expert", whole.rows
            )
        width = bases.down.columns
        require(width == own.intermediate_size, "bases.down", f"{own.intermediate_size} columns", width)
        planes = [bases.first.format, bases.down.format]
        planes += [fmt for one in self.layouts for fmt in (one.gate_format, one.up_format, one.down_format)]
        for fmt in planes:
            require(fmt.quantised and not fmt.varying, "bases", "quantised planes with panels of one length", fmt.name)
        apart = any(one.up_offset or one.biases_offset for one in self.layouts)
        require(not apart, "bases", "residuals with gate and up in turn, and without biases", "others")

    def weights(self, expert: int, slot: int) -> ExpertWeights:
        """Return the matrices and biases of an expert whose record is in a slot, as views of it."""
        return self.layouts[int(self.layout_of[expert])].weights(self.arena[slot])

    def base_weights(self, expert: int) -> tuple[Matrix, Matrix]:
        """Return the base planes of gate and up, and of down, of an expert."""
        own = self.layouts[int(self.layout_of[expert])]
        F = own.intermediate_size
        rows = 2 * PANEL_ROWS * panel_count(F) if own.gated else F
        assert self.bases is not None
        return self.bases.weights(expert, len(self.layout_of), rows, own.hidden_size)


def _check_places(layout: ExpertLayout, where: str) -> int:
    """Check where the matrices and biases of a record lie; return where they end.

    How long matrices in sub1 are, each record says, and it is checked there.
    """
    offset, apart, least = layout.down_offset, layout.up_offset, layout.gate_up_bytes
    if apart:
        require(layout.gated, f"{where}.up_offset", "0 without a gate", apart)
        fixed = not (layout.gate_format.varying or layout.up_format.varying)
        require(fixed, f"{where}.up_offset", "0 with gate or up in sub1", apart)
        least = apart + layout.up_bytes
        if apart < layout.gate_bytes or apart % 64:
            raise Misfit(f"{where}.up_offset", f"0, or a multiple of 64, at least {layout.gate_bytes}", apart)
    elif layout.gate_format != layout.up_format:
        raise Misfit(f"{where}.gate_format", layout.up_format.name, layout.gate_format.name)
    if layout.varying:
        require(not layout.biases_offset, f"{where}.biases_offset", "0, for experts in sub1", layout.biases_offset)
    if layout.up_format.varying:
        require(offset == 0, f"{where}.down_offset", "0 behind gate and up in sub1", offset)
        return 0
    if offset < least or offset % 64:
        raise Misfit(f"{where}.down_offset", f"a multiple of 64, at least {least}", offset)
    if layout.down_format.varying:
        return offset
    end = offset + layout.down_bytes
    if not layout.biases_offset:
        return end
    if layout.biases_offset < end or layout.biases_offset % 64:
        raise Misfit(f"{where}.biases_offset", f"0, or a multiple of 64, at least {end}", layout.biases_offset)
    return layout.bias_offsets()["end"]


@dataclass(frozen=True, eq=False, repr=False)
class Combine(Operation, code=12):
    """`output[t] += scale * (sum_k weights[t, k] * routed[t, k] + sigmoid(shared_gate[t]) * shared[t])`.

    The sum runs in router order. `routed` or `shared` may be None, not both; that term is then absent. Without
    `weights` those of `routed` are 1, and so is the factor of `shared` without `shared_gate`. Without `accumulate` it
    is `output[t] = ...`.
    """

    output: Annotated[Floats, rows("D"), output(adds_if="accumulate")]
    scale: float
    routed: Annotated[Floats | None, rows("K", "D")]
    weights: Annotated[Floats | None, rows("K")]
    shared: Annotated[Floats | None, rows("D")]
    shared_gate: Annotated[Floats | None, rows("1")]
    accumulate: bool = True

    def check(self, sizes: Sizes) -> None:
        some = self.routed is not None or self.shared is not None
        require(some, "routed", "a routed or a shared term", "neither")
        require(self.weights is None or self.routed is not None, "weights", "a routed term", "none")
        require(self.shared_gate is None or self.shared is not None, "shared_gate", "a shared term", "none")
