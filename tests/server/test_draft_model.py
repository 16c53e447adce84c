"""A draft model changes the time of an answer, and nothing else; it has its share of the budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.plan_model import PlanOptions, plan_model
from edgemoe.cli.terminal.plan_tables import plan_tables
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import BudgetError, ReadError, UsageError
from edgemoe.server import running
from edgemoe.server.jobs import Finished
from edgemoe.server.scheduler import Scheduler
from edgemoe.session import generate
from edgemoe.session.draft_gate import DraftGate, StepCosts
from edgemoe.session.draft_model import DraftModel
from edgemoe.session.model import Model, load
from edgemoe.sizes import format_size
from tests.server.test_scheduler import PROMPTS, SETTINGS, Heard, run
from tests.server.test_speculation import MORE_SETTINGS

CONTEXT = 256
CASES = {
    "itself": ("letters", "letters", None),  # greedy guesses are right
    "recurrent-drafts": ("letters", "recurrent", "floor"),  # the draft model guesses in copies, experts are streamed
    "other-drafts": ("recurrent", "letters", None),
}


@pytest.fixture(
    scope="module", params=["itself", "recurrent-drafts", pytest.param("other-drafts", marks=pytest.mark.slow)]
)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(letters_store: Path, recurrent_store: Path, case: str) -> Iterator[tuple[Model, Model]]:
    """A model without drafts, and with those of a draft model."""
    stores = {"letters": letters_store, "recurrent": recurrent_store}
    store, draft, ram = (stores.get(name or "", name) for name in CASES[case])
    assert isinstance(store, Path)
    assert isinstance(draft, Path)
    options: dict[str, Any] = {"context_length": CONTEXT, "ram": ram}
    with (
        load(store, EngineOptions(**options)) as plain,
        load(store, EngineOptions(speculate=5, sequences=3, **options), draft) as fast,
    ):
        yield plain, fast


def drafter(model: Model) -> DraftModel:
    assert model.draft_model is not None
    return model.draft_model


def test_a_drafted_answer_is_the_answer(both: tuple[Model, Model], case: str) -> None:
    plain, fast = both
    for text, settings in (("Once upon a time ", MORE_SETTINGS), ("x" * 150, MORE_SETTINGS[1:2])):
        for options in settings:
            steps = fast.engine.statistics.tokens
            expected = plain.stream(plain.encode(text), 15, options, 2)
            said = "".join(expected)
            found = fast.stream(fast.encode(text), 15, options, 2)
            assert "".join(found) == said
            assert found.token_ids == expected.token_ids
            assert found.logprobs == expected.logprobs
            assert found.finish_reason == expected.finish_reason
            assert fast.engine.statistics.tokens > steps
    # what the draft model holds is what it would have computed of the text alone
    guesses = drafter(fast).begin(fast.encode("Once"), fast.engine.sequence)
    assert fast.held.guesses(fast.encode("Once")).take(4) == guesses.take(4)
    guesses.end()


def test_right_guesses_save_steps(both: tuple[Model, Model], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case != "itself":
        pytest.skip("another model guesses random weights wrongly")
    plain, fast = both
    counts: list[int] = []
    forward = fast.engine.forward

    def counted(ids: Any, **more: Any) -> Any:
        counts.append(len(ids))
        return forward(ids, **more)

    monkeypatch.setattr(fast.engine, "forward", counted)
    ids = fast.encode("The sea")
    fast.engine.keep_ledger()
    ledger = fast.generate(ids, 4).ledger
    assert ledger is not None
    assert ledger.ns["drafting"] > 0
    fast.engine.keep_ledger(False)
    fast.held.rewind(0)
    counts.clear()
    assert fast.generate(ids, 24).token_ids == plain.generate(ids, 24).token_ids
    assert counts == [len(ids), 6, 6, 6, 5]  # one chosen from the prompt's logits, and the last one is not run


@pytest.mark.parametrize("read_s", [0.0, 1e9])
def test_a_prompt_is_read_if_that_may_pay(
    both: tuple[Model, Model], case: str, read_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fast = both
    costs = StepCosts()
    costs.ran(1, 0, 1.0)
    costs.read(1, read_s)
    for module in (generate, running):
        monkeypatch.setattr(module, "DraftGate", lambda ignored, fixed: DraftGate(costs))
    counts: list[int] = []
    step = drafter(fast).engine.step

    def counted(batch: Any, **more: Any) -> Any:
        counts.extend(map(len, batch.values()))
        return step(batch, **more)

    monkeypatch.setattr(drafter(fast).engine, "step", counted)
    ids = plain.encode("z" * 100)
    expected = plain.generate(ids, 12).token_ids
    fast.held.rewind(0)
    assert fast.generate(ids, 12).token_ids == expected
    assert bool(counts) == (read_s == 0)
    counts.clear()
    scheduler, heard = Scheduler(fast), Heard(fast, "z" * 99, SETTINGS[0], 12)
    scheduler.add([heard.job])
    run(scheduler)
    fast.engine.pause = None
    fast.engine.sequence = fast.engine.sequences.open()
    fast.held.ids.clear()
    assert heard.token_ids == plain.generate(heard.job.prompt_ids, 12).token_ids
    assert bool(counts) == (read_s == 0)


def test_in_company_too(both: tuple[Model, Model], case: str) -> None:
    plain, fast = both
    scheduler = Scheduler(fast)
    heard = [Heard(fast, text, options, 12) for text in PROMPTS[1:5] for options in MORE_SETTINGS[:2]]
    scheduler.add(one.job for one in heard)
    run(scheduler)
    fast.engine.pause = None
    fast.engine.sequence = fast.engine.sequences.open()
    fast.held.ids.clear()
    assert scheduler.totals.draft_tokens > 0
    for one in heard:
        expected = plain.stream(one.job.prompt_ids, 12, one.job.options, 2)
        assert "".join(expected) == one.text
        assert expected.token_ids == one.token_ids
        assert expected.logprobs == one.logprobs
        assert isinstance(one.end, Finished)
        assert one.end.reason == expected.finish_reason
        if case == "itself" and one.job.options == MORE_SETTINGS[0]:
            assert one.end.figures.accepted_tokens == one.end.figures.draft_tokens
    drafter(fast).begin([1, 2], fast.engine.sequence).end()  # every place was given back


def test_up_to_the_end_of_the_context(both: tuple[Model, Model]) -> None:
    plain, fast = both
    ids = plain.encode("y" * (CONTEXT - 20))
    expected, found = plain.generate(ids, None), fast.generate(ids, None)
    assert found.token_ids == expected.token_ids
    assert found.finish_reason == expected.finish_reason == "context"


def test_a_draft_model_fails_nothing(both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = both
    expected = plain.generate(plain.encode("The sea"), 12).token_ids
    engine = drafter(fast).engine
    step = engine.step

    def fails_now_and_then(*arguments: Any, **more: Any) -> Any:
        fails_now_and_then.calls += 1  # type: ignore[attr-defined]
        if fails_now_and_then.calls % 3 == 0:  # type: ignore[attr-defined]
            raise ReadError("layer 1, expert 2: damaged.", "Copy it again.")
        return step(*arguments, **more)

    fails_now_and_then.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "step", fails_now_and_then)
    assert fast.generate(fast.encode("The sea"), 12).token_ids == expected
    assert fails_now_and_then.calls > 3  # type: ignore[attr-defined]

    def fails(*arguments: Any, **more: Any) -> Any:
        raise ReadError("layer 1, expert 2: damaged.", "Copy it again.")

    monkeypatch.setattr(engine, "step", fails)
    long = fast.encode("z" * 100)  # to be read in a step of its own
    assert fast.generate(long, 8).token_ids == plain.generate(long, 8).token_ids


def test_it_has_a_share_of_the_budget(letters_store: Path, both: tuple[Model, Model], case: str) -> None:
    plain, fast = both
    memory, draft = fast.engine.memory, drafter(fast).engine.memory
    assert memory.draft_model_bytes == draft.planned_bytes > draft.dense_bytes
    assert draft.all_resident
    assert memory.planned_bytes <= memory.budget_bytes
    if case == "recurrent-drafts":
        assert memory.floor_bytes - plain.engine.memory.floor_bytes > draft.planned_bytes / 2
        too_little = memory.floor_bytes - draft.planned_bytes
        with pytest.raises(BudgetError, match="needs at least"):
            load(letters_store, EngineOptions(ram=too_little, speculate=5), letters_store)


def test_a_plan_tells_its_share(letters_store: Path) -> None:
    options = PlanOptions("floor", CONTEXT, disk_bytes_per_s=1e9, memory_bytes_per_s=1e10)
    alone = plan_model(str(letters_store), options).forecast.memory
    planned = plan_model(str(letters_store), replace(options, draft=str(letters_store)))
    share = planned.forecast.memory.draft_model_bytes
    assert 0 < share < planned.forecast.memory.floor_bytes
    assert planned.forecast.memory.slots == alone.slots
    (_, budget) = plan_tables(planned)[1]
    assert ("draft model", f"{format_size(share)}, all of it in memory") in budget


def test_another_model_is_refused_by_name(letters_store: Path, tool_store: Path, tmp_path: Path) -> None:
    other = shutil.copytree(letters_store, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match=r"`draft`: .*other: its token 10 is 'b', and not 'a'"):
        load(letters_store, EngineOptions(speculate=2), other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"`draft`: .*one of them has no tokenizer"):
        load(letters_store, EngineOptions(speculate=2), other)
    with pytest.raises(UsageError, match="speculate=off"):
        load(letters_store, EngineOptions(speculate="off"), letters_store)
    with load(letters_store, EngineOptions(speculate=2, context_length=64), tool_store) as more:
        assert more.generate(more.encode("Hi"), 5).token_ids  # tokens that the model lacks are not guessed
