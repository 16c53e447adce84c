"""A scripted model: the engine runs, and what it would choose gives way to given texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import numpy.typing as npt

from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.tokenizer import Tokenizer


class Script:
    """The answers to the next requests, one after another. Each ends with an end of the model's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._answers: list[list[int]] = []

    def say(self, *answers: str) -> None:
        self._answers += [self._tokenizer.encode(answer) for answer in answers]

    def clear(self) -> None:
        """Forget the answers that nobody asked for."""
        self._answers.clear()

    def sampler(
        self, options: SamplingOptions, before: Sequence[int] = (), stop_ids: Collection[int] = frozenset()
    ) -> ScriptedSampler:
        return ScriptedSampler([*self._answers.pop(0), min(stop_ids)])


class ScriptedSampler:
    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        token = self._ids.pop(0)
        assert math.isfinite(logits[token]), "the script says what a grammar forbids"
        return token

    def add(self, token: int) -> None:
        assert self._ids.pop(0) == token, "a grammar forces another token than the script says"


@contextmanager
def scripted(tokenizer: Tokenizer) -> Iterator[Script]:
    """Let all answers in this process be those of a script."""
    script = Script(tokenizer)
    with mock.patch("edgemoe.session.continuation.Sampler", script.sampler):
        yield script
