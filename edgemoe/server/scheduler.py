"""Runs the steps of all answers at once: each step has a token of each answer that is being written, and a share of the
prompts that are being read.

What a token gives depends on its own sequence alone (`engine/batch.py`), so no answer depends on its company, on the
order of requests, or on how prompts were cut. Answers begin in the order in which they were asked for. Prompts share
the rows of a step evenly, so that a short one is not behind a long one. One that another answer's prompt is about to
compute for the most part waits for that, and then finds it in the prefix cache.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgemoe.engine.engine import EngineStatistics
from edgemoe.engine.sequence import Sequence
from edgemoe.kernels.operations import Floats
from edgemoe.server.jobs import Failed, Figures, Finished, Job, Piece, Progress, StoppingError
from edgemoe.server.prompt_rows import PromptRows
from edgemoe.server.watch import Watch
from edgemoe.session.continuation import Continuation
from edgemoe.session.held_tokens import check_finite
from edgemoe.session.model import Model


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
    steps: int = 0
    step_seconds: float = 0.0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


class _Abandoned(Exception):  # noqa: N818 (no error)
    """Ends a step in which a prompt is run that nobody wants any more."""


class _Running:
    """A job that has a sequence."""

    def __init__(self, job: Job, asked_s: float, sequence: Sequence, model: Model) -> None:
        ids = job.prompt_ids
        self.job = job
        self.sequence = sequence
        self.rest = list(ids[sequence.position :])
        """Tokens of the prompt that have not been run."""
        self.written = Continuation(
            model.tokenizer, ids, job.options, job.max_tokens, model.engine.context_length, job.top_logprobs
        )
        self.began_s = time.perf_counter()
        self.figures = Figures(len(ids), sequence.position, queue_s=self.began_s - asked_s)
        sequence.turn.begin()
        sequence.turn.number = job.number

    def next_ids(self, rows: int) -> list[int]:
        """The tokens to run next, of which a prompt may have `rows`."""
        return self.rest[:rows] if self.rest else self.written.token_ids[-1:]

    def take(self, tokens: int, logits: Floats) -> None:
        """Go on with the logits after `tokens` tokens that were run; reports what has come of them."""
        job, written = self.job, self.written
        if self.rest:
            del self.rest[:tokens]
            total = len(job.prompt_ids)
            job.report(Progress(total, self.figures.cached_tokens, total - len(self.rest)))
            if self.rest:
                return
            self.figures.prompt_s = time.perf_counter() - self.began_s
            self.sequence.turn.begin_decoding()
        else:
            self.figures.decode_steps += 1
        token = written.choose(logits)
        if token is not None:
            piece = written.take(token)
            logprobs = written.logprobs[-1] if written.logprobs else None
            job.report(Piece(*self._parts(piece), token, logprobs))
        if written.finish_reason is not None:
            if rest := written.finish():
                job.report(Piece(*self._parts(rest)))
            self.note_end()
            job.report(Finished(written.finish_reason, written.stop_text, self.figures))

    def note_end(self) -> None:
        """Note the answer's length and time so far."""
        figures = self.figures
        figures.generated_tokens = len(self.written.token_ids)
        figures.decode_s = time.perf_counter() - self.began_s - figures.prompt_s

    def _parts(self, piece: str) -> tuple[str, str]:
        """The text of a piece that is said to the person, and the text that is not."""
        start = self.written.final_start
        before = len(self.written.text) - len(piece)
        cut = len(piece) if start is None else min(max(0, start - before), len(piece))
        return piece[cut:], piece[:cut]


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

    def __init__(self, model: Model) -> None:
        self.totals = Totals()
        self.running: list[_Running] = []
        self.waiting: deque[tuple[Job, float]] = deque()
        self._model = model
        self._engine = model.engine
        self.watch = Watch(model.engine)
        self._rows = PromptRows(self._engine.memory.chunk_tokens)
        self.stopping = False
        """Set from any thread: all jobs end at the next layer or token."""
        self._engine.sequences.close(self._engine.sequence)  # its place is for an answer
        self._engine.pause = self._pause

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

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
        self._drop_cancelled()
        self._begin()
        batch = self._batch()
        if not batch:
            return
        with contextlib.suppress(_Abandoned):
            self._run(batch)

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
            if any(_computes_most_of(job, one) for one in self.running if one.rest):
                continue
            self.waiting.remove(entry)
            sequence = self._engine.sequences.open(job.prompt_ids)
            try:
                one = _Running(job, asked_s, sequence, self._model)
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

    def _batch(self) -> dict[_Running, list[int]]:
        """The tokens of the next step."""
        writing = [one for one in self.running if not one.rest]
        reading = sorted((one for one in self.running if one.rest), key=lambda one: len(one.rest))
        rows = self._engine.memory.chunk_tokens - len(writing)
        if writing:
            rows = min(rows, self._rows.rows())
        batch = {one: one.next_ids(1) for one in writing}
        for place, one in enumerate(reading):
            batch[one] = one.next_ids(max(1, rows // (len(reading) - place)))
            rows -= len(batch[one])
        return batch

    def _run(self, batch: Mapping[_Running, list[int]]) -> None:
        """Run a step; where it fails, run each of its sequences alone, so that only those end that fail."""
        self.watch.begin()
        began_s, before = time.perf_counter(), self._engine.statistics
        try:
            logits = self._engine.step({one.sequence: ids for one, ids in batch.items()})
        except Exception as error:
            if isinstance(error, _Abandoned):
                raise
            if len(batch) == 1:
                self._end(next(iter(batch)), error)
                return
            for one, ids in batch.items():
                self._run({one: ids})
            return
        seconds = time.perf_counter() - began_s
        self._note(batch, seconds, before, self._engine.statistics)
        self.watch.end(seconds)
        for one, ids in batch.items():
            try:
                check_finite(logits[one.sequence], self._engine.memory.kv_format)
                one.take(len(ids), logits[one.sequence])
            except Exception as error:
                self._end(one, error)
                continue
            if one.written.finish_reason is not None:
                self.totals.finished += 1
                self._end(one)

    def _end(self, one: _Running, error: Exception | None = None) -> None:
        self.running.remove(one)
        self.watch.names.pop(one.job.number, None)
        self._engine.sequences.close(one.sequence)
        one.note_end()
        self.totals.generated_tokens += one.figures.generated_tokens
        self.totals.prompt_seconds += one.figures.prompt_s
        self.totals.decode_seconds += one.figures.decode_s
        if error is not None:
            self.totals.failed += 1
            one.job.report(Failed(error))

    def _note(
        self, batch: Mapping[_Running, list[int]], seconds: float, before: EngineStatistics, after: EngineStatistics
    ) -> None:
        rows = sum(map(len, batch.values()))
        self._rows.ran(sum(len(ids) for one, ids in batch.items() if one.rest), seconds)
        self.totals.steps += 1
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


def _computes_most_of(job: Job, other: _Running) -> bool:
    """Whether a prompt that is being read begins with most of a job's prompt."""
    ids, others = job.prompt_ids, other.job.prompt_ids
    least = len(ids) // 2 + 1
    return others is ids or (len(others) >= least and ids[:least] == others[:least])
