"""Pairs of two lists of parameters, of which the default tests take some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def default_pairs(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """All pairs. The default tests have each value of both lists; the slow tests have the other pairs.

    The first value of the second list goes with the first value of the first list, and so on, in turn.
    """
    most = max(len(first), len(second))
    default = {(turn % len(first), turn % len(second)) for turn in range(most)}
    return [
        pytest.param(one, other, marks=[] if (number, at) in default else pytest.mark.slow)
        for number, one in enumerate(first)
        for at, other in enumerate(second)
    ]
