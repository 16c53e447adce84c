"""`--json` is JSON with the right letters on every stdout (RFC 8259)."""

import json
import math
from pathlib import Path

import pytest

from edgemoe.cli.json_text import json_text
from tests.cli.conftest import FAKE_PROGRAM, Fakes
from tests.support.every_case import every_case

SAID = "größe ឃឃឃ 😀"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_answer_has_its_letters_whatever_stdout_is(folder: Path, fakes: Fakes, encoding: str) -> None:
    arguments = ["run", folder, "-p", "x", "--json", "--max-tokens", "99"]
    program = f"import sys; sys.stdout.reconfigure(encoding={encoding!r}); {FAKE_PROGRAM}"
    done = fakes.run(*arguments, program=program, FAKE_SAYS=SAID)
    assert json.loads(done.output)["text"] == SAID
    assert done.output.isascii()


@every_case(
    ("text", "expected"),
    [
        (SAID, SAID),
        (SAID.encode().decode("ascii", "surrogateescape"), SAID),  # as Python reads a path in the C locale (PEP 383)
        (b"a\xff/b".decode("utf-8", "surrogateescape"), "a\ufffd/b"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("both \ud83d\ude00 halves", "both 😀 halves"),
        ('"\\\x00\x7f\u2028', '"\\\x00\x7f\u2028'),
    ],
)
def test_every_text_is_one_that_all_can_read(text: str, expected: str) -> None:
    written = json_text({text: [text, (text,)]})
    assert written.isascii()
    assert json.loads(written) == {expected: [expected, [expected]]}


def test_numbers_that_json_does_not_have_are_null() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = json_text({"rates": [math.inf, -math.inf, math.nan, 1.5, 1 << 70]}, indent=None)
    assert json.loads(written, parse_constant=refuse) == {"rates": [None, None, None, 1.5, 1 << 70]}
