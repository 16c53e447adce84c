"""Quality loss and speed-up of lossy settings: the lossless and the lossy model read the same text, interleaved.

Both models read the text token by token, whatever they would have generated themselves, so that positions can be
compared and the expert cache is used as in decoding. The text is cut into sequences, each of which begins with a
prompt that is read at once, and the rest of a sequence into slices. Both models decode a slice before the next one,
alternating which goes first, each in a process with the budget to itself; the first slice warms up and is not counted.

Letters: `T` positions of a slice, `V` vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from edgemoe.bench.measure import SETTLE_SECONDS, Progress
from edgemoe.bench.plain_report import KeptReport
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.engine.opening import check_planes
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.lab.divergence import Logits, ReferenceRow, Scores
from edgemoe.model.description import store_spec
from edgemoe.session.quality import Quality
from edgemoe.session.stores import open_store
from edgemoe.session.text_ids import head_of
from edgemoe.session.tokenizer import Tokenizer

COMMAND = [sys.executable, "-m", "edgemoe.bench.quality_worker"]
SEQUENCE_TOKENS = 512
PROMPT_TOKENS = 32
SLICE_TOKENS = 40
DEFAULT_TOKENS = 1000
TOKENS_MAX = 1_000_000


@dataclass(frozen=True)
class Slice:
    """Tokens that both models decode before they are compared."""

    prompt: Sequence[int]
    """Empty if the sequence continues."""
    ids: Sequence[int]
    following: Sequence[int]
    """The id that comes after each of `ids` in the text."""


@dataclass(frozen=True)
class SideReport:
    """One of the two models."""

    memory: Mapping[str, Any]
    tokens_per_s: Spread
    hit_rate: float | None
    """Cache hit rate over the requested experts."""
    dropped_share: float
    """Share of the routed experts that was dropped."""
    from_base_share: float
    """Share of the routed experts that was computed from their bases alone."""
    disk_bytes_per_token: float


@dataclass(frozen=True)
class QualityReport(KeptReport):
    """Costs and gains of lossy settings."""

    form: ClassVar[tuple[str, int]] = ("edgemoe_quality", 1)
    model: Mapping[str, Any]
    lossy_settings: Mapping[str, Any]
    ram: str | int | None
    text: str | None
    """Name of the text; None: random ids."""
    positions: int
    divergence_nats: float
    """Mean KL divergence of the lossy from the lossless next-token distribution."""
    divergence_interval: tuple[float, float] | None
    """Its 95 % interval, from how the slices differ (`divergence.py`)."""
    top_changed: float
    """Share of positions whose most likely token changes."""
    losses_nats: tuple[float, float] | None
    """Mean next-token loss, lossless and lossy; None for random ids."""
    lossless: SideReport
    lossy: SideReport
    speed_ratio: Spread
    """Lossy over lossless tokens per second, slice by slice: above 1 the lossy model is faster."""

    @property
    def quality(self) -> Quality:
        """The figures that are kept for later runs."""
        return Quality(
            self.divergence_nats, self.top_changed, self.positions, self.text, round(self.speed_ratio.median, 3)
        )


class QualityMeasurement:
    """Measures what settings cost and gain on one store."""

    def __init__(
        self,
        model: Path,
        kernels: KernelChoice,
        options: EngineOptions,
        tokens: int = DEFAULT_TOKENS,
        progress: Progress = lambda doing, done, total: None,
        start: Start = start_process,
    ) -> None:
        """`options` are those of the lossy side; the lossless side has the same without the lossy settings.

        `start` starts workers.
        Raises UsageError if no setting is on, or `tokens` is out of range; StoreError as `Store.open`.
        """
        settings = options.lossy
        if not settings.on:
            raise UsageError(
                "`quality`: no lossy setting is on, so there is nothing to measure.",
                "Give `cache_aware_routing`, `drop_cold`, `experts_per_token` or `on_miss=base`.",
            )
        if not 1 <= tokens <= TOKENS_MAX:
            raise UsageError(f"`tokens`: expected 1 to {TOKENS_MAX}, found {tokens}.")
        self.model = model
        self._start = start
        self.settings = settings
        self.kernels = kernels
        self.options = replace(options, threads=kernels.threads)
        self.tokens = tokens
        self.store = open_store(model)
        self.spec = store_spec(self.store)
        settings.applied_to(self.spec)
        check_planes(self.store, settings)
        self._progress = progress

    def run(self, text: str | None, name: str | None) -> QualityReport:
        """Return the report on a text with the given name; on random ids without one. Raises what the engines raise.

        Raises UsageError if the text is too short, or the settings can change nothing with this budget.
        """
        with (
            Worker("lossless", COMMAND, self._start) as lossless,
            Worker("lossy", COMMAND, self._start) as lossy,
        ):
            workers = (lossless, lossy)
            about = [
                worker.ask("open", **self._options(settings))
                for worker, settings in ((lossless, EXACT), (lossy, self.settings))
            ]
            if not LossySettings.from_json(about[1]["lossy"]).on:
                raise UsageError(
                    "`quality`: all experts are in memory with this budget, so these settings change nothing.",
                    "Give a smaller `ram`.",
                )
            context = min(one["memory"]["context_tokens"] for one in about)
            head = self._head(text)
            slices = cut_into_slices(self._ids(text), head, min(context, SEQUENCE_TOKENS), self.tokens)
            scores = Scores(self.spec.vocab_size, sum(len(one.ids) for one in slices))
            answers = self._take(slices, workers, scores, text is not None)
        return self._report(name if text is not None else None, about, slices[1:], answers, scores)

    def _options(self, settings: LossySettings) -> dict[str, Any]:
        return {"model": str(self.model), "options": replace(self.options, lossy=settings).to_json()}

    def _ids(self, text: str | None) -> list[int]:
        """The ids of the text, or random ones for a model without text."""
        if text is None:
            count = 2 * (self.tokens + SLICE_TOKENS + PROMPT_TOKENS + 1)  # prompts use some of them
            ids: list[int] = np.random.default_rng(0).integers(0, self.spec.vocab_size, count).tolist()
            return ids
        return self._tokenizer.encode(text)

    def _head(self, text: str | None) -> list[int]:
        """Tokens that the tokenizer puts before a text, such as BOS: the beginning of every sequence."""
        if text is None:
            return []
        return list(head_of(self._tokenizer))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.store.text_folder, self.spec.vocab_size)

    def _take(
        self, slices: Sequence[Slice], workers: tuple[Worker, Worker], scores: Scores, with_losses: bool
    ) -> list[list[dict[str, Any]]]:
        """Return the answers to the counted slices, `[slice][side]`, and add their logits to `scores`."""
        answers = []
        with TemporaryDirectory(prefix="edgemoe-quality-") as folder:
            files = [Path(folder, worker.name) for worker in workers]
            for number, one in enumerate(slices):
                doing = f"slice {number} of {len(slices) - 1}" if number else "warming up"
                self._progress(doing, number, len(slices))
                answer: list[dict[str, Any]] = [{}, {}]
                for side in (0, 1) if number % 2 else (1, 0):
                    time.sleep(SETTLE_SECONDS)
                    answer[side] = workers[side].ask(
                        "decode", prompt=list(one.prompt), ids=list(one.ids), file=str(files[side])
                    )
                if number:
                    exact, lossy = (self._logits(file) for file in files)
                    scores.begin_block()
                    for expected, found, token in zip(exact, lossy, one.following, strict=True):
                        scores.add(found, token if with_losses else None, ReferenceRow(expected))
                    answers.append(answer)
        return answers

    def _logits(self, file: Path) -> Logits:
        return np.fromfile(file, np.float32).reshape(-1, self.spec.vocab_size)

    def _report(
        self,
        text: str | None,
        about: Sequence[Mapping[str, Any]],
        slices: Sequence[Slice],
        answers: Sequence[Sequence[Mapping[str, Any]]],
        scores: Scores,
    ) -> QualityReport:
        divergence, losses = scores.divergence, (scores.reference_loss, scores.loss)
        assert divergence is not None
        nats = divergence.nats
        lossless, lossy = (
            _side_report(about[side]["memory"], [answer[side] for answer in answers], slices) for side in (0, 1)
        )
        return QualityReport(
            model={"path": str(self.model), "family": self.spec.family},
            lossy_settings=about[1]["lossy"],
            ram=self.options.ram,
            text=text,
            positions=scores.positions,
            divergence_nats=nats.mean,
            divergence_interval=None if nats.low is None or nats.high is None else (nats.low, nats.high),
            top_changed=1.0 - divergence.same_top.mean,
            losses_nats=None if losses[0] is None or losses[1] is None else (losses[0].mean, losses[1].mean),
            lossless=lossless,
            lossy=lossy,
            speed_ratio=lossy.tokens_per_s.over(lossless.tokens_per_s),
        )


def cut_into_slices(ids: Sequence[int], head: Sequence[int], sequence_tokens: int, tokens: int) -> list[Slice]:
    """Slices of at most `SLICE_TOKENS`: one that warms up, then `tokens` positions, or as many as there are ids for.

    A sequence has at most `sequence_tokens`, its prompt included, which begins with `head`. Raises UsageError where
    there is nothing to count.
    """
    slices: list[Slice] = []
    at, left = 0, tokens + SLICE_TOKENS
    prompt_tokens = min(PROMPT_TOKENS, sequence_tokens // 2)
    while left and at + prompt_tokens + 1 < len(ids):
        prompt = [*head, *ids[at : at + prompt_tokens]]
        end = min(at + sequence_tokens - len(head), len(ids) - 1)
        at += prompt_tokens
        while left and at < end:
            stop = min(at + min(SLICE_TOKENS, left), end)
            slices.append(Slice(prompt, ids[at:stop], ids[at + 1 : stop + 1]))
            prompt, left, at = [], left - (stop - at), stop
    if len(slices) < 2:
        least = prompt_tokens + SLICE_TOKENS + 2
        raise UsageError(f"`text`: expected a text of {least} tokens or more, found {len(ids)}.", "Give a longer one.")
    return slices


def _side_report(
    memory: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], slices: Sequence[Slice]
) -> SideReport:
    hits, misses, dropped, from_base, disk_bytes = (
        sum(answer[name] for answer in answers)
        for name in ("expert_hits", "expert_misses", "expert_drops", "experts_from_base", "disk_bytes")
    )
    asked = hits + misses
    return SideReport(
        memory,
        Spread.of(len(one.ids) / answer["seconds"] for one, answer in zip(slices, answers, strict=True)),
        hits / asked if asked else None,
        dropped / (asked + dropped) if asked + dropped else 0.0,
        from_base / (asked + dropped) if asked + dropped else 0.0,
        disk_bytes / sum(len(one.ids) for one in slices),
    )
