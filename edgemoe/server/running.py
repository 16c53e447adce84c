"""A job that has a sequence: what it runs next, and what it makes of the logits that come of it."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

from edgemoe.engine.phase import VERIFY
from edgemoe.engine.sequence import Sequence
from edgemoe.kernels.operations import Floats
from edgemoe.server.jobs import Figures, Finished, Job, Piece, Progress
from edgemoe.session.continuation import Continuation
from edgemoe.session.draft_gate import DraftGate, StepCosts
from edgemoe.session.draft_model import ModelDrafts
from edgemoe.session.drafts import NO_OFFER, Drafts, Guesses
from edgemoe.session.held_tokens import check_finite
from edgemoe.session.model import Model
from edgemoe.session.response.parts import Part, Said, Thought


class Running:
    """A job with a sequence, its answer so far, and the drafts that its next step has."""

    def __init__(self, job: Job, asked_s: float, sequence: Sequence, model: Model, costs: StepCosts) -> None:
        ids, engine = job.prompt_ids, model.engine
        self.job = job
        self.sequence = sequence
        self.rest = list(ids[sequence.position :])
        """Tokens of the prompt that have not been run."""
        self.written = Continuation(
            model.tokenizer, ids, job.options, job.max_tokens, engine.context_length, job.top_logprobs,
            job.constraint, job.reader is not None,
        )  # fmt: skip
        self._ran = 0
        """Tokens of the answer that have been run."""
        self.began_s = time.perf_counter()
        self.figures = Figures(len(ids), sequence.position, queue_s=self.began_s - asked_s)
        self.drafted: list[int] = []
        """Guesses at what follows the latest token, which are run with it."""
        self._kv_format = engine.memory.kv_format
        self._context_length = engine.context_length
        self._engine = engine
        self._most_drafts = engine.memory.drafts
        self._gate = DraftGate(costs, None if engine.speculate == "auto" else self._most_drafts)
        self._guesses: Guesses | None = None
        if self._most_drafts:
            self._guesses = Drafts(ids) if model.draft_model is None else model.draft_model.begin(ids, sequence)
        self._matched = self._wanted = self._offered = 0
        self._ends_thought = False
        """Whether the thought is being ended."""
        self._limit_thoughts()
        sequence.turn.begin()
        sequence.turn.number = job.number
        job.report(self._progress())

    def next_ids(self, rows: int) -> list[int]:
        """The tokens to run next, of which a prompt may have `rows`."""
        return self.rest[:rows] if self.rest else [*self.written.token_ids[self._ran :], *self.drafted]

    def weigh(self, answers: int, others: int, most: int) -> int:
        """Decide on up to `most` drafts for a step of so many answers with `others` drafts already; returns how many.

        `draft` makes them.
        """
        offer = NO_OFFER
        if self._guesses is not None and self._engine.may_speculate and len(self.written.token_ids) == self._ran + 1:
            room = self._context_length - self.sequence.position - 1
            offer = self._guesses.offer(min(self._most_drafts, self.written.left - 1, room, most))
        self._wanted = self._gate.drafts(offer.matched, offer.tokens, answers, others)
        self._matched, self._offered = offer.matched, offer.tokens
        return self._wanted

    @property
    def wanted_of_model(self) -> tuple[ModelDrafts, int] | None:
        """The text for which a draft model is to guess, and how many tokens; None where nothing is to be guessed."""
        return (self._guesses, self._wanted) if isinstance(self._guesses, ModelDrafts) and self._wanted else None

    def unread_of_model(self, answers: int) -> ModelDrafts | None:
        """The text that a draft model is to read before it guesses; None where it has read it, or that may not pay."""
        text = self._guesses
        if not isinstance(text, ModelDrafts) or not self._offered or not (unread := text.unread_tokens):
            return None
        self._wanted = 0
        return text if self._gate.may_read(unread, self.written.left, answers) else None

    def note_read(self, tokens: int, seconds: float, answers: int) -> None:
        """Note that a draft model has read so many tokens of this text, in its share of a step."""
        self._gate.read(tokens, seconds, answers)

    def draft(self) -> None:
        """Make the drafts that have been decided on."""
        self.drafted = [] if self._guesses is None else self._guesses.take(self._wanted)
        if self.drafted:
            self.sequence.turn.phase = VERIFY

    def forget_guess(self) -> None:
        """Run the next step without drafts."""
        self.drafted = []
        if not self.rest:
            self.sequence.turn.begin_decoding()

    def take(self, tokens: int, rows: Floats, answers: int = 1) -> int:
        """Go on with the logits `(n, V)` after the last of `tokens` tokens that were run, or after each with drafts.

        Reports what has come of them; returns how many drafts were wrong, and are taken back. `answers`: how many took
        part in the step. Raises EdgemoeError for logits that are not finite.
        """
        unused = 0
        if self.rest:
            check_finite(rows[-1], self._kv_format)
            del self.rest[:tokens]
            self.figures.prompt_s = time.perf_counter() - self.began_s
            self.job.report(self._progress())
            if self.rest:
                return unused
            self.sequence.turn.begin_decoding()
            self._gate.began(self.figures.prompt_s)
            self._choose(rows[-1])
        else:
            unused = self._choose_each(rows, answers)
        written, reader = self.written, self.job.reader
        if written.finish_reason is not None:
            rest = self._parts(written.finish())
            if reader is not None:
                rest += reader.finish(written.finish_reason != "stop")
            if rest:
                self.job.report(Piece(rest))
            self.note_end()
            self.job.report(Finished(written.finish_reason, written.stop_text, self.figures))
        return unused

    def end(self) -> None:
        """Note the answer's length and time, and give back what its drafts hold."""
        self.note_end()
        if self._guesses is not None:
            self._guesses.end()

    def note_end(self) -> None:
        """Note the answer's length and time so far."""
        figures = self.figures
        figures.generated_tokens = len(self.written.token_ids)
        if not self.rest:
            figures.decode_s = time.perf_counter() - self.began_s - figures.prompt_s

    def _progress(self) -> Progress:
        figures, total = self.figures, len(self.job.prompt_ids)
        return Progress(total, figures.cached_tokens, total - len(self.rest), replace(figures))

    def _choose_each(self, rows: Floats, answers: int) -> int:
        """Choose tokens from the rows for as long as they are the drafted ones, and take the other drafts back.

        Returns how many they were.
        """
        right, drafted, figures = 0, self.drafted, self.figures
        figures.decode_tokens = len(self.written.token_ids)  # all of them have been run
        while True:
            check_finite(rows[right], self._kv_format)
            chosen = self._choose(rows[right])
            agreed = _agreed(chosen, drafted[right:])
            right += agreed
            figures.decode_tokens += agreed
            if not chosen or agreed < len(chosen):
                break
        self._ran = figures.decode_tokens
        figures.drafts += bool(drafted)
        figures.draft_tokens += len(drafted)
        figures.accepted_tokens += right
        self.sequence.turn.begin_decoding()
        if unused := len(drafted) - right:
            self.sequence.rewind(self.sequence.position - unused)
            self.sequence.turn.step -= unused
        if self._guesses is not None:
            self._gate.verified(self._matched, len(drafted), right, answers)
        self.drafted = []
        return unused

    def _choose(self, logits: Floats) -> list[int]:
        """Choose and report a token, with those that follow without a choice; returns them if the answer goes on."""
        job, written = self.job, self.written
        chosen = []
        token = written.choose(logits)
        while token is not None:
            chosen.append(token)
            thought = self._thinks
            parts = self._parts(written.take(token))
            self.figures.thought_tokens += thought or self._thinks
            self._limit_thoughts()
            logprobs = written.logprobs[-1] if written.logprobs else None
            job.report(Piece(parts, token, logprobs, self._figures_now() if job.timed else None))
            if job.reader is not None and job.reader.full:
                written.finish_reason = written.finish_reason or "stop"
            if self._guesses is not None:
                self._guesses.add(token)
            token = written.forced()
        return chosen if written.finish_reason is None else []

    def _figures_now(self) -> Figures:
        self.note_end()
        return replace(self.figures)

    @property
    def _thinks(self) -> bool:
        """Whether the answer is within a thought."""
        reader = self.job.reader
        return self.written.final_start is None if reader is None else reader.in_thought

    def _limit_thoughts(self) -> None:
        """End the thought if it has all the tokens that it may have."""
        budget = self.job.thoughts
        if budget is None or not self._thinks:
            self._ends_thought = False
        elif self.figures.thought_tokens >= budget.most and not self._ends_thought:
            self._ends_thought = self.written.force(budget.end)

    def _parts(self, piece: str) -> list[Part]:
        """The parts of the answer that a piece of its text brings."""
        if self.job.reader is not None:
            return self.job.reader.push(piece) if piece else []
        start = self.written.final_start
        before = len(self.written.text) - len(piece)
        cut = len(piece) if start is None else min(max(0, start - before), len(piece))
        parts: list[Part] = [Thought(piece[:cut])] * bool(piece[:cut])
        return parts + [Said(piece[cut:])] * bool(piece[cut:])


def _agreed(some: list[int], others: list[int]) -> int:
    """How many tokens two lists share from the first one on."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))
