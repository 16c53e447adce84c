"""Windows over a text: every token is scored once, with as much before it as is promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from edgemoe.bench.windows import check_windows, cut_into_windows
from edgemoe.errors import UsageError
from edgemoe.session.text_ids import TextIds
from edgemoe.session.tokenizer import Tokenizer
from tests.support.examples import examples
from tests.support.letters_tokenizer import write_letters_tokenizer


@settings(max_examples=examples(200), deadline=None)
@given(strategies.data())
def test_every_token_is_scored_once(data: strategies.DataObject) -> None:
    head = data.draw(strategies.integers(0, 3))
    context = data.draw(strategies.integers(8, 40))
    stride = data.draw(strategies.integers(1, context - max(head, 1)))
    tokens = data.draw(strategies.integers(2, 200))
    check_windows(context, stride, head, 40)
    windows = cut_into_windows(tokens, head, context, stride)
    places = [place for window in windows for place in window.following]
    assert places == list(range(0 if head else 1, tokens))
    for number, window in enumerate(windows):
        read = head + window.end - window.first
        assert window.scored <= read <= context
        assert window.following.stop <= tokens
        if number:
            assert window.scored <= stride
            assert head + window.following.start - window.first >= context - stride  # so many tokens before the first


@pytest.mark.parametrize(("context", "stride"), [(7, 1), (41, 1), (16, 0), (16, 16), (16, -1)])
def test_sizes_that_do_not_go_together_are_refused(context: int, stride: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        check_windows(context, stride, 0, 40)


def test_a_window_leaves_room_for_the_tokens_before_a_text() -> None:
    check_windows(16, 13, 3, 40)
    with pytest.raises(UsageError, match=r"`stride`: expected 1 to 13 in windows of 16 tokens, found 14"):
        check_windows(16, 14, 3, 40)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_text_with_nothing_to_score_is_refused(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"2 tokens or more, found {tokens}"):
        cut_into_windows(tokens, 0, 16, 8)


def test_the_beginning_of_a_text_has_the_tokens_of_the_whole(tmp_path: Path) -> None:
    write_letters_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path, 101)
    text = "a long text, again and again. " * 40
    whole = TextIds.of(text, tokenizer, 10_000)
    assert (whole.head, whole.whole) == ((), True)
    assert len(whole.ids) == len(text)
    for tokens in (2, 100, len(text) - 1, len(text), len(text) + 7):
        found = TextIds.of(text, tokenizer, tokens)
        np.testing.assert_array_equal(found.ids, whole.ids[:tokens])
        assert found.whole == (tokens >= len(text))
