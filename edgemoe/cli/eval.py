"""`edgemoe eval`: perplexity of models on a text, and how far they are from a reference."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.interrupts import on_interrupt
from edgemoe.cli.json_text import write_json
from edgemoe.cli.text_files import read_text_file
from edgemoe.errors import INTERRUPTED, UsageError


def eval(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Models to evaluate: folders of stores, GGUF files, hub ids of GGUF models, or names. Default: the"
            " bundled model.",
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Text to evaluate on (UTF-8).")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL|RUN", help="Reference: a model, or the run of one that --save has kept."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="RUN", help="Keep the model's distributions as a reference for later runs."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="N",
            help="Keep the N likeliest tokens of each position of a reference, and the rest as one token: less disk,"
            " and a KL divergence that is a lower bound.",
            show_default="the whole vocabulary",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="Tokens of a window.", show_default="512, or the run's"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            help="Tokens that a window scores; the others before them are its context.",
            show_default="half of a window, or the run's",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            metavar="N",
            help="Read only the first N tokens of the text, 150000 at most.",
            show_default="100000, or all of a shorter text",
        ),
    ] = None,
    ram: shared.RamOption = None,
    threads: shared.ThreadsOption = None,
    kv: shared.KvOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw error against bytes (png, svg or pdf).")
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Show models' perplexity on a text and, against a reference, KL divergence and top-1 agreement.

    The text is read in windows that overlap, so that every token is scored once, with context before it. Intervals are
    of 95 %, from how the windows differ. Models run one after another within --ram; the figures are the same, to the
    bit, under every budget. A reference's distributions lie on disk meanwhile; --save keeps a model's.
    """
    if text is None:
        raise UsageError("there is no text: expected --text FILE.", "See edgemoe eval --help.")
    content = read_text_file(text)
    write_figures, write_plot = shared.file_writer(json_file, write_json), _plotter(plot)
    if save is not None:
        shared.check_writable(save)

    from edgemoe.bench.evaluation import Evaluation, Settings
    from edgemoe.cli.terminal.eval_tables import evaluation_tables
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.engine.options import EngineOptions
    from edgemoe.session.stores import find_runnable

    settings = Settings(context, stride, tokens, top)
    options = EngineOptions(ram, threads, kv=kv)
    names: list[str | None] = [*model] if model else [None]
    models = [find_runnable(fetched(name)) for name in names]
    reference = None if against is None else _reference(against)
    with ProgressBar("evaluating", still=True) as bar:
        evaluation = Evaluation(
            content,
            text.name,
            settings,
            options,
            lambda doing, done, total: bar.update(doing, done, total, ""),
            bar.note,
        )
        with on_interrupt(evaluation.stop):
            report = evaluation.run(models, reference, save)
    screen = open_screen()
    for title, rows in evaluation_tables(report):
        screen.table(rows, title)
    write_figures(report)
    if report.models:
        write_plot(report)
    if not report.complete:
        print("interrupted: the figures are of what was read until then.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _reference(against: str) -> Path:
    """The run, or the model, that others are compared with."""
    from edgemoe.bench.saved_run import is_run
    from edgemoe.session.stores import find_runnable

    path = Path(os.path.expanduser(against))  # noqa: PTH111 (it leaves an unknown ~user as it is)
    return path if is_run(path) else find_runnable(fetched(against))


def _plotter(path: Path | None) -> Callable[[Any], None]:
    if path is None:
        return lambda report: None
    from edgemoe.bench.evaluation_plot import draw_evaluation
    from edgemoe.bench.plot import check_plot

    check_plot(path)
    return shared.file_writer(path, draw_evaluation)
