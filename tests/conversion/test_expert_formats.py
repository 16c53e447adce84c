"""Formats of experts by their matrices and layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.expert_formats import ExpertFormats
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import UsageError
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint

NAMES = ("n2", "n3", "n4", "sub1")


def test_parts_and_ends_have_their_own() -> None:
    formats = ExpertFormats.parse("n2,down=n3,first=n4", NAMES)
    assert [formats.of(part, 2, range(1, 4)) for part in ("gate", "up", "down")] == ["n2", "n2", "n3"]
    assert [formats.of("up", layer, range(1, 4)) for layer in (1, 2, 3)] == ["n4", "n2", "n2"]
    assert ExpertFormats.parse("n2,last=n3", NAMES).of("down", 3, range(1, 4)) == "n3"


def test_layers_are_named_by_their_numbers() -> None:
    formats = ExpertFormats.parse("n2,down=n3,first=n4,1.down=n2,12=n3,12.up=n4", NAMES)
    found = [[formats.of(part, layer, range(1, 14)) for part in ("gate", "up", "down")] for layer in (1, 2, 12)]
    assert found == [["n4", "n4", "n2"], ["n2", "n2", "n3"], ["n3", "n4", "n3"]]
    formats.check(range(1, 14))
    with pytest.raises(UsageError, match=r"expected layers with experts \(2 to 13\), found 1\.down"):
        formats.check(range(2, 14))
    with pytest.raises(UsageError, match=r"the model has no experts; found 1\.down"):
        formats.check([])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q7", "expected one of n2, n3, n4, sub1, found 'q7'"),
        ("n2,down=q7", "found 'q7'"),
        ("n2,n3", "such as n2,down=n3,7.down=n4; found 'n3' in 'n2,n3'"),
        ("n2,middle=n3", "found 'middle=n3'"),
        ("n2,03=n3", "found '03=n3'"),
        ("n2,3.bias=n3", "found '3.bias=n3'"),
        ("n2,down=n3,down=n4", "once each of .* found 'down=n4'"),
        ("", "found ''"),
        ("n2,down=sub1", "sub1 is for all matrices"),
    ],
)
def test_other_texts_are_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        ExpertFormats.parse(text, NAMES)


def test_a_store_has_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", SMALL_MIXTRAL)
    path = convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store", experts="n2,down=n3,last=q4")
    store = Store.open(path)
    verify_store(store)
    found = [layouts[0].matrices for layouts in store.layouts_of_layers]
    assert [[one.format_of(part).name for part in ("gate", "up", "down")] for one in found] == [
        ["n2", "n2", "n3"],
        ["q4", "q4", "q4"],
    ]
