"""Made-up traces of routing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.lab.trace import Trace, TraceShape
from edgemoe.lab.trace_csv import COLUMN_LINE, FIRST_LINE

SHAPE = TraceShape("some-moe", "mixtral", 3, 8, 2, (4096, 4096, 8192), (100, 200, 300))


def made_up_trace(shape: TraceShape = SHAPE, tokens: int = 6, prompt_tokens: int = 2, seed: int = 0) -> Trace:
    """Random routing of some tokens, the first of them a prompt computed at once; weights are 1/K."""
    random = np.random.default_rng(seed)
    prompt_tokens = min(prompt_tokens, tokens)
    places = [(layer, step) for layer in range(shape.layers) for step in range(prompt_tokens)]
    places += [(layer, step) for step in range(prompt_tokens, tokens) for layer in range(shape.layers)]
    used = shape.experts_used
    layer, step = np.repeat(np.array(places, np.int32).reshape(-1, 2), used, axis=0).T
    experts = [random.permutation(shape.experts)[:used] for _ in places]
    residency = random.random(len(layer)) < 0.5
    return Trace(
        shape,
        turn=np.zeros(len(layer), np.int32),
        phase=np.where(step < prompt_tokens, PROMPT, DECODE).astype(np.uint8),
        step=step,
        layer=layer,
        slot=np.tile(np.arange(used, dtype=np.int32), len(places)),
        expert=np.array(experts, np.int32).reshape(-1),
        weight=np.full(len(layer), 1 / used, np.float32),
        residency=residency,
        expert_bytes=np.where(residency, 0, np.array(shape.expert_bytes, np.int64)[layer]),
    )


def write_csv(path: Path, trace: Trace) -> None:
    """Write a trace as other engines do, each weight with enough digits for its float32."""
    shape = trace.shape
    architecture = shape.architecture.replace(" ", "_")
    lines = [
        FIRST_LINE,
        f"# model={shape.model} arch={architecture} n_layer={shape.layers} n_expert={shape.experts}"
        f" n_expert_used={shape.experts_used}",
    ]
    for layer, (expert, dense) in enumerate(zip(shape.expert_bytes, shape.dense_bytes, strict=True)):
        lines.append(f"# layer={layer} expert_bytes={expert} dense_bytes={dense}")
    columns = [
        (column if column.dtype == np.float32 else column.astype(np.int64)).astype(np.str_) for column in trace.columns
    ]
    with path.open("w", newline="") as file:
        file.write("\n".join([*lines, COLUMN_LINE]) + "\n")
        csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))


def same_rows(one: Trace, other: Trace) -> bool:
    """Whether two traces have the same rows, weights to the bit."""
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(one.columns, other.columns, strict=True)
    )
