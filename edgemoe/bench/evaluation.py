"""Evaluation of models on a text: perplexity and, against a reference, KL divergence and top-1 agreement.

Every model reads the same windows (`windows.py`) as prompts, so what is measured is the model's own: it does not depend
on the budget, threads, or how prompts are cut. Models run one after another, each with the whole budget. A reference
that is a model leaves its distributions in a file without a name, which is gone when the process ends; a saved run
(`saved_run.py`) is such a file that was kept.
"""

from __future__ import annotations

import gc
import io
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from edgemoe.bench.candidates import Candidate, Tokens
from edgemoe.bench.evaluation_pass import Reading, Stopped, read_windows
from edgemoe.bench.evaluation_report import (
    INTERVALS,
    EvaluationReport,
    ModelResult,
    ReferenceReport,
)
from edgemoe.bench.measure import Progress
from edgemoe.bench.saved_run import RUN_VERSION, RunHeader, RunWriter, SavedRun, check_room, is_run
from edgemoe.bench.windows import DEFAULT_CONTEXT, check_windows, cut_into_windows
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.paths import cache_folder
from edgemoe.sizes import format_size

DEFAULT_TOKENS = 100_000
TOKENS_MAX = 150_000
"""The library of tokenizers takes 130 MB for as many: less than any model needs afterwards."""


@dataclass(frozen=True)
class Settings:
    """How a text is read. Without a value: the run's, where a run is the reference, else the default."""

    context_length: int | None = None
    """Tokens of a window; by default 512, or as many as the model has positions for."""
    stride: int | None = None
    """Tokens that each window after the first one scores; by default half of a window."""
    tokens: int | None = None
    """Tokens of the text that are read; by default 100,000, or all if it has fewer."""
    top: int | None = None
    """How many tokens of each position a run keeps; by default all."""

    def __post_init__(self) -> None:
        if self.tokens is not None and not 2 <= self.tokens <= TOKENS_MAX:
            way_out = f"Leave it out for {DEFAULT_TOKENS}, or all of a shorter text."
            raise UsageError(f"`tokens`: expected 2 to {TOKENS_MAX}, found {self.tokens}.", way_out)
        if self.top is not None and self.top < 1:
            raise UsageError(f"`top`: expected 1 or more, found {self.top}.", "Leave it out for all tokens.")

    def as_in(self, run: RunHeader, name: str) -> Settings:
        """These settings with those of a run in place of all that were left out.

        Raises UsageError for one that is not the run's.
        """
        of_run = {"context_length": run.context, "stride": run.stride, "tokens": run.tokens}
        for setting, value in of_run.items():
            if getattr(self, setting) not in (None, value):
                raise UsageError(
                    f"`{setting}`: {name} was made with {value}, found {getattr(self, setting)}.",
                    f"Leave it out, or make another run with `{setting}={getattr(self, setting)}`.",
                )
        return Settings(run.context, run.stride, run.tokens, self.top)


