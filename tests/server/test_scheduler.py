"""Several answers at once: the same bits as alone, whatever else goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError, ReadError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server.jobs import Event, Failed, Finished, Job, Piece, Progress, StoppingError
from edgemoe.server.notices import Notices
from edgemoe.server.prompt_rows import FEWEST_ROWS, TARGET_SECONDS, PromptRows
from edgemoe.server.scheduler import Scheduler
from edgemoe.session.model import Model, load

SETTINGS = [
    SamplingOptions(),
    SamplingOptions(temperature=1.0, seed=7),
    SamplingOptions(temperature=0.8, top_p=0.9, seed=8, presence_penalty=1.0),
    SamplingOptions(temperature=1.3, top_k=20, seed=9, stop=("q", "ab")),
]
PROMPTS = [
    "Hi",
    "Once upon a time " * 6,
    "Once upon a time " * 6 + "there",
    "x" * 150,
    "The sea",
    "Once upon a time " * 5,
]


@pytest.fixture(scope="module", params=["resident", "streamed", "recurrent"])
def store(letters_store: Path, recurrent_store: Path, request: pytest.FixtureRequest) -> tuple[Path, str | None]:
    """A store, and the budget within which it is opened."""
    return (
        recurrent_store if request.param == "recurrent" else letters_store,
        "floor" if request.param == "streamed" else None,
    )


@pytest.fixture(scope="module")
def model(store: tuple[Path, str | None]) -> Iterator[Model]:
    path, ram = store
    with load(path, EngineOptions(ram=ram, context_length=256, sequences=3)) as opened:
        yield opened


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    """A scheduler that leaves the model as it was."""
    engine = model.engine
    made = Scheduler(model)
    yield made
    made.stop()
    engine.pause = None
    engine.sequence = engine.sequences.open()


class Heard:
    """The events of one job."""

    def __init__(self, model: Model, text: str, options: SamplingOptions, max_tokens: int | None = 12) -> None:
        self.events: list[Event] = []
        self.job = Job(model.encode(text), options, max_tokens, self.events.append, 2)

    @property
    def token_ids(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, Piece) and event.token is not None]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def logprobs(self) -> list[Any]:
        return [event.logprobs for event in self.events if isinstance(event, Piece) and event.token is not None]

    @property
    def end(self) -> Event:
        return self.events[-1]


def everyone(model: Model) -> list[Heard]:
    return [Heard(model, text, options) for text, options in itertools.product(PROMPTS, SETTINGS)]


def run(scheduler: Scheduler) -> None:
    for _ in range(5000):
        if not scheduler.busy:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")


def test_what_jobs_report_is_told_once_as_the_next_step_begins(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = [Heard(model, text, SETTINGS[0], 5) for text in ("Hi", "The sea", "abc")]
    told: list[int] = []
    step, steps = model.engine.step, []

    def reported() -> int:
        return sum(len(one.events) for one in heard)

    def checked(*arguments: Any, **more: Any) -> Any:
        steps.append(reported())
        return step(*arguments, **more)

    monkeypatch.setattr(scheduler, "_tell", lambda: told.append(reported()))
    monkeypatch.setattr(model.engine, "step", checked)
    scheduler.add(one.job for one in heard)
    run(scheduler)
    assert told == steps
    assert steps == sorted(set(steps))


def test_only_timed_answers_have_figures_with_each_token(model: Model, scheduler: Scheduler) -> None:
    heard = Heard(model, "Hi", SETTINGS[0], 5)
    heard.job.timed = True
    scheduler.add([heard.job, (plain := Heard(model, "Hi", SETTINGS[0], 5)).job])
    run(scheduler)
    counts = [one.figures and one.figures.generated_tokens for one in heard.events if isinstance(one, Piece)]
    assert counts[:5] == [1, 2, 3, 4, 5]
    assert not any(one.figures for one in plain.events if isinstance(one, Piece))


def test_one_wake_up_brings_all_notices() -> None:
    class Loop:
        """Notes what it is asked to call."""

        def __init__(self) -> None:
            self.asked: list[Any] = []

        def call_soon_threadsafe(self, function: Any, *arguments: Any) -> None:
            self.asked.append((function, arguments))

    notices, loop, called = Notices(), Loop(), []
    for number in range(3):
        notices.add(loop, lambda number=number: called.append(number))  # type: ignore[arg-type, misc]
    assert not loop.asked
    notices.send()
    notices.send()
    ((function, arguments),) = loop.asked
    function(*arguments)
    assert called == [0, 1, 2]


def test_each_answer_is_the_same_alone_in_company_and_by_generate(model: Model, scheduler: Scheduler) -> None:
    together, alone = everyone(model), everyone(model)
    scheduler.add(heard.job for heard in together)
    run(scheduler)
    for heard in alone:
        scheduler.add([heard.job])
        run(scheduler)
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.logprobs == other.logprobs
        assert isinstance(one.end, Finished)
        assert isinstance(other.end, Finished)
        assert one.end.reason == other.end.reason
    assert len({tuple(heard.token_ids) for heard in together}) > 6


def test_the_words_are_those_of_generate(model: Model, store: tuple[Path, str | None], scheduler: Scheduler) -> None:
    heard = everyone(model)
    scheduler.add(one.job for one in heard)
    run(scheduler)
    with load(store[0], EngineOptions(context_length=256)) as another:
        for one in heard:
            generation = another.stream(one.job.prompt_ids, 12, one.job.options)
            assert "".join(generation) == one.text
            assert generation.token_ids == one.token_ids
            assert isinstance(one.end, Finished)
            assert one.end.reason == generation.finish_reason
            assert one.end.figures.generated_tokens == len(one.token_ids)


def test_a_prompt_twice_is_computed_once(model: Model, scheduler: Scheduler) -> None:
    text = "A new prompt of some length. " * 8
    twice = [Heard(model, text, SamplingOptions()) for _ in range(2)]
    scheduler.add(heard.job for heard in twice)
    run(scheduler)
    first, second = (heard.end for heard in twice)
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (first.figures.cached_tokens, second.figures.cached_tokens) == (0, len(text) // 64 * 64)
    assert twice[0].token_ids == twice[1].token_ids


def test_a_shared_beginning_is_read_once_and_no_longer_waited_for(model: Model, scheduler: Scheduler) -> None:
    beginning = "What two prompts begin with alike, and more of it. " * 2  # 102 tokens: one page
    long, short = (Heard(model, beginning + rest, SamplingOptions(), 4) for rest in ("l" * 120, "s" * 20))
    scheduler.add([long.job, short.job])
    read = []
    while short.job in [job for job, _ in scheduler.waiting] or not read:
        scheduler.step()
        read.append(scheduler.running[0].sequence.position)
    assert read[-2] == 64  # the short one began once the shared page was read
    run(scheduler)
    assert isinstance(short.end, Finished)
    assert short.end.figures.cached_tokens == 64
    again = Heard(model, beginning + "s" * 20, SamplingOptions(), 4)
    scheduler.add([again.job])
    run(scheduler)
    assert again.token_ids == short.token_ids


def test_a_cancelled_answer_ends_and_the_others_do_not_notice(model: Model, scheduler: Scheduler) -> None:
    expected = Heard(model, PROMPTS[1], SETTINGS[1])
    scheduler.add([expected.job])
    run(scheduler)
    kept, dropped = (Heard(model, PROMPTS[1], SETTINGS[1], count) for count in (12, 60))
    waiting = [Heard(model, "w", SamplingOptions(), 60) for _ in range(3)]
    scheduler.add(heard.job for heard in (kept, dropped, *waiting))
    while not dropped.token_ids:
        scheduler.step()
    dropped.job.cancelled = waiting[2].job.cancelled = True
    told = len(dropped.events)
    run(scheduler)
    assert kept.token_ids == expected.token_ids
    assert len(dropped.events) == told
    assert waiting[2].events == []
    assert scheduler.totals.cancelled == 2


def test_a_prompt_that_nobody_waits_for_ends_between_two_layers(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(model, "y" * 200, SamplingOptions())
    layers = []

    def leaves(share: float) -> None:
        layers.append(share)
        heard.job.cancelled = True
        scheduler._pause(share)

    monkeypatch.setattr(model.engine, "pause", leaves)
    scheduler.add([heard.job])
    scheduler.step()
    assert layers
    assert [type(one) for one in heard.events] == [Progress]
    assert scheduler.running[0].sequence.position == 0
    run(scheduler)
    assert scheduler.totals.cancelled == 1


def test_an_error_ends_the_answer_that_it_belongs_to(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = model.encode("~")[0]
    step = model.engine.step

    def fails_at_a_token(batch: Any, **more: Any) -> Any:
        if any(broken in ids for ids in batch.values()):
            raise ReadError("layer 1, expert 2: damaged.", "Copy it again.")
        return step(batch, **more)

    monkeypatch.setattr(model.engine, "step", fails_at_a_token)
    good, bad = Heard(model, PROMPTS[4], SETTINGS[1]), Heard(model, "damaged ~", SamplingOptions())
    scheduler.add([bad.job, good.job])
    run(scheduler)
    assert isinstance(bad.end, Failed)
    assert "layer 1, expert 2" in str(bad.end.error)
    assert isinstance(good.end, Finished)
    assert scheduler.totals.failed == 1
    monkeypatch.undo()
    again = Heard(model, PROMPTS[4], SETTINGS[1])
    scheduler.add([again.job])
    run(scheduler)
    assert again.token_ids == good.token_ids


def test_logits_that_are_no_numbers_end_one_answer(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = model.engine.step

    def overflows(batch: Any, **more: Any) -> Any:
        found = step(batch, **more)
        for sequence, ids in batch.items():
            if len(ids) == 7:
                found[sequence][3] = np.nan
        return found

    monkeypatch.setattr(model.engine, "step", overflows)
    bad, good = Heard(model, "1234567", SamplingOptions()), Heard(model, "a", SamplingOptions())
    scheduler.add([bad.job, good.job])
    run(scheduler)
    assert isinstance(bad.end, Failed)
    assert "not all finite" in str(bad.end.error)
    assert isinstance(good.end, Finished)


def test_settings_that_leave_no_token_are_that_request_s_error(model: Model, scheduler: Scheduler) -> None:
    nothing = SamplingOptions(suppress_tokens=[*range(model.tokenizer.vocabulary)])
    bad, good = Heard(model, "a", nothing), Heard(model, "b", SamplingOptions())
    scheduler.add([bad.job, good.job])
    run(scheduler)
    assert isinstance(bad.end, Failed)
    assert isinstance(bad.end.error, EdgemoeError)
    assert isinstance(good.end, Finished)


def test_a_long_prompt_does_not_hold_back_answers_or_short_prompts(
    model: Model, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler._rows, "rows", lambda: FEWEST_ROWS)
    writing = Heard(model, "w", SamplingOptions(temperature=1.0, seed=3), 40)
    scheduler.add([writing.job])
    scheduler.step()
    long, short = Heard(model, "z" * 240, SamplingOptions(), 1), Heard(model, "ok", SamplingOptions(), 1)
    scheduler.add([long.job, short.job])
    said = len(writing.token_ids)
    scheduler.step()
    assert isinstance(short.end, Finished)
    rows = min(FEWEST_ROWS, model.engine.memory.chunk_tokens - 1)
    places = [(one.total, one.cached, one.processed) for one in long.events if isinstance(one, Progress)]
    assert places == [(240, 0, 0), (240, 0, rows - len("ok"))]
    assert len(writing.token_ids) == said + 1
    run(scheduler)
    assert isinstance(long.end, Finished)


def test_a_full_context_ends_an_answer(model: Model, scheduler: Scheduler) -> None:
    heard = Heard(model, "c" * 250, SamplingOptions(temperature=1.0, seed=1), None)
    scheduler.add([heard.job])
    run(scheduler)
    assert isinstance(heard.end, Finished)
    assert heard.end.reason == "context"
    assert len(heard.token_ids) == 256 - 250 + 1


def test_stopping_tells_all(model: Model, scheduler: Scheduler) -> None:
    all_of_them = [Heard(model, text, SamplingOptions(), 100) for text in PROMPTS]
    scheduler.add(heard.job for heard in all_of_them)
    scheduler.step()
    scheduler.stop()
    for heard in all_of_them:
        assert isinstance(heard.end, Failed)
        assert isinstance(heard.end.error, StoppingError)
    assert not scheduler.busy


def test_steps_have_as_many_rows_as_their_times_allow() -> None:
    rows = PromptRows(512)
    assert rows.rows() == FEWEST_ROWS
    for _ in range(8):  # a millisecond a row
        rows.ran(rows.rows(), rows.rows() / 1000)
    assert rows.rows() == 256 <= 1000 * TARGET_SECONDS < 512
    slow = PromptRows(512)
    for _ in range(8):  # two seconds for the experts, whatever the number of rows
        slow.ran(slow.rows(), 2 + slow.rows() / 1000)
    assert 64 <= slow.rows() <= 512
    assert PromptRows(8).rows() == 8
