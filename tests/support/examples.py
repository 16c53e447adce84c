"""How many examples of a property a run of the tests draws."""

import os

FEWEST = 8


def examples(count: int) -> int:
    """`count` where CI is set, and Hypothesis draws the same ones each time; else a third: each run draws others."""
    return count if "CI" in os.environ else max(FEWEST, count // 3)
