"""How many examples of a property a run of the tests draws."""

import os

FEWEST = 3
ALL = "CI" in os.environ and "FEW_EXAMPLES" not in os.environ


def examples(count: int) -> int:
    """`count` where CI is set, and Hypothesis draws the same ones each time; else a fifth: each run draws others.

    With FEW_EXAMPLES, CI too draws a fifth.
    """
    return count if ALL else max(FEWEST, count // 5)
