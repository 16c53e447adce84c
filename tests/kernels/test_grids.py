"""The grids of IQ1, IQ2 and IQ3, against those of the package `gguf`; and values that no code stands for."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edgemoe.kernels.blocks import pack, unpack
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.grid_blocks import decode, encode
from edgemoe.kernels.grids import GRIDS
from tests.kernels.builders import random_blocks
from tests.kernels.grid_drawing import packed_grid_slowly
from tests.support.every_case import every_case

THEIRS = {"iq2xxs": "IQ2_XXS", "iq2xs": "IQ2_XS", "iq2s": "IQ2_S", "iq3xxs": "IQ3_XXS", "iq3s": "IQ3_S", "iq1": "IQ1_S"}
NAMES = [name for name, fmt in FORMATS.items() if fmt.grid != "none"]


@every_case("name", list(GRIDS))
def test_grids_are_those_of_gguf(name: str) -> None:
    kind = getattr(gguf.quants, THEIRS[name])
    kind.init_grid()
    scale = 8 if name == "iq1" else 1
    np.testing.assert_array_equal(GRIDS[name].entries, kind.grid.reshape(kind.grid_shape) * scale)


@every_case("name", NAMES)
def test_every_format_lies_as_it_is_drawn(name: str) -> None:
    blocks = random_blocks(name, 19, 300, np.random.default_rng(5))
    packed = pack(blocks)
    assert packed.tobytes() == packed_grid_slowly(blocks)
    np.testing.assert_array_equal(unpack(packed, blocks.format, 19, 300).values, blocks.values)


@every_case("name", NAMES)
def test_every_entry_has_its_code(name: str) -> None:
    fmt = FORMATS[name]
    count = len(GRIDS[fmt.grid].packed)
    codes = np.arange(count, dtype=np.uint16).reshape(-1, 32 // GRIDS[fmt.grid].columns)
    marks = np.zeros((len(codes), 4), np.uint8)
    found, _ = encode(decode(codes, marks, fmt), fmt)
    np.testing.assert_array_equal(found, codes)


@every_case(
    ("name", "values"),
    [
        ("iq2xxs", [8, 8, 8, 8, 8, 8, 8, 9]),  # no level
        ("iq2xxs", [-8, 8, 8, 8, 8, 8, 8, 8]),  # an odd number of negative weights
        ("iq2xxs", [43] * 8),  # no entry
        ("iq1m", [1, 1, 1, 1, 1, 1, 1, -1]),  # 1 is added to some, subtracted from others
        ("iq1s", [*[1] * 8, *[-1] * 8]),
    ],
)
def test_values_without_a_code_are_refused(name: str, values: list[int]) -> None:
    with pytest.raises(ValueError, match=name):
        encode(np.array([values], np.int8), FORMATS[name])
