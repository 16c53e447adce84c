"""Guesses at the next tokens, and the gate that weighs them."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.session.draft_gate import BY_MODEL, DraftGate, StepCosts
from edgemoe.session.drafts import NO_DRAFT, Drafts


def test_the_longest_agreement_is_followed_and_of_equal_ones_the_latest() -> None:
    drafts = Drafts([1, 2, 3, 10, 11, 9, 2, 3, 20, 21, 9, 1, 2, 3])
    assert drafts.draft(2) == ([10, 11], 3)
    drafts.add(7)
    assert drafts.draft(2) == NO_DRAFT  # a token that has not been there
    again = Drafts([5, 1, 2, 30, 6, 1, 2, 40, 1, 2])
    assert again.draft(1) == ([40], 2)
    assert again.draft(0) == NO_DRAFT
    assert Drafts([1, 1]).draft(3) == NO_DRAFT  # too short to agree in two


def test_a_repetition_goes_on_beyond_the_end_of_the_text() -> None:
    drafts = Drafts([1, 2, 3] * 4)
    assert drafts.draft(7) == ([1, 2, 3, 1, 2, 3, 1], 8)
    for token in (1, 2, 3) * 200:
        drafts.add(token)
    assert drafts.draft(4) == ([1, 2, 3, 1], 8)


def written(text: list[int], prompt: list[int], seconds: dict[int, float]) -> float:
    """The seconds in which an answer is written, with steps that take as long as their number of rows says."""
    costs = StepCosts()
    gate, drafts, spent_s, place = DraftGate(costs), Drafts(prompt), 0.0, 0
    while place < len(text):
        drafts.add(text[place])
        place += 1
        draft = drafts.draft(min(7, len(text) - place))
        count = gate.drafts(draft.matched, len(draft.token_ids))
        right = 0
        while right < count and draft.token_ids[right] == text[place + right]:
            right += 1
        for token in text[place : place + right]:
            drafts.add(token)
        place += right
        took_s = seconds[1 + count]
        costs.ran(1, count, took_s)
        gate.verified(draft.matched, count, right)
        spent_s += took_s
    return spent_s


CHEAP = {rows: 1 + 0.25 * (rows - 1) for rows in range(1, 9)}
DEAR = {rows: 1.0 * rows for rows in range(1, 9)}


def test_text_that_cannot_be_guessed_costs_nearly_nothing() -> None:
    random = np.random.default_rng(0)
    for vocabulary in (3, 20, 1000):
        text = random.integers(0, vocabulary, 400).tolist()
        for seconds in (CHEAP, DEAR):
            assert written(text, text[:0] + random.integers(0, vocabulary, 300).tolist(), seconds) < 400 / 0.98


def test_copies_are_fast_where_rows_are_cheap_and_not_slow_where_they_are_dear() -> None:
    random = np.random.default_rng(1)
    prompt = random.integers(0, 500, 300).tolist()
    text = [*prompt[50:150], *random.integers(0, 500, 20).tolist(), *prompt[:200]]
    assert written(text, prompt, CHEAP) < len(text) / 1.8
    assert written(text, prompt, DEAR) < len(text) / 0.98


def test_a_given_number_is_run_whatever_it_costs() -> None:
    gate = DraftGate(StepCosts(), 5)
    assert gate.drafts(2, 7) == 5
    assert gate.drafts(2, 3) == 3


def written_with_model(costs: StepCosts, prompt: int, answer: int, read_s: float, right: float) -> float:
    """The seconds of a prompt and an answer, a step of which takes one; `right`: the share of right guesses.

    The prompt takes a fifth of a step for each token, and the draft model `read_s` for each.
    """
    random = np.random.default_rng(2)
    gate, unread, place = DraftGate(costs), prompt, 1
    spent_s = prompt / 5
    gate.began(spent_s)
    while place < answer:
        if unread and gate.may_read(unread, answer - place):
            spent_s += unread * read_s
            gate.read(unread, unread * read_s)
            unread = 0
        count = 0 if unread else gate.drafts(BY_MODEL, min(5, answer - place - 1))
        agreed = 0
        while agreed < count and random.random() < right:
            agreed += 1
        costs.ran(1, count, took_s := 1 + 0.3 * count)
        gate.verified(BY_MODEL, count, agreed)
        spent_s += took_s
        place += 1 + agreed
        unread += (1 + agreed) * bool(unread)
    return spent_s


def measured(saved: float = 0.2) -> StepCosts:
    """The costs of an engine that has been used for a while."""
    costs = StepCosts()
    costs.ran(1, 0, 1.0)
    costs.read(100, 3.0)
    for _ in range(100):
        costs.saved(saved)
    return costs


def test_reading_a_prompt_does_not_make_a_short_answer_slow() -> None:
    for costs in (StepCosts, measured):
        for right in (0.0, 0.3, 1.0):
            for prompt, answer in ((20, 8), (300, 8), (300, 60), (3000, 60), (3000, 400)):
                plain_s = prompt / 5 + answer - 1
                assert written_with_model(costs(), prompt, answer, 0.03, right) < plain_s / 0.98 + 0.5


def test_a_long_answer_repays_what_reading_costs() -> None:
    assert written_with_model(StepCosts(), 300, 600, 0.03, 0.9) < 300 / 5 + 599 - 50
    plain_s = 300 / 5 + 399
    assert written_with_model(measured(0.5), 300, 400, 0.03, 0.9) < plain_s - 90
    assert written_with_model(measured(0.5), 300, 400, 0.03, 0.0) < plain_s / 0.96


def test_drafts_that_were_wrong_let_no_more_be_read() -> None:
    costs = measured()
    for _ in range(5):
        written_with_model(costs, 10, 300, 0.01, 0.0)
    assert written_with_model(costs, 300, 400, 0.03, 1.0) == pytest.approx(300 / 5 + 399)


def test_costs_follow_the_machine() -> None:
    costs = StepCosts()
    costs.ran(1, 0, 1.0)
    costs.ran(1, 3, 1.6)
    assert costs.seconds(1, 3) == 1.6
    assert 1.0 < costs.seconds(1, 1) < costs.seconds(1, 2) < 1.6 < costs.seconds(1, 5)
    for _ in range(100):
        costs.ran(1, 0, 2.0)  # something else has begun to run
    assert 3.1 < costs.seconds(1, 3) < 3.3
    for _ in range(30):
        costs.ran(1, 3, 3.2)
    assert not costs.measurable(1)
    costs.ran(1, 0, 2.0)
    assert costs.measurable(1)
    assert not costs.measurable(2)
