"""Answers to prompts with the drafts that the gate lets through, compared with the same answers without drafts.

Each round writes every answer without drafts and then with them, in one process with one model, so that both find the
machine and the caches alike. Prompts are those of a file, between lines of three dashes; or some of the kinds of text
that people ask for: code and documentation to be repeated, changed and written, and chat. An answer is written at
temperature 0 and at .7, with one seed, and its rate is that of decoding: a draft model's time counts, its reading of
the prompt too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgemoe.bench.clients import COMMAND
from edgemoe.bench.counts import rounds
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.plain_report import PlainReport
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import open_store

PROMPTS = Path(__file__).with_name("guessed_prompts.txt")
TEMPERATURES = (0.0, 0.7)
BETWEEN = re.compile(r"^---$", re.MULTILINE)


@dataclass(frozen=True)
class GuessedAnswer:
    """One answer, which is the same with drafts and without."""

    prompt: str
    temperature: float
    tokens: int
    tokens_per_s: Spread
    """The rate with drafts."""
    against_none: Spread
    """`tokens_per_s` over the rate without drafts, round by round."""


@dataclass(frozen=True)
class GuessedReport(PlainReport):
    """Results of a measurement of answers with drafts."""

    model: str
    kernels: Mapping[str, Any]
    decode_tokens: int
    """The most tokens of an answer."""
    repeats: int
    draft: str | None
    answers: Sequence[GuessedAnswer]


class GuessedMeasurement:
    """Measures one model. Raises UsageError for a file without prompts, or one that cannot be read."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        kernels: KernelChoice,
        options: EngineOptions,
        progress: Progress = lambda doing, done, total: None,
        prompts: Path | None = None,
        draft: str | None = None,
        start: Start = start_process,
    ) -> None:
        self._prompts = read_prompts(prompts or PROMPTS)
        self._folder = folder
        self._settings = settings
        self._options = replace(
            options, threads=kernels.threads, context_length=settings.room_tokens, speculate="auto", warm_start=False
        )
        self._progress = progress
        self._draft = draft
        self._start = start

    def run(self) -> GuessedReport:
        """Raises what the engine raises, and EdgemoeError where a worker dies, or an answer has no rate."""
        cases = [(prompt, temperature) for prompt in self._prompts for temperature in TEMPERATURES]
        rates: list[list[tuple[float, float]]] = [[] for _ in cases]
        tokens = [0] * len(cases)
        with Worker("edgemoe", COMMAND, self._start) as worker:
            about = worker.ask("open", model=str(self._folder), options=self._options.to_json(), draft=self._draft)
            for number in rounds(self._settings.repeats, self._progress):
                for place, case in enumerate(cases):
                    without, found = (self._answer(worker, case, drafts) for drafts in (False, True))
                    if without["token_ids"] != found["token_ids"]:
                        raise EdgemoeError("An answer with drafts is another one than without: this is a bug.")
                    tokens[place] = len(found["token_ids"])
                    if number:
                        rates[place].append((without["tokens_per_s"], found["tokens_per_s"]))
        answers = []
        for (prompt, temperature), count, pairs in zip(cases, tokens, rates, strict=True):
            plain, fast = (Spread.of(column) for column in zip(*pairs, strict=True))
            answers.append(GuessedAnswer(prompt, temperature, count, fast, fast.over(plain)))
        draft = None if self._draft is None else model_name(open_store(self._draft).path)
        settings = self._settings
        return GuessedReport(
            model_name(self._folder), about["kernels"], settings.decode_tokens, settings.repeats, draft, answers
        )

    def _answer(self, worker: Worker, case: tuple[str, float], drafts: bool) -> Mapping[str, Any]:
        prompt, temperature = case
        found: Mapping[str, Any] = worker.ask(
            "answer",
            prompt=prompt,
            tokens=self._settings.decode_tokens,
            temperature=temperature,
            seed=self._settings.seed,
            drafts=drafts,
        )
        if not found["tokens_per_s"]:
            raise EdgemoeError(
                f"The answer to {prompt[:40]!r} ends with its first token, which has no rate.", "Leave that prompt out."
            )
        return found


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file. Raises UsageError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: prompts cannot be read from it: {error}.", "Name a text file in UTF-8.") from None
    prompts = [part.strip() for part in BETWEEN.split(text) if part.strip()]
    if not prompts:
        raise UsageError(f"{path}: expected prompts between lines of three dashes, found none.", "Write some.")
    return prompts