class Evaluation:
    """Evaluates models on one text. `stop` may be called at any time: the report then has what there is."""

    def __init__(
        self,
        text: str,
        name: str,
        settings: Settings,
        options: EngineOptions,
        progress: Progress = lambda doing, done, total: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """`name` is the text's; `options` are those of every model, but for the context, which is a window's.

        `say` is told how large a file of distributions becomes, before it is written.
        """
        self._text = text
        self._name = name
        self._settings = settings
        self._options = options
        self._progress = progress
        self._say = say
        self._stopped = False

    def stop(self) -> None:
        """End between two layers of the window that is being read."""
        self._stopped = True

    def run(self, models: Sequence[Path], against: Path | None = None, save: Path | None = None) -> EvaluationReport:
        """Evaluate models, `against` another model or a run; `save` is where the run of the (one) model is written.

        Raises UsageError for a text, sizes or vocabularies that do not go together, StoreError for a run that cannot
        be read, OSError, and what opening and running a model raises.
        """
        if save is not None:
            _check_save(save, models, against)
        with ExitStack() as stack:
            settings, run, tokens = self._settings, None, None
            if against is not None and is_run(against):
                run = SavedRun(stack.enter_context(against.open("rb")), str(against))
                settings = settings.as_in(run.header, str(against))
                tokens = Tokens(str(against), run.header.vocab_size, run.text, run.header.pieces)
            paths = models if run is not None or against is None else [against, *models]
            candidates = self._look_at(paths, settings, tokens)
            reading = _reading(candidates[0], settings)
            results: list[ModelResult] = []
            reference_result = None
            if against is not None and run is None:
                folder = _temporary_folder()
                file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                writer = self._writer(file, folder, candidates[0], reading)
                reference_result = self._evaluate(candidates[0], reading, None, writer)
                if self._stopped:
                    results += [reference_result] if reference_result else []
                else:
                    run = SavedRun(file, candidates[0].name)
                candidates = candidates[1:]
            for candidate in candidates:
                if self._stopped:
                    break
                saved = None
                if save is not None:
                    file = stack.enter_context(save.open("w+b"))
                    saved = self._writer(file, save.parent, candidate, reading)
                result = self._evaluate(candidate, reading, run, saved)
                results += [result] if result else []
        reference = None
        if run is not None:
            loss = reference_result.loss_nats if reference_result else None
            if loss is None and results:
                loss = results[0].reference_loss_nats
            named = None if reference_result else str(against)
            perplexity = None if loss is None else loss.exponential()
            reference = ReferenceReport(run.header.model, named, run.header.top, len(run.windows), loss, perplexity)
        return EvaluationReport(
            text=self._name,
            tokens=len(reading.text.ids),
            whole_text=reading.text.whole,
            head=reading.text.head,
            context=reading.context,
            stride=reading.stride,
            windows=len(reading.windows),
            intervals=INTERVALS,
            complete=not self._stopped,
            reference=reference,
            models=tuple(results),
        )

    def _look_at(self, paths: Sequence[Path], settings: Settings, tokens: Tokens | None) -> list[Candidate]:
        """Return the models, all of which cut the text into the same tokens."""
        candidates = []
        for path in paths:
            candidate = Candidate.of(path, self._text, settings.tokens or DEFAULT_TOKENS)
            tokens = tokens or Tokens(candidate.name, candidate.vocab_size, candidate.text, candidate.pieces)
            tokens.check(candidate)
            candidates.append(candidate)
        return candidates

    def _evaluate(
        self, candidate: Candidate, reading: Reading, run: SavedRun | None, writer: RunWriter | None
    ) -> ModelResult | None:
        windows = reading.windows if run is None else run.windows

        def progress(done: int) -> None:
            self._progress(f"{candidate.name}, {len(windows)} windows", done, len(windows))

        try:
            return read_windows(candidate, reading, self._options, self._pause, progress, run, writer)
        finally:
            gc.collect()  # a closed engine is a circle of objects, whose weights would count in the next one's plan

    def _pause(self) -> None:
        if self._stopped:
            raise Stopped

    def _writer(self, file: io.BufferedRandom, folder: Path, candidate: Candidate, reading: Reading) -> RunWriter:
        """Begin a run, once its size has been told and its disk has been found to have room."""
        top = self._settings.top
        header = RunHeader(
            edgemoe_run=RUN_VERSION,
            model=asdict(candidate.facts),
            text=self._name,
            vocab_size=candidate.vocab_size,
            head=reading.text.head,
            tokens=len(reading.text.ids),
            context=reading.context,
            stride=reading.stride,
            top=None if top is None or top >= candidate.vocab_size else top,
            pieces=candidate.pieces,
        )
        check_room(header, folder)
        kept = "whole" if header.top is None else f"the {header.top} likeliest tokens of each"
        positions = sum(window.scored for window in reading.windows)
        self._say(
            f"{positions} distributions of {candidate.name} ({kept}): {format_size(header.file_bytes())} in {folder}"
        )
        return RunWriter(file, header, reading.text.ids)


def _reading(candidate: Candidate, settings: Settings) -> Reading:
    """Return how a text is read. Raises UsageError for sizes that do not go together, and for a text without tokens."""
    text = candidate.text
    context = settings.context_length or min(DEFAULT_CONTEXT, candidate.max_positions)
    stride = context // 2 if settings.stride is None else settings.stride
    check_windows(context, stride, len(text.head), candidate.max_positions)
    return Reading(text, context, stride, cut_into_windows(len(text.ids), len(text.head), context, stride))


def _temporary_folder() -> Path:
    """Return a folder for a large file: that of the user's cache, as others may lie in memory."""
    folder = cache_folder()
    if folder is None:
        return Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_save(save: Path, models: Sequence[Path], against: Path | None) -> None:
    """Raise UsageError where a run cannot be written, or must not be."""
    if len(models) > 1:
        raise UsageError(f"`save`: a run is of one model, found {len(models)}.", "Give one model.")
    if against is not None and save.exists() and against.exists() and save.samefile(against):
        raise UsageError(f"{save}: it is the reference itself.", "Choose another name.")
    if save.exists() and not is_run(save):
        raise UsageError(f"{save}: it exists and is no run, so it is not replaced.", "Choose another name.")
