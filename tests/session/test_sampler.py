import math

import numpy as np
import pytest

from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.sampler import Sampler, candidates

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def kept(**options: float) -> dict[int, float]:
    tokens, probabilities = candidates(LOGITS, SamplingOptions(**{"temperature": 1.0, **options}))  # type: ignore[arg-type]
    return dict(zip(tokens.tolist(), probabilities.tolist(), strict=True))


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    logits = np.array([1, 3, 3, 2], np.float32)
    assert Sampler(SamplingOptions(temperature=0.0, top_k=1, seed=4)).sample(logits) == 1


def test_without_filters_probabilities_are_the_softmax() -> None:
    found = kept()
    assert np.allclose([found[token] for token in range(5)], PROBABILITIES, atol=1e-6)
    cooler = kept(temperature=0.5)
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert np.allclose([cooler[token] for token in range(5)], expected, atol=1e-6)


def test_each_filter_keeps_what_it_says() -> None:
    assert list(kept(top_k=2)) == [1, 3]
    assert list(kept(top_k=99)) == [1, 3, 4, 2, 0]
    assert list(kept(top_p=0.39)) == [1]
    assert list(kept(top_p=0.71)) == [1, 3, 4]
    assert list(kept(top_p=1e-9)) == [1]
    assert sorted(kept(min_p=0.3)) == [1, 3, 4]
    assert math.isclose(sum(kept(min_p=0.3).values()), 1.0)


def test_filters_act_in_the_stated_order() -> None:
    # top-k first: of {1, 3} the likeliest has 4/7, so that top-p 0.55 is reached with it alone
    assert list(kept(top_k=2, top_p=0.55)) == [1]
    assert list(kept(top_p=0.55)) == [1, 3]
    # temperature before all: flattened, the likeliest two no longer reach 0.7
    assert len(kept(temperature=10.0, top_p=0.7)) > len(kept(top_p=0.7))


def test_ties_at_the_edge_go_to_the_lower_id() -> None:
    tokens, _ = candidates(np.zeros(10, np.float32), SamplingOptions(temperature=1.0, top_k=3))
    assert tokens.tolist() == [0, 1, 2]


def test_a_flat_large_vocabulary_keeps_the_share_asked_for() -> None:
    tokens, _ = candidates(np.zeros(5000, np.float32), SamplingOptions(temperature=1.0, top_p=0.5))
    assert tokens.tolist() == list(range(2500))


def test_the_distribution_drawn_is_the_one_asked_for() -> None:
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=3))
    counts = np.bincount([sampler.sample(LOGITS) for _ in range(4000)], minlength=5)
    expected = 4000 * PROBABILITIES
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # chi-squared, 4 degrees: 1 in 1000


def test_a_seed_makes_it_reproducible() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.sample(LOGITS) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 100.0])
def test_extreme_temperatures_and_logits_stay_finite(temperature: float) -> None:
    logits = np.array([3e38, -3e38, 0.0], np.float32)
    assert Sampler(SamplingOptions(temperature=temperature, seed=0)).sample(logits) == 0
