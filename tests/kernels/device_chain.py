"""Operations that the tests of devices run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from tests.kernels.builders import aligned, numbers, random_matrix

TOKENS, WIDTH = 5, 96


class Chain:
    """Operations whose arrays share memory, as those of a workspace do; for one of them the device has no text."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        size = TOKENS * WIDTH
        self.memory = aligned((3 * size,), np.float32)
        self.numbers = numbers("normal", self.memory.shape, random)
        stream, normed, late, across = (
            self.memory[at : at + size].reshape(TOKENS, WIDTH) for at in (0, size, 2 * size, size // 2)
        )
        weight = numbers("normal", (WIDTH,), random)
        self.operations = [
            op.RmsNorm(stream, weight, 1e-5, normed),
            self.linear("q4", normed, late, random),
            self.linear("f16", late, stream, random, accumulate=True),
            self.linear("iq2xxs", stream, late, random),
            op.RmsNorm(late, None, 1e-5, late, heads=3),
            self.linear("q8", late, across, random),
            self.linear("q4m", stream, late, random, accumulate=True),
        ]

    def linear(
        self, fmt: str, given: op.Floats, output: op.Floats, random: np.random.Generator, accumulate: bool = False
    ) -> op.Linear:
        part = op.LinearPart(random_matrix(fmt, WIDTH, WIDTH, random), numbers("normal", (WIDTH,), random), output)
        return op.Linear(given, (part,), 0.5, accumulate)

    def run_on(self, backend: Backend, runs: Sequence[int], operations: Sequence[op.Operation] | None = None) -> bytes:
        """Return what such runs of all operations, or of some, leave in memory, which begins with the same numbers."""
        self.memory[:] = self.numbers
        program = backend.program(self.operations if operations is None else operations)
        for tokens in runs:
            program.run(tokens)
        return self.memory.tobytes()
