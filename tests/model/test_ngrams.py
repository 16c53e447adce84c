"""Which rows of a table a token has: against whole numbers of Python, which do not wrap by themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgemoe.model.ngrams import NgramRows

RULE = NgramRows(3, 2, 50, 3, 1, 1234, 248_320, 7)


def signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def by_hand(rule: NgramRows, ids: list[int]) -> np.ndarray:
    """Rows as `Qwen4ExpTextNGramEmbedding` of transformers has them."""
    rows = []
    for place in range(len(ids)):
        segment = max((p + 1 for p in range(place) if ids[p] == rule.end_token), default=0)
        mixed = signed(ids[place] * rule.multipliers[0])
        own = []
        for back in range(1, rule.longest):
            token = ids[place - back] if place - back >= segment else rule.end_token
            mixed ^= signed(token * rule.multipliers[back])
            for head in range((back - 1) * rule.heads, back * rule.heads):
                own.append(mixed % rule.rows_of_heads[head] + sum(rule.rows_of_heads[:head]))
        rows.append(own)
    return np.array(rows)


def test_rows_of_a_text_and_of_its_parts() -> None:
    ids = np.random.default_rng(0).integers(0, 12, 200) * 22_000
    ids[ids == 110_000] = RULE.end_token
    assert (ids == RULE.end_token).sum() > 5
    expected = by_hand(RULE, ids.tolist())
    np.testing.assert_array_equal(RULE.of(ids, ids[:0]), expected)
    assert len({*expected.reshape(-1).tolist()}) > 100
    for cut in (1, 2, 3, 50, 199):
        for before in (ids[:cut], ids[max(0, cut - RULE.look_back) : cut]):
            np.testing.assert_array_equal(RULE.of(ids[cut:], before), expected[cut:])


def test_heads_have_primes_in_order_and_tables_follow_one_another() -> None:
    first = NgramRows(3, 2, 50, 3, 0, 1234, 248_320, 7)
    assert (*first.rows_of_heads, *RULE.rows_of_heads) == (53, 59, 61, 67, 71, 73, 79, 83)
    assert (first.total_rows, RULE.total_rows) == (240, 306)
    assert all(m % 2 and 0 < m * 248_320 < 1 << 63 for m in (*first.multipliers, *RULE.multipliers))
    assert not {*first.multipliers} & {*RULE.multipliers}


def test_the_published_table() -> None:
    rule = NgramRows(3, 8, 20_000_000, 128, 0, 1234, 248_320, 248_044)
    assert rule.total_rows == 320_001_536
    assert rule.rows_of_heads[0] == 20_000_003
    assert all(math.gcd(a, b) == 1 for a, b in zip(rule.rows_of_heads, rule.rows_of_heads[1:], strict=False))


@pytest.mark.parametrize("changes", [{"longest": 1}, {"heads": 33}, {"number": 65}])
def test_rules_that_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"rows for n-grams|the table of number"):
        replace(RULE, **changes).check()
