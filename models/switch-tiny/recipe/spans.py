"""Text as Switch Transformers learn it: bytes, of which spans are masked in the input and written by the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

INPUT_BYTES = 192
SPANS, SPAN_BYTES = 5, 6
PAD, FIRST_MARK = 0, 257
"""Byte b has the id b + 1; the marks of spans follow."""
VOCABULARY = 272
HELD_OUT = 0.1
"""The share of a text, its end, that no training sees."""


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text to train on, and of its end."""
    ids = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64) + 1
    cut = int(len(ids) * (1 - HELD_OUT))
    return ids[:cut], ids[cut:]


def pairs(ids: np.ndarray, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw inputs with masked spans, and the targets: for each span its mark and its bytes."""
    inputs, targets = [], []
    for _ in range(count):
        start = int(random.integers(0, len(ids) - INPUT_BYTES))
        piece = ids[start : start + INPUT_BYTES]
        places = np.sort(random.choice(INPUT_BYTES // SPAN_BYTES - 1, SPANS, replace=False)) * SPAN_BYTES
        kept, written, at = [], [], 0
        for number, place in enumerate(places):
            kept += [piece[at:place], [FIRST_MARK + number]]
            written += [[FIRST_MARK + number], piece[place : place + SPAN_BYTES]]
            at = place + SPAN_BYTES
        inputs.append(np.concatenate([*kept, piece[at:]]))
        targets.append(np.concatenate(written))
    return np.stack(inputs), np.stack(targets)


def held_out(ids: np.ndarray, batches: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the same batches of the held-out text whenever it is asked."""
    random = np.random.default_rng(1)
    for _ in range(batches):
        yield pairs(ids, random, size)
