"""Traces made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.lab.trace import Trace, TraceShape

Row = tuple[int, int, int, int, int]
"""(turn, phase, step, layer, expert)"""


def make_shape(layers: int, experts: int, experts_used: int, expert_bytes: int = 1000) -> TraceShape:
    sizes = tuple(expert_bytes + layer for layer in range(layers))
    return TraceShape("made", "by hand", layers, experts, experts_used, sizes, (500,) * layers)


def make_trace(shape: TraceShape, rows: Sequence[Row]) -> Trace:
    columns = np.array(rows, np.int64).reshape(-1, 5)
    turn, phase, step, layer, expert = columns.T
    count = len(rows)
    return Trace(
        shape,
        turn.astype(np.int32),
        phase.astype(np.uint8),
        step.astype(np.int32),
        layer.astype(np.int32),
        np.zeros(count, np.int32),
        expert.astype(np.int32),
        np.ones(count, np.float32),
        np.zeros(count, np.bool_),
        np.zeros(count, np.int64),
    )


def random_trace(shape: TraceShape, prompt_tokens: int, decode_tokens: int, turns: int = 1, seed: int = 0) -> Trace:
    """Prompts layer by layer, generated tokens one by one; some experts are used more than others."""
    random = np.random.default_rng(seed)
    liking = random.dirichlet(np.full(shape.experts, 0.3), shape.layers) + 1e-3
    liking /= liking.sum(axis=1, keepdims=True)
    rows: list[Row] = []
    for turn in range(turns):
        runs = [(PROMPT, range(prompt_tokens))]
        runs += [(DECODE, range(step, step + 1)) for step in range(prompt_tokens, prompt_tokens + decode_tokens)]
        for phase, steps in runs:
            for layer in range(shape.layers):
                for step in steps:
                    chosen = random.choice(shape.experts, shape.experts_used, replace=False, p=liking[layer])
                    rows += [(turn, phase, step, layer, int(expert)) for expert in chosen]
    return make_trace(shape, rows)
