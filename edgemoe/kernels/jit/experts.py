"""Routing, and the sum of the experts' results, compiled by Numba.

Letters as in `operations.py`, meanings as in `reference/experts.py`. Each token is computed alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.operations import Floats, Integers

_ZERO, _ONE = np.float32(0), np.float32(1)


@jit
def _list_largest(values: Floats, left: npt.NDArray[np.bool_], chosen: Integers) -> None:
    """The experts of largest value among those `left` (they no longer are), the lower number on a tie, `(K,)`."""
    for k in range(len(chosen)):
        best = -1
        for expert in range(len(values)):
            if left[expert] and (best < 0 or values[expert] > values[best]):
                best = expert
        left[best] = False
        chosen[k] = best


@jit
def hold_to_capacity(chosen: Integers, capacity: int, taken: Integers, by_rank: bool, weights: Floats) -> None:
    """Weights `(T, K)` of choices become 0 where the expert has `capacity` before; `taken` is zeros, `(E,)`."""
    tokens, count = chosen.shape
    for i in range(tokens * count):
        t, k = (i % tokens, i // tokens) if by_rank else (i // count, i % count)
        expert = chosen[t, k]
        if weights[t, k] == _ZERO:
            continue
        if taken[expert] == capacity:
            weights[t, k] = _ZERO
        else:
            taken[expert] += 1


@jit
def choice_scores(
    logits: Floats,
    sigmoid: bool,
    by_logit: bool,
    choice_bias: Floats | None,
    groups: int,
    kept_groups: int,
    group_best: int,
    scores: Floats,
) -> None:
    """Compute the scores `(T, E)` by which experts are chosen; -infinity for those of groups that are not kept."""
    tokens, count = logits.shape
    size = count // groups
    for t in range(tokens):
        row, own = logits[t], scores[t]
        largest, total = np.float64(row.max()), 0.0
        shares = not sigmoid and not by_logit and (choice_bias is not None or groups > 1)
        if shares:
            for expert in range(count):
                total += math.exp(np.float64(row[expert]) - largest)
        for expert in range(count):
            own[expert] = row[expert]
            if by_logit:
                pass
            elif sigmoid:
                own[expert] = 1.0 / (1.0 + math.exp(-np.float64(row[expert])))
            elif shares:
                own[expert] = math.exp(np.float64(row[expert]) - largest) / total
            if choice_bias is not None:
                own[expert] += choice_bias[expert]
        if groups == 1:
            continue
        sums = np.empty(groups, np.float32)
        for group in range(groups):
            first, second = -np.inf, -np.inf
            for value in own[group * size : (group + 1) * size]:
                if value > first:
                    first, second = value, first
                elif value > second:
                    second = value
            sums[group] = np.float32(first) + np.float32(second) if group_best == 2 else np.float32(first)
        dropped = np.ones(groups, np.bool_)
        _list_largest(sums, dropped, np.empty(kept_groups, np.int32))
        for expert in range(count):
            if dropped[expert // size]:
                own[expert] = -np.inf


@jit
def choose(scores: Floats, experts: Integers) -> None:
    """Choose the `K` experts of largest choice score: scores `(T, E)` to experts `(T, K)`."""
    for t in range(len(experts)):
        _list_largest(scores[t], np.ones(scores.shape[1], np.bool_), experts[t])


@jit
def choose_with_bonus(choices: Floats, in_memory: Integers, bonus: np.float32, groups: int, experts: Integers) -> None:
    """Same as `choose`, but scores of experts in memory `(E,)` rise by `bonus` times the token's range of scores."""
    count = choices.shape[1]
    scores = np.empty(count, np.float32)
    for t in range(len(experts)):
        row = choices[t]
        smallest = row.min()
        if groups > 1:
            smallest = np.float32(np.inf)
            for expert in range(count):
                if row[expert] != -np.inf and row[expert] < smallest:
                    smallest = row[expert]
        reach = row.max() - smallest
        if not np.isfinite(reach):
            reach = _ZERO
        first = 0
        for expert in range(count):
            scores[expert] = row[expert] + bonus * reach if in_memory[expert] != 0 else row[expert]
            if row[expert] > row[first]:
                first = expert
        taken = np.zeros(count, np.bool_)
        taken[first] = True
        for _ in range(experts.shape[1] - 1):
            best = -1
            for expert in range(count):
                if not taken[expert] and (
                    best < 0
                    or scores[expert] > scores[best]
                    or (scores[expert] == scores[best] and row[expert] > row[best])
                ):
                    best = expert
            taken[best] = True
        _list_largest(row, taken, experts[t])


