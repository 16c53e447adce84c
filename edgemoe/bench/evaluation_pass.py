"""One model reads the windows of a text: each scored position is compared, and kept where a run is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgemoe.bench.candidates import Candidate
from edgemoe.bench.evaluation_report import ModelResult
from edgemoe.bench.saved_run import RunWriter, SavedRun
from edgemoe.bench.windows import Window
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.lab.divergence import Logits, ReferenceRow, Scores
from edgemoe.process import peak_rss_bytes
from edgemoe.session.held_tokens import check_finite
from edgemoe.session.stores import open_store
from edgemoe.session.text_ids import TextIds


class Stopped(Exception):  # noqa: N818 (no error)
    """Ends a window between two layers."""


@dataclass(frozen=True)
class Reading:
    """A text, and how it is read."""

    text: TextIds
    context: int
    stride: int
    windows: Sequence[Window]


def read_windows(
    candidate: Candidate,
    reading: Reading,
    options: EngineOptions,
    pause: Callable[[], None],
    progress: Callable[[int], None],
    reference: SavedRun | None = None,
    writer: RunWriter | None = None,
) -> ModelResult | None:
    """Evaluate a model over all windows, or those before `pause` raises Stopped; None where nothing was scored.

    With a `reference` only its windows are read. `pause` is called between layers, and `progress` with the number of
    windows that are done. Raises what opening and running a model raises, and StoreError for a damaged reference.
    """
    windows = reading.windows
    if reference is not None:
        reference.rewind()
        windows = reference.windows
    compared = sum(window.scored for window in windows) if reference is not None else 0
    scores = Scores(candidate.vocab_size, compared)  # before the memory plan, which counts it
    done, began_s = 0, time.perf_counter()
    with open_engine(open_store(candidate.path), replace(options, context_length=reading.context)) as engine:
        engine.pause = lambda share: pause()
        try:
            for window in windows:
                progress(done)
                rows = reference.rows(window) if reference is not None else None
                _read(engine, reading.text, window, scores, rows, writer)
                done += 1
        except Stopped:
            pass
        kv = engine.memory.kv_format
    if not scores.positions:
        return None
    assert scores.loss is not None
    return ModelResult(
        model=candidate.facts,
        windows=done,
        positions=scores.positions,
        loss_nats=scores.loss,
        perplexity=scores.loss.exponential(),
        divergence=scores.divergence,
        reference_loss_nats=scores.reference_loss,
        kv=kv,
        seconds=round(time.perf_counter() - began_s, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _read(
    engine: Engine,
    text: TextIds,
    window: Window,
    scores: Scores,
    reference: Iterator[ReferenceRow] | None,
    writer: RunWriter | None,
) -> None:
    """Read one window, from its beginning. Raises Stopped, after which the positions that came before count."""
    following = iter(text.ids[window.following.start : window.following.stop].tolist())
    kv = engine.memory.kv_format
    began = False

    def take(logits: Logits) -> None:
        nonlocal began
        if not began:
            scores.begin_block()
            began = True
        check_finite(logits, kv)
        for row in logits:
            token = next(following)
            scores.add(row, token, None if reference is None else next(reference))
            if writer is not None:
                writer.add(row, token)

    engine.rewind(0)
    engine.turn.begin()
    ids = [*text.head, *text.ids[window.first : window.end].tolist()]
    engine.forward_each(ids, take, len(ids) - window.scored)
    if reference is not None:
        next(reference, None)  # its checksum
    if writer is not None:
        writer.end_window()
