"""Text as this model learns it: bytes, of which spans are left out of the input and written by the decoder.

That is what `edgemoe convert --calibrate` makes of a text for a model with an encoder, drawn anew for each batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgemoe.conversion.calibration.spans import longest_text, sides

INPUT_TOKENS = 192
PAD, FIRST_MARK, MARKS = 0, 257, 10
"""Byte b has the id b + 1; the marks of spans follow."""
VOCABULARY = 272
TEXT_BYTES = longest_text(INPUT_TOKENS, MARKS)
"""The bytes of a text that become an input."""
HELD_OUT = 0.1
"""The share of a text, its end, that no training sees."""


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text to train on, and of its end."""
    ids = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32) + 1
    cut = int(len(ids) * (1 - HELD_OUT))
    return ids[:cut], ids[cut:]


def pairs(ids: np.ndarray, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw inputs with spans left out, and the targets: for each span its mark and its bytes."""
    starts = random.integers(0, len(ids) - TEXT_BYTES, count)
    rows = ids[starts[:, None] + np.arange(TEXT_BYTES)]
    inputs, targets = sides(rows, range(FIRST_MARK, FIRST_MARK + MARKS), int(random.integers(1 << 32)))
    return inputs.astype(np.int64), targets.astype(np.int64)


def held_out(ids: np.ndarray, batches: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same batches of the held-out text whenever it is asked."""
    random = np.random.default_rng(1)
    for _ in range(batches):
        yield pairs(ids, random, size)
