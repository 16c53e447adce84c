"""Losses and divergences, against direct computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from edgemoe.lab.divergence import LEAST_BLOCKS, Estimate, ReferenceRow, Scores
from tests.support.examples import examples

V = 37


def made_up(positions: int = 50) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Logits of a reference and of a model, and the ids that follow."""
    random = np.random.default_rng(3)
    exact = (random.standard_normal((positions, V)) * 4).astype(np.float32)
    other = exact + (random.standard_normal((positions, V)) * 2).astype(np.float32)
    exact[3] += 1e4  # a constant more changes no distribution
    return exact, other, random.integers(0, V, positions).tolist()


def scored(exact: np.ndarray, other: np.ndarray, following: list[int] | None, top: int | None, block: int) -> Scores:
    scores = Scores(V, len(exact))
    for place, (row, model) in enumerate(zip(exact, other, strict=True)):
        if place % block == 0:
            scores.begin_block()
        token = None if following is None else following[place]
        kept = ReferenceRow(row) if top is None else ReferenceRow.keeping(row, top, token or 0, np.empty(V))
        scores.add(model, token, kept)
    return scores


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(float) - row.max())
    return weights / weights.sum()


def test_means_over_all_positions_are_those_of_a_direct_computation() -> None:
    exact, other, following = made_up()
    scores = scored(exact, other, following, None, 7)
    divergences, same, losses = [], 0, [0.0, 0.0]
    for a, b, token in zip(exact, other, following, strict=True):
        p, q = softmax(a), softmax(b)
        divergences.append(float(np.sum(p * np.log(p / q))))
        same += int(np.argmax(a) == np.argmax(b))
        losses = [losses[0] - np.log(p[token]), losses[1] - np.log(q[token])]
    found = scores.divergence
    assert found is not None
    assert scores.reference_loss is not None
    assert scores.loss is not None
    assert found.loss_difference is not None
    assert scores.positions == 50
    assert found.nats.mean == pytest.approx(np.mean(divergences), rel=1e-9)
    assert 0 < found.same_top.mean == same / 50 < 1
    assert scores.loss.mean == pytest.approx(losses[1] / 50, rel=1e-9)
    assert scores.reference_loss.mean == pytest.approx(losses[0] / 50, rel=1e-9)
    assert found.loss_difference.mean == pytest.approx((losses[1] - losses[0]) / 50, rel=1e-9)
    assert found.largest == pytest.approx(max(divergences))
    expected = np.percentile(divergences, [50, 90, 95, 99, 99.9])
    assert list(found.percentiles) == ["50", "90", "95", "99", "99.9"]
    assert list(found.percentiles.values()) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("top", [None, 1, 5, V])
def test_the_same_logits_are_nothing_apart(top: int | None) -> None:
    exact, _, following = made_up()
    scores = scored(exact, exact, following, top, 5)
    found = scores.divergence
    assert found is not None
    assert (found.nats, found.largest, found.same_top) == (Estimate(0.0, 0.0, 0.0), 0.0, Estimate(1.0, 1.0, 1.0))
    assert found.loss_difference == Estimate(0.0, 0.0, 0.0)
    assert scores.loss == scores.reference_loss


def test_without_the_tokens_that_follow_there_are_no_losses() -> None:
    exact, other, _ = made_up()
    scores = scored(exact, other, None, None, 5)
    assert scores.loss is None
    assert scores.reference_loss is None
    assert scores.divergence is not None
    assert scores.divergence.loss_difference is None


def test_the_direction_is_from_the_reference() -> None:
    with np.errstate(divide="ignore"):
        sure, half = (np.log(np.array(p, np.float32)) for p in ((0.999, 0.001), (0.5, 0.5)))
    scores = Scores(2, 1)
    scores.begin_block()
    scores.add(half, None, ReferenceRow(sure))
    assert scores.divergence is not None
    assert scores.divergence.nats.mean == pytest.approx(np.log(2), abs=0.01)


@settings(max_examples=examples(30), deadline=None)
@given(strategies.integers(1, V), strategies.integers(0, 2**32))
def test_what_is_not_kept_counts_as_one_token(top: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal((2, V)) * 3).astype(np.float32)
    whole, kept = scored(a[None], b[None], [1], None, 1), scored(a[None], b[None], [1], top, 1)
    p, q = softmax(a), softmax(b)
    first = np.argsort(-p, kind="stable")[:top]
    p, q = (np.append(x[first], x.sum() - x[first].sum()) for x in (p, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nansum(p * np.log(p / q)) if top < V else np.sum(p[:-1] * np.log(p[:-1] / q[:-1]))
    assert whole.divergence is not None
    assert kept.divergence is not None
    assert kept.divergence.nats.mean == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert kept.divergence.nats.mean <= whole.divergence.nats.mean + 1e-12
    assert kept.divergence.same_top == whole.divergence.same_top
    assert kept.loss == whole.loss
    assert kept.reference_loss is not None
    assert whole.reference_loss is not None
    assert kept.reference_loss.mean == pytest.approx(whole.reference_loss.mean, rel=1e-12)


def test_an_interval_covers_the_mean_in_about_95_of_100_samples() -> None:
    """Positions of one block share a part of their error, as those of one text do, and blocks differ in length."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(500):
        counts = random.integers(5, 60, 40)
        sums = [float(n * random.normal(2.0, 1.0) + random.normal(0, 1, n).sum()) for n in counts]
        found = Estimate.of(sums, counts.tolist())
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.mean < found.high
        covered += found.low <= 2.0 <= found.high
    assert 0.90 < covered / 500 < 0.98


def test_few_blocks_have_no_interval() -> None:
    assert Estimate.of([1.0] * (LEAST_BLOCKS - 1), [2] * (LEAST_BLOCKS - 1)) == Estimate(0.5)
    found = Estimate.of([1.0, 3.0] * (LEAST_BLOCKS // 2), [2] * LEAST_BLOCKS)
    assert found.mean == 1.0
    assert found.low is not None
    assert found.low < 1.0
    assert found.exponential().mean == pytest.approx(np.e)
    assert found.within(0.9, 1.1) == Estimate(1.0, 0.9, 1.1)
