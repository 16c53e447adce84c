"""Lists of parameters, and pairs of two lists, of which the default tests take some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

LONG = 16
"""So many parameters, such as all formats, are many: fewer of them speak for the others."""


def default_pairs(first: Sequence[Any], second: Sequence[Any], every: int = 1) -> list[Any]:
    """All pairs. The default tests have each value of both lists; the slow tests have the other pairs.

    The first value of the second list goes with the first value of the first list, and so on, in turn; with `every`,
    the default tests have only each so many-th of these pairs.
    """
    most = max(len(first), len(second))
    default = {(turn % len(first), turn % len(second)) for turn in range(0, most, every)}
    return [
        pytest.param(one, other, marks=[] if (number, at) in default else pytest.mark.slow)
        for number, one in enumerate(first)
        for at, other in enumerate(second)
    ]


def some(values: Iterable[Any]) -> list[Any]:
    """All values. The default tests have every fourth, of long lists every eighth; the slow tests have the others."""
    listed = list(values)
    every = 4 if len(listed) < LONG else 8
    return [pytest.param(value, marks=[] if at % every == 0 else pytest.mark.slow) for at, value in enumerate(listed)]
