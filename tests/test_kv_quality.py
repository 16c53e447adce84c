"""The cost in quality of keys and values in 8 bits, on the bundled model and text of this repository.

`pytest -m slow -s tests/test_kv_quality.py` prints the figures of docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest

import edgemoe
from edgemoe.cli.main import run_command
from edgemoe.session.default_model import find_model

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "ARCHITECTURE.md")
ROWS_AT_ONCE = 50


@dataclass(frozen=True)
class Comparison:
    """How far the distributions of one KV cache lie from those of another, over all positions."""

    positions: int
    divergence_nats: float
    """Mean KL divergence from the first to the second."""
    same_top: float
    """Share of positions with the same likeliest token."""
    losses_nats: tuple[float, float]
    """Mean next-token loss with each."""

    def __str__(self) -> str:
        losses = " and ".join(f"{loss:.4f}" for loss in self.losses_nats)
        return (
            f"{self.positions} positions: KL {self.divergence_nats:.6f} nats,"
            f" same top token {self.same_top:.1%}, losses {losses}"
        )


def logits_of(store: Path, kv: str | None, positions: int) -> tuple[list[list[int]], list[npt.NDArray[np.float32]]]:
    """Token ids and logits `(T, V)` of the beginning of each text."""
    with edgemoe.load(store, kv=kv, context_length=4096) as model:
        ids = [model.encode((ROOT / name).read_text("utf-8")[: 10 * positions])[:positions] for name in TEXTS]
        return ids, [model.logits(some) for some in ids]


def compare(store: Path, kvs: tuple[str | None, str | None], positions: int) -> Comparison:
    """Both caches over the first `positions` tokens of each text."""
    (ids, first), (_, second) = (logits_of(store, kv, positions) for kv in kvs)
    divergences, same, losses = [], [], []
    for some, one, other in zip(ids, first, second, strict=True):
        for p, q, following in batches(one, other, some):
            divergences.append((np.exp(p) * (p - q)).sum(axis=1))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
            rows = np.arange(len(following))
            losses.append(np.stack([-p[rows, following], -q[rows, following]]))
    joined = np.concatenate(losses, axis=1).mean(axis=1)
    found = np.concatenate(divergences)
    return Comparison(len(found), found.mean(), np.concatenate(same).mean(), (joined[0], joined[1]))


def batches(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], ids: list[int]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[int]]]:
    """Log probabilities of some rows at a time, with the tokens that follow them (the last row has none)."""
    for start in range(0, len(one), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield log_softmax(one[rows]), log_softmax(other[rows]), ids[start + 1 : start + 1 + ROWS_AT_ONCE]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@pytest.mark.slow
def test_8_bits_cost_the_bundled_model_little() -> None:
    found = compare(find_model(None), ("f16", "q8"), 80)
    print("\nbundled model, q8 against f16:", found)
    assert 0 < found.divergence_nats < 0.02
    assert found.same_top > 0.9
    assert found.losses_nats[1] == pytest.approx(found.losses_nats[0], abs=0.03)


@pytest.mark.slow
def test_the_quality_of_8_bits(tmp_path: Path) -> None:
    """As it is, and with the same weights in float32, where no int8 activation rounds the other way on top of it."""
    print("\nbundled model, q8 against f16:", compare(find_model(None), ("f16", "q8"), 700))
    with TemporaryDirectory(dir=tmp_path) as folder:  # a gigabyte, which pytest would keep
        file, exact = f"{folder}/exact.gguf", Path(folder, "exact")
        assert run_command(["export", str(find_model(None)), file]) == 0
        assert run_command(["convert", file, str(exact), "--experts", "f32", "--dense", "f32"]) == 0
        of_f16, of_q8 = compare(exact, (None, "f16"), 700), compare(exact, ("f16", "q8"), 700)
    print("weights and activations in float32, f16 against f32:", of_f16)
    print("weights and activations in float32, q8 against f16:", of_q8)
    assert of_f16.divergence_nats < 5e-5 < of_q8.divergence_nats < 1e-3
    assert of_q8.same_top > 0.97
    assert of_q8.losses_nats[1] == pytest.approx(of_q8.losses_nats[0], abs=0.005)
