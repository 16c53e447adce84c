"""Advice on a store that has lost much: the next better formats by name, and what they take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.conversion.calibration.advice import MUCH_NATS, advice
from edgemoe.conversion.places import Place
from edgemoe.kernels.formats import EXPERT_FORMATS, panel_count
from edgemoe.sizes import format_size

ROWS, COLUMNS = 512, 2048


def plan(*formats: str, bits: float = 0.0) -> Any:
    """A plan with a matrix in each format, of `bits` for a weight in sub1."""
    share = int(bits * ROWS * COLUMNS / 8)
    places = [
        Place(f"p{n}", "f", 0, ROWS, COLUMNS, EXPERT_FORMATS[name], 0, share_bytes=share)
        for n, name in enumerate(formats)
    ]
    return SimpleNamespace(pieces=[SimpleNamespace(place=place, repeats=False) for place in places])


def lost(nats: float) -> Any:
    return SimpleNamespace(divergence=SimpleNamespace(nats=SimpleNamespace(mean=nats)))


@pytest.mark.parametrize(
    ("formats", "bits", "names", "more", "low"),
    [
        (("n3", "q8"), 0, "n4 in place of n3", 1.0, False),
        (("n4",), 0, "q8 in place of n4", 4.3125, False),
        (("n15", "n15", "n3"), 0, "n2 in place of n15 and n4 in place of n3", 2 * 0.5 + 1, True),
        (("sub1",), 0.8, "n1 in place of sub1", 1.015625 - 0.8, True),  # its rows have a scale each
        (("sub1",), 1.2, "n15 in place of sub1", 1.6875 - 1.2, True),
    ],
)
def test_the_next_better_formats_are_named(
    formats: tuple[str, ...], bits: float, names: str, more: float, low: bool
) -> None:
    (said,) = advice(plan(*formats, bits=bits), lost(MUCH_NATS))
    assert f"The next better choice is {names}: about " in said
    whole = panel_count(ROWS) * 16 * COLUMNS / 8
    assert said.endswith(f"about {format_size(round(more * whole))} more.")
    assert ("two bits" in said) == low


def test_nothing_is_advised_where_little_is_lost_or_nothing_can_be_won() -> None:
    assert list(advice(plan("n2", "sub1", bits=0.7), lost(0.99 * MUCH_NATS))) == []
    assert list(advice(plan("q4"), lost(3.0))) == []
