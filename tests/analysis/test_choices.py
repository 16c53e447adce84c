"""Which experts stay: by scores computed plainly, in groups, and refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgemoe.analysis.choices import Choice, Method, _largest, _runs, _weighed, average_linkage, choices, reap_scores
from edgemoe.analysis.text_pass import TextPass
from edgemoe.errors import UsageError
from edgemoe.model.blocks import RoutedExperts
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.analysis.conftest import random_windows


def test_reap_is_the_mean_of_weight_times_norm(exact: Store) -> None:
    for layer in TextPass(exact, random_windows()).layers():
        sums, counts = np.zeros(4), np.zeros(4)
        for chosen, weights, norms in zip(layer.chosen, layer.weights, layer.norms, strict=True):
            for expert, weight, norm in zip(chosen, weights, norms, strict=True):
                sums[expert] += float(weight) * float(norm)
                counts[expert] += 1
        assert np.allclose(reap_scores(layer), sums / counts)


def test_each_method_chooses_by_what_it_says(exact: Store) -> None:
    windows, routed = random_windows(), store_spec(exact).routed
    scores, counts = {}, {}
    for layer in TextPass(exact, windows).layers():
        scores[layer.number], counts[layer.number] = reap_scores(layer), layer.counts
    for name, values in (("REAP", scores), ("frequency", counts)):
        found = choices(exact, Method(name, 0.5), routed, {0: 1, 1: 1}, windows)
        for number, choice in found.items():
            assert choice.plain
            kept = [own[0] for own in choice.members]
            assert kept == sorted(np.argsort(-values[number], kind="stable")[:2].tolist())
    merged = choices(exact, Method("HC-SMoE", 0.5), routed, {0: 1, 1: 1}, windows)
    assert all(len(choice.members) == 2 and not choice.plain for choice in merged.values())
    assert all(sorted(sum(choice.members, ())) == [0, 1, 2, 3] for choice in merged.values())
    drawn = choices(exact, Method("random", 0.5), routed, {0: 1, 1: 1}, None)
    assert drawn == choices(exact, Method("random", 0.5), routed, {0: 1, 1: 1}, None)
    assert all(len(choice.members) == 2 for choice in drawn.values())


def test_a_text_that_says_nothing_of_an_expert_is_refused(exact: Store) -> None:
    layer = next(TextPass(exact, random_windows(count=1, length=9)).layers())
    unseen = dataclasses.replace(layer, chosen=np.minimum(layer.chosen, 2))
    with pytest.raises(UsageError, match="found 1 of 4 in layer 0 that none chose, such as expert 3"):
        reap_scores(unseen)


def test_as_many_of_each_group_stay() -> None:
    scores = np.array([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])
    assert _largest(scores, 3, 1, 0) == Choice.of([0, 1, 2])
    assert _largest(scores, 4, 2, 0) == Choice.of([0, 1, 4, 5])
    with pytest.raises(UsageError, match="expected a multiple of 2 experts of layer 7"):
        _largest(scores, 3, 2, 7)


def test_clusters_are_those_of_least_mean_distance() -> None:
    points = np.array([[0.0], [10.0], [0.1], [10.3], [4.0]])
    assert average_linkage(points, 3) == [(0, 2), (1, 3), (4,)]
    assert average_linkage(points, 2) == [(0, 2, 4), (1, 3)]
    assert average_linkage(points, 5) == [(0,), (1,), (2,), (3,), (4,)]
    weighed = _weighed([(0, 2), (1, 3), (4,)], np.array([3, 0, 1, 0, 0]))
    assert weighed.weights == ((0.75, 0.25), (0.5, 0.5), (1.0,))
    assert _runs(5, 2) == Choice(((0, 1, 2), (3, 4)), ((1 / 3,) * 3, (0.5, 0.5)))


def test_methods_that_are_none_are_refused() -> None:
    cases = [
        ((None, None, "50%"), "expected `prune` or `merge`, found neither"),
        (("REAP", "average", "50%"), "found both"),
        (("best", None, "50%"), "`prune`: expected REAP, frequency or random, found best"),
        ((None, "REAP", "50%"), "`merge`: expected HC-SMoE or average, found REAP"),
        *((("REAP", None, keep), f"found {keep}") for keep in ("0%", "100%", "half", "0.5", "-5%", "nan%")),
    ]
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message):
            Method.of(*arguments)
    assert Method.of("reap", None, "50%") == Method("REAP", 0.5)
    routed = RoutedExperts(8, 3, 16)
    assert Method("REAP", 0.5).count(0, routed) == 4
    for keep in (0.01, 0.25, 0.99):
        with pytest.raises(UsageError, match="expected 3 to 7 of the 8 experts of layer 2"):
            Method("REAP", keep).count(2, routed)
