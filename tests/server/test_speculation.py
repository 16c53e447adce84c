"""Drafts change the time of an answer, and nothing else: not its tokens, logprobs, words or end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.engine.options import EngineOptions
from edgemoe.errors import ReadError, UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server import running
from edgemoe.server.jobs import Event, Finished, Job, Piece
from edgemoe.server.scheduler import Scheduler
from edgemoe.session import held_tokens
from edgemoe.session.constraint import Grammars, Structure
from edgemoe.session.draft_gate import LOST_SHARE, StepCosts
from edgemoe.session.drafts import Draft, Drafts
from edgemoe.session.model import Model, load
from edgemoe.session.response.builtin import builtin
from edgemoe.session.response.reader import ResponseReader
from edgemoe.session.tools import ThoughtBudget
from tests.server.test_scheduler import PROMPTS, SETTINGS, Heard, run

MORE_SETTINGS = [
    *SETTINGS,
    SamplingOptions(repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={3: 2.0}),
    SamplingOptions(temperature=0.3, min_p=0.05, seed=4, no_repeat_ngram_size=3, min_new_tokens=5),
]
AGAIN = "abcdefgh" * 9 + "abc"
"""A text that goes on as it began, if its tokens are chosen so."""


@pytest.fixture(
    scope="module",
    params=["recurrent", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resident", "streamed"))],
)
def both(letters_store: Path, recurrent_store: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Model, Model]]:
    """A model without drafts and with many."""
    store = recurrent_store if request.param == "recurrent" else letters_store
    ram = "floor" if request.param == "streamed" else None
    options: dict[str, Any] = {"context_length": 256, "ram": ram}
    drafting = EngineOptions(speculate=7, sequences=3, **options)
    with load(store, EngineOptions(**options)) as plain, load(store, drafting) as fast:
        yield plain, fast


class Oracle(Drafts):
    """Drafts the true answer, with a wrong token every few places."""

    answer: list[int]
    wrong_every = 5

    def draft(self, most: int) -> Draft:
        place = self._length - len(Oracle.before)
        if most < 1:
            return Draft([], 0)
        true = Oracle.answer[place : place + most]
        ids = [one + 1 if (place + n) % Oracle.wrong_every == 0 else one for n, one in enumerate(true)]
        return Draft(ids, 8 if ids else 0)

    before: list[int]


def forwards(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens that are run from now on."""
    counts: list[int] = []
    forward = model.engine.forward

    def counted(ids: Any, **more: Any) -> Any:
        counts.append(len(ids))
        return forward(ids, **more)

    monkeypatch.setattr(model.engine, "forward", counted)
    return counts