@jit
def weigh_by_sigmoid(logits: Floats, renormalise: bool, epsilon: float, experts: Integers, weights: Floats) -> None:
    """Compute the weights `(T, K)` of the chosen experts from the sigmoids of their logits `(T, E)`."""
    tokens, count = experts.shape
    shares = np.empty(count)
    for t in range(tokens):
        total = 0.0
        for k in range(count):
            shares[k] = 1.0 / (1.0 + math.exp(-np.float64(logits[t, experts[t, k]])))
            total += shares[k]
        for k in range(count):
            weights[t, k] = np.float64(shares[k]) / (total + epsilon) if renormalise else shares[k]


@jit
def weigh_by_softmax(logits: Floats, renormalise: bool, least_sum: float, experts: Integers, weights: Floats) -> None:
    """Compute the weights `(T, K)` of the chosen experts by softmax of their logits, or of all logits `(T, E)`.

    With `least_sum` they are of all logits, divided by the larger of their sum and this number.
    """
    tokens, count = experts.shape
    among_chosen = renormalise and least_sum == 0
    shares = np.empty(count)
    for t in range(tokens):
        taken = np.zeros(logits.shape[1], np.bool_)
        for k in range(count):
            taken[experts[t, k]] = True
        largest = -np.inf
        for expert in range(logits.shape[1]):
            if (taken[expert] or not among_chosen) and logits[t, expert] > largest:
                largest = np.float64(logits[t, expert])
        total = 0.0
        for expert in range(logits.shape[1]):
            if taken[expert] or not among_chosen:
                total += math.exp(np.float64(logits[t, expert]) - largest)
        chosen = 0.0
        for k in range(count):
            shares[k] = math.exp(np.float64(logits[t, experts[t, k]]) - largest) / total
            chosen += shares[k]
        for k in range(count):
            weights[t, k] = np.float64(shares[k]) / max(chosen, least_sum) if least_sum > 0 else shares[k]


@jit
def weigh_by_sparsemixer(logits: Floats, reach: np.float32, experts: Integers, weights: Floats) -> None:
    """Compute the weights `(T, K)` of the chosen experts, each among those left within reach of the largest."""
    tokens, count = experts.shape
    for t in range(tokens):
        left = np.ones(logits.shape[1], np.bool_)
        for k in range(count):
            chosen = experts[t, k]
            largest = np.float32(-np.inf)
            for expert in range(logits.shape[1]):
                z = logits[t, expert]
                if left[expert] and (z > largest or z != z):  # a NaN spoils every weight, as in the reference
                    largest = z
            total = 0.0
            for expert in range(logits.shape[1]):
                z = logits[t, expert]
                far = (largest - z) / max(abs(z), largest) > reach
                if left[expert] and (expert == chosen or not far):
                    total += math.exp(np.float64(z) - np.float64(largest))
            weights[t, k] = math.exp(np.float64(logits[t, chosen]) - np.float64(largest)) / total
            left[chosen] = False


@jit
def add_routed(routed: Floats, weights: Floats | None, total: Floats) -> None:
    """Adds the outputs `(T, K, D)` of each token's experts, weighted if there are weights, in router order."""
    tokens, count, width = routed.shape
    for t in range(tokens):
        for k in range(count):
            for c in range(width):
                total[t, c] += routed[t, k, c] if weights is None else weights[t, k] * routed[t, k, c]


@jit
def add_shared(shared: Floats, shared_gate: Floats | None, total: Floats) -> None:
    """Adds the shared expert's outputs `(T, D)`, times the sigmoid of their gate `(T, 1)` where there is one."""
    for t in range(len(shared)):
        factor = _ONE
        if shared_gate is not None:
            factor = _ONE / (_ONE + np.float32(math.exp(-shared_gate[t, 0])))
        for c in range(shared.shape[1]):
            total[t, c] += factor * shared[t, c]
