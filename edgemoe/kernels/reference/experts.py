"""The reference of the operations of `expert_operations.py`: routing, experts, the sum of their results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.definition import HINT, Sizes
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.paging import Pager
from edgemoe.kernels.reference.common import Doubles, check_each, sigmoid, single, softmax
from edgemoe.kernels.stepwise import StepwiseBackend, means


def route(
    logits: Floats,
    count: int,
    renormalise: bool,
    in_memory: Integers | None = None,
    bonus: float = 0.0,
    score: ex.Score = "softmax",
    choice_bias: Floats | None = None,
    groups: int = 1,
    kept_groups: int = 1,
    epsilon: float = 0.0,
    scale: float = 1.0,
    least_sum: float = 0.0,
    choose_by: ex.Choice = "score",
    expert_scales: Floats | None = None,
    group_best: int = 2,
    jitter: float = 0.0,
) -> tuple[Integers, Floats]:
    """Experts `(T, K)` of largest choice score, the lower number on a tie, and their weights `(T, K)`: see `ex.Route`.

    With `in_memory` `(E,)` all but the first are chosen with a bonus for experts that are in memory.
    """
    choices = choice_scores(logits, score, choice_bias, groups, kept_groups, choose_by, group_best)
    chosen = np.argsort(-choices, axis=1, kind="stable")
    if in_memory is not None:
        raised = np.take_along_axis(_raised_scores(choices, in_memory, bonus, groups), chosen, axis=1)
        raised[:, 0] = np.inf
        # `chosen` is in order of scores; a stable sort keeps those that were raised to the same in that order
        ranks = np.sort(np.argsort(-raised, axis=1, kind="stable")[:, :count], axis=1)
        chosen = np.take_along_axis(chosen, ranks, axis=1)
    chosen = chosen[:, :count]
    exact = logits.astype(np.float64)
    if score in ex.BY_THEMSELVES:
        weights = _alone(np.take_along_axis(exact, chosen, axis=1), score)
        if renormalise:
            with np.errstate(invalid="ignore"):  # 0 / 0 without an epsilon
                weights /= weights.sum(axis=1, keepdims=True) + np.float32(epsilon)
    elif score == "sparsemixer":
        weights = _sparsemixer_weights(logits, chosen, jitter)
    elif renormalise and not least_sum:
        weights = softmax(np.take_along_axis(exact, chosen, axis=1))
    else:
        weights = np.take_along_axis(softmax(exact), chosen, axis=1)
        if least_sum:
            weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(least_sum))
    weights = weights * np.float32(scale)
    if expert_scales is not None:
        weights = weights * expert_scales[chosen]
    return chosen.astype(np.int32), single(weights)


def _alone(logits: Doubles, score: ex.Score) -> Doubles:
    """The scores that follow from each logit by itself."""
    return sigmoid(logits) if score == "sigmoid" else np.sqrt(np.logaddexp(0, logits))


def _sparsemixer_weights(logits: Floats, chosen: npt.NDArray[np.signedinteger], jitter: float) -> Doubles:
    """The share of each chosen expert `(T, K)` among those near the largest that are not chosen before it."""
    weights = np.empty(chosen.shape, np.float64)
    left = logits.copy()
    for k in range(chosen.shape[1]):
        expert = chosen[:, k : k + 1]
        largest = left.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # 0 / 0, which counts as near
            far = (largest - logits) / np.maximum(np.abs(logits), largest) > np.float32(2) * np.float32(jitter)
        np.put_along_axis(far, expert, False, axis=1)
        shares = softmax(np.where(far, -np.inf, left.astype(np.float64)))
        weights[:, k] = np.take_along_axis(shares, expert, axis=1)[:, 0]
        np.put_along_axis(left, expert, np.float32(-np.inf), axis=1)
    return weights


def choice_scores(
    logits: Floats,
    score: ex.Score,
    choice_bias: Floats | None,
    groups: int = 1,
    kept_groups: int = 1,
    choose_by: ex.Choice = "score",
    group_best: int = 2,
) -> Floats:
    """The scores `(T, E)` by which experts are chosen; -infinity for those of groups that are not kept."""
    choices = logits
    alone = score in ex.BY_THEMSELVES
    if choose_by == "score" and (alone or choice_bias is not None or groups > 1):
        exact = logits.astype(np.float64)
        choices = single(_alone(exact, score) if alone else softmax(exact))
    if choice_bias is not None:
        choices = choices + choice_bias
    if groups == 1:
        return choices
    grouped = choices.reshape(len(choices), groups, -1)
    best = -np.sort(-grouped, axis=2)
    sums = best[:, :, 0] if group_best == 1 else best[:, :, 0] + best[:, :, 1]
    order = np.argsort(-sums, axis=1, kind="stable")
    kept = np.full(grouped.shape, -np.inf, np.float32)
    for group in order[:, :kept_groups].T:
        kept[np.arange(len(kept)), group] = grouped[np.arange(len(kept)), group]
    return kept.reshape(choices.shape)


def _raised_scores(choices: Floats, in_memory: Integers, bonus: float, groups: int) -> Floats:
    """Choice scores `(T, E)` with the bonus of experts that are in memory, every step in float32."""
    smallest = choices if groups == 1 else np.where(choices == -np.inf, np.float32(np.inf), choices)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = choices.max(axis=1, keepdims=True) - smallest.min(axis=1, keepdims=True)
        reach[~np.isfinite(reach)] = 0
        return np.where(in_memory != 0, choices + np.float32(bonus) * reach, choices)


@means(ex.Route, "route")
def _route(kernels: Any, o: ex.Route, tokens: int) -> None:
    in_memory = None if o.slots is None else np.append(o.slots >= 0, [True] * o.passing).astype(np.int32)
    choice = o.score, o.choice_bias, o.groups, o.kept_groups
    weighing = o.epsilon, o.scale, o.least_sum, o.choose_by, o.expert_scales, o.group_best, o.jitter
    chosen = kernels.route(o.logits[:tokens], o.experts.shape[1], o.renormalise, in_memory, o.bonus, *choice, *weighing)
    o.experts[:tokens], o.weights[:tokens] = chosen
    if o.passing:
        o.experts[:tokens][o.experts[:tokens] >= o.logits.shape[1] - o.passing] = -1


@means(ex.LevelRoute)
def _level_route(kernels: Any, o: ex.LevelRoute, tokens: int) -> None:
    chosen, weights = np.zeros((tokens, 1), np.int64), np.full((tokens, 1), float(np.float32(o.scale)))
    start, groups = 0, 1
    for level in o.levels:
        logits = o.logits[:tokens, start : start + groups * level.size].reshape(tokens, groups, level.size)
        own = np.take_along_axis(logits, chosen[:, :, None], axis=1)  # those of the members of chosen groups
        best = np.argsort(-own, axis=2, kind="stable")[:, :, : level.top_k]
        picked = np.take_along_axis(own, best, axis=2).astype(np.float64)
        shares = softmax(picked)
        if not o.renormalise:
            shares = np.take_along_axis(softmax(own.astype(np.float64)), best, axis=2)
        weights = (weights[:, :, None] * shares).reshape(tokens, -1)
        chosen = (chosen[:, :, None] * level.size + best).reshape(tokens, -1)
        start, groups = start + groups * level.size, groups * level.size
    o.experts[:tokens], o.weights[:tokens] = chosen, single(weights)


@means(ex.TableRoute)
def _table_route(kernels: Any, o: ex.TableRoute, tokens: int) -> None:
    top_k = o.experts.shape[1]
    table = o.table.reshape(-1, top_k)
    check_each("token id", o.ids[:tokens], len(table))
    rows = table[o.ids[:tokens]]
    if not ((rows >= 0) & (rows < o.num_experts)).all():
        raise KernelError(f"experts of a table: expected 0 to {o.num_experts - 1}, found others.", HINT)
    o.experts[:tokens] = rows
    if o.logits is not None:
        chosen = np.take_along_axis(o.logits[:tokens].astype(np.float64), o.experts[:tokens], axis=1)
        shares = _alone(chosen, "sqrt_softplus")
        total = shares.sum(axis=1, keepdims=True) + np.float32(o.epsilon)
        o.weights[:tokens] = single(shares / total * np.float32(o.scale))


def within_capacity(experts: Integers, weights: Floats, num_experts: int, capacity: int, by_rank: bool) -> Floats:
    """The weights `(T, K)` of choices of experts `(T, K)`; 0 where `capacity` choices of the expert come before."""
    inside = (weights.T if by_rank else weights).copy()
    kept = inside.reshape(-1)
    places = np.flatnonzero(kept)
    chosen = (experts.T if by_rank else experts).reshape(-1)[places]
    taken = np.cumsum(chosen[:, None] == np.arange(num_experts), axis=0)
    kept[places[taken[np.arange(len(chosen)), chosen] > capacity]] = 0
    return inside.T if by_rank else inside


@means(ex.Capacity, "within_capacity")
def _capacity(kernels: Any, o: ex.Capacity, tokens: int) -> None:
    experts, weights = o.experts[:tokens], o.weights[:tokens]
    check_each("expert", experts.reshape(-1), o.num_experts)
    weights[:] = kernels.within_capacity(experts, weights, o.num_experts, o.taken(tokens), o.by_rank)


@means(ex.LeastWeight)
def _least_weight(kernels: Any, o: ex.LeastWeight, tokens: int) -> None:
    further = o.weights[:tokens, 1:]
    further[~(further > np.float32(o.least))] = 0


def _experts_scratch(kernels: StepwiseBackend, o: ex.Experts, sizes: Sizes) -> int:
    used, width = (sizes.letters[letter] for letter in "KD")
    once = kernels.experts_scratch_bytes(sizes.rows, used, width, o.layouts[0].intermediate_size)
    if o.bases is None:
        return once
    copied = (o.bases.first.nbytes + o.bases.down.nbytes) // len(o.layout_of)  # of one expert
    return 2 * once + copied


@means(ex.Fetch, None)
def _fetch(kernels: Any, o: ex.Fetch, tokens: int) -> int:
    if o.paged is None:
        return 0
    pager, layer = o.paged.pager, o.paged.layer
    weights = None if o.weights is None else o.weights[:tokens]
    return _waited_ns(pager, lambda: pager.fetch(layer, o.experts[:tokens], weights, o.drop_cold, o.from_base))


@means(ex.Prefetch, None)
def _prefetch(kernels: Any, o: ex.Prefetch, tokens: int) -> int:
    if o.paged is None:
        return 0
    pager, layer = o.paged.pager, o.paged.layer
    wanted = list(dict.fromkeys(expert for expert in o.experts[:tokens].reshape(-1).tolist() if expert != -1))
    return _waited_ns(pager, lambda: pager.prefetch(layer, wanted))


@means(ex.Experts, "gated_ffn", _experts_scratch)
def _experts(kernels: Any, o: ex.Experts, tokens: int) -> int:
    chosen = o.experts[:tokens]
    passed, ranks = np.nonzero(chosen == -1)
    o.output[passed, ranks] = o.input[passed]
    if o.paged is None:
        experts = np.unique(chosen[chosen != -1])
        here = ((int(expert), int(o.slots[expert])) for expert in experts if o.slots[expert] >= 0)
        _run_experts(kernels, o, chosen, here)
        return 0
    pager, layer = o.paged.pager, o.paged.layer
    o.output[:tokens][np.isin(chosen, pager.left_out(layer))] = 0
    for expert in pager.set_aside(layer):
        _run_expert(kernels, o, chosen, expert, ex.ExpertWeights(*o.base_weights(expert), None, None), None)
    with contextlib.closing(pager.landings(layer)) as landings:  # so that a run that fails ends the use
        return _waited_ns(pager, lambda: _run_experts(kernels, o, chosen, landings))


def _waited_ns(pager: Pager, work: Callable[[], None]) -> int:
    """Do work that asks a pager for experts; returns the nanoseconds for which the pager waited for reads meanwhile."""
    before_ns = pager.wait_ns
    work()
    return pager.wait_ns - before_ns


def _run_experts(kernels: Any, o: ex.Experts, chosen: Integers, experts: Iterable[tuple[int, int]]) -> None:
    """Compute experts, each in its slot, for the tokens that chose them."""
    for expert, slot in experts:
        beneath = None if o.bases is None else o.base_weights(expert)
        _run_expert(kernels, o, chosen, expert, o.weights(expert, slot), beneath)


def _run_expert(
    kernels: Any,
    o: ex.Experts,
    chosen: Integers,
    expert: int,
    own: ex.ExpertWeights,
    beneath: tuple[Matrix, Matrix] | None,
) -> None:
    """Compute an expert for the tokens that chose it."""
    rows, ranks = np.nonzero(chosen == expert)
    ffn = kernels.gated_ffn if o.activation.gated else kernels.plain_ffn
    apart = {} if own.up is None else {"up_apart": own.up}
    planes = {} if beneath is None else {"beneath": beneath}
    o.output[rows, ranks] = ffn(o.input[rows], own.first, own.down, own.biases, o.activation, **apart, **planes)


def combine(routed: Floats | None, weights: Floats | None, shared: Floats | None, shared_gate: Floats | None) -> Floats:
    """The output of an MoE block: routed `(T, K, D)`, weights `(T, K)`, shared `(T, D)`, gate `(T, 1)`."""
    total: Doubles | None = None
    if routed is not None:
        exact = np.ones(routed.shape[:2]) if weights is None else weights.astype(np.float64)
        for k in range(routed.shape[1]):
            term = exact[:, k, None] * routed[:, k]
            total = term if total is None else total + term
    if shared is not None:
        gate = 1.0 if shared_gate is None else sigmoid(shared_gate.astype(np.float64))
        term = gate * shared.astype(np.float64)
        total = term if total is None else total + term
    assert total is not None  # `Combine` has one of the terms at least
    return single(total)


@means(ex.Combine, "combine", lambda kernels, o, sizes: kernels.element_scratch_bytes * math.prod(o.output.shape))
def _combine(kernels: Any, o: ex.Combine, tokens: int) -> None:
    parts = (o.routed, o.weights, o.shared, o.shared_gate)
    total = kernels.combine(*(None if part is None else part[:tokens] for part in parts))
    total *= np.float32(o.scale)
    if o.accumulate:
        o.output[:tokens] += total
    else:
        o.output[:tokens] = total
