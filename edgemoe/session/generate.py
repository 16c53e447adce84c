"""Generation: a prompt's ids in, pieces of text out, one token at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgemoe.engine.ledger import TimeLedger
from edgemoe.engine.prompt_times import PromptEstimate
from edgemoe.errors import PromptLengthError, UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.process import peak_rss_bytes
from edgemoe.session.continuation import Continuation, FinishReason
from edgemoe.session.draft_gate import DraftGate
from edgemoe.session.drafted import Drafted
from edgemoe.session.held_tokens import HeldTokens
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.prompt_clock import PromptClock
from edgemoe.session.tokenizer import Tokenizer, check_token_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgemoe.session.constraint import Constraint

LIKELY_TOKEN_CHARACTERS = 8
"""A token has about four characters in most languages: a text that fits the context rarely has more than this."""


@dataclass(frozen=True)
class GenerationStatistics:
    """Statistics of an answer's cost. A figure without any measurement is None.

    Rates of experts and disk are those of decoding (from the second generated token on), or of the
    prompt where only one token was generated.
    """

    prefill_tokens: int
    """Prompt tokens computed: those not already held from the turn before."""
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    expert_hit_rate: float | None
    disk_bytes_per_token: float
    peak_rss_bytes: int

    def to_json(self) -> dict[str, float | int | None]:
        return asdict(self)


@dataclass
class _Counters:
    """Cumulative counters at one moment."""

    seconds: float
    hits: int
    misses: int
    disk_bytes: int


class _Stopped(Exception):  # noqa: N818 (no error)
    """Ends the run of a prompt's chunk."""


