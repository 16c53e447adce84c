from hypothesis import given
from hypothesis import strategies as st

from edgemoe.session.stop_texts import StopTexts
from tests.support.every_case import every_case


def passed_on(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    texts = StopTexts(stops)
    shown = [texts.push(piece) for piece in pieces]
    return [*shown, texts.finish()], texts.first is not None


def test_text_is_held_back_while_it_may_become_a_stop_text() -> None:
    assert passed_on(["END", "\n\n"], ["a", "bE", "N", "x\n", "y", "E", "ND", "more"]) == (
        ["a", "b", "", "ENx", "\ny", "", "", "", ""],
        True,
    )


def test_what_was_held_back_comes_when_nothing_more_does() -> None:
    assert passed_on(["END"], ["fin E", "N"]) == (["fin ", "", "EN"], False)


def test_without_stop_texts_every_piece_passes() -> None:
    assert passed_on([], ["a", "", "b"]) == (["a", "", "b", ""], False)


@every_case(
    ("stops", "text", "expected"),
    [
        (["bc", "abcd"], "xabcde", "xa"),  # complete first
        (["bcd", "abcd"], "xabcde", "x"),  # complete at once: the longer
        (["aab"], "aaab", "a"),  # a beginning within another
        (["x"], "x", ""),
    ],
)
def test_the_stop_text_that_is_complete_first_counts(stops: list[str], text: str, expected: str) -> None:
    for pieces in ([text], list(text), [text[:2], text[2:]]):
        shown, found = passed_on(stops, pieces)
        assert ("".join(shown), found) == (expected, True)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.text("abc", max_size=5), max_size=8))
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    ends = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
    shown, found = passed_on(stops, pieces)
    assert "".join(shown) == (whole[: min(ends)[1]] if ends else whole)
    assert found == bool(ends)