def test_a_drafted_answer_is_the_answer(both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = both
    monkeypatch.setattr(held_tokens, "Drafts", Oracle)
    counts = forwards(fast, monkeypatch)
    steps = tokens = 0
    for text in (AGAIN, "Once upon a time "):
        for options in MORE_SETTINGS:
            expected = plain.stream(plain.encode(text), 25, options, 2)
            said = "".join(expected)
            Oracle.answer, Oracle.before = expected.token_ids, plain.encode(text)
            for Oracle.wrong_every in (3, 1000):
                counts.clear()
                found = fast.stream(fast.encode(text), 25, options, 2)
                assert "".join(found) == said
                assert found.token_ids == expected.token_ids
                assert found.logprobs == expected.logprobs
                assert found.finish_reason == expected.finish_reason
                assert fast.held.ids[len(Oracle.before) :] == found.token_ids[: len(fast.held.ids) - len(Oracle.before)]
                steps, tokens = steps + len(counts), tokens + len(found.token_ids)
    assert tokens > 2 * steps  # several at once


def test_own_repetitions_are_drafted(both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = both
    again = SamplingOptions(temperature=0, logit_bias=dict.fromkeys(plain.encode("ab"), 60.0))
    expected = plain.generate(plain.encode("ab" * 20), 60, logit_bias=dict(again.logit_bias))
    counts = forwards(fast, monkeypatch)
    found = fast.generate(fast.encode("ab" * 20), 60, logit_bias=dict(again.logit_bias))
    assert found.token_ids == expected.token_ids
    assert max(counts[1:]) > 4


def test_in_company_too(both: tuple[Model, Model]) -> None:
    plain, fast = both
    engine = fast.engine
    scheduler = Scheduler(fast)
    heard = [Heard(fast, text, options, 20) for text in (AGAIN, *PROMPTS[:2]) for options in MORE_SETTINGS]
    scheduler.add(one.job for one in heard)
    run(scheduler)
    assert scheduler.totals.steps < scheduler.totals.generated_tokens / 1.5
    engine.pause = None
    engine.sequence = engine.sequences.open()
    fast.held.ids.clear()
    for one in heard:
        expected = plain.stream(one.job.prompt_ids, 20, one.job.options, 2)
        assert "".join(expected) == one.text
        assert expected.token_ids == one.token_ids
        assert expected.logprobs == one.logprobs
        assert isinstance(one.end, Finished)
        assert one.end.reason == expected.finish_reason


@pytest.mark.parametrize("wrong_every", [3, 1000])
def test_beside_tokens_that_a_grammar_forces(
    both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch, wrong_every: int
) -> None:
    plain, fast = both
    constraint = Grammars(plain.tokenizer).compile(Structure.of_pattern("(?:[a-d]{2}efgh[0-9]abc){4}", "regex"))
    monkeypatch.setattr(held_tokens, "Drafts", Oracle)
    monkeypatch.setattr(running, "Drafts", Oracle)
    monkeypatch.setattr(Oracle, "wrong_every", wrong_every)
    ids = plain.encode(AGAIN)
    for options in MORE_SETTINGS[:3]:
        expected = plain.stream(ids, 40, options, constraint=constraint.copy())
        said = "".join(expected)
        assert len(said) == 40
        Oracle.answer, Oracle.before = expected.token_ids, ids
        found = fast.stream(ids, 40, options, constraint=constraint.copy())
        assert ("".join(found), found.token_ids) == (said, expected.token_ids)
        assert found.finish_reason == expected.finish_reason
        events: list[Event] = []
        scheduler = Scheduler(fast)
        scheduler.add([Job(ids, options, 40, events.append, constraint=constraint.copy())])
        run(scheduler)
        fast.engine.pause = None
        fast.engine.sequence = fast.engine.sequences.open()
        fast.held.ids.clear()
        assert [one.token for one in events if isinstance(one, Piece) and one.token is not None] == expected.token_ids
        assert scheduler.totals.steps < 35
        assert 0 < scheduler.totals.accepted_tokens < scheduler.totals.draft_tokens  # those past the end go back too


@pytest.mark.parametrize("wrong_every", [3, 1000])
def test_beside_the_end_of_a_thought(
    both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch, wrong_every: int
) -> None:
    """The tokens that end a thought which has used up its budget come in the middle of right and wrong drafts."""
    text = "<|im_start|>assistant\n<think>" + AGAIN
    ids, end = both[0].encode(text), both[0].encode("</think>")
    monkeypatch.setattr(running, "Drafts", Oracle)
    monkeypatch.setattr(Oracle, "wrong_every", wrong_every)
    Oracle.answer, Oracle.before = [], ids
    for options in SETTINGS[:2]:
        answers, steps = [], []
        for model in both:
            events: list[Event] = []
            reader, budget = ResponseReader(builtin("hermes"), text), ThoughtBudget(9, end)
            scheduler = Scheduler(model)
            scheduler.add([Job(ids, options, 40, events.append, reader=reader, thoughts=budget)])
            run(scheduler)
            model.engine.pause = None
            model.engine.sequence = model.engine.sequences.open()
            model.held.ids.clear()
            assert isinstance(events[-1], Finished)
            assert events[-1].figures.thought_tokens == 9 + len(end)
            Oracle.answer = [one.token for one in events if isinstance(one, Piece) and one.token is not None]
            answers.append(Oracle.answer)
            steps.append(scheduler.totals.steps)
        assert answers[0] == answers[1]
        assert answers[0][9 : 9 + len(end)] == end
        of_prompt = -(-len(ids) // both[0].engine.memory.chunk_tokens)
        assert steps[1] < steps[0] <= 40 - len(end) + 2 + of_prompt


def test_a_draft_fails_nothing(both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = both
    ids = fast.encode(AGAIN)
    expected = plain.generate(ids, 20)
    forward = fast.engine.forward

    def fails_with_drafts(token_ids: Any, **more: Any) -> Any:
        if len(token_ids) > 1 and more.get("all_logits"):
            raise ReadError("layer 1, expert 2: damaged.", "Copy it again.")
        return forward(token_ids, **more)

    monkeypatch.setattr(fast.engine, "forward", fails_with_drafts)
    assert fast.generate(ids, 20).token_ids == expected.token_ids
    monkeypatch.undo()

    def not_finite_behind(token_ids: Any, **more: Any) -> Any:
        logits = forward(token_ids, **more)
        if more.get("all_logits"):
            logits[1:] = np.nan
        return logits

    class Wrong(Drafts):
        def draft(self, most: int) -> Draft:
            return Draft([95] * most, 8)

    assert 95 not in expected.token_ids
    monkeypatch.setattr(held_tokens, "Drafts", Wrong)
    monkeypatch.setattr(fast.engine, "forward", not_finite_behind)
    assert fast.generate(ids, 20).token_ids == expected.token_ids


def test_an_unknown_number_of_drafts_is_refused() -> None:
    for wrong in (0, -1, 99, "always", True, 1.5):
        with pytest.raises(UsageError, match="speculate"):
            EngineOptions(speculate=wrong)  # type: ignore[arg-type]
    assert EngineOptions().most_drafts == 0
    assert EngineOptions(speculate=3).most_drafts == 3
    assert LOST_SHARE < 0.02
    assert StepCosts().measurable(1) is False