class Generation:
    """One answer on its way: iterate over it for the pieces of text.

    After the iteration `text`, `token_ids` (without the token that ended it), `finish_reason` and
    `statistics` hold the whole, and `ledger` where its time went if the engine keeps one. `stop` may be
    called at any time, from another thread or a signal handler. A stop text of the options is not part of
    `text`; the tokens that spell it were generated, and are among `token_ids`.
    """

    def __init__(
        self,
        held: HeldTokens,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        options: SamplingOptions,
        max_tokens: int | None = None,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        spelled: bool = False,
    ) -> None:
        """Checks the prompt. Raises UsageError where it is empty, not of this vocabulary, or does not fit.

        `top_logprobs`: how many of the likeliest tokens to name at each place; None keeps no logprobs.
        `constraint` says which tokens may come; `spelled`: the text has special tokens by their names, for a reader of
        answers.

        Raises StoreError for stop texts where the model has no tokenizer.
        """
        check_max_tokens(max_tokens)
        check_token_ids(prompt_ids, tokenizer.vocabulary)
        # An input apart from the text leaves all of the context to the answer.
        check_prompt_length(len(prompt_ids), held.engine.context_length + (held.start is not None))
        self.prompt_ids = list(prompt_ids)
        """The ids of the prompt: those before the answer or, for a model with an encoder, its input."""
        self._before = self.prompt_ids if held.start is None else held.start
        self._written = Continuation(
            tokenizer, self._before, options, max_tokens, held.engine.context_length, check_top_logprobs(top_logprobs),
            constraint, spelled,
        )  # fmt: skip
        self.statistics: GenerationStatistics | None = None
        self.ledger: TimeLedger | None = None
        self._held = held
        self.on_long_prompt: Callable[[PromptEstimate], None] | None = None
        """Called if the prompt takes longer than some seconds, with how long, about.

        It is called before the prompt is run, where anything is known of its time, and once while it is run, where
        that shows another time.
        """
        self._stopped = False

    def end(self) -> None:
        """End after the token being computed, as if the model had ended its answer."""
        self._written.finish_reason = self._written.finish_reason or "stop"

    @property
    def token_ids(self) -> list[int]:
        return self._written.token_ids

    @property
    def text(self) -> str:
        return self._written.text

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """The logprobs of `token_ids`, where they were asked for: the model's own, before any setting acts."""
        return self._written.logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended (see `Continuation`); None while it goes on."""
        return self._written.finish_reason

    @property
    def answer(self) -> str | None:
        """The part of `text` that is said to the person: all of it, or what stands in the final channel.

        None where that channel has not begun: all so far are thoughts, or the call of a tool.
        """
        start = self._written.final_start
        return None if start is None else self.text[start:]

    def stop(self) -> None:
        """End after the token (or the prompt's layer) being computed, with finish_reason `interrupted`."""
        self._stopped = True

    def __iter__(self) -> Iterator[str]:
        began_all_ns = time.perf_counter_ns()
        start, ledger_before = self._counters(), self._held.engine.ledger
        sampling_ns = text_ns = consumer_ns = 0
        read = 0 if self._held.start is None else self._held.read(self.prompt_ids)
        held = self._held.keep_prefix(self._before)
        prefill_tokens = read + len(self._before) - held
        logits = None
        written, drafted = self._written, self._drafted()
        self._held.engine.turn.begin()
        with contextlib.suppress(_Stopped):
            logits = self._run_prompt(held)
        prefilled = self._counters()
        if drafted is not None and logits is not None:
            drafted.begin(prefilled.seconds - start.seconds, written.left, lambda: self._stopped)
        self._held.engine.turn.begin_decoding()
        while written.finish_reason is None:
            if self._stopped or logits is None:
                written.finish_reason = "interrupted"
                break
            began_ns = time.perf_counter_ns()
            token = written.choose(logits)
            sampling_ns += time.perf_counter_ns() - began_ns
            if token is None:
                break
            began_ns = time.perf_counter_ns()
            piece, run = written.take(token), [token]
            while (forced := written.forced()) is not None:
                piece += written.take(forced)
                run.append(forced)
            text_ns += time.perf_counter_ns() - began_ns
            if piece:
                began_ns = time.perf_counter_ns()
                yield piece
                consumer_ns += time.perf_counter_ns() - began_ns
            if written.finish_reason is None:
                # the sampler is done with the last logits
                logits = self._held.forward(run, out=logits) if drafted is None else drafted.after(run, written.left)
        if drafted is not None:
            drafted.finish()
        self.statistics = self._statistics(start, prefilled, self._counters(), prefill_tokens)
        ledger = self._held.engine.ledger
        if ledger is not None and ledger_before is not None:
            parts = ledger - ledger_before + TimeLedger({"sampling": sampling_ns, "text": text_ns})
            if drafted is not None:
                parts += TimeLedger({"drafting": drafted.drafting_ns})
            own_ns = time.perf_counter_ns() - began_all_ns - consumer_ns
            self.ledger = parts + TimeLedger({"python": max(0, own_ns - parts.total_ns)})
        if piece := written.finish():
            yield piece

    def _drafted(self) -> Drafted | None:
        """The source of logits where drafts may be run beside tokens; None where none may be."""
        held, engine = self._held, self._held.engine
        if engine.speculate == "off" or not engine.may_speculate:
            return None
        gate = DraftGate(held.costs, None if engine.speculate == "auto" else engine.memory.drafts)
        return Drafted(held, held.costs, gate, held.guesses(self._before), engine.memory.drafts)

    def _run_prompt(self, held: int) -> npt.NDArray[np.float32]:
        """Run the prompt but for its first `held` tokens; returns its logits. Raises _Stopped where it is stopped."""
        if self._stopped:
            raise _Stopped
        tokens = len(self._before) - held
        run = None if self.on_long_prompt is None else self._held.engine.prompt_times.begin(tokens)
        told = run.estimate if run is not None else None
        if told is not None:
            self._tell(told)
        with self._stoppable(held, PromptClock(tokens, told, self._tell)):
            for chunk in self._chunks(held):
                began_s = time.perf_counter()
                logits = self._held.forward(chunk)
                if run is not None:
                    run.ran_chunk(time.perf_counter() - began_s)
        return logits

    @contextlib.contextmanager
    def _stoppable(self, held: int, clock: PromptClock) -> Iterator[None]:
        """Raise _Stopped between two layers of a prompt once the generation has been stopped, and time its layers."""
        tokens = len(self._before) - held

        def pause(share: float) -> None:
            if self._stopped:
                raise _Stopped
            done = self._held.engine.position - held  # a chunk's tokens are held once it is whole
            clock.passed(done + share * min(self._held.engine.memory.chunk_tokens, tokens - done))

        self._held.engine.pause = pause
        try:
            yield
        finally:
            self._held.engine.pause = None

    def _tell(self, estimate: PromptEstimate) -> None:
        if self.on_long_prompt is not None:
            self.on_long_prompt(estimate)

    def _chunks(self, first: int) -> Iterator[list[int]]:
        chunk_tokens = self._held.engine.memory.chunk_tokens  # a stop keeps what was run before the chunk
        for begin in range(first, len(self._before), chunk_tokens):
            yield self._before[begin : begin + chunk_tokens]

    def _counters(self) -> _Counters:
        statistics = self._held.engine.statistics
        return _Counters(time.perf_counter(), statistics.expert_hits, statistics.expert_misses, statistics.disk_bytes)

    def _statistics(
        self, start: _Counters, prefilled: _Counters, end: _Counters, prefill_tokens: int
    ) -> GenerationStatistics:
        # the first token comes out of the prompt's logits; each further one takes a decoding step
        decoded = self._held.engine.position - len(self._before)
        begin, tokens = (prefilled, decoded) if decoded > 0 else (start, prefill_tokens)
        hits, misses = end.hits - begin.hits, end.misses - begin.misses
        return GenerationStatistics(
            prefill_tokens=prefill_tokens,
            prefill_tokens_per_s=_rate(prefill_tokens, prefilled.seconds - start.seconds),
            decode_tokens_per_s=_rate(decoded, end.seconds - prefilled.seconds) if decoded > 0 else None,
            expert_hit_rate=hits / (hits + misses) if hits + misses else None,
            disk_bytes_per_token=(end.disk_bytes - begin.disk_bytes) / max(tokens, 1),
            peak_rss_bytes=peak_rss_bytes(),
        )


def check_max_tokens(max_tokens: int | None) -> None:
    """Raise UsageError for a limit of an answer that is no whole number above 0."""
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise UsageError(f"`max_tokens`: expected 1 or more, found {max_tokens!r}.", "Leave it out for no limit.")


def check_top_logprobs(count: int | None) -> int | None:
    """The number of likeliest tokens to name; raises UsageError for one that is no whole number from 0 on."""
    if count is not None and (type(count) is not int or count < 0):
        raise UsageError(f"`top_logprobs`: expected 0 or more, found {count!r}.", "Leave it out for no logprobs.")
    return count


def check_prompt_length(tokens: int, context_length: int) -> None:
    """Raises UsageError for a prompt without tokens, or with more than leave room for an answer."""
    if tokens == 0:
        raise UsageError("the prompt is empty: expected at least one token.", "Give some text to continue.")
    if tokens >= context_length:
        raise PromptLengthError(tokens, context_length)


def check_text_fits(text: str, tokenizer: Tokenizer, context_length: int) -> None:
    """Raises UsageError for a text far too long for the context, without the memory that all its tokens would take."""
    characters = context_length * LIKELY_TOKEN_CHARACTERS
    while characters < len(text):
        tokens = len(tokenizer.encode(text[:characters]))
        # where the text was cut a token or two may differ
        if tokens > context_length + 16:
            found = f" in the first {characters} of its {len(text)} characters"
            raise PromptLengthError(tokens, context_length, found)
        characters *= 2


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
