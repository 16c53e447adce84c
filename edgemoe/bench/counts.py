"""The common part of measurements of one engine at several counts: of sequences that decode together, or of drafts.

All counts run in turn, round by round, so that the machine is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.plain_report import PlainReport
from edgemoe.engine.memory import LEAST_CONTEXT_TOKENS
from edgemoe.errors import UsageError
from edgemoe.model.spec import ModelSpec

SETTLE_STEPS = 8
"""Steps after the prompts that are not counted: the cache still holds what another count used."""


@dataclass(frozen=True)
class CountsReport(PlainReport):
    """The model, and what every count ran."""

    model: str
    kernels: Mapping[str, Any]
    memory: Mapping[str, Any]
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    routing: str | None
    """The trace that routing came from; None for the model's routers."""


def context_for(settings: Settings, spec: ModelSpec, decoded: int) -> int:
    """The context that holds a prompt, the steps that are not counted, and `decoded` tokens. Raises UsageError."""
    needed = settings.prompt_tokens + SETTLE_STEPS + decoded
    room = settings.room_tokens or spec.max_positions
    if needed > room:
        raise UsageError(
            f"Each sequence would have {needed} tokens, {SETTLE_STEPS} of them not counted: expected at most {room}.",
            "Give smaller `prompt_tokens` or `decode_tokens`, or a longer context where the model has one.",
        )
    return settings.room_tokens or min(spec.max_positions, max(LEAST_CONTEXT_TOKENS, needed))


def rounds(repeats: int, progress: Progress) -> Iterator[int]:
    """The numbers of the rounds, each told as it begins: 0 warms up, `repeats` more count."""
    for number in range(1 + repeats):
        progress(f"round {number} of {repeats}" if number else "warming up", number, 1 + repeats)
        yield number
