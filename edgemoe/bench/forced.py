"""What a benchmark with routing from a trace asked for, and what that amounts to.

Letters: `A` accesses to the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.bench.run import Run
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.experts.policy import DEFAULT_POLICY, passes_through
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.replay import simulate
from edgemoe.model.spec import ModelSpec, MoeSpec


@dataclass(frozen=True)
class Accesses:
    """Every access of some runs to the cache of experts, in order. Shapes: all `(A,)`."""

    keys: npt.NDArray[np.int64]
    """`layer * experts + expert`"""
    begins: npt.NDArray[np.bool_]
    """Whether another layer or token begins with it."""
    run: npt.NDArray[np.int64]
    """The run's number, for accesses of its continuation; -1 for those of prompts."""
    in_passing: npt.NDArray[np.bool_]
    """Of prompts of which the cache cannot hold all that they use."""


@dataclass(frozen=True)
class RoutingReport:
    """Where the routing of a benchmark came from, if not from the model's routers."""

    trace: str
    model: str
    """The model that the trace was recorded of."""
    experts_used: int
    """For each token, as in the trace."""
    model_experts_used: int
    """As in the store."""
    prompt_steps: int
    decode_steps: int
    """That the trace has."""
    steps: int
    """Steps of decoding that were measured."""
    distinct_steps: int
    """So many different ones of the trace: after its last step comes its first."""
    recall: float | None
    """Of the guesses that were made up; None where nothing was read ahead."""
    hit_rate: float | None
    """Of the measured steps, in the cache of the engine; None where no expert was asked for. What was read ahead, in
    time or not, is no hit here."""
    replay_hit_rate: float | None
    """Of the same steps, where all that the engine was asked for is replayed over as many slots; None without slots."""
    policy: str
    slots: int


def most_experts_used(spec: ModelSpec) -> int:
    """For each token, in the layer that uses most; 0 for a model without experts."""
    return max((layer.ffn.experts_per_token for layer in spec.layers if isinstance(layer.ffn, MoeSpec)), default=0)


def accesses(routing: ForcedRouting, runs: Sequence[Run], chunk_tokens: int, slots: int) -> Accesses:
    """What runs, one after the other, ask a cache for: an expert once for each piece of a prompt in each layer."""
    keys: list[npt.NDArray[np.int64]] = []
    owners: list[int] = []
    passing: list[bool] = []
    for number, run in enumerate(runs):
        end = run.prompt_first + run.prompt_tokens
        for first in range(run.prompt_first, end, chunk_tokens):
            piece = routing.keys(PROMPT, first, min(chunk_tokens, end - first))
            for layer in range(piece.shape[1]):
                keys.append(np.unique(piece[:, layer]))
                owners.append(-1)
                passing.append(passes_through(len(piece), len(keys[-1]), piece.shape[1], slots))
        steps = routing.keys(DECODE, run.continuation_first, run.continuation_tokens)
        keys.extend(steps.reshape(-1, routing.experts_used))
        owners.extend([number] * (steps.shape[0] * steps.shape[1]))
        passing.extend([False] * (steps.shape[0] * steps.shape[1]))
    sizes = np.array([len(one) for one in keys], np.int64)
    begins = np.zeros(int(sizes.sum()), np.bool_)
    begins[np.cumsum(sizes) - sizes] = True
    owner, passes = np.array(owners, np.int64), np.array(passing, np.bool_)
    return Accesses(np.concatenate(keys), begins, np.repeat(owner, sizes), np.repeat(passes, sizes))


def routing_report(
    routing: ForcedRouting,
    model_experts_used: int,
    memory: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, int]],
    policy: str = DEFAULT_POLICY,
) -> RoutingReport:
    """Of the answers that were measured, among all runs that a worker did; `memory` is what it has said of its own."""
    measured, all_runs = [Run(**answer["routing"]) for answer in answers], [Run(**run) for run in runs]
    slots, replayed = memory["slots"], None
    if 0 < slots < memory["total_experts"]:
        asked = accesses(routing, all_runs, memory["chunk_tokens"], slots)
        hits = simulate(
            policy,
            slots,
            routing.shape.keys,
            asked.keys,
            asked.begins,
            at_once=True,
            in_passing=asked.in_passing,
        ).hits
        numbers = [all_runs.index(run) for run in measured]
        replayed = float(hits[np.isin(asked.run, numbers)].mean())
    steps = np.concatenate([run.continuation_first + np.arange(run.continuation_tokens) for run in measured])
    return RoutingReport(
        trace=routing.name,
        model=routing.shape.model,
        experts_used=routing.experts_used,
        model_experts_used=model_experts_used,
        prompt_steps=routing.steps(PROMPT),
        decode_steps=routing.steps(DECODE),
        steps=len(steps),
        distinct_steps=len(np.unique(steps % routing.steps(DECODE))),
        recall=routing.recall,
        hit_rate=_kept_rate(answers),
        replay_hit_rate=replayed,
        policy=policy,
        slots=slots,
    )


def _kept_rate(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """Of all uses, those of experts that were in memory and had not been read ahead for it."""

    def total(name: str) -> int:
        return sum(answer[name] for answer in answers)

    uses = total("expert_hits") + total("expert_misses")
    in_time = total("useful_predictions") - total("late_predictions")
    return (total("expert_hits") - in_time) / uses if uses else None
