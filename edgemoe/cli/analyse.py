"""`edgemoe analyse`: looks at what a model's routed experts do on a text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.convert import BLAS_THREADS
from edgemoe.cli.fetching import fetched
from edgemoe.cli.json_text import write_json
from edgemoe.cli.text_files import read_text_file
from edgemoe.errors import UsageError

DEFAULT_TOKENS = 4096


def analyse(
    model: shared.ModelArgument = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", metavar="FILE", help="A text (UTF-8); several, each a domain of its own, can be given in turn."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="Read the first N tokens of each.")
    ] = DEFAULT_TOKENS,
    origin: Annotated[
        str | None,
        typer.Option(
            "--origin",
            metavar="upcycled|scratch",
            help="Where the experts come from, if you know: a dense model's FFN, or a random start.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw figures over layers (png, svg or pdf).")
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Show what a model's routed experts do on a text, layer by layer.

    How alike experts are, by their matrices, their outputs and their neurons; whether the router prefers those of
    large outputs; which experts a domain and a token use; and three observations of "A Closer Look into
    Mixture-of-Experts" (arXiv 2406.18219), confirmed or refuted. The text goes through one layer at a time: beside
    1 GiB, memory is that of the embedding or of one layer, whatever the model's size.
    """
    if not text:
        raise UsageError("there is no text: expected --text FILE.", "See edgemoe analyse --help.")
    os.environ.setdefault(BLAS_THREADS, "1")  # read when numpy is first imported; the kernels have threads of their own
    contents = [(file.name, read_text_file(file)) for file in text]
    write_figures = shared.file_writer(json_file, write_json)
    if plot is not None:
        from edgemoe.bench.plot import check_plot

        check_plot(plot)

    from edgemoe.analysis.analyse import analyse as look
    from edgemoe.bench.analysis_plot import draw_analysis
    from edgemoe.cli.terminal.analysis_tables import analysis_tables
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.session.cut_texts import CutTexts
    from edgemoe.session.default_model import model_name
    from edgemoe.session.stores import find_runnable, open_store

    draw = shared.file_writer(plot, draw_analysis)
    path = find_runnable(fetched(model))
    store = open_store(path)
    cut = CutTexts.of(store, contents, tokens)
    with ProgressBar("looking", still=True) as bar:
        report = look(
            store,
            model_name(path),
            cut.windows,
            cut.domains,
            [name for name, _ in contents],
            spell=cut.spell,
            origin=origin,
            progress=lambda done, total: bar.update("looking", done, total, f"layer {done} of {total}"),
        )
    screen = open_screen()
    for title, rows in analysis_tables(report):
        screen.table(rows, title)
    write_figures(report)
    draw(report)
