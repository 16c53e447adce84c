"""Divergence of distributions, against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.bench.divergence import Divergence


def test_means_over_all_positions_are_those_of_a_direct_computation() -> None:
    random = np.random.default_rng(3)
    exact = (random.standard_normal((50, 37)) * 4).astype(np.float32)
    lossy = exact + (random.standard_normal((50, 37)) * 2).astype(np.float32)
    exact[3] += 1e4  # a constant more changes no distribution
    following = random.integers(0, 37, 50).tolist()
    divergence = Divergence()
    for rows in (slice(0, 1), slice(1, 34), slice(34, 50)):
        divergence.add(exact[rows], lossy[rows], following[rows])
    kl, changed, losses = 0.0, 0, [0.0, 0.0]
    for a, b, token in zip(exact.astype(float), lossy.astype(float), following, strict=True):
        p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (a, b))
        kl += float(np.sum(p * np.log(p / q)))
        changed += int(np.argmax(a) != np.argmax(b))
        losses = [losses[0] - np.log(p[token]), losses[1] - np.log(q[token])]
    assert divergence.positions == 50
    assert divergence.mean_nats == pytest.approx(kl / 50, rel=1e-9)
    assert 0 < divergence.top_changed == changed / 50 < 1
    assert divergence.losses_nats == pytest.approx((losses[0] / 50, losses[1] / 50), rel=1e-9)


def test_the_same_logits_are_nothing_apart() -> None:
    logits = np.random.default_rng(4).standard_normal((20, 9)).astype(np.float32)
    divergence = Divergence()
    divergence.add(logits, logits, ())
    assert (divergence.positions, divergence.mean_nats, divergence.top_changed) == (20, 0.0, 0.0)
    assert divergence.losses_nats is None


def test_the_direction_is_from_the_exact_one() -> None:
    with np.errstate(divide="ignore"):
        sure, half = (np.log(np.array([p], np.float32)) for p in ((0.999, 0.001), (0.5, 0.5)))
    divergence = Divergence()
    divergence.add(sure, half, ())
    assert divergence.mean_nats == pytest.approx(np.log(2), abs=0.01)
