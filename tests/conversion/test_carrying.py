"""Blocks that two types share a matrix with, in the format that has the numbers of both."""

from __future__ import annotations

import numpy as np

from edgemoe.conversion.carrying import carry, common_format
from edgemoe.conversion.random_blocks import draw_blocks
from edgemoe.kernels.blocks import dequantise
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.row_types import BLOCK_FORMATS
from tests.support.every_case import every_case

NAMES = sorted(set(BLOCK_FORMATS.values()))


@every_case(
    ("names", "expected"),
    [
        (("q4",), "q4"),
        (("q4", "q8"), "q8"),
        (("q4", "q4m"), "q4m"),
        (("q4", "q5"), "q5"),
        (("q5", "q5m"), "q5m"),
        (("m4", "q4"), "q8"),
        (("iq4nl", "q4"), "q8"),
        (("tq2", "q2"), "q2"),
        (("q1", "tq2", "q4"), "q4"),
        (("q4k", "q5k"), "q5k"),
        (("q3k", "q6k"), "q6k"),
        (("q2k", "q3k"), None),
        (("q4k", "q6k"), None),
        (("q4m", "m4"), None),
        (("nv4", "q4"), None),
        (("iq4xs", "q6k"), None),
    ],
)
def test_the_smallest_format_that_holds_all(names: tuple[str, ...], expected: str | None) -> None:
    assert common_format(names) == expected


def test_no_weight_changes() -> None:
    pairs = 0
    for number, source in enumerate(NAMES):
        blocks = draw_blocks(f"{number}", slice(0, 5), 512, 0.02, FORMATS[source])
        for name, fmt in FORMATS.items():
            found = carry(blocks, fmt)
            assert (found is not None) == (common_format([source, name]) == name)
            if found is not None:
                pairs += 1
                np.testing.assert_array_equal(dequantise(found), dequantise(blocks), err_msg=f"{source} to {name}")
    assert pairs > 40
