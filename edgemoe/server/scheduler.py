"""Runs the steps of all answers at once: each step has a token of each answer that is being written, and a share of the
prompts that are being read.

What a token gives depends on its own sequence alone (`engine/batch.py`), so no answer depends on its company, on the
order of requests, or on how prompts were cut. Answers begin in the order in which they were asked for. Prompts share
the rows of a step evenly, so that a short one is not behind a long one. Where two prompts begin alike the second waits
until the first has read what they share, and finds that in the prefix cache; the first one's step ends there, so that
state which cannot be cut has a snapshot at that place.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemoe.engine.statistics import EngineStatistics
from edgemoe.errors import EdgemoeError
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.server.jobs import Failed, Job, StoppingError
from edgemoe.server.prompt_rows import PromptRows
from edgemoe.server.running import Running
from edgemoe.server.watch import Watch
from edgemoe.session.draft_gate import StepCosts
from edgemoe.session.draft_model import DraftModel
from edgemoe.session.model import Model

SAVING_SHARE = 0.03
"""The share of the time that goes into saving prefixes to disk while answers are written."""


@dataclass
class Totals:
    """Counters since the server was started."""

    begun: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    """Tokens of prompts, the cached ones included."""
    cached_tokens: int = 0
    generated_tokens: int = 0
    longest: int = 0
    """The most tokens that a prompt and its answer had together."""
    steps: int = 0
    sequence_steps: int = 0
    """The sequences of all steps."""
    step_seconds: float = 0.0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    """Drafted tokens that were chosen."""
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


class _Abandoned(Exception):  # noqa: N818 (no error)
    """Ends a step in which a prompt is run that nobody wants any more."""


@dataclass(frozen=True)
class Place:
    """A sequence in use."""

    number: int
    prompt_tokens: int
    unread_tokens: int
    """Tokens of the prompt that have not been run."""
    generated_tokens: int


class Scheduler:
    """Waiting and running jobs of one model. Not to be used from several threads at once."""

    def __init__(self, model: Model, tell: Callable[[], None] = lambda: None) -> None:
        """`tell` is called before anything that may take long, with all that was reported up to then."""
        self.totals = Totals()
        self.running: list[Running] = []
        self.waiting: deque[tuple[Job, float]] = deque()
        self._tell = tell
        self._model = model
        self._engine = model.engine
        self._costs = StepCosts()
        self._drafting_s = 0.0
        """How long the drafts of the step have taken, which is part of their cost."""
        self.watch = Watch(model.engine)
        self._rows = PromptRows(self._engine.memory.chunk_tokens)
        self._saving_s = 0.0
        """The time that may go into saving prefixes; below zero where more went into it than may."""
        self.stopping = False
        """Set from any thread: all jobs end at the next layer or token."""
        self._engine.sequences.close(self._engine.sequence)  # its place is for an answer
        model.held.end_guesses()
        self._engine.pause = self._pause

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def has_work(self) -> bool:
        """Whether there are jobs, or prefixes to be saved while there are none."""
        tier = self._engine.sequences.tier
        return self.busy or (tier is not None and tier.unsaved)

    @property
    def most_running(self) -> int:
        return self._engine.sequences.most

    def places(self) -> list[Place]:
        """The sequences in use; may be called from any thread."""
        return [
            Place(one.sequence.row, len(one.job.prompt_ids), len(one.rest), len(one.written.token_ids))
            for one in list(self.running)
        ]

    def add(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait for their turn."""
        now = time.perf_counter()
        self.waiting.extend((job, now) for job in jobs)

    def step(self) -> None:
        """Begin jobs for which there is room, and run a step of all that have begun."""
        began_s = time.perf_counter()
        self._drop_cancelled()
        self._begin()
        self.watch.look()
        batch = self._batch()
        if not batch:
            self._tell()
            return
        with contextlib.suppress(_Abandoned):
            self._run(batch)
        self._save_beside(time.perf_counter() - began_s)

    def _save_beside(self, step_s: float) -> None:
        """Save a prefix now and then, since answers may follow one another without a pause."""
        tier = self._engine.sequences.tier
        if tier is None or not tier.unsaved:
            self._saving_s = min(self._saving_s, 0.0)
            return
        self._saving_s += SAVING_SHARE * step_s
        if self._saving_s > 0:
            self._tell()
            began_s = time.perf_counter()
            self.save_prefix()
            self._saving_s -= time.perf_counter() - began_s

    def save_prefix(self) -> None:
        """Save one page or snapshot of what was computed to disk, where prefixes are kept there."""
        tier = self._engine.sequences.tier
        if tier is not None and tier.unsaved:
            tier.save_one()

    def stop(self) -> None:
        """End all jobs with an error that says why."""
        for job, _ in self.waiting:
            job.report(Failed(StoppingError()))
        self.waiting.clear()
        for one in list(self.running):
            self._end(one, StoppingError())

    def _drop_cancelled(self) -> None:
        kept = [entry for entry in self.waiting if not entry[0].cancelled]
        self.totals.cancelled += len(self.waiting) - len(kept)
        self.waiting = deque(kept)
        for one in [one for one in self.running if one.job.cancelled]:
            self.totals.cancelled += 1
            self._end(one)

    def _begin(self) -> None:
        """Give sequences to jobs that wait, the oldest first, while there are any."""
        for entry in list(self.waiting):
            if len(self.running) == self.most_running:
                return
            job, asked_s = entry
            if any(shared_tokens(job, one.job) > one.sequence.position for one in self.running if one.rest):
                continue
            self.waiting.remove(entry)
            sequence = self._engine.sequences.open(job.prompt_ids)
            try:
                one = Running(job, asked_s, sequence, self._model, self._costs)
            except Exception as error:
                self._engine.sequences.close(sequence)
                self.totals.failed += 1
                job.report(Failed(error))
                continue
            self.running.append(one)
            self.watch.names[job.number] = job.name
            self.totals.begun += 1
            self.totals.prompt_tokens += one.figures.prompt_tokens
            self.totals.cached_tokens += one.figures.cached_tokens

    def _batch(self) -> dict[Running, list[int]]:
        """The tokens of the next step."""
        writing = [one for one in self.running if not one.rest]
        reading = sorted((one for one in self.running if one.rest), key=lambda one: len(one.rest))
        rows = self._engine.memory.chunk_tokens - len(writing)
        if writing and reading:
            rows = min(rows, self._rows.rows())
        elif writing and self._engine.memory.drafts:
            self._draft(writing, rows)
        batch = {one: one.next_ids(1) for one in writing}
        for place, one in enumerate(reading):
            share = max(1, rows // (len(reading) - place))
            batch[one] = one.next_ids(min(share, self._wanted_next(one)))
            rows -= len(batch[one])
        return batch

    def _draft(self, writing: Sequence[Running], rows: int) -> None:
        """Draft for the next step, which has so many rows for it. A draft model guesses for all answers together."""
        drafts = 0
        for one in writing:
            drafts += one.weigh(len(writing), drafts, rows - drafts)
        model = self._model.draft_model
        if model is not None:
            self._tell()
            self._read_behind(model, writing)
        began_s = time.perf_counter()
        if model is not None:
            with contextlib.suppress(EdgemoeError):  # nor may a draft model fail what would succeed without it
                model.guess(dict(filter(None, (one.wanted_of_model for one in writing))))
        for one in writing:
            one.draft()
        self._drafting_s = time.perf_counter() - began_s

    def _read_behind(self, model: DraftModel, writing: Sequence[Running]) -> None:
        """Let the draft model read texts of which it has read little, in a step of its own."""
        behind = {one: text for one in writing if (text := one.unread_of_model(len(writing))) is not None}
        if not behind:
            return
        before = {one: text.sequence.position for one, text in behind.items()}
        began_s = time.perf_counter()
        with contextlib.suppress(EdgemoeError):
            model.read(list(behind.values()))
        seconds = time.perf_counter() - began_s
        read = {one: text.sequence.position - before[one] for one, text in behind.items()}
        tokens = sum(max(0, count) for count in read.values())
        for one, count in read.items():
            if count > 0:
                one.note_read(count, seconds * count / tokens, len(writing))

    def _wanted_next(self, one: Running) -> int:
        """The tokens up to the first place for which another job waits, or up to the end of the prompt."""
        ends = (shared_tokens(job, one.job) for job, _ in self.waiting)
        return min((end for end in ends if end > one.sequence.position), default=sys.maxsize) - one.sequence.position

    def _run(self, batch: Mapping[Running, list[int]]) -> None:
        """Run a step; where it fails, run each of its sequences alone, so that only those end that fail."""
        self.watch.begin()
        self._tell()
        began_s, before = time.perf_counter(), self._engine.statistics
        try:
            drafted = {one.sequence for one in batch if one.drafted}
            logits = self._engine.step({one.sequence: ids for one, ids in batch.items()}, all_logits=drafted)
        except Exception as error:
            if isinstance(error, _Abandoned):
                raise
            if len(batch) == 1 and not drafted:
                self._end(next(iter(batch)), error)
                return
            for one, ids in batch.items():  # nor may a draft fail what would succeed without it
                alone = ids[: len(ids) - len(one.drafted)]
                one.forget_guess()
                self._run({one: alone})
            return
        seconds = time.perf_counter() - began_s
        self._note(batch, seconds, before, self._engine.statistics)
        for one, ids in batch.items():
            try:
                found = logits[one.sequence]
                unused = one.take(len(ids), found if found.ndim == 2 else found[None], len(batch))
                if unused:
                    self.watch.take_back(one.job.number, unused)
            except Exception as error:
                self._end(one, error)
                continue
            if one.written.finish_reason is not None:
                self.totals.finished += 1
                self._end(one)
        self.watch.end(seconds)

    def _end(self, one: Running, error: Exception | None = None) -> None:
        self.running.remove(one)
        self.watch.names.pop(one.job.number, None)
        self._engine.sequences.close(one.sequence)
        one.end()
        self.totals.generated_tokens += one.figures.generated_tokens
        self.totals.drafts += one.figures.drafts
        self.totals.draft_tokens += one.figures.draft_tokens
        self.totals.accepted_tokens += one.figures.accepted_tokens
        length = one.figures.prompt_tokens - len(one.rest) + one.figures.generated_tokens
        self.totals.longest = max(self.totals.longest, length)
        self.totals.prompt_seconds += one.figures.prompt_s
        self.totals.decode_seconds += one.figures.decode_s
        if error is not None:
            self.totals.failed += 1
            one.job.report(Failed(error))

    def _note(
        self, batch: Mapping[Running, list[int]], seconds: float, before: EngineStatistics, after: EngineStatistics
    ) -> None:
        rows = sum(map(len, batch.values()))
        prompts = sum(len(ids) for one, ids in batch.items() if one.rest)
        self._rows.ran(prompts, seconds)
        if not prompts and self._engine.memory.drafts:
            drafts = rows - len(batch)
            self._costs.ran(len(batch), drafts, seconds + (self._drafting_s if drafts else 0))
        self.totals.steps += 1
        self.totals.sequence_steps += len(batch)
        self.totals.step_seconds += seconds
        for one in batch:
            figures = one.figures
            figures.step_tokens += rows
            figures.expert_hits += after.expert_hits - before.expert_hits
            figures.expert_misses += after.expert_misses - before.expert_misses
            figures.disk_bytes += after.disk_bytes - before.disk_bytes

    def _pause(self, share: float) -> None:
        """End a step between two layers of prompts, where one of these is not wanted any more."""
        if self.stopping or any(one.rest and one.job.cancelled for one in self.running):
            raise _Abandoned


def shared_tokens(job: Job, other: Job) -> int:
    """How many tokens of a job's prompt it would find in the prefix cache, once another job's prompt has been read."""
    ids, others = job.id_array, other.id_array
    length = min(len(ids) - 1, len(others))
    differs = np.flatnonzero(ids[:length] != others[:length])
    return (int(differs[0]) if len(differs) else length) // PAGE_TOKENS * PAGE_TOKENS
