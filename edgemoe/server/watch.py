"""The watch: what the engine does in each step, kept for whoever watches it.

While nobody watches nothing is recorded, and steps cost what they cost without it. A step's routing is kept as the rows
of a trace in a compact form; the oldest steps are forgotten where there are more than `KEPT_ROWS` rows.

Letters: `L` layers, `E` experts of the layer that has most, `T` tokens of a run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Rows
from edgemoe.engine.engine import Engine
from edgemoe.engine.ledger import LedgerReading
from edgemoe.engine.phase import DECODE, VERIFY
from edgemoe.engine.stepper import BEING_READ, IN_RAM
from edgemoe.lab.recorder import trace_shape
from edgemoe.lab.run_rows import RunRows
from edgemoe.lab.trace_rows import Trace, TraceShape, join

KEPT_ROWS = 1 << 19
"""Rows of routing that are kept, of 7 bytes each."""

ENDED_STEPS, ENDED_ROWS = 64, 1 << 12
"""The times of so many steps are summed up together, where nobody asks earlier: on the engine thread, answers wait for
it. A step of more rows, which is a prompt's, takes long anyway."""

LOADED_SECONDS = 0.05

RESIDENT, READ, GUESSED = 1, 2, 4
"""Flags of a row: the expert was in RAM when the router chose it; it was read for this row; the guess had named it."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a run that belong to one answer."""

    answer: int
    """The number of its job."""
    request_id: str
    phase: int
    position: int
    """The position of the first token in its text."""
    step: int
    """The number of the first token among those that were computed for the answer, as in a trace."""
    token_ids: tuple[int, ...]


_Columns = tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], npt.NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class RunSeen:
    """The routing of one run: rows in the order of a trace, each column `(N,)`."""

    spans: tuple[Span, ...]
    experts: npt.NDArray[np.int16]
    """Negative for a choice of no expert."""
    weights: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]
    wrong_guesses: list[tuple[int, int]] = field(default_factory=list)
    """A routed layer's place and an expert that a guess named and no token of the run used."""


@dataclass(frozen=True, eq=False)
class StepSeen:
    """One step of the engine. Times are in microseconds."""

    number: int
    runs: tuple[RunSeen, ...]
    seconds: float
    parts_us: dict[str, int]
    """Where the time went, by part of the work."""
    waits_us: npt.NDArray[np.int64]
    """The time that each routed layer waited for the disk."""
    read_bytes: int

    @property
    def rows(self) -> int:
        return sum(len(run.experts) for run in self.runs)


@dataclass(frozen=True)
class _Figures:
    """Figures of the engine between two steps."""

    times: LedgerReading
    read_bytes: int


