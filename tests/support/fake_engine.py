"""A small deterministic engine: its logits are a function of the tokens so far, and it counts its work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.engine.ledger import TimeLedger
from edgemoe.engine.lossy import EXACT
from edgemoe.engine.phase import Turn
from edgemoe.engine.prompt_times import PromptTimes, PromptWork
from edgemoe.kernels.backend import Pause

LAYERS, EXPERTS = 4, 8


@dataclass(frozen=True)
class FakeStatistics:
    tokens: int = 0
    expert_hits: int = 0
    expert_misses: int = 0
    expert_drops: int = 0
    experts_from_base: int = 0
    disk_bytes: int = 0


class FakeEngine:
    """Says `script` (ids) after whatever prompt, then `script` again; without one, ids drawn from a hash."""

    def __init__(self, vocabulary: int, context_length: int = 512, script: Sequence[int] = ()) -> None:
        self.spec: Any = SimpleNamespace(
            vocab_size=vocabulary, family="fake", max_positions=context_length, encoder=None
        )
        self.context_length = context_length
        self.lossy = EXACT
        self.script = list(script)
        self.statistics = FakeStatistics()
        self.ledger: TimeLedger | None = None
        self.expert_uses = np.zeros((LAYERS, EXPERTS), np.int64)
        self.store = SimpleNamespace(notices=())
        self.backend: Any = SimpleNamespace(name="fake", isa="-", threads=1, device=None)
        self.memory: Any = SimpleNamespace(
            budget_bytes=100 << 20, floor_bytes=50 << 20, interpreter_bytes=20 << 20, dense_bytes=30 << 20,
            workspace_bytes=1 << 20, kv_cache_bytes=2 << 20, slot_bytes=4096, slots=16, total_experts=32,
            context_length=context_length, chunk_tokens=128, kv_format="f16", all_resident=False,
            experts_bytes=16 * 4096, planned_bytes=60 << 20, embedding_resident=True, fixed_state_bytes=0,
            draft_model_bytes=0,
        )  # fmt: skip
        self.prompt_times = PromptTimes(
            PromptWork(1.0, {}, 0, 0, 128), "fake", None, lambda: 0, lambda: (10.0, math.inf)
        )
        self.calls: list[list[int]] = []
        self.pause: Pause | None = None
        self.closed = False
        self.turn = Turn()
        self.sequences = SimpleNamespace(tier=None)
        self.speculate = "off"
        self._ids: list[int] = []

    @property
    def position(self) -> int:
        return len(self._ids)

    def forward(
        self, token_ids: Sequence[int], *, all_logits: bool = False, out: object = None
    ) -> npt.NDArray[np.float32]:
        assert token_ids
        assert self.position + len(token_ids) <= self.context_length
        self.calls.append(list(token_ids))
        rows = []
        for token in token_ids:
            self._ids.append(token)
            rows.append(self._logits())
            for layer in range(LAYERS):
                self.expert_uses[layer, (token * 7 + layer) % EXPERTS] += 1
        count = len(token_ids)
        old = self.statistics
        self.statistics = replace(
            old, tokens=old.tokens + count, expert_hits=old.expert_hits + 3 * count,
            expert_misses=old.expert_misses + count, disk_bytes=old.disk_bytes + 4096 * count,
        )  # fmt: skip
        return np.stack(rows) if all_logits else rows[-1]

    def keep_ledger(self) -> None:
        self.ledger = TimeLedger({"python": 0})

    def rewind(self, position: int) -> None:
        assert 0 <= position <= self.position
        del self._ids[position:]

    def resident_experts(self) -> npt.NDArray[np.bool_]:
        return np.arange(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS) % 2 == 0

    def close(self) -> None:
        self.closed = True

    def _logits(self) -> npt.NDArray[np.float32]:
        if not self.script:
            seed = hash(tuple(self._ids)) & 0xFFFFFFFF
            return np.random.default_rng(seed).normal(size=self.spec.vocab_size).astype(np.float32)
        logits = np.zeros(self.spec.vocab_size, np.float32)
        logits[self.script[self._step() % len(self.script)]] = 10.0
        return logits

    def _step(self) -> int:
        """How many of the last tokens are the script's beginning: the place in the script."""
        for said in range(min(len(self.script), self.position), 0, -1):
            if self._ids[-said:] == self.script[:said]:
                return said
        return 0
