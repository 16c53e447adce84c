"""A job that has a sequence: what it runs next, and what it makes of the logits that come of it."""

from __future__ import annotations

import time

from edgemoe.engine.phase import VERIFY
from edgemoe.engine.sequence import Sequence
from edgemoe.kernels.operations import Floats
from edgemoe.server.jobs import Figures, Finished, Job, Piece, Progress
from edgemoe.session.continuation import Continuation
from edgemoe.session.draft_gate import DraftGate, StepCosts
from edgemoe.session.drafts import NO_DRAFT, Drafts
from edgemoe.session.held_tokens import check_finite
from edgemoe.session.model import Model


class Running:
    """A job with a sequence, its answer so far, and the drafts that its next step has."""

    def __init__(self, job: Job, asked_s: float, sequence: Sequence, model: Model, costs: StepCosts) -> None:
        ids, engine = job.prompt_ids, model.engine
        self.job = job
        self.sequence = sequence
        self.rest = list(ids[sequence.position :])
        """Tokens of the prompt that have not been run."""
        self.written = Continuation(
            model.tokenizer, ids, job.options, job.max_tokens, engine.context_length, job.top_logprobs
        )
        self.began_s = time.perf_counter()
        self.figures = Figures(len(ids), sequence.position, queue_s=self.began_s - asked_s)
        self.drafted: list[int] = []
        """Guesses at what follows the latest token, which are run with it."""
        self._kv_format = engine.memory.kv_format
        self._context_length = engine.context_length
        self._most_drafts = engine.memory.drafts if engine.may_speculate else 0
        self._gate = DraftGate(costs, None if engine.speculate == "auto" else self._most_drafts)
        self._drafts = Drafts(ids) if self._most_drafts else None
        self._matched = 0
        sequence.turn.begin()

    def next_ids(self, rows: int) -> list[int]:
        """The tokens to run next, of which a prompt may have `rows`."""
        return self.rest[:rows] if self.rest else [*self.written.token_ids[-1:], *self.drafted]

    def guess(self, answers: int, others: int, most: int) -> int:
        """Draft up to `most` tokens for a step of so many answers with `others` drafts already; returns how many."""
        draft = NO_DRAFT
        if self._drafts is not None:
            room = self._context_length - self.sequence.position - 1
            draft = self._drafts.draft(min(self._most_drafts, self.written.left - 1, room, most))
        count = self._gate.drafts(draft.matched, len(draft.token_ids), answers, others)
        self.drafted, self._matched = draft.token_ids[:count], draft.matched
        if self.drafted:
            self.sequence.turn.phase = VERIFY
        return count

    def forget_guess(self) -> None:
        """Run the next step without drafts."""
        self.drafted = []
        if not self.rest:
            self.sequence.turn.begin_decoding()

    def take(self, tokens: int, rows: Floats, answers: int = 1) -> None:
        """Go on with the logits `(n, V)` after the last of `tokens` tokens that were run, or after each with drafts.

        Reports what has come of them. `answers`: how many took part in the step. Raises EdgemoeError for logits that
        are not finite.
        """
        if self.rest:
            check_finite(rows[-1], self._kv_format)
            del self.rest[:tokens]
            total = len(self.job.prompt_ids)
            self.job.report(Progress(total, self.figures.cached_tokens, total - len(self.rest)))
            if self.rest:
                return
            self.figures.prompt_s = time.perf_counter() - self.began_s
            self.sequence.turn.begin_decoding()
            self._choose(rows[-1])
        else:
            self._choose_each(rows, answers)
        if self.written.finish_reason is not None:
            if rest := self.written.finish():
                self.job.report(Piece(*self._parts(rest)))
            self.note_end()
            self.job.report(Finished(self.written.finish_reason, self.written.stop_text, self.figures))

    def note_end(self) -> None:
        """Note the answer's length and time so far."""
        figures = self.figures
        figures.generated_tokens = len(self.written.token_ids)
        figures.decode_s = time.perf_counter() - self.began_s - figures.prompt_s

    def _choose_each(self, rows: Floats, answers: int) -> None:
        """Choose tokens from the rows for as long as they are the drafted ones, and take the other drafts back."""
        right, drafted = 0, self.drafted
        for logits in rows:
            check_finite(logits, self._kv_format)
            self.figures.decoded += 1
            token = self._choose(logits)
            if token is None or right == len(drafted) or drafted[right] != token:
                break
            right += 1
        self.sequence.turn.begin_decoding()
        if unused := len(drafted) - right:
            self.sequence.rewind(self.sequence.position - unused)
            self.sequence.turn.step -= unused
        if self._drafts is not None:
            self._gate.verified(self._matched, len(drafted), right, answers)
        self.drafted = []

    def _choose(self, logits: Floats) -> int | None:
        """Choose a token, and report it; returns it if the answer goes on."""
        written = self.written
        token = written.choose(logits)
        if token is None:
            return None
        piece = written.take(token)
        logprobs = written.logprobs[-1] if written.logprobs else None
        self.job.report(Piece(*self._parts(piece), token, logprobs))
        if self._drafts is not None:
            self._drafts.add(token)
        return token if written.finish_reason is None else None

    def _parts(self, piece: str) -> tuple[str, str]:
        """The text of a piece that is said to the person, and the text that is not."""
        start = self.written.final_start
        before = len(self.written.text) - len(piece)
        cut = len(piece) if start is None else min(max(0, start - before), len(piece))
        return piece[cut:], piece[:cut]