@dataclass(frozen=True)
class _Ended:
    """A step whose times are not summed up yet."""

    number: int
    runs: tuple[RunSeen, ...]
    seconds: float
    before: _Figures
    after: _Figures

    def seen(self, layers: Sequence[int]) -> StepSeen:
        """The step, with the waits of those layers."""
        before, after = self.before.times, self.after.times
        return StepSeen(
            self.number,
            self.runs,
            self.seconds,
            {part: ns // 1000 for part, ns in (after.ledger - before.ledger).ns.items() if ns},
            (after.layer_waits_ns - before.layer_waits_ns)[layers] // 1000,
            self.after.read_bytes - self.before.read_bytes,
        )


@dataclass
class Watch:
    """Keeps what the steps of one engine did. `look`, `begin`, `step`, `take_back` and `end` are called in this order,
    on the engine thread.
    """

    engine: Engine
    watchers: int = 0
    """Set from any thread."""
    kept: deque[StepSeen] = field(default_factory=deque)
    names: dict[int, str] = field(default_factory=dict)
    """The request of each answer that is being written, by the number of its job."""
    one_sequence = False
    drafts = True

    def __post_init__(self) -> None:
        engine = self.engine
        self.shape: TraceShape | None = None
        """The shape of the model; None where it has no routed experts, and so nothing to watch."""
        if engine.spec.routed_of_tokens:
            self.shape = trace_shape(engine.store, engine.spec)
            self._rows = RunRows(self.shape, engine.routing, engine.lossy.drop_cold > 0)
            self.layers = [layer for layer, _ in self._rows.routing]
        self._lock = threading.Lock()
        self._kept_rows = 0
        self._number = 0
        self._runs: list[RunSeen] = []
        self._before: _Figures | None = None
        self._ended: list[_Ended] = []
        self._loaded = engine.resident_experts()
        self._loaded_s = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody watches meanwhile."""
        with self._lock:
            self.watchers += 1
        try:
            yield
        finally:
            with self._lock:
                self.watchers -= 1

    def after(self, number: int) -> list[StepSeen]:
        """The steps that are kept after the step of a number; may be called from any thread."""
        with self._lock:
            self._sum_up()
            newer = self.kept[-1].number - number if self.kept else 0
            return list(islice(reversed(self.kept), max(0, newer)))[::-1]

    def places(self) -> npt.NDArray[np.uint8]:
        """Where each expert is, `(L, E)`, as `Engine.expert_places`; may be called from any thread."""
        if self.engine.memory.all_resident:  # they stay where they are
            return (IN_RAM * self._loaded).astype(np.uint8)
        places = self.engine.expert_places()
        places[(places == BEING_READ) & self._loaded] = IN_RAM
        return places

    def look(self) -> None:
        """Observe the engine if somebody watches, else cease to; called before the tokens of a step are chosen."""
        wanted = self.watchers > 0 and self.shape is not None
        if wanted != (self.engine.recorder is self):
            self.engine.recorder = self if wanted else None
            self.engine.keep_ledger(wanted)
            if wanted:
                self._forget_guesses()
            self._before = self._figures() if wanted else None

    def begin(self) -> None:
        """Begin a step."""
        self._runs = []

    def step(self, run: Sequence[Rows]) -> None:
        """Keep what a run did."""
        spans = self._spans(run)
        count = sum(len(span.token_ids) for span in spans)
        seen = RunSeen(spans, *self._columns(count))
        self._runs.append(seen)
        if not self.engine.memory.all_resident:
            note = self._note_token_guesses if count == 1 else self._note_guesses
            seen.wrong_guesses.extend(note(count, seen))

    def _columns(self, count: int) -> _Columns:
        """The columns of a run of so many tokens."""
        found = [
            (experts.astype(np.int16), weights, RESIDENT * residency.view(np.uint8) | READ * read.view(np.uint8))
            for experts, weights, residency, read in self._rows.columns(count)  # compact at once: there may be many
        ]
        if len(found) == 1:
            return found[0]
        experts, weights, flags = zip(*found, strict=True)
        return np.concatenate(experts), np.concatenate(weights), np.concatenate(flags)

    def take_back(self, answer: int, tokens: int) -> None:
        """Forget the last tokens of an answer that the step ran: they were drafts, and wrong.

        What was read for them alone counts in the step's bytes, and in no row.
        """
        for place, run in enumerate(self._runs):
            counts = [len(span.token_ids) for span in run.spans]
            for number, span in enumerate(run.spans):
                if span.answer != answer:
                    continue
                end = sum(counts[: number + 1])
                kept = np.ones(sum(counts), np.bool_)
                kept[end - tokens : end] = False
                rows = np.repeat(np.tile(kept, len(self.used)), np.repeat(self.used, len(kept)))
                spans = list(run.spans)
                spans[number] = replace(span, token_ids=span.token_ids[:-tokens])
                self._runs[place] = replace(
                    run, spans=tuple(spans), experts=run.experts[rows], weights=run.weights[rows], flags=run.flags[rows]
                )

    def end(self, seconds: float) -> None:
        """End a step that took so long, and keep it."""
        before = self._before
        if before is None:
            return
        self._before = now = self._figures()  # nothing is counted between two steps
        self._note_loaded()
        self._number += 1
        with self._lock:
            self._ended.append(_Ended(self._number, tuple(self._runs), seconds, before, now))
            rows = sum(len(run.experts) for run in self._runs)
            if len(self._ended) == ENDED_STEPS or rows > ENDED_ROWS:
                self._sum_up()

    def _sum_up(self) -> None:
        """Keep the steps that have ended. The lock must be held."""
        for step in self._ended:
            self.kept.append(seen := step.seen(self.layers))
            self._kept_rows += seen.rows
        self._ended.clear()
        while self._kept_rows > KEPT_ROWS and len(self.kept) > 1:
            self._kept_rows -= self.kept.popleft().rows

    @property
    def used(self) -> list[int]:
        """How many experts a token uses in each layer with routed experts."""
        return [one.experts.shape[1] for _, one in self._rows.routing]

    def trace(self) -> Trace:
        """The rows of all steps that are kept, in their order; may be called from any thread."""
        assert self.shape is not None
        runs = [run for step in self.after(0) for run in step.runs]
        return join(self.shape, [rows_of(run, self.shape, self.layers, self.used).columns for run in runs])

    def _figures(self) -> _Figures:
        """The engine's figures now."""
        times = self.engine.read_ledger()
        assert times is not None
        return _Figures(times, self.engine.statistics.disk_bytes)

    def _note_loaded(self) -> None:
        """Ask, now and then, which reads have ended: until somebody asks, their experts count as being read."""
        now_s = time.monotonic()
        if not self.engine.memory.all_resident and now_s - self._loaded_s > LOADED_SECONDS:
            self._loaded_s = now_s
            self._loaded = self.engine.resident_experts()

    def _spans(self, run: Sequence[Rows]) -> tuple[Span, ...]:
        spans = []
        for rows in run:
            sequence, turn = rows.piece.sequence, rows.piece.sequence.turn
            position, ids = sequence.position - rows.count, tuple(rows.token_ids.tolist())
            name = self.names.get(turn.number, "")
            phase = DECODE if turn.phase == VERIFY else turn.phase  # a draft that is right is a token like others
            spans.append(Span(turn.number, name, phase, position, turn.step, ids))
        return tuple(spans)

    def _note_token_guesses(self, tokens: int, seen: RunSeen) -> list[tuple[int, int]]:
        """As `_note_guesses` of one token."""
        wrong: list[tuple[int, int]] = []
        chosen, first = seen.experts.tolist(), 0
        for place, used in enumerate(self.used):
            rows = self._rows.routing[place][1].guess
            guess = rows[0].tolist() if len(rows) else [-1]
            if guess[0] >= 0:
                experts = chosen[first : first + used]
                for row, expert in enumerate(experts, first):
                    if expert in guess:
                        seen.flags[row] |= GUESSED
                wrong += [(place, expert) for expert in sorted({*guess} - {*experts}) if expert >= 0]
                rows[0] = -1
            first += used
        return wrong

    def _note_guesses(self, tokens: int, seen: RunSeen) -> list[tuple[int, int]]:
        """Flag rows that a guess had named; returns the guesses that were wrong, and forgets all of them."""
        wrong: list[tuple[int, int]] = []
        first = 0
        for place, (_, routing) in enumerate(self._rows.routing):
            rows = tokens * routing.experts.shape[1]
            guess = routing.guess[:tokens]
            if len(guess) == tokens and guess[0, 0] >= 0:
                chosen = routing.experts[:tokens]
                seen.flags[first : first + rows] |= (np.isin(chosen, guess) * GUESSED).astype(np.uint8).reshape(-1)
                wrong += [(place, expert) for expert in np.setdiff1d(guess[guess >= 0], chosen).tolist()]
                guess.fill(-1)
            first += rows
        return wrong

    def _forget_guesses(self) -> None:
        """Mark all guesses as none: a step that guesses writes over them, and others leave them as they are."""
        for _, routing in self._rows.routing:
            routing.guess.fill(-1)


def rows_of(run: RunSeen, shape: TraceShape, layers: Sequence[int], sizes: Sequence[int]) -> Trace:
    """The rows of a run as a trace, whose turns are numbers of answers.

    `layers` are those with routed experts, and `sizes` says how many experts a token uses in each.
    """
    tokens = sum(len(span.token_ids) for span in run.spans)
    counts = [len(span.token_ids) for span in run.spans]
    turn = np.repeat([span.answer for span in run.spans], counts).astype(np.int32)
    phase = np.repeat([span.phase for span in run.spans], counts).astype(np.uint8)
    step = np.concatenate([np.arange(span.step, span.step + len(span.token_ids)) for span in run.spans])
    number = np.concatenate([np.repeat(np.arange(tokens), size) for size in sizes])
    layer = np.repeat(layers, [tokens * size for size in sizes]).astype(np.int32)
    trace = Trace(
        shape,
        turn[number],
        phase[number],
        step.astype(np.int32)[number],
        layer,
        np.concatenate([np.tile(np.arange(size, dtype=np.int32), tokens) for size in sizes]),
        run.experts.astype(np.int32),
        run.weights,
        (run.flags & RESIDENT) > 0,
        np.array(shape.expert_bytes, np.int64)[layer] * ((run.flags & READ) > 0),
    )
    return trace.select(trace.expert >= 0)
