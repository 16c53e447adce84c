"""Expert accesses of a benchmark whose routing comes from a trace, and the hit rates that follow.

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
from edgemoe.experts.policy import DEFAULT_POLICY, is_scan
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.replay import simulate
from edgemoe.model.spec import ModelSpec


@dataclass(frozen=True)
class Accesses:
    """Every access of some runs to the cache of experts, in order. Shapes: all `(A,)`."""

    keys: npt.NDArray[np.int64]
    """`layer * experts + expert`"""
    begins: npt.NDArray[np.bool_]
    """Whether another layer or token begins with this access."""
    run: npt.NDArray[np.int64]
    """The run's number, for accesses of its continuation; -1 for those of prompts."""
    scans: npt.NDArray[np.bool_]
    """Accesses inserted as scans: those of prompts that use more experts than the cache can hold."""


@dataclass(frozen=True)
class RoutingReport:
    """Where the routing of a benchmark came from, if not from the model's routers."""

    trace: str
    model: str
    """The model whose routing the trace recorded."""
    top_k: int
    """Experts used per token, as in the trace."""
    model_top_k: int
    """Experts used per token, as in the store."""
    prompt_steps: int
    decode_steps: int
    """Decode steps in the trace."""
    steps: int
    """Steps of decoding that were measured."""
    distinct_steps: int
    """Different decode steps of the trace among them: after its last step comes its first again."""
    recall: float | None
    """Recall of the made-up guesses; None if nothing was prefetched."""
    hit_rate: float | None
    """The engine's cache hit rate over the measured steps; None if no expert was asked for. An expert that was read
    ahead, in time or not, does not count as a hit here."""
    replay_hit_rate: float | None
    """Hit rate of the same steps when all the engine's accesses are replayed with as many slots; None without slots."""
    policy: str
    slots: int


def largest_top_k(spec: ModelSpec) -> int:
    """Experts used per token in the layer that uses most; 0 for a model without experts."""
    return spec.most_top_k


def accesses(routing: ForcedRouting, runs: Sequence[Run], chunk_tokens: int, slots: int) -> Accesses:
    """Cache accesses of consecutive runs: each piece of a prompt asks for an expert once in each layer."""
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
                passing.append(is_scan(len(keys[-1]), piece.shape[1], slots))
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
    model_top_k: int,
    memory: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, int]],
    policy: str = DEFAULT_POLICY,
) -> RoutingReport:
    """Report on the measured answers among all runs of a worker; `memory` is the worker's report of its memory."""
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
            scans=asked.scans,
        ).hits
        numbers = [all_runs.index(run) for run in measured]
        replayed = float(hits[np.isin(asked.run, numbers)].mean())
    steps = np.concatenate([run.continuation_first + np.arange(run.continuation_tokens) for run in measured])
    return RoutingReport(
        trace=routing.name,
        model=routing.shape.model,
        top_k=routing.experts_used,
        model_top_k=model_top_k,
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
    """Share of all uses whose expert was in memory and had not been prefetched for that use."""

    def total(name: str) -> int:
        return sum(answer[name] for answer in answers)

    uses = total("expert_hits") + total("expert_misses")
    in_time = total("useful_prefetches") - total("late_prefetches")
    return (total("expert_hits") - in_time) / uses if uses else None
